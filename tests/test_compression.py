"""compress in the library: each step is the verb it stands for, and nothing is done twice."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import bright_images, drawn, same

from gatepruner import processes
from gatepruner.compression.compress import compress, refuse
from gatepruner.compression.folder import STEPS
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.errors import CheckpointError, DataError, GatePrunerError, PlanError, TrainingError
from gatepruner.files.checkpoints import load
from gatepruner.images.images import Images
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.moments import GateMoment, Moment
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe
from gatepruner.learning.training import finetune
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.cost import count
from gatepruner.measuring.latency import Latency
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning import meter as meter_module
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.goals import Goal, Reach
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, prune

SHAPE = (3, 8, 8)
GATING = GateRecipe(warmup=3, steps=2, batch_size=16)
RECIPE = CompressionRecipe(
    GATING,
    replace(FINE_TUNING, epochs=2, batch_size=16),
    gate_images=40,
    recalibrate=30,
    hold_out=0,
)
DROP = Goal("blocks", 2)
NAMES = ["whole", "gated", "removed", "folded", "chosen", "fine-tuned"]


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    network = Network.named("resnet14", num_classes=4, input_shape=SHAPE)
    notes = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    return Checkpoint(network, drawn(network.initial_weights(0)), notes)


@pytest.fixture(scope="module")
def train() -> Images:
    return bright_images(48, SHAPE)


@pytest.fixture(scope="module")
def test() -> Images:
    return bright_images(24, SHAPE, seed=9)


@pytest.fixture(scope="module")
def held_out() -> Images:
    return bright_images(32, SHAPE, seed=11)


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> list[list[str]]:
    """A clock that tells a network by its parameters; what it was asked is kept."""
    asked: list[list[str]] = []

    def latency(modules, shape, *, batch=1, device="cpu", runs=30, **others):
        asked.append(list(modules))
        sizes = {name: sum(p.numel() for p in one.parameters()) for name, one in modules.items()}
        return {
            name: Latency(1e-6 * size, 0.9e-6 * size, 1.1e-6 * size, runs, batch, str(device))
            for name, size in sizes.items()
        }

    monkeypatch.setattr(meter_module, "latency", latency)
    return asked


def compressed(whole, train, test, goal, recipe=RECIPE, **options) -> Compressed:
    return compress(whole, train, goal, recipe, **{"test": test, "device": "cpu", **options})


@pytest.fixture(scope="module")
def kept(whole, train, test, tmp_path_factory) -> tuple[Compressed, Path, list]:
    """A compression to two blocks less, the folder that keeps it, and what it said."""
    folder, seen = tmp_path_factory.mktemp("kept") / "new", []
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(meter_module, "latency", _still)
        result = compressed(whole, train, test, Goal("blocks", 2), folder=folder, watch=seen.append)
    return result, folder, seen


def _still(modules, shape, *, batch=1, device="cpu", runs=30, **others):
    sizes = {name: sum(p.numel() for p in one.parameters()) for name, one in modules.items()}
    return {name: Latency(size, size, size, runs, batch, "cpu") for name, size in sizes.items()}


def test_every_step_is_the_verb_it_stands_for(kept, whole, train, test):
    result, folder, _ = kept
    gated = learn_gates(whole, train.spread(40), replace(GATING, blocks=2), device="cpu")
    removed = prune(gated, rank(gated), 2)
    folded = fold_gates(removed)
    augmented = load(folder / "chosen.pt").notes["history"][-1]["augmented"]
    recalibrated = recalibrate(folded, train.spread(30), device="cpu", augment=augmented)
    tuned = finetune(recalibrated, train, RECIPE.tuning, teacher=whole, device="cpu")
    made = [whole, gated, removed, folded, recalibrated, tuned]
    assert [record.name for record in result.steps] == NAMES
    for record, expected in zip(result.steps, made, strict=True):
        assert same(load(folder / f"{record.name}.pt"), expected)
        measured, cost = accuracy(expected, test, device="cpu"), count(expected.network)
        assert record.accuracy == measured.accuracy
        assert (record.low, record.high) == measured.interval
        assert (record.images, record.blocks) == (24, expected.network.depth)
        assert (record.params, record.macs) == (cost.params, cost.macs)
        assert record.latency == sum(p.numel() for p in expected.build().parameters())
    assert same(result.checkpoint, tuned)
    assert set(result.removed) == set(gated.path.blocks)


def test_what_happens_is_told_as_it_comes_up(kept):
    _, _, seen = kept
    kinds = [type(event) for event in seen]
    assert kinds.count(StepRecord) == len(NAMES)
    assert {GateMoment, Moment, Reach, StepRecord} == set(kinds)
    assert next(event for event in seen if isinstance(event, Reach)).removed == 2


def test_without_a_folder_nothing_is_kept_and_the_result_is_the_same(
    kept, whole, train, test, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = compressed(whole, train, test, Goal("blocks", 2))
    assert same(result.checkpoint, kept[0].checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_steps_that_are_not_wanted_are_left_out(whole, train, test):
    recipe = replace(RECIPE, tuning=None, recalibrate=0)
    result = compressed(whole, train, test, Goal("blocks", 1), recipe)
    assert [record.name for record in result.steps] == NAMES[:4]


@pytest.mark.parametrize(
    "goal", [Goal("macs", 0.7, True), Goal("params", 0.5, True), Goal("latency", 0.6, True)]
)
def test_a_cost_is_reached_with_as_few_blocks_as_the_order_allows(
    whole, train, test, goal, clock, tmp_path
):
    recipe = replace(RECIPE, tuning=None)
    result = compressed(whole, train, test, goal, recipe, folder=tmp_path / "new")
    first, last = result.steps[0], result.steps[-1]
    assert getattr(last, goal.kind) <= goal.amount * getattr(first, goal.kind)
    path = load(tmp_path / "new" / "gated.pt").path.blocks
    removed = [block for block in path if block in result.removed]
    assert removed == list(path[: len(removed)])
    one_less = whole.network.without(removed[:-1])
    if goal.kind != "latency":
        assert getattr(count(one_less), goal.kind) > goal.amount * getattr(first, goal.kind)
    whole_key = clock[0][0]
    measured = [key for keys in clock[1::2] for key in keys if key != whole_key]
    assert len(measured) == len(set(measured))  # each network's latency once
    assert len({record.latency for record in result.steps if record.name != "gated"}) == 3


def test_a_loss_is_kept_within_by_the_recalibrated_network(whole, train, test, held_out, tmp_path):
    recipe = replace(RECIPE, tuning=None)
    goal = Goal("loss", 12.5)
    folder = tmp_path / "new"
    result = compressed(whole, train, test, goal, recipe, held_out=held_out, folder=folder)
    gated = load(folder / "gated.pt")
    points = sweep(gated, held_out, rank(gated), statistics=train.spread(30), device="cpu")
    accuracies = [point.accuracy.accuracy for point in points]
    allowed = [at for at, one in enumerate(accuracies) if one >= accuracies[0] - 0.125]
    assert len(result.removed) == max(allowed)


@pytest.mark.parametrize(
    "where", ["learning 2", "learning 6", "fold_gates", "recalibrate", "finetune 3"]
)
def test_a_compression_that_was_stopped_is_resumed_to_the_same_network(
    kept, whole, train, test, tmp_path, monkeypatch, where
):
    folder = tmp_path / "new"
    name, _, number = where.partition(" ")
    with monkeypatch.context() as patch:
        _stop(patch, name, int(number or 0))
        with pytest.raises((KeyboardInterrupt, InterruptedError)):
            compressed(whole, train, test, Goal("blocks", 2), folder=folder)
    result = compressed(whole, train, test, Goal("blocks", 2), folder=folder, resume=True)
    assert same(result.checkpoint, kept[0].checkpoint)
    assert not list(folder.glob("*.state"))
    assert [record.name for record in result.steps] == NAMES


def test_a_compression_of_a_callers_module_is_resumed(train, test, tmp_path, monkeypatch, callers):
    callers.head = torch.nn.Linear(8, 4)
    begun = Checkpoint.of(callers, SHAPE)
    with monkeypatch.context() as patch:
        _stop(patch, "finetune", 3)
        with pytest.raises(KeyboardInterrupt):
            compressed(begun, train, test, DROP, folder=tmp_path / "new")
    again = Checkpoint.of(callers, SHAPE)
    result = compressed(again, train, test, DROP, folder=tmp_path / "new", resume=True)
    whole = compressed(begun, train, test, DROP, folder=tmp_path / "whole")
    assert result.removed == whole.removed
    assert all(
        torch.equal(result.checkpoint.weights[key], tensor)
        for key, tensor in whole.checkpoint.weights.items()
    )


def _stop(patch, name: str, number: int) -> None:
    """Stop in a step of learning by a signal, or in another verb as by a kill."""
    if number:
        kind = torch.optim.Adam if name == "learning" else torch.optim.SGD
        step, calls = kind.step, []

        def stepping(*args, **options):
            calls.append(1)
            if len(calls) == number:
                signal.raise_signal(signal.SIGINT)
            return step(*args, **options)

        patch.setattr(kind, "step", stepping)
        return

    def stopping(*args, **options):
        raise InterruptedError

    patch.setattr(f"gatepruner.compression.steps.{name}", stopping)


def test_what_is_done_is_not_done_again(kept, whole, train, test, monkeypatch):
    result, folder, _ = kept
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def never(*args, **options):
        raise AssertionError

    for verb in ("learn_gates", "prune", "fold_gates", "recalibrate", "finetune"):
        monkeypatch.setattr(f"gatepruner.compression.steps.{verb}", never)
    again = compressed(whole, train, test, Goal("blocks", 2), folder=folder, resume=True)
    assert again.steps == result.steps
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_request_is_not_resumed_and_what_differs_is_named(kept, whole, train, test):
    _, folder, _ = kept
    recipe = replace(RECIPE, gating=replace(GATING, batch_size=8))
    told = r"goal was drop2, is now drop3; gates, batch size was 16, is now 8"
    with pytest.raises(CheckpointError, match=told):
        compressed(whole, train, test, Goal("blocks", 3), recipe, folder=folder, resume=True)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 2.0), ("batch_size", 8), ("weight_decay", 0.0)]
)
def test_another_recipe_of_fine_tuning_is_another_request(kept, whole, train, test, field, value):
    recipe = replace(RECIPE, tuning=replace(RECIPE.tuning, **{field: value}))
    with pytest.raises(CheckpointError, match=rf"fine-tuning, {field.replace('_', ' ')} was .*"):
        compressed(whole, train, test, DROP, recipe, folder=kept[1], resume=True)


def test_images_are_held_out_where_none_are_given(whole, train, test):
    """The result is that of the same images held out by hand."""
    recipe = replace(RECIPE, hold_out=1000, trial=0)
    result = compressed(whole, train, test, DROP, recipe)
    rest, held_out = train.held_out(9, 0)
    by_hand = compressed(whole, rest, test, DROP, recipe, held_out=held_out)
    assert same(result.checkpoint, by_hand.checkpoint)
    assert result.checkpoint.notes["kept"] == by_hand.checkpoint.notes["kept"]


def test_other_held_out_images_are_another_request(kept, whole, train, test):
    """What is chosen is chosen on them."""
    with pytest.raises(CheckpointError, match="held-out images was None, is now made up, 24, "):
        compressed(whole, train, test, DROP, folder=kept[1], held_out=test, resume=True)


def test_a_folder_with_something_else_in_it_is_left_alone(kept, whole, train, test, tmp_path):
    _, folder, _ = kept
    (tmp_path / "mine.txt").write_text("mine")
    for there, told in ((folder, "contains a compression"), (tmp_path, "is not empty")):
        with pytest.raises(CheckpointError, match=told):
            compressed(whole, train, test, Goal("blocks", 2), folder=there)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"steps": 3, "configuration": {}, "facts": {}}'])
def test_a_damaged_record_is_refused(whole, train, test, tmp_path, text):
    (tmp_path / STEPS).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        compressed(whole, train, test, Goal("blocks", 2), folder=tmp_path, resume=True)


def test_resuming_where_nothing_was_done_begins(kept, whole, train, test, tmp_path):
    result = compressed(whole, train, test, Goal("blocks", 2), folder=tmp_path / "x", resume=True)
    assert same(result.checkpoint, kept[0].checkpoint)


def test_all_that_is_wrong_is_told_at_once(whole, train, test, tmp_path):
    few, other = train.take(torch.arange(5)), bright_images(8, (3, 9, 9))
    with pytest.raises(GatePrunerError) as told:
        compressed(whole, few, other, Goal("loss", 1), folder=tmp_path / "new")
    for text in ("has 5 images", "made up has images of (3, 9, 9)", "held-out"):
        assert text in str(told.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("goal", "options", "error", "text"),
    [
        (Goal("blocks", 7), {}, PlanError, "cannot remove 7 blocks"),
        (Goal("blocks", 0), {}, PlanError, "cannot remove 0 blocks"),
        (Goal("macs", 0.01, True), {}, PlanError, "cannot reach"),
        (Goal("loss", 1), {}, DataError, "held-out"),
        (DROP, {"held_out": bright_images(8, (3, 9, 9))}, DataError, "images of .3, 9, 9."),
        (DROP, {"recipe": replace(RECIPE, recalibrate=1)}, DataError, "recalibrate on 1 image"),
        (
            DROP,
            {"recipe": replace(RECIPE, gate_images=15)},
            DataError,
            "learn gates from 15 images",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_learned(
    whole, train, test, tmp_path, goal, options, error, text
):
    with pytest.raises(error, match=text):
        compressed(whole, train, test, goal, folder=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_report_of_the_folder_can_be_read_by_anyone(kept):
    result, folder, _ = kept
    document = json.loads((folder / STEPS).read_text())
    assert [step["name"] for step in document["steps"]] == NAMES
    assert document["configuration"]["goal"] == "drop2"
    assert result.configuration["device"].startswith("cpu (")


def test_learning_that_fails_keeps_the_steps_before_it(whole, train, test, tmp_path):
    steep = replace(RECIPE, gating=replace(GATING, learning_rate=1e30, norm_learning_rate=1e30))
    with pytest.raises(TrainingError):
        compressed(whole, train, test, Goal("blocks", 2), steep, folder=tmp_path / "new")
    result = compressed(whole, train, test, Goal("blocks", 2), folder=tmp_path / "new", resume=True)
    assert [record.name for record in result.steps] == NAMES


@pytest.mark.parametrize(
    ("recalibrate", "count", "problem"),
    [
        (1, 1, "cannot recalibrate on 1 image: expected at least 2, or 0"),
        (2, 3, "cannot recalibrate on 2 images: expected at least 3, one for each process, or 0"),
        (3, 3, None),
        (0, 3, None),
    ],
)
def test_too_few_images_to_recalibrate_on_are_refused_first(
    whole, train, monkeypatch, recalibrate, count, problem
):
    monkeypatch.setattr(processes, "count", lambda: count)
    recipe = replace(RECIPE, recalibrate=recalibrate)
    given = (whole, train, DROP, recipe, train, None)
    if problem is None:
        refuse(*given)
        return
    with pytest.raises(DataError, match=problem):
        refuse(*given)
