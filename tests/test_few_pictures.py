"""From a network and a few pictures without labels to a smaller network."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Callers, bright_images, drawn, files_in, same, write_folder
from PIL import Image
from test_agreement import made, unlabelled
from torch import nn

import gatepruner
from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Compressed
from gatepruner.errors import DataError
from gatepruner.files.checkpoints import load, save
from gatepruner.images.images import Images
from gatepruner.images.readers import load_images
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.goals import Goal
from gatepruner.report.compression import tradeoff_figure, write_compression

SHAPE = (3, 8, 8)
NAMES = ["whole", "gated", "removed", "folded", "chosen", "fine-tuned"]
QUICK = GateRecipe(warmup=2, steps=2)
RECIPE = CompressionRecipe(QUICK, replace(FINE_TUNING, epochs=4), trial=2).fitted(40)


@pytest.fixture(autouse=True)
def _short(monkeypatch) -> None:
    """Trials of two steps, on the command line as well."""
    monkeypatch.setattr(CompressionRecipe, "trial", 2)


@pytest.fixture(autouse=True)
def _clock(monkeypatch) -> None:
    """A clock that tells a network by its parameters."""

    def latency(modules, shape, *, batch=1, device="cpu", runs=30, **others):
        sizes = {name: sum(p.numel() for p in one.parameters()) for name, one in modules.items()}
        return {name: Latency(size, size, size, runs, batch, "cpu") for name, size in sizes.items()}

    monkeypatch.setattr(gatepruner.pruning.meter, "latency", latency)


def pictures(count: int = 50, seed: int = 8) -> Images:
    return unlabelled(bright_images(count, SHAPE, seed=seed))


def compressed(whole: Checkpoint, images: Images, recipe=RECIPE, **options) -> Compressed:
    train, held_out = images.held_out(len(images) // 5, 0)
    options = {"test": held_out, "held_out": held_out, "device": "cpu", **options}
    return compress(whole, train, options.pop("goal", Goal("blocks", 1)), recipe, **options)


@pytest.fixture(scope="module")
def result() -> Compressed:
    with pytest.MonkeyPatch.context() as patch:
        _clock.__wrapped__(patch)
        return compressed(made(), pictures())


def test_fifty_pictures_are_enough(result):
    whole, small = made(), result.checkpoint
    assert [step.name for step in result.steps] == NAMES
    assert small.network.depth == whole.network.depth - 1
    held_out = pictures().held_out(10, 0)[1]
    for step, checkpoint in ((result.steps[0], whole), (result.steps[-1], small)):
        measured = agreement(checkpoint, whole, held_out, device="cpu")
        assert (step.accuracy, step.agreement) == (None, measured.agreement)
        assert step.distance == pytest.approx(measured.distance, abs=1e-6)
        assert (step.low, step.high) == measured.interval
        assert (step.measure, step.share, step.images) == ("agreement", measured.agreement, 10)
    assert result.steps[0].agreement == 1
    assert result.steps[0].distance == 0
    assert result.steps[-1].distance <= result.steps[-2].distance
    assert "classes" not in small.notes
    assert result.configuration["matched"] == "what mean takes (64x2x2)"
    assert small.notes["kept"]["divergence"] >= 0


def test_labels_change_nothing_but_what_is_measured(result):
    labelled = bright_images(50, SHAPE, seed=8)
    other = compressed(made(), labelled)
    assert same(other.checkpoint, result.checkpoint)
    assert [step.agreement for step in other.steps] == [step.agreement for step in result.steps]
    assert all(step.accuracy is not None for step in other.steps)


def test_a_module_of_the_callers_own_is_compressed_to_the_end():
    """Its latency is measured with fresh weights, which only its layers know how to draw."""
    module = Callers()
    module.load_state_dict(drawn(module.state_dict()))
    whole = Checkpoint.of(module.eval(), SHAPE)
    fresh = whole.network.initial_weights(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = nn.Conv2d(3, 8, 3, stride=2).weight
    assert torch.equal(fresh["stem.weight"], expected)
    assert torch.equal(fresh["blocks.0.bn.running_var"], torch.ones(8))
    result = compressed(whole, pictures())
    assert [step.name for step in result.steps] == NAMES
    assert result.checkpoint.network.depth == 2


def test_the_report_shows_agreement_and_distance(result, tmp_path):
    report = write_compression(result, tmp_path).read_text()
    assert "agreement with the whole network 100.00 % before" in report
    assert "accuracy" not in report
    assert "(n = 10)" in report
    last = result.steps[-1]
    row = next(line for line in report.splitlines() if line.startswith("| fine-tuned"))
    titles = next(line for line in report.splitlines() if line.startswith("| step"))
    names, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (titles, row))
    assert cells[names.index("agreement (%)")] == f"{100 * last.agreement:.2f}"
    assert cells[names.index("distance")] == f"{last.distance:.3f}"
    with (tmp_path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy"] for row in rows] == [""] * 6
    assert [float(row["agreement"]) for row in rows] == [step.agreement for step in result.steps]
    assert [float(row["distance"]) for row in rows] == [step.distance for step in result.steps]
    (axes,) = tradeoff_figure(result.steps).axes
    assert axes.get_ylabel() == "agreement with the whole network (%)"
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["steps"][-1]["agreement"] == last.agreement


@pytest.mark.parametrize(
    ("images", "batch"), [(26, 16), (40, 16), (120, 20), (384, 64), (50_000, 64)]
)
def test_batches_fit_the_number_of_images(images, batch):
    """At least six batches of them, unless a batch would have fewer than 16."""
    fitted = CompressionRecipe().fitted(images)
    assert fitted.gating.batch_size == fitted.most_images == batch
    assert fitted == replace(
        CompressionRecipe(),
        gating=replace(GateRecipe(), batch_size=batch),
        tuning=replace(FINE_TUNING, batch_size=min(batch, 64)),
    )
    small = CompressionRecipe(replace(QUICK, batch_size=8), None).fitted(images)
    assert (small.gating.batch_size, small.tuning, small.most_images) == (8, None, 8)


class AskedError(Exception):
    """A step was asked to learn."""


def _asked(monkeypatch, verb: str) -> list[GateRecipe | Recipe]:
    """The recipes that a verb is called with; it learns nothing."""
    asked: list[GateRecipe | Recipe] = []

    def ask(checkpoint, images, recipe, **options):
        asked.append(recipe)
        raise AskedError

    monkeypatch.setattr(f"gatepruner.compression.steps.{verb}", ask)
    return asked


def test_the_default_recipe_fits_the_number_of_images(monkeypatch):
    asked = _asked(monkeypatch, "learn_gates")
    with pytest.raises(AskedError):
        compressed(made(), pictures(), None)
    assert asked[0].batch_size == 16


def test_too_few_pictures_are_refused():
    told = "cannot compress with 31 images of made up: expected at least 32; add some, they need no"
    with pytest.raises(DataError, match=told):
        compressed(made(), pictures(31))
    assert compressed(made(), pictures(32), replace(RECIPE, tuning=None)).removed


def test_pictures_that_are_all_alike_are_refused(tmp_path):
    one = pictures(1)
    alike = one.take(torch.zeros(40, dtype=torch.int64))
    told = "cannot learn from made up: all its 32 images are equal; expected different ones"
    with pytest.raises(DataError, match=told):
        compressed(made(), alike)
    assert alike.alike
    pixels = alike.pixels.clone()
    pixels[-1, 0, 0, 0] += 1
    assert not replace(alike, pixels=pixels).alike
    for index in range(3):
        Image.new("RGB", (8, 8), (index // 2, 0, 0)).save(tmp_path / f"{index}.png")
    files = tuple(str(tmp_path / f"{index}.png") for index in range(3))
    assert replace(alike, pixels=None, files=files, labels=torch.full((3,), -1)).alike is True
    files = (files[0], files[2])
    assert replace(alike, pixels=None, files=files, labels=torch.full((2,), -1)).alike is False


def test_a_goal_of_loss_needs_labels():
    told = "made up has no labels, and a goal of loss needs them: give the blocks to remove or a"
    with pytest.raises(DataError, match=told):
        compressed(made(), pictures(), goal=Goal("loss", 1))


def test_a_network_without_batch_norm_has_nothing_to_recalibrate(callers):
    """The step is there and changes nothing, and the report says why; the rest works as ever."""
    for block in callers.blocks:
        block.bn = torch.nn.Identity()
    recipe = replace(RECIPE, tuning=replace(RECIPE.tuning, epochs=1), hold_out=0)
    result = compressed(Checkpoint.of(callers, SHAPE), pictures(50), recipe, held_out=None)
    assert result.configuration["recalibration"] == "none: the network has no batch norm"
    assert [step.name for step in result.steps] == NAMES
    folded, recalibrated = result.steps[3:5]
    assert (folded.agreement, folded.distance) == (recalibrated.agreement, recalibrated.distance)
    assert len(result.removed) == 1


# ------------------------------------------------------------------------------- the command line


@pytest.fixture
def folder(tmp_path) -> Path:
    """A network and fifty pictures."""
    save(made(), tmp_path / "whole.pt")
    write_folder(tmp_path, bright_images(50, SHAPE, seed=8), "pictures")
    return tmp_path


def command(verb: str, folder: Path, *more: object, data: str = "pictures") -> tuple:
    given = ("--data", f"pictures:{folder / data}", "--device", "cpu")
    return (verb, folder / "whole.pt", *given, *more)


FAST = ("--gate-warmup", 2, "--gate-steps", 2, "--epochs", 4, "--drop", 1)


def test_compress_runs_on_pictures(run, folder):
    told = run(*command("compress", folder, *FAST, "-o", folder / "small.pt"))
    assert told.code == 0, told.err
    assert "holding out 10 of 50 training images, at most a fifth" in told.out
    assert re.search(r"has no other images: agreement is measured on 10 of", told.out)
    assert "accuracy" not in told.out
    assert re.search(r"fine-tuned: 2 blocks, [\d,]+ MACs, agreement [\d.]+ %", told.out)
    images = load_images(f"pictures:{folder / 'pictures'}", SHAPE, split="train")
    expected = compressed(load(folder / "whole.pt"), images)
    assert same(load(folder / "small.pt"), expected.checkpoint)
    document = json.loads((folder / "small-compress" / "report.json").read_text())
    assert document["steps"][-1]["agreement"] == expected.steps[-1].agreement
    assert document["configuration"]["gates, batch size"] == 16


def test_pictures_of_a_test_split_are_what_agreement_is_measured_on(run, folder):
    (folder / "split").mkdir()
    (folder / "pictures").rename(folder / "split" / "train")
    write_folder(folder / "split", bright_images(12, SHAPE, seed=9), "test")
    options = (*FAST, "--epochs", 0, "-o", folder / "small.pt", "--json")
    document = run(*command("compress", folder, *options, data="split")).document
    assert {step["images"] for step in document["steps"]} == {12}
    assert document["configuration"]["fine-tuning, epochs"] == 0


def test_what_compress_matches_can_be_chosen(run, folder, monkeypatch):
    asked = _asked(monkeypatch, "finetune")
    for words, match in (((), "features"), (("--match", "both"), "both")):
        options = ("--force", "-o", folder / "small.pt", *words)
        with pytest.raises(AskedError):
            run(*command("compress", folder, *FAST, *options))
        assert asked[-1].match == match
    options = (*FAST, "-o", folder / "other.pt", "--match", "answers")
    assert run(*command("compress", folder, *options)).code == 2


BAD = {
    "few": (("--limit", 100), 31, "cannot compress with 31 images of .*: expected at least 32"),
    "alike": ((), 0, "all its 32 images are equal; expected different ones"),
    "loss": (("--max-loss", 1), 50, "has no labels, and a goal of loss needs them"),
}


@pytest.mark.parametrize("case", BAD)
def test_pictures_that_do_not_do_are_refused_in_one_line(run, folder, case):
    options, count, message = BAD[case]
    images = bright_images(count, SHAPE) if count else bright_images(1, SHAPE)
    images = images if count else images.take(torch.zeros(40, dtype=torch.int64))
    write_folder(folder, images, "bad")
    goal = () if "--max-loss" in options else ("--drop", 1)
    before = files_in(folder)
    for dry in ((), ("--dry-run",)):
        more = (*options, *goal, "-o", folder / "small.pt", *dry, "--json")
        told = run(*command("compress", folder, *more, data="bad"))
        assert told.code == 1
        (line,) = json.loads(told.out)["error"]["messages"]
        assert re.search(message, line), line
        assert files_in(folder) == before


def test_prune_reports_agreement_where_there_are_no_labels(run, folder):
    options = ("--by", "depth", "--drop", 1, "--recalibrate", 50, "--json")
    document = run(*command("prune", folder, *options)).document
    whole, small = load(folder / "whole.pt"), load(document["output"])
    images = load_images(f"pictures:{folder / 'pictures'}", SHAPE)
    measured = agreement(small, whole, images, device="cpu")
    assert measured.to_json().items() <= document.items()
    assert document["images"] == 50
    assert not {"accuracy_before", "accuracy_after"} & document.keys()
    told = run(*command("prune", folder, *options[:-1], "--force"))
    assert re.search(r"agreement with the whole network: [\d.]+ % \(95 % interval", told.out)
    dry = run(*command("prune", folder, *options, "--force", "--dry-run")).document
    assert "measure agreement on 50 images" in [step["step"] for step in dry["steps"]]


def test_prune_says_if_recalibration_does_harm(run, folder):
    """Without a block that adds nothing, the network is the whole one; other statistics are not."""
    whole = made()
    weights = {
        key: torch.zeros_like(tensor)
        if key.startswith("layer1.0.bn2.") and "running" not in key
        else tensor
        for key, tensor in whole.weights.items()
    }
    save(replace(whole, weights=weights), folder / "whole.pt", force=True)
    options = ("--blocks", "layer1.0", "--force")
    told = run(*command("prune", folder, *options))
    assert "takes the network away from the whole one (distance 0.000 before, " in told.out
    kept = run(*command("prune", folder, *options, "--recalibrate", 0))
    assert "takes the network away" not in kept.out
    assert "100.00 %" in kept.out


def test_prune_refuses_what_needs_labels_before_anything_else(run, folder):
    write_folder(folder / "many", bright_images(12, SHAPE, classes=3), "test")
    before = files_in(folder)
    for data, options, message in (
        (f"pictures:{folder / 'pictures'}", ("--max-loss", 1), "has no labels"),
        (f"imagefolder:{folder / 'many'}", ("--drop", 1), "has 3 classes: resnet8 has 4"),
    ):
        told = run("prune", folder / "whole.pt", "--by", "depth", "--data", data, *options)
        assert told.code == 1
        assert message in told.err
        assert files_in(folder) == before


def test_training_from_scratch_needs_labels(run, folder, recwarn):
    data = ("--data", f"pictures:{folder / 'pictures'}", "--input-size", 8, "--batch-size", 16)
    told = run("train", "gated-resnet8", *data, "-o", folder / "new.pt", "--device", "cpu")
    assert told.code == 1
    assert re.fullmatch(r"error: pictures:\S+ has no labels: .*imagefolder:DIR\n", told.err)
    assert not recwarn.list


def test_finetune_needs_labels_only_without_a_teacher(run, folder):
    options = ("--epochs", 1, "--batch-size", 16, "--hold-out", 10, "--json")
    alone = run(*command("finetune", folder, *options[:-1]))
    assert alone.code == 1
    assert "has no labels" in alone.err
    taught = run(*command("finetune", folder, *options, "--teacher", folder / "whole.pt")).document
    assert taught["accuracy"] is None
    assert taught["validation"] is None
    assert taught["agreement"] == 1
    assert taught["kept"] == {"step": 0, "agreement": 1, "divergence": 0, "distance": 0}
    assert same(load(taught["output"]), load(folder / "whole.pt"))


def test_commands_say_what_is_matched_and_tried(run, folder):
    what, teacher = "what mean takes (64x2x2)", ("--teacher", folder / "whole.pt")
    options = ("--epochs", 1, "--batch-size", 16, *teacher, "--force")
    assert (
        f"matching {what} of the teacher resnet8\n"
        in run(*command("finetune", folder, *options)).out
    )
    document = run(*command("finetune", folder, *options, "--match", "both", "--json")).document
    assert document["matched"] == f"{what} and logits"
    quick = ("--warmup", 1, "--steps", 1, "--batch-size", 16, "--blocks", 1, "--force")
    told = run(*command("gate", folder, *quick, "--match", "features"))
    assert f"matching {what} of the whole network\n" in told.out
    assert "matching" not in run(*command("gate", folder, *quick)).out
    told = run(*command("compress", folder, "--drop", 1, *FAST, "-o", folder / "small.pt"))
    assert re.search("trying sgd, .* for 2 steps\n(.*\n)*trying adam, .* for 2 steps\n", told.out)


def test_finetune_that_ends_in_nan_says_which_state_it_wrote(run, folder):
    options = ("--epochs", 2, "--batch-size", 16, "--hold-out", 10, "--learning-rate", 1e30)
    told = run(*command("finetune", folder, *options, "--teacher", folder / "whole.pt"))
    assert told.code == 0, told.err
    assert "(state of step 0, agreement 100.00 % on held-out images)" in told.out
    assert (folder / "whole-finetuned.pt.history.jsonl").read_text() == ""


def test_a_teacher_of_another_shape_is_refused_with_the_option_to_pass(run, folder):
    save(made("wrn-10-2"), folder / "wide.pt")
    options = ("--teacher", folder / "wide.pt", "--epochs", 1, "--batch-size", 16)
    told = run(*command("finetune", folder, *options))
    assert told.code == 1
    assert "match its logits instead; pass --match logits" in told.err
    assert run(*command("finetune", folder, *options, "--match", "logits")).code == 0


@pytest.mark.parametrize(("asked", "held"), [(1000, 10), (10, 10), (11, 10), (4, 4), (0, 0)])
def test_gate_holds_out_a_fifth_at_most_and_says_so(run, folder, asked, held):
    options = ("--warmup", 2, "--steps", 2, "--batch-size", 16, "--blocks", 1)
    told = run(*command("gate", folder, *options, "--hold-out", asked))
    assert told.code == 0, told.err
    assert load(folder / "whole-gated.pt").notes["history"][-1]["images"] == 50 - held
    said = "holding out 10 of 50 training images, at most a fifth" in told.out
    assert said == (asked > held)
