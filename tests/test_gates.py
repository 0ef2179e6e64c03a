"""Gates for networks trained without them: nothing else is touched, and the path can be gone."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    Callers,
    bright_images,
    draw,
    drawn,
    fingerprint,
    images_for,
    logits,
    random_images,
    removable,
)
from torch import nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from gatepruner.errors import DataError, PlanError, TrainingError
from gatepruner.files.storage import load_state
from gatepruner.images.examples import Examples
from gatepruner.images.images import Images
from gatepruner.images.task import CLASSIFICATION
from gatepruner.learning import learner, running
from gatepruner.learning.gates import GateMoment, GateRecipe, add_gates, learn_gates
from gatepruner.learning.training import Recipe, finetune
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.inputs import normalization_of
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import NO_PATH, Path
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.meter import savings
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import follow, remove, remove_shortcuts

COLOUR = (3, 8, 8)
GREY = (1, 8, 8)
NOTES = {
    channels: {"normalize": {"mean": [0.5] * channels, "std": [0.25] * channels}}
    for channels in (1, 3)
}
FAST = GateRecipe(warmup=3, steps=4, batch_size=16)
STILL = GateRecipe(  # nothing moves, and every step is on the same images as they are
    warmup=1,
    steps=1,
    batch_size=16,
    learning_rate=1e-30,
    norm_learning_rate=1e-30,
    labels=True,
    mirror=False,
)


def plain(name: str = "resnet8", seed: int = 0) -> Checkpoint:
    """A small network that was trained without gates, as it were."""
    shape = GREY if "-fc" in name else COLOUR
    network = Network.named(name, num_classes=4, input_shape=shape)
    weights = drawn(network.initial_weights(seed), seed)
    return Checkpoint(network, MappingProxyType(weights), NOTES[shape[0]])


def of_caller(module: nn.Module, shape: Shape = COLOUR) -> Checkpoint:
    """The same of a module that a caller brings."""
    module.load_state_dict(drawn(module.state_dict()))
    return Checkpoint.of(module, shape, NOTES[3])


def images_of(checkpoint: Checkpoint, count: int = 50) -> Images:
    return bright_images(count, checkpoint.network.base.input_shape)


def learn(checkpoint: Checkpoint, recipe: GateRecipe = FAST, data: Images | None = None, **options):
    data = images_of(checkpoint) if data is None else data
    return learn_gates(checkpoint, data, recipe, **{"device": "cpu", **options})


def gone_of(checkpoint: Checkpoint) -> list[str]:
    return list(checkpoint.path.blocks)


def same_path(one: Checkpoint, other: Checkpoint) -> bool:
    return gone_of(one) == gone_of(other) and all(
        mine.weights.keys() == yours.weights.keys()
        and all(torch.equal(it, yours.weights[key]) for key, it in mine.weights.items())
        for mine, yours in zip(one.path.removals, other.path.removals, strict=True)
    )


@pytest.fixture(scope="module")
def learned() -> Checkpoint:
    """A network with a path of two blocks of its six."""
    with torch.random.fork_rng(devices=[]):
        return learn(plain("resnet14"), replace(FAST, blocks=2))


# ------------------------------------------------------------------------------------ add_gates

OWN = ("resnet8", "resnet8-b", "preresnet8", "wrn-10-1", "residual-fc6", "highway-fc6")
NAMED = "torchvision:mobilenet_v2"
LIBRARY = {  # narrow ones of these families
    "ConvNeXt": lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)], 0.3),
    "VisionTransformer": lambda: VisionTransformer(
        *(16, 8, 2, 2, 8, 16),  # image, patch, layers, heads, width, width within
        dropout=0.1,
    ),
}


@pytest.mark.parametrize("name", [*OWN, NAMED, *LIBRARY])
def test_added_gates_leave_the_function_as_it_is_bit_for_bit(name):
    if name in LIBRARY:
        whole = of_caller(LIBRARY[name](), (3, 16, 16))
    else:
        whole = draw(name, input_shape=(3, 64, 64)) if name == NAMED else plain(name)
    before = fingerprint(whole)
    gated = add_gates(whole)
    images = images_for(whole.network)
    assert torch.equal(logits(gated.build(), images), logits(whole.build(), images))
    assert torch.equal(logits(gated.build().train(), images), logits(whole.build().train(), images))
    assert list(gated.network.edits.gated) == removable(whole.network)
    assert set(gated.gates.values()) == {1.0}
    assert all(gated.weights[key] is tensor for key, tensor in whole.weights.items())
    assert fingerprint(whole) == before


def test_gates_that_are_there_stay_as_they_are():
    gated = draw("gated-resnet8", input_shape=COLOUR)
    assert not set(gated.gates.values()) & {1.0}
    again = add_gates(gated)
    assert fingerprint(again) == fingerprint(gated)


def test_where_nothing_can_be_removed_there_is_nothing_to_gate():
    bare = remove(plain(), removable(plain().network))
    with pytest.raises(PlanError, match="no block with both its branch and its shortcut"):
        add_gates(bare)
    with pytest.raises(PlanError, match="cannot add gates"):
        learn(plain("plain-fc6"))


# ------------------------------------------------------------------------- what learning touches


@pytest.mark.parametrize("name", ["resnet8", "preresnet8", "residual-fc8"])
@pytest.mark.parametrize("norms", [0.005, 0.0])
def test_only_gates_norms_and_statistics_differ_in_the_states(name, norms):
    whole = plain(name)
    before, data = fingerprint(whole), images_of(whole)
    pixels, noise = data.pixels.clone(), torch.get_rng_state()
    learned = learn(whole, replace(FAST, norm_learning_rate=norms), data)
    assert fingerprint(whole) == before
    assert torch.equal(data.pixels, pixels)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(learned.weights[key], it) for key, it in whole.weights.items())
    added = learned.weights.keys() - whole.weights.keys()
    assert added == {learned.network.gate_key(name) for name in removable(whole.network)}

    layers = [
        key
        for key, it in whole.build().named_modules()
        if isinstance(it, nn.modules.batchnorm._NormBase)
    ]
    parts = ["running_mean", "running_var", *(["weight", "bias"] if norms else [])]
    small = added | {f"{layer}.{part}" for layer in layers for part in parts}
    for index, state in enumerate(learned.path.removals):
        left = learned.network.without(gone_of(learned)[: index + 1]).state().keys()
        assert state.weights.keys() == small & left
    moved = {
        key
        for key, it in learned.path.removals[0].weights.items()
        if not torch.equal(it, learned.weights[key])
    }
    assert {key.rpartition(".")[2] for key in moved} == {"k", *parts}


@pytest.mark.parametrize("norms", [0.005, 0.0])
def test_no_other_gradient_is_computed(monkeypatch, norms):
    built: list[nn.Module] = []
    place = learner.place

    def placing(module, *rest):
        built.append(module)
        return place(module, *rest)

    monkeypatch.setattr(learner, "place", placing)
    whole = plain()
    learned = learn(whole, replace(FAST, norm_learning_rate=norms))
    wanted = set().union(*(state.weights for state in learned.path.removals))
    wanted = {key for key in wanted if not key.rpartition(".")[2].startswith("running")}
    parameters = dict(built[0].named_parameters())
    assert {key for key, it in parameters.items() if it.requires_grad} >= wanted
    odd = {key for key, it in parameters.items() if it.requires_grad} - wanted
    gone_first = {key for key in odd if "bn" in key or key.endswith(".k")}  # of the first to go
    assert odd == gone_first
    for module in built:
        touched = {key for key, it in module.named_parameters() if it.grad is not None}
        assert touched <= wanted | gone_first


# -------------------------------------------------------------------------------------- the path


@pytest.mark.parametrize("blocks", [1, 3, None])
def test_the_path_has_the_blocks_that_were_asked_for_each_once(blocks):
    whole = plain("resnet14")
    moments: list[GateMoment] = []
    learned = learn(whole, replace(FAST, blocks=blocks), watch=moments.append)
    gone = gone_of(learned)
    assert len(gone) == len(set(gone)) == (blocks or 6)
    assert set(gone) <= set(removable(whole.network))
    assert [record["block"] for record in learned.path.records] == gone
    assert [it.block for it in moments if it.block] == gone
    last = moments[-1]
    assert (last.step, last.gone) == (last.steps, last.blocks) == (3 + 4 * len(gone), len(gone))
    assert [record["step"] for record in learned.path.records] == [
        3 + 4 * index for index in range(len(gone))
    ]


def test_only_blocks_that_vanish_go_where_that_is_asked_for():
    whole = plain("resnet14-b")
    identity = [it.name for it in whole.network.blocks if it.identity and it.name != "layer1.0"]
    learned = learn(whole, replace(FAST, identity_only=True))
    assert sorted(gone_of(learned)) == sorted(identity) != sorted(removable(whole.network))
    with pytest.raises(PlanError, match=f"cannot remove {len(identity) + 1} blocks"):
        learn(whole, replace(FAST, identity_only=True, blocks=len(identity) + 1))


def test_a_block_that_has_gone_stays_gone():
    learned = learn(plain("resnet14"))
    network, gone = learned.network, gone_of(learned)
    for index, state in enumerate(learned.path.removals):
        gates = {name for name in gone if network.gate_key(name) in state.weights}
        assert gates == set(gone[index + 1 :])


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-1", "preresnet8", "residual-fc6"])
def test_a_step_of_the_path_is_the_whole_network_with_those_gates_closed(name):
    """Bit for bit, with the weights of that state."""
    learned = learn(plain(name))
    network, images = learned.network, images_for(learned.network, 5)
    assert follow(learned, []).weights.keys() == learned.weights.keys()
    for count, state in enumerate(learned.path.removals, start=1):
        gone = gone_of(learned)[:count]
        closed = {network.gate_key(name): torch.zeros(()) for name in gone}
        masked = network.build({**learned.weights, **state.weights, **closed})
        small = follow(learned, gone)
        assert small.network == network.without(gone)
        assert torch.equal(logits(small.build(), images), logits(masked, images))
        untaught = logits(remove(learned, gone).build(), images)
        assert not torch.equal(logits(small.build(), images), untaught)


def test_blocks_beyond_the_path_go_as_they_are_and_a_gap_ends_it(learned):
    first, second = gone_of(learned)
    other = next(name for name in removable(learned.network) if name not in (first, second))
    beyond = follow(learned, [other, second, first])
    assert all(
        torch.equal(it, learned.path.removals[1].weights.get(key, learned.weights[key]))
        for key, it in beyond.weights.items()
    )
    gap = follow(learned, [second])
    assert all(torch.equal(it, learned.weights[key]) for key, it in gap.weights.items())


def test_the_curve_along_a_path_is_that_of_the_networks_that_follow_it(learned):
    data, ranking = images_of(learned), rank(learned)
    for point in sweep(learned, data, ranking, device="cpu"):
        small = follow(learned, ranking.first(point.removed))
        assert point.accuracy == accuracy(small, data, device="cpu")


def test_blocks_rank_as_they_went_and_the_others_by_their_last_gates(learned):
    gone, last = gone_of(learned), learned.path.removals[-1].weights
    key = learned.network.gate_key
    others = [name for name in removable(learned.network) if name not in gone]
    others.sort(key=lambda name: max(float(last[key(name)]), 0.0))
    assert list(rank(learned).names) == [*gone, *others]
    backwards = replace(learned, path=Path(learned.path.removals[::-1]))
    assert list(rank(backwards).names[:2]) == gone[::-1]
    assert rank(learned, "depth").names == rank(plain("resnet14"), "depth").names


def test_gates_that_were_trained_further_rank_their_blocks(learned):
    recipe = Recipe(epochs=1, batch_size=16, gate_learning_rate=0.5)
    tuned = finetune(learned, images_of(learned), recipe, device="cpu")
    assert tuned.path == NO_PATH
    assert dict(rank(tuned).scores) == tuned.gates


# -------------------------------------------------------------------- what is learned from, and how


def test_without_labels_they_are_not_looked_at():
    whole, data = plain(), bright_images(50, COLOUR)
    other = replace(data, labels=data.labels.flip(0))
    assert same_path(learn(whole, FAST, data), learn(whole, FAST, other))
    fewer = replace(data, labels=torch.zeros_like(data.labels), classes=("all",))
    assert same_path(learn(whole, FAST, data), learn(whole, FAST, fewer))
    told = replace(FAST, labels=True)
    assert not same_path(learn(whole, told, data), learn(whole, told, other))


def test_the_seed_alone_says_what_is_learned():
    first = learn(plain())
    torch.manual_seed(99)
    assert same_path(learn(plain()), first)
    assert not same_path(learn(plain(), replace(FAST, seed=1)), first)


def test_the_penalty_closes_gates():
    def mean_gate(penalty: float) -> float:
        recipe = replace(FAST, blocks=1, warmup=10, learning_rate=0.05, penalty=penalty)
        learned = learn(plain("resnet14"), recipe)
        last = learned.path.removals[-1].weights
        return sum(float(it) for key, it in last.items() if key.endswith(".k")) / 5

    means = [mean_gate(penalty) for penalty in (0.0, 0.1, 10.0)]
    assert means[0] > means[1] > means[2]


def losses_of(checkpoint: Checkpoint, gone: list[str], data: Images) -> tuple[float, list[float]]:
    """Loss on all images at once without these blocks, and its slopes in the gates that are left.

    On batch statistics, nothing dropped.
    """
    network = checkpoint.network.without(gone)
    module = network.build({key: checkpoint.weights[key].clone() for key in network.state()})
    for layer in module.modules():
        layer.train(isinstance(layer, nn.modules.batchnorm._BatchNorm))
    normalise = normalization_of(checkpoint, data)
    loss = F.cross_entropy(module(normalise(data.pixels)), data.labels)
    parameters = dict(module.named_parameters())
    gates = [parameters[network.gate_key(name)] for name in network.edits.gated]
    slopes = torch.autograd.grad(loss, gates) if gates else ()
    return loss.item(), [it.item() for it in slopes]


@pytest.mark.parametrize("cost", ["none", "macs", "params"])
def test_the_block_goes_that_matters_least_for_what_it_costs(cost):
    """Against gradients and savings of the whole network, computed at once."""
    whole = plain("resnet14")
    data = images_of(whole, 16)
    record = learn(whole, replace(STILL, cost=cost, blocks=1), data).path.records[0]
    gated = add_gates(whole)
    _, slopes = losses_of(gated, [], data)
    names = gated.network.edits.gated
    saved = dict.fromkeys(names, 1.0) if cost == "none" else savings(gated.network, cost)
    mean = sum(saved.values()) / len(names)
    scores = {
        name: 0.05 * slope**2 / max(saved[name] / mean, 0.05)
        for name, slope in zip(names, slopes, strict=True)
    }
    assert record["block"] == min(scores, key=scores.__getitem__)
    assert record["score"] == pytest.approx(min(scores.values()), rel=1e-3)


def test_the_penalty_is_heavier_for_what_costs_more():
    """Where no gradient comes to the gates, the penalty's slope alone is what Adam sees."""
    whole = plain("resnet14")
    still = {
        key: torch.zeros_like(it) if "linear" in key else it for key, it in whole.weights.items()
    }
    whole = replace(whole, weights=still)
    seen: list[list[float]] = []
    step = torch.optim.Adam.step

    def spy(self, *rest):
        grads = [it.grad for it in self.param_groups[0]["params"]]
        seen.append([it.item() for it in grads if it is not None])
        return step(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        learn(whole, replace(STILL, cost="macs", blocks=1, penalty=0.5), images_of(whole, 16))
    saved = savings(add_gates(whole).network, "macs")
    mean = sum(saved.values()) / len(saved)
    assert seen[0] == pytest.approx([0.5 * one / mean for one in saved.values()], rel=1e-5)
    assert len(set(seen[0])) > 1


class Overwriting(nn.Module):
    """A shortcut is what an in-place activation takes once the block before it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        inner = self.relu(x + self.bn(self.conv1(x)))
        return self.head((self.conv2(inner) + x).mean((2, 3)))


class Dropping(Callers):
    """Four classes, and a functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)


