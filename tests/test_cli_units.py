"""Units on the command line: what can go, one path of both, and a report of what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import bright_images, drawn, write_folder

from gatepruner.files.checkpoints import load, save
from gatepruner.measuring.cost import count
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.groups import reduced, widths_of

GREY = (1, 8, 8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A network whose blocks have widths of 8, `net.pt`, and images for it."""
    notes = {"normalize": {"mean": [0.5], "std": [0.25]}, "classes": ["a", "b", "c", "d"]}
    network = Network.named("residual-fc12,width=8", num_classes=4, input_shape=GREY)
    save(Checkpoint(network, drawn(network.initial_weights()), notes), tmp_path / "net.pt")
    write_folder(tmp_path / "images", bright_images(24, GREY))
    write_folder(tmp_path / "images", bright_images(48, GREY, seed=8), "train")
    return tmp_path


def test_inspect_says_which_channels_can_go_and_why_others_cannot(run, folder):
    widths = widths_of(load(folder / "net.pt").network)
    document = run("inspect", folder / "net.pt", "--units", "--multiple", 2, "--json").document
    assert [width["name"] for width in document["widths"]] == list(widths.found)
    assert document["fixed"] == widths.others
    told = run("inspect", folder / "net.pt", "--units", "--multiple", 2).out
    slices = 3 * len(widths.found)
    assert f"{2 * slices} of {sum(widths.totals.values())} channels can go" in told
    assert all(why in told for why in widths.others.values())
    assert "can go" not in run("inspect", folder / "net.pt").out


def test_one_path_of_both_is_followed_to_a_target(run, folder):
    data = f"imagefolder:{folder / 'images'}"
    gated, small = folder / "gated.pt", folder / "small.pt"
    learn = ("--units", "both", "--multiple", 2, "--warmup", 2, "--steps", 1, "--batch-size", 8)
    told = run("gate", folder / "net.pt", "--data", data, *learn, "-o", gated)
    assert told.code == 0, told
    path = load(gated).path
    blocks, slices = sorted_out(path.blocks)
    assert blocks
    assert slices
    told = run(
        "prune", gated, "--data", data, "--target-macs", "60%", "--recalibrate", 0, "-o", small
    )
    assert told.code == 0, told
    whole, left = load(gated).network, load(small).network
    assert count(left).macs <= 0.6 * count(whole).macs
    plan = load(small).notes["history"][-2]["removed"]
    assert left.edits.narrowed == reduced(whole, plan).edits.narrowed
    assert plan == list(path.blocks[: len(plan)])


def test_compress_with_units_reports_what_is_left_of_each_width(run, folder):
    options = ("--units", "channels", "--multiple", 2, "--gate-warmup", 2, "--gate-steps", 1)
    few = ("--epochs", 0, "--recalibrate", 0, "--hold-out", 0, "--target-params", "90%")
    data = ("--data", f"imagefolder:{folder / 'images'}")
    told = run("compress", folder / "net.pt", *data, *options, *few, "-o", folder / "small.pt")
    assert told.code == 0, told
    network = load(folder / "small.pt").network
    layer, (left, _) = next(pair for pair in network.edits.narrowed if len(pair[1]) > 1)
    report = (folder / "small-compress" / "report.md").read_text()
    assert f"{layer.rpartition('.')[2]} {left} of 8" in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--units", "both", "--multiple", 16), "no inner width above one slice of 16"),
        (("--units", "all"), "'channels'"),
        (("--units", "both", "--multiple", 40), "multiple is 40"),
    ],
)
def test_units_that_cannot_be_learned_are_refused(run, folder, options, message):
    data = ("--data", f"imagefolder:{folder / 'images'}")
    told = run(
        "gate", folder / "net.pt", *data, *options, "--batch-size", 8, "-o", folder / "gated.pt"
    )
    assert told.code != 0
    assert message in " ".join(told.err.split()), told
