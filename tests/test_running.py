"""One learner for gates and weights: what runs of both kinds have in common."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from conftest import bright_images, drawn

from gatepruner.errors import TrainingError
from gatepruner.files.storage import load_state, save_state
from gatepruner.images.examples import Examples
from gatepruner.images.task import CLASSIFICATION
from gatepruner.learning import running
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe
from gatepruner.learning.training import finetune, train
from gatepruner.learning.units import choose
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.packing import pack
from gatepruner.pruning.meter import Meter
from gatepruner.signals import STOPPING

SHAPE = (3, 8, 8)
DATA = bright_images(50, SHAPE)
GATING = GateRecipe(warmup=3, steps=4, batch_size=16)
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}


def network(name: str = "resnet8") -> Network:
    return Network.named(name, num_classes=4, input_shape=SHAPE)


def whole(name: str = "resnet8") -> Checkpoint:
    weights = drawn(network(name).initial_weights(0), 0)
    return Checkpoint(network(name), MappingProxyType(weights), NOTES)


def gated(**options: Any) -> Checkpoint:
    return learn_gates(whole(), DATA, GATING, device="cpu", **options)


def trained(**options: Any) -> Checkpoint:
    recipe = Recipe(epochs=2, batch_size=16)
    return train(network("gated-resnet8"), DATA, recipe, device="cpu", **options)


def tuned(**options: Any) -> Checkpoint:
    recipe = replace(FINE_TUNING, epochs=2, batch_size=16)
    return finetune(whole(), DATA, recipe, teacher=whole("resnet14"), device="cpu", **options)


RUNS: dict[str, Callable[..., Checkpoint]] = {"gates": gated, "training": trained, "tuning": tuned}


@pytest.fixture(params=RUNS)
def run(request) -> Callable[..., Checkpoint]:
    return RUNS[request.param]


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.fingerprint == other.fingerprint


def in_step(number: int, act: Callable[[], None]) -> pytest.MonkeyPatch:
    """Act in the middle of a step, when its gradients are there and nothing is changed yet."""
    patch, calls = pytest.MonkeyPatch(), []
    for kind in (torch.optim.Adam, torch.optim.SGD):
        step = kind.step

        def stepping(self, *rest, step=step):
            calls.append(1)
            if len(calls) == number:
                act()
            return step(self, *rest)

        patch.setattr(kind, "step", stepping)
    return patch


# ---------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("sent", STOPPING, ids=lambda it: it.name)
def test_a_signal_is_told_at_once_and_stops_the_run_after_the_step(tmp_path, run, sent):
    state, said = tmp_path / "it.state", []
    before = list(map(signal.getsignal, STOPPING))

    def act() -> None:
        signal.raise_signal(sent)
        assert said == ["stopping"]
        signal.raise_signal(sent)  # nobody is told twice

    patch = in_step(5, act)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(state=state, on_stop=lambda: said.append("stopping"))
    patch.undo()
    assert stopped.value.args == (sent,)
    assert said == ["stopping"]
    assert load_state(state)["done"] == 5
    assert list(map(signal.getsignal, STOPPING)) == before
    assert same(run(state=state, resume=True), run())


def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path, run):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        patch = in_step(2, lambda: signal.raise_signal(signal.SIGHUP))
        done = run(state=tmp_path / "it.state")
        patch.undo()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert same(done, run())


def test_a_signal_that_comes_between_two_steps_waits_for_the_next(tmp_path, run):
    """While a watcher is called, say, which may be writing."""
    state, steps = tmp_path / "it.state", []

    def watch(moment) -> None:
        if not steps:
            signal.raise_signal(signal.SIGTERM)
        steps.append(moment.step)

    with pytest.raises(KeyboardInterrupt):
        run(state=state, watch=watch)
    assert steps == [load_state(state)["done"]]


def test_a_run_in_another_thread_gets_no_signals_and_learns_the_same(run):
    results: list[Checkpoint] = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert same(results[0], run())


# ----------------------------------------------------------------------------------------- states


def test_a_run_that_is_killed_in_its_first_step_can_be_resumed(tmp_path, run):
    class Killed(BaseException):
        pass

    def act() -> None:
        raise Killed

    state = tmp_path / "it.state"
    patch = in_step(1, act)
    with pytest.raises(Killed):
        run(state=state)
    patch.undo()
    assert load_state(state)["done"] == 0
    assert same(run(state=state, resume=True), run())


def test_every_epoch_and_every_removal_is_on_the_disk(tmp_path, run, monkeypatch):
    written: list[int] = []
    save = running.save_state
    monkeypatch.setattr(
        running, "save_state", lambda it, path: save(written.append(it["done"]) or it, path)
    )
    run(state=tmp_path / "it.state")
    assert written == ([0, 7, 11, 15] if run is gated else [0, 3, 6])


def test_what_is_recorded_of_a_removal_is_never_copied(tmp_path, monkeypatch):
    """So that keeping the states of all removals takes time in proportion to them."""
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(running, "save_state", lambda it, path: kept.append(it))
    learned = gated(state=tmp_path / "it.state")
    assert [len(state["removals"]) for state in kept] == [0, 1, 2, 3]
    tensors = pack([removal.weights for removal in learned.path.removals]).tensors
    for count, state in enumerate(kept):
        assert len(state["learned"]) == count  # one tensor a removal, however many layers
        for name, tensor in state["learned"].items():
            assert tensor is kept[-1]["learned"][name]
            assert torch.equal(tensor, tensors[name])


def test_learning_that_breaks_down_returns_to_its_last_removal(tmp_path, monkeypatch):
    """Though later states were on the disk: what led to infinity may be in them already."""
    distance, calls, state = CLASSIFICATION.distance, [], tmp_path / "it.state"

    def breaking(*logits):
        calls.append(1)
        return distance(*logits) * (math.nan if len(calls) >= 10 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(running, "SAVE_EVERY", -1.0)
        patch.setattr(Examples, "task", replace(CLASSIFICATION, distance=breaking))
        with pytest.raises(TrainingError, match="NaN or infinite after 1 blocks"):
            gated(state=state)
    assert load_state(state)["done"] == 7
    assert same(gated(state=state, resume=True), gated())


def test_a_state_of_an_earlier_format_is_refused(tmp_path, run):
    state = tmp_path / "it.state"
    run(state=state)
    content = load_state(state)
    save_state({**content, "identity": {**content["identity"], "format": 1}}, state)
    with pytest.raises(TrainingError, match=r"another run \(format was"):
        run(state=state, resume=True)


# ----------------------------------------------------------------------------------- the next block


def test_the_block_is_chosen_whose_closing_changes_the_loss_least_for_its_cost():
    """Against the change that a loss really takes, where it is linear."""
    gates = torch.tensor([1.0, 0.5, 2.0, 0.25])
    slopes = torch.tensor([-0.5, 0.9, 0.2, -3.0])
    costs = [1.0, 1.5, 0.5, 0.1]

    def loss(gates: torch.Tensor) -> float:
        return float((gates * slopes).sum())

    changes = []
    for index in range(4):
        closed = gates.clone()
        closed[index] = 0
        changes.append((loss(gates) - loss(closed)) ** 2 / costs[index])
    index, score = choose(gates, slopes.square(), costs)
    assert index == changes.index(min(changes)) == 1
    assert score == pytest.approx(min(changes))


def test_of_equal_blocks_the_first_is_chosen():
    assert choose(torch.zeros(3), torch.ones(3), [1.0, 2.0, 3.0]) == (0, 0.0)
    assert choose(torch.tensor([2.0, 1.0, 1.0]), torch.ones(3), [1.0] * 3) == (1, 1.0)


def test_costs_are_those_of_the_meter_that_is_given():
    class Known(Meter):
        def savings(self, kind):
            return super().savings("params")

    meter, by_latency = Known(whole().network), replace(GATING, cost="latency")
    expected = learn_gates(whole(), DATA, replace(GATING, cost="params"), device="cpu")
    learned = learn_gates(whole(), DATA, by_latency, device="cpu", meter=meter)
    assert learned.path.records == expected.path.records
    plain = learn_gates(whole(), DATA, GATING, device="cpu", meter=meter)
    assert plain.path.records == gated().path.records != expected.path.records


# ---------------------------------------------------------------------------------------- recipes


def test_recipes_are_there_without_torch():
    code = "import sys, gatepruner.learning.recipes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.parametrize("recipe", [GateRecipe, Recipe])
def test_every_field_of_a_recipe_is_described_in_a_sentence(recipe):
    _, _, section = recipe.__doc__.partition("Attributes:\n")
    told = re.findall(r"^        (\w+): ((?:.|\n {12})+)$", section, re.MULTILINE)
    assert [name for name, _ in told] == [field.name for field in fields(recipe)]
    for _, text in told:
        assert text[0].isupper(), text
        assert text.endswith("."), text


def test_everything_that_is_wrong_with_a_recipe_is_said_at_once():
    with pytest.raises(TrainingError, match=r"epochs is 0.*; .*'lion'.*; .*temperature is nan"):
        Recipe(epochs=0, optimizer="lion", temperature=math.nan)