LOSSES = {
    "resnet14": lambda: plain("resnet14"),
    "nn.Dropout": lambda: plain("wrn-10-1,dropout=0.5"),
    "functional dropout": lambda: of_caller(Dropping()),
    "in place": lambda: of_caller(Overwriting()),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())
def test_what_is_learned_on_is_the_network_without_what_has_gone(make):
    """At rates of nothing the recorded losses are those of networks built without the blocks."""
    whole = make()
    data = images_of(whole, 16)
    learned = learn(whole, STILL, data)
    gated, gone = add_gates(whole), gone_of(learned)
    for index, record in enumerate(learned.path.records):
        left, _ = losses_of(gated, gone[: index + 1], data)
        assert record["loss"] == pytest.approx(left, rel=1e-4), gone[: index + 1]


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())
def test_a_network_whose_norms_are_left_alone_can_lose_every_block(make):
    """The last step has nothing to learn."""
    learned = learn(make(), replace(STILL, norm_learning_rate=0.0))
    assert sorted(gone_of(learned)) == sorted(removable(learned.network))


def test_a_block_without_its_shortcut_does_not_go():
    gated = add_gates(plain("resnet14"))
    loose = remove_shortcuts(gated, ["layer2.1"])
    learned = learn(loose, replace(FAST, cost="macs"))
    assert sorted(gone_of(learned)) == sorted(removable(loose.network))


