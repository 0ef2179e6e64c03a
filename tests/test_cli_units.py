"""Units on the command line: what can go, one path of both, and a report of what is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import bright_images, drawn, random_images, write_folder

from gatepruner.cli.options import Data
from gatepruner.errors import PlanError
from gatepruner.files.checkpoints import load, save
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.measuring.cost import count
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.groups import reduced, widths_of
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import remove

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
    whole_path = ("prune", gated, "--drop", len(path), "-o", small, "--dry-run")
    assert (
        f"would remove {len(blocks)} of 6 blocks and {len(slices)} slices" in run(*whole_path).out
    )
    told = run(
        "prune", gated, "--data", data, "--target-macs", "60%", "--recalibrate", 0, "-o", small
    )
    assert told.code == 0, told
    whole, left = load(gated).network, load(small).network
    assert count(left).macs <= 0.6 * count(whole).macs
    plan = load(small).notes["history"][-2]["removed"]
    assert left.edits.narrowed == reduced(whole, plan).edits.narrowed
    assert plan == list(path.blocks[: len(plan)])


def test_inspect_and_prune_say_what_went_in_lines_of_a_terminal(run, folder):
    widths = widths_of(load(folder / "net.pt").network).found
    cut = [f"{name}[{some}]" for name in widths for some in ("0-1", "4,6-7")]
    gone = ",".join((*cut[:-2], list(widths)[-1] + "[0]"))
    small = folder / "small.pt"
    pruned = run("prune", folder / "net.pt", "--blocks", gone, "-o", small)
    assert pruned.code == 0, pruned
    told = run("inspect", small)
    text = told.out[told.out.index("history") :]
    for said in (pruned.out, text):
        counts = dict(re.findall(r"(\S+\.linear1) (\d+)\b", said))
        assert counts == dict.fromkeys(widths, "5") | {list(widths)[-1]: "1"}
        lines = said[said.index("channels removed") :].splitlines()[: len(widths) // 2]
        assert max(map(len, lines)) < 80
    document = run("inspect", small, "--json").document
    assert document["notes"] == load(small).notes
    assert sorted(sorted_out(document["notes"]["history"][0]["removed"])[1], key=str)


def test_inspect_says_what_a_path_has(run, folder):
    recipe = GateRecipe(units="both", multiple=2, warmup=1, steps=1, batch_size=8)
    gated = learn_gates(load(folder / "net.pt"), random_images(16, GREY, 4), recipe)
    save(gated, folder / "gated.pt")
    blocks, slices = sorted_out(gated.path.blocks)
    told = run("inspect", folder / "gated.pt")
    assert f"path: {len(blocks)} blocks and {len(slices)} slices of channels" in told.out
    document = run("inspect", folder / "gated.pt", "--json").document
    assert document["path"] == gated.path.records


@pytest.fixture
def by_channels(folder) -> Path:
    """A network with a path of slices alone."""
    recipe = GateRecipe(units="channels", multiple=2, warmup=1, steps=1, batch_size=8)
    gated = learn_gates(load(folder / "net.pt"), random_images(16, GREY, 4), recipe)
    return save(gated, folder / "channels.pt")


def test_a_path_of_channels_alone_is_not_continued_with_blocks(run, folder, by_channels):
    gated, small = load(by_channels), folder / "small.pt"
    least = count(reduced(gated.network, gated.path.blocks))
    assert rank(gated).names == gated.path.blocks
    told = run("prune", by_channels, "--target-macs", least.macs, "-o", small)
    assert told.code == 0, told
    assert load(small).network.depth == gated.network.depth
    whole = gated.network.removable
    beyond = {
        ("--target-macs", least.macs - 1): "by removing channels alone; choose a target within",
        ("--target-params", "1%"): "by removing channels alone; choose a target within",
        ("--target-latency", "1%"): "eager takes the rest without any of its removable units;",
        ("--drop", len(gated.path) + 1): f"cannot remove {len(gated.path) + 1} units: ",
        ("--keep", 99): f"cannot keep 99 units: gated-residual-fc12 has {len(gated.path)} ",
    }
    assert len(whole) < len(gated.path)
    for options, message in beyond.items():
        told = run("prune", by_channels, *options, "-o", folder / "none.pt")
        assert told.code == 1
        assert len(told.err.strip().splitlines()) == 1
        assert message in told.err


def test_a_sweep_follows_a_path_of_units_to_its_end(run, folder, by_channels):
    path = load(by_channels).path
    data = ("--data", f"imagefolder:{folder / 'images'}", "--recalibrate", 0)
    options = (*data, "--engine", "eager", "--step", 2, "-o", folder / "report")
    said = run("sweep", by_channels, *options, "--dry-run").out
    assert "without random, whose orders are of blocks alone" in said
    told = run("sweep", by_channels, *options, "--json")
    (order,) = told.document["orders"]
    removed = [point["removed"] for point in order["runs"][0]]
    assert removed == sorted({*path.turns[::2], len(path)})
    assert len(told.document["block_times"][0]["measured"]) > 0
    told = run("sweep", by_channels, *data, "--by", "depth", "-o", folder / "depth", "--json")
    assert [point["removed"] for point in told.document["orders"][0]["runs"][0]] == [*range(7)]


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


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_target_that_channels_alone_cannot_reach_is_refused(run, folder, dry):
    data = ("--data", f"imagefolder:{folder / 'images'}", "--hold-out", 0)
    some = (*data, "--multiple", 2, "--target-macs", "30%", "-o", folder / "small.pt", *dry)
    told = run("compress", folder / "net.pt", *some, "--units", "channels")
    assert told.code == 1
    (line,) = told.err.strip().splitlines()
    assert "can cost " in line
    assert "by removing channels alone; choose a target within this range, or learn a path" in line
    assert not (folder / "small-compress").exists()


@pytest.mark.parametrize("units", ["channels", "both"])
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_number_of_blocks_is_no_goal_where_channels_are_removed(
    run, folder, units, dry, monkeypatch
):
    monkeypatch.setattr(Data, "kept", lambda *_: pytest.fail("images are decoded"))
    data = ("--data", f"imagefolder:{folder / 'images'}", "--hold-out", 0)
    some = (*data, "--units", units, "--multiple", 2, *dry, "-o", folder / "small.pt")
    for number in (1, 99):
        told = run("compress", folder / "net.pt", *some, "--drop", number)
        assert told.code == 1
        (line,) = told.err.strip().splitlines()
        assert f"cannot remove {number} blocks where the units are {units}" in line
        assert "choose a cost to reach, a loss to stay within, or blocks alone" in line
    assert not (folder / "small-compress").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--units", "both", "--multiple", 16), "no inner width above one slice of 16"),
        (("--units", "all"), "'channels'"),
        (("--units", "both", "--multiple", 40), "multiple is 40"),
        (("--blocks", 7), "cannot remove 7 blocks: gated-residual-fc12 has only 6"),
        (("--cost", "latency", "--engine", "tensorrt"), "the engine tensorrt needs"),
    ],
)
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_units_that_cannot_be_learned_are_refused(run, folder, options, message, dry):
    data = ("--data", f"imagefolder:{folder / 'images'}", *dry)
    told = run(
        "gate", folder / "net.pt", *data, *options, "--batch-size", 8, "-o", folder / "gated.pt"
    )
    assert told.code != 0
    assert message in " ".join(told.err.split()), told


LAYER = "blocks.0.branch.linear1"
REFUSED = {
    "no such channel": (
        f"{LAYER}[0-8]",
        f"cannot cut out what does not exist: {LAYER} has 8 channels",
    ),
    "all of a width": (f"{LAYER}[0-4],{LAYER}[5-7]", f"all channels of {LAYER}.*remove the block"),
    "no channels": (f"{LAYER}[]", r"cannot read .*linear1\[\]'.*: expected channels as in layer1"),
    "letters": (f"{LAYER}[a]", r"cannot read .*linear1\[a\]'.*: expected channels as in layer1"),
    "open": (f"{LAYER}[0-3", r"cannot read .*linear1\[0-3'.*: expected channels as in layer1"),
    "far beyond": (f"{LAYER}[0-9999999]", "expected at most 1,048,576 channels"),
    "backwards": (f"{LAYER}[3-1]", "expected ascending channels as in layer1"),
    "no width": (
        "blocks.0.branch.linear2[0-3]",
        "linear2 .*shared by layers outside of one branch",
    ),
    "no layer": (
        "blocks.9.linear1[0-3]",
        r"blocks\.9\.linear1\[0-3\].* has no such layer; `inspect",
    ),
    "neither": ("blocks.0,head[1]", r"cannot narrow head \(no other layer reads them\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_slices_that_cannot_go_are_refused(run, folder, case):
    units, message = REFUSED[case]
    told = run("prune", folder / "net.pt", "--blocks", units, "-o", folder / "small.pt")
    assert told.code == 1
    assert len(told.err.strip().splitlines()) == 1
    assert re.search(message, told.err), told.err
    assert not (folder / "small.pt").exists()
    names = re.findall(r"[^,\[]+(?:\[[^\]]*\]?)?", units)
    with pytest.raises(PlanError, match=message):
        remove(load(folder / "net.pt"), names)


def test_slices_are_named_on_the_command_line_as_they_are_printed(run, folder):
    names = [f"{LAYER}[0-1,4,6-7]", "blocks.1", "blocks.2.branch.linear1[3,5]"]
    told = run("prune", folder / "net.pt", "--blocks", ", ".join(names), "-o", folder / "small.pt")
    assert told.code == 0, told
    expected = remove(load(folder / "net.pt"), names).network
    assert load(folder / "small.pt").network.edits == expected.edits


@pytest.mark.parametrize("units", ["channels", "both"])
def test_without_torch_pruning_a_command_says_how_to_install_it(run, folder, monkeypatch, units):
    monkeypatch.setattr("gatepruner.pruning.dependencies.LEAST_VERSION", (99, 0))
    widths_of.cache_clear()
    data = ("--data", f"imagefolder:{folder / 'images'}", "--batch-size", 8)
    asked = (
        ("gate", folder / "net.pt", *data, "--units", units, "-o", folder / "gated.pt"),
        ("inspect", folder / "net.pt", "--units"),
        ("prune", folder / "net.pt", "--blocks", f"{LAYER}[0-3]", "-o", folder / "small.pt"),
    )
    for command in asked:
        told = run(*command)
        assert told.code == 1
        message = "needs torch-pruning 99.0 or later, found"
        assert message in told.err
        assert "pip install -U 'gatepruner[channels]'" in told.err
