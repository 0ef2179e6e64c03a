"""Several processes compute what one computes, whether or not the images divide evenly."""

from __future__ import annotations

import inspect
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import bright_images, drawn
from several import results
from torch import Tensor, nn

import gatepruner
from gatepruner import processes
from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import ProcessError, TrainingError
from gatepruner.files.storage import load_state
from gatepruner.images.images import Images
from gatepruner.learning import learner, running
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe
from gatepruner.learning.training import finetune, train
from gatepruner.learning.units import Units
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.latency import latency
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.measuring.statistics import compare_statistics
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.block_times import block_times
from gatepruner.pruning.curve import accuracies, sweep
from gatepruner.pruning.goals import Goal
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.orders import compare
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import add_gates

SHAPE = (3, 8, 8)
DATA = bright_images(37, SHAPE)  # divides neither by two nor by three
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}


def made(name: str = "resnet8", seed: int = 0) -> Checkpoint:
    network = Network.named(name, num_classes=4, input_shape=SHAPE)
    return Checkpoint(network, MappingProxyType(drawn(network.initial_weights(seed), seed)), NOTES)


def few(count: int) -> Images:
    return DATA.take(torch.arange(count))


# ---------------------------------------------------------------------------------------- measuring


def measured() -> dict[str, Any]:
    """What the verbs that only look return; the recalibrated statistics as tensors."""
    whole, other = made(), made("resnet14", 1)
    how: Any = {"device": "cpu", "batch_size": 5}
    found: dict[str, Any] = {}
    for count in (37, 8, 2, 1):
        counted = accuracy(whole, few(count), **how)
        found[f"accuracy of {count}"] = (counted.correct, counted.images, counted.right.tolist())
        found[f"loss of {count}"] = counted.loss
        agreed = agreement(whole, other, few(count), **how)
        found[f"agreement of {count}"] = (agreed.agreeing, agreed.correct, agreed.images)
        found[f"divergence of {count}"] = (agreed.divergence, agreed.distance)
    for augment in (False, True):
        done = recalibrate(whole, DATA, **how, augment=augment)
        found[f"statistics, {augment}"] = [
            tensor for key, tensor in done.weights.items() if "running" in key
        ]
    for by in ("taylor", "cosine", "cka", "leave-one-out", "greedy"):
        ranking = rank(whole, by, DATA, **how)
        found[f"order by {by}"] = ranking.names
        found[f"scores by {by}"] = [score for _, score in ranking.scores]
        of_one_batch = rank(whole, by, few(4), **how)  # fewer batches than processes
        found[f"scores of one batch by {by}"] = sorted(of_one_batch.scores)
    for statistics in (None, DATA):
        points = list(sweep(whole, DATA, ranking, statistics=statistics, **how))
        found[f"curve, {statistics is None}"] = [point.accuracy.correct for point in points]
        found[f"losses, {statistics is None}"] = [point.accuracy.loss for point in points]
    return found