# ------------------------------------------------------------------------------ interrupted runs


@pytest.fixture(scope="module")
def uninterrupted() -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        return learn(plain())


def interrupted(stop: int, **options) -> None:
    """A run in the middle of whose step `stop` Ctrl-C comes."""
    step, calls = torch.optim.Adam.step, []

    def stepping(self, *rest):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return step(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stepping)
        with pytest.raises(KeyboardInterrupt):
            learn(plain(), **options)


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 9, 15])  # 3 + 4 * 3 in all
def test_a_run_interrupted_at_any_step_is_resumed_to_the_same_path(tmp_path, uninterrupted, stop):
    state = tmp_path / "it.state"
    interrupted(stop, state=state)
    steps: list[int] = []
    again = learn(plain(), state=state, resume=True, watch=lambda it: steps.append(it.step))
    assert steps[0] > stop if stop < 15 else not steps
    assert same_path(again, uninterrupted)
    assert again.notes == uninterrupted.notes
    finished = learn(plain(), state=state, resume=True)
    assert same_path(finished, uninterrupted)


def test_a_run_killed_at_any_moment_is_resumed_to_the_same_path(
    tmp_path, monkeypatch, uninterrupted
):
    clock = iter(range(0, 10**9, 100))
    state = tmp_path / "it.state"
    copies: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setattr(running, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
        learn(plain(), state=state, watch=lambda it: copies.append(kept_in(state)))
    assert len(copies) >= 15
    for content in copies[1::5]:
        state.write_bytes(content)
        assert same_path(learn(plain(), state=state, resume=True), uninterrupted)


def kept_removals(state) -> int:
    """Removals in a state without which the other blocks have adapted."""
    return sum(not math.isnan(record["loss"]) for record in load_state(state)["removals"])


def kept_in(state) -> bytes:
    return state.read_bytes() if state.exists() else b""


@pytest.mark.parametrize(
    ("recipe", "named"),
    [(replace(FAST, steps=5), "steps was 4, is now 5"), (replace(FAST, blocks=2), "is now 2")],
)
def test_the_state_of_another_run_is_refused_and_kept(tmp_path, recipe, named):
    state = tmp_path / "it.state"
    interrupted(5, state=state)
    content = state.read_bytes()
    with pytest.raises(TrainingError, match=named):
        learn(plain(), recipe, state=state, resume=True)
    with pytest.raises(TrainingError, match=r"another run \(network was"):
        learn(plain(seed=1), state=state, resume=True)
    with pytest.raises(TrainingError, match=r"another run \(images was"):
        learn(plain(), data=bright_images(49, COLOUR), state=state, resume=True)
    assert state.read_bytes() == content
    with pytest.raises(TrainingError, match="no run to resume"):
        learn(plain(), state=tmp_path / "other.state", resume=True)


# --------------------------------------------------------------------------- runs that break down


def broken(at: int, recipe: GateRecipe = FAST, **options) -> str:
    """A run whose loss is no number from step `at` of this process on; what it says."""
    distance, calls = CLASSIFICATION.distance, []

    def breaking(*logits):
        calls.append(1)
        return distance(*logits) * (math.nan if len(calls) >= at else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "task", replace(CLASSIFICATION, distance=breaking))
        with pytest.raises(TrainingError) as told:
            learn(plain(), recipe, **options)
    return str(told.value)


@pytest.mark.parametrize(("at", "states"), [(2, 0), (9, 1), (15, 2)])
def test_a_run_that_breaks_down_keeps_the_last_good_state(tmp_path, uninterrupted, at, states):
    state = tmp_path / "it.state"
    message = broken(at, state=state)
    assert f"after {states} blocks" in message
    assert f"resume with a lower learning rate ({FAST.learning_rate}) or norm learning" in message
    assert kept_removals(state) == states
    slower = learn(
        plain(),
        replace(FAST, learning_rate=1e-3, norm_learning_rate=1e-4),
        state=state,
        resume=True,
    )
    assert len(slower.path) == 3
    for mine, first in zip(
        slower.path.removals[:states], uninterrupted.path.removals, strict=False
    ):
        assert mine.block == first.block
        assert all(torch.equal(it, first.weights[key]) for key, it in mine.weights.items())


def test_what_broke_down_by_chance_goes_on_as_if_nothing_had_been(tmp_path, uninterrupted):
    state = tmp_path / "it.state"
    broken(9, state=state)
    assert same_path(learn(plain(), state=state, resume=True), uninterrupted)


def test_a_rate_that_is_far_too_high_is_told(tmp_path):
    state = tmp_path / "it.state"
    with pytest.raises(TrainingError, match=r"is NaN or infinite after .*\(1e\+30\)"):
        learn(plain(), replace(FAST, norm_learning_rate=1e30), state=state)
    assert len(learn(plain(), state=state, resume=True).path) == 3


def test_a_resumed_run_that_breaks_down_loses_nothing_of_what_was_kept(tmp_path):
    state = tmp_path / "it.state"
    interrupted(9, state=state)  # two steps into the second block
    assert "after 1 blocks" in broken(1, state=state, resume=True)
    assert load_state(state)["done"] == 9
    assert kept_removals(state) == 1


def test_a_state_that_is_no_number_is_never_on_the_disk(tmp_path, monkeypatch):
    clock = iter(range(0, 10**9, 100))
    state, seen = tmp_path / "it.state", []

    def watch(moment: GateMoment) -> None:
        if state.exists():
            seen.append(bool(load_state(state)["sums"].isfinite().all()))

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    broken(9, state=state, watch=watch)
    assert len(seen) > 8
    assert all(seen)


@pytest.mark.parametrize(("first", "then"), [(0.02, 0.0), (0.0, 0.02)])
def test_whether_norms_are_learned_does_not_change_in_the_middle_of_a_run(tmp_path, first, then):
    """What is learned would be neither the one nor the other: the run is refused, and kept."""
    state = tmp_path / "it.state"
    broken(9, replace(FAST, norm_learning_rate=first), state=state)
    content = state.read_bytes()
    with pytest.raises(TrainingError, match=r"another run \(learning of norms was"):
        learn(plain(), replace(FAST, norm_learning_rate=then), state=state, resume=True)
    assert state.read_bytes() == content
    slower = replace(FAST, norm_learning_rate=first / 2)
    assert len(learn(plain(), slower, state=state, resume=True).path) == 3


def test_when_every_gate_has_closed_the_run_ends_and_says_what_to_lower(tmp_path):
    recipe = replace(FAST, warmup=20, learning_rate=0.5, penalty=100.0)
    with pytest.raises(
        TrainingError, match=r"every gate has closed after 0 blocks: .*100\.0.*0\.5"
    ):
        learn(plain(), recipe)


# ------------------------------------------------------------------------------- what is refused


def test_what_does_not_fit_is_refused():
    whole = plain()
    with pytest.raises(PlanError, match=r"cannot remove 4 blocks: .* has only 3 removable ones"):
        learn(whole, replace(FAST, blocks=4))
    with pytest.raises(TrainingError, match=r"has 15 images, fewer than one batch of 16"):
        learn(whole, FAST, bright_images(15, COLOUR))
    with pytest.raises(DataError, match=r"has images of \(3, 9, 9\)"):
        learn(whole, FAST, bright_images(50, (3, 9, 9)))
    with pytest.raises(DataError, match="has 5 classes"):
        learn(whole, replace(FAST, labels=True), random_images(50, COLOUR, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks is 0: expected at least 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808: expected a whole number from -9223"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809: expected a whole number from"),
        ({"warmup": -1}, "warmup is -1: expected at least 0"),
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"batch_size": 1}, "batch_size is 1: expected at least 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0: expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"norm_learning_rate": -1.0}, "norm_learning_rate is -1"),
        ({"penalty": math.inf}, "penalty is inf"),
        ({"temperature": 0.0}, "temperature is 0: expected a number above 0"),
        ({"cost": "energy"}, "unknown cost 'energy': expected none, params, macs, latency"),
        ({"multiple": 33}, "multiple is 33: expected a number of channels from 1 to 32"),
        ({"multiple": None}, "multiple is None: expected an int"),
        ({"steps": 2.0, "batch_size": "64"}, "steps is 2.0: .* int; batch_size is '64': .* int"),
        ({"warmup": np.int64(3)}, r"warmup is np.int64\(3\): expected an int"),
        ({"warmup": True}, "warmup is True: expected an int"),
        ({"mirror": 1}, "mirror is 1: expected True or False"),
        ({"penalty": "high"}, "penalty is 'high': expected a float"),
        ({"units": ["blocks"]}, r"units is \['blocks'\]: expected a str"),
        ({"blocks": 1.5}, "blocks is 1.5: expected an int"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(TrainingError, match=message):
        GateRecipe(**options)