def same(found: Any, expected: Any) -> None:
    """Equal, numbers with a point and tensors up to rounding."""
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    elif isinstance(found, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


def shards() -> tuple[int, int, list[bool]]:
    """The accuracy of images of which each process has been given its own, in its order."""
    sizes, mine = (20, 10, 7), processes.rank()
    own = DATA.take(torch.arange(sum(sizes[:mine]), sum(sizes[: mine + 1])))
    counted = accuracy(made(), own, device="cpu", batch_size=5, sharded=True)
    for called in of_images(own).values():
        with pytest.raises(ProcessError, match=r"images is .* in process 0 and .* in process 1"):
            called()
    return int(counted.correct), counted.images, counted.right.tolist()


def of_images(own: Images) -> dict[str, Callable[[], Any]]:
    """Every verb that looks at images, called with these for one of its sets."""
    whole, how = made(), {"device": "cpu"}
    goal, recipe = Goal("blocks", 1), CompressionRecipe(GATING)
    return {
        "accuracy": lambda: accuracy(whole, own, **how),
        "accuracies": lambda: accuracies(whole, [whole.network], own, **how),
        "agreement": lambda: agreement(whole, whole, own, **how),
        "compare": lambda: list(compare(whole, DATA, "taylor", training=own, **how)),
        "compare_statistics": lambda: compare_statistics(whole, own, **how),
        "compress": lambda: compress(whole, DATA, goal, recipe, test=own, **how),
        "finetune": lambda: finetune(whole, own, replace(TUNING, batch_size=6), **how),
        "learn_gates": lambda: learn_gates(whole, own, replace(GATING, batch_size=6), **how),
        "rank": lambda: rank(whole, "cosine", own, **how),
        "recalibrate": lambda: recalibrate(whole, own, **how),
        "sweep": lambda: list(sweep(whole, DATA, rank(whole, "depth"), statistics=own, **how)),
        "train": lambda: train(whole.network, DATA, TRAINING, validation=own, **how),
    }


def decisions() -> list[Any]:
    """What the first process decides or measures, and errors that it meets."""

    def refuse() -> None:
        raise TrainingError(f"process {processes.rank()}", batch_size=4)

    with pytest.raises(TrainingError, match="process 0; pass batch_size=4"):
        processes.agreed(refuse)
    times = processes.agreed(lambda: latency({"whole": made()}, device="cpu", runs=2))
    gated = add_gates(made())
    meter = Meter(gated.network, seconds=0.01)
    curve = block_times(meter, rank(gated, "depth"), [0, 1, 3]).to_json()
    recipe = replace(UNITS, multiple=8, cost="latency")
    table = Units(gated.network, recipe, gated.build(), torch.device("cpu"), meter).table
    alone = processes.agreed(lambda: accuracy(made(), DATA, device="cpu").correct)
    assert alone == accuracy(made(), DATA, device="cpu").correct
    parts = processes.gathered(torch.tensor([processes.rank(), 7]))
    learner.learns_fast = lambda *facts: processes.rank() == 0  # if each decided for itself
    gated = learn_gates(normed(), DATA, replace(GATING, blocks=1), device="cpu")
    precisions = [one["precision"] for one in gated.notes["history"] if "precision" in one]
    amp = "off" if processes.rank() else "bf16"
    with pytest.raises(ProcessError, match=r"recipe is .*'amp': 'bf16'.* and .*'amp': 'off'"):
        learn_gates(normed(), DATA, replace(GATING, amp=amp), device="cpu")
    return [
        processes.agreed(processes.rank),
        {**times, "curve": curve, "table": table, "known": meter.known},
        parts.tolist(),
        processes.greatest(processes.rank()),
        processes.slice_of(10),
        precisions,
    ]


def looked() -> dict[str, Any]:
    """All of it in one run, since starting processes takes longer."""
    found = measured()
    found["decisions"] = decisions()
    found["shards"] = shards()
    apart()
    wait_for_nobody()  # last, since the others cannot be reached after that
    return found


def apart() -> None:
    """A verb of which the first process measures alone, called there alone, is told from others."""
    facts = "verb is latency in process 0 and accuracy in process 1"
    verbs = [lambda: latency({"whole": made()}), lambda: accuracy(made(), DATA, device="cpu")]
    with pytest.raises(ProcessError, match=facts):
        verbs[min(processes.rank(), 1)]()


def wait_for_nobody() -> None:
    """A verb within `if rank == 0:` says after some time that it waits for the others."""
    if processes.rank():
        time.sleep(3)
        return
    processes.timeout = lambda: timedelta(seconds=1)
    with pytest.raises(ProcessError, match=r"has waited 1 s .* none of them within `if rank"):
        accuracy(made(), DATA, device="cpu")


def test_three_processes_measure_what_one_measures(tmp_path):
    everybodys: Any = results("test_processes", "looked", 3, tmp_path)
    expected, whole = measured(), accuracy(made(), DATA, device="cpu")
    for number, found in enumerate(everybodys):
        for key, value in expected.items():
            same(found[key], value)
        first, times, parts, greatest, own, precisions = found["decisions"]
        assert (first, greatest) == (0, 2)
        assert times == everybodys[0]["decisions"][1]
        assert parts == [[0, 7], [1, 7], [2, 7]]
        assert own == [slice(0, 3), slice(3, 6), slice(6, 10)][number]
        assert precisions == ["bf16"]
        assert found["shards"] == (whole.correct, 37, whole.right.tolist())


def test_every_verb_that_looks_at_images_is_tried_with_different_ones():
    verbs = {
        name
        for name in gatepruner.__all__
        if inspect.isfunction(verb := getattr(gatepruner, name))
        and any("Examples" in str(one.annotation) for one in signature_of(verb))
    }
    assert of_images(DATA).keys() == verbs


def signature_of(verb: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(verb).parameters.values())


# ----------------------------------------------------------------------------------------- learning

# Batches that do not divide by the number of processes either.
GATING = GateRecipe(warmup=3, steps=4, batch_size=13, match="both")
TUNING = replace(FINE_TUNING, epochs=2, batch_size=13, augment=True, match="features")
TRAINING = Recipe(epochs=2, batch_size=13, gate_penalty=0.01)
UNITS = replace(GATING, units="both", multiple=2, blocks=2)
SHORT = CompressionRecipe(UNITS, replace(TUNING, epochs=1), 30, 0, hold_out=5, trial=0)


def plain(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its path and its weights."""
    removals = [
        (removal.block, removal.gate, removal.score, removal.loss, dict(removal.weights))
        for removal in checkpoint.path.removals
    ]
    return {"path": removals, "weights": dict(checkpoint.weights)}


class Block(nn.Module):
    """A residual block without statistics, which computes the same of a part of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.conv = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(self.wide(x).relu())))


class Normed(nn.Module):
    """A network with group norm."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def normed(blocks: int = 4) -> Checkpoint:
    torch.manual_seed(blocks)
    return Checkpoint.of(Normed(blocks), SHAPE, NOTES)


def learned() -> dict[str, Any]:
    """What the verbs that learn return, for networks without statistics and with batch norm."""
    how: Any = {"device": "cpu"}
    held: Any = {"validation": bright_images(11, SHAPE, seed=3), **how}
    kept = replace(TUNING, statistics="kept", match="both", epochs=1)
    tests = {"test": bright_images(11, SHAPE, seed=4), **how}
    verbs: dict[str, Callable[[], Checkpoint]] = {
        "gate": lambda: learn_gates(normed(), DATA, GATING, **how),
        "tune": lambda: finetune(normed(), DATA, TUNING, teacher=normed(5), **held),
        "train": lambda: train(normed().network.with_gates(), DATA, TRAINING, **held),
        "gate units": lambda: learn_gates(normed(), DATA, UNITS, **how),
        "compress": lambda: (
            compress(normed(), DATA, Goal.parse("macs", "70%"), SHORT, **tests).checkpoint
        ),
        "gate with batch norm": lambda: learn_gates(made(), DATA, GATING, **how),
        "tune with batch norm": lambda: finetune(made(), DATA, kept, teacher=made(seed=1), **how),
        "train with batch norm": lambda: train(made().network, DATA, TRAINING, **held),
    }
    return {name: plain(verb()) for name, verb in {**verbs, **in_parts(4)}.items()}


def in_parts(most: int) -> dict[str, Callable[[], Checkpoint]]:
    """Verbs whose batches pass in parts, with batch norm, and with a head that learns nothing."""
    parts: Any = {"micro_batch_size": most}
    recipes = [replace(recipe, **parts) for recipe in (GATING, TUNING, TRAINING)]
    how: Any = {"device": "cpu"}
    return {
        "gate in parts": lambda: learn_gates(made(), DATA, recipes[0], **how),
        "tune in parts": lambda: finetune(made(), DATA, recipes[1], teacher=made(seed=1), **how),
        "train in parts": lambda: train(made().network, DATA, recipes[2], **how),
    }


def test_two_processes_learn_what_one_learns(tmp_path):
    """With batch norm, whose statistics are those of a part, all processes learn the same.

    One process that passes its batch in as many parts learns that, too.
    """
    everybodys: Any = results("test_processes", "learned", 2, tmp_path)
    expected = learned()
    assert len(expected["gate"]["path"]) == 4
    for found in everybodys:
        for verb in ("gate", "tune", "train", "gate units", "compress", *in_parts(4)):
            near(found[verb], expected[verb])
    halves = in_parts(7)
    for verb in ("gate", "train"):
        near(everybodys[0][f"{verb} with batch norm"], plain(halves[f"{verb} in parts"]()))
    for verb in expected:
        for found in everybodys[1:]:
            equal(found[verb], everybodys[0][verb])


def near(found: Any, expected: Any) -> None:
    """The same path and order, and weights up to what rounding grows to."""
    assert [one[0] for one in found["path"]] == [one[0] for one in expected["path"]]
    pairs = [(found["weights"], expected["weights"])]
    pairs += [
        (one[4], other[4]) for one, other in zip(found["path"], expected["path"], strict=True)
    ]
    for one, other in pairs:
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, other[key], rtol=1e-3, atol=1e-4)


def equal(found: Any, expected: Any) -> None:
    assert [one[:4] for one in found["path"]] == [one[:4] for one in expected["path"]]
    for key, tensor in found["weights"].items():
        assert torch.equal(tensor, expected["weights"][key]), key


# ------------------------------------------------------------------------------- stopping, resuming


def stopped(folder: str) -> tuple[int, list[int], bool]:
    """A run whose last process gets a signal during a step: its number, and the steps seen."""
    seen: list[int] = []

    def watch(moment: Any) -> None:
        seen.append(moment.step)
        if moment.step == 6 and processes.rank() == processes.count() - 1:
            signal.raise_signal(signal.SIGTERM)

    running.SHOW_EVERY = 0.0
    state = Path(folder) / "gates.state"
    try:
        learn_gates(normed(), DATA, GATING, device="cpu", state=state, watch=watch)
    except KeyboardInterrupt as stop:
        return int(stop.args[0]), seen, state.exists()
    raise AssertionError("it was not stopped")


def resumed(folder: str) -> dict[str, Any]:
    how: Any = {"device": "cpu", "state": Path(folder) / "gates.state", "resume": True}
    return plain(learn_gates(normed(), DATA, GATING, **how))


def test_a_signal_to_one_stops_all_after_the_same_step_and_others_go_on(tmp_path):
    everybodys: Any = results("test_processes", "stopped", 2, tmp_path, str(tmp_path))
    assert everybodys == [(signal.SIGTERM, [1, 2, 3, 4, 5, 6], True)] * 2
    assert load_state(tmp_path / "gates.state")["done"] == 6
    expected = plain(learn_gates(normed(), DATA, GATING, device="cpu"))
    for found in results("test_processes", "resumed", 3, tmp_path, str(tmp_path)):
        near(found, expected)
