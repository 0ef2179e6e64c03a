"""Every criterion against an oracle that computes it another way."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import (
    LIBRARY,
    Callers,
    draw,
    drawn,
    fingerprint,
    load_into,
    random_images,
    removable,
    with_gates_at,
)
from torch import Tensor, nn

from gatepruner.errors import DataError, PlanError
from gatepruner.images.images import Images
from gatepruner.images.normalization import IMAGENET, Normalization
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.criteria.criterion import Criterion
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import remove

NEED_IMAGES = [name for name, criterion in CRITERIA.items() if criterion.needs == "images"]
LABELLED = ["taylor", "leave-one-out", "greedy"]
GRAY = Normalization((0.5,), (0.5,))
CPU: dict[str, Any] = {"device": "cpu", "batch_size": 8}


def scores(checkpoint: Checkpoint, by: str, images: Images | None = None, **given) -> dict:
    return dict(rank(checkpoint, by, images, **{**CPU, **given}).scores)


def spread_gates(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a different gate in every block, one of them below 0."""
    for index, name in enumerate(checkpoint.network.edits.gated):
        checkpoint = with_gates_at(checkpoint, 0.3 * index - 0.2, [name])
    return checkpoint


def batches_of(images: Images, normalization: Normalization) -> list[tuple[Tensor, Tensor]]:
    """Batches of eight in float64."""
    mean, std = (torch.tensor(it).view(-1, 1, 1) for it in (normalization.mean, normalization.std))
    pixels = ((images.pixels.float() / 255 - mean) / std).double()
    return list(zip(pixels.split(8), images.labels.split(8), strict=True))


def slopes(
    build: Callable[[float], nn.Module], images: Images, normalization: Normalization = IMAGENET
) -> float:
    """The mean over images of |dL/dk| of their batch, by central differences in float64."""
    step, total = 1e-6, 0.0
    for pixels, labels in batches_of(images, normalization):
        with torch.no_grad():
            high, low = (
                F.cross_entropy(build(sign * step)(pixels), labels) for sign in (1.0, -1.0)
            )
        total += abs(float(high - low)) / (2 * step) * len(labels)
    return total / len(images)


# --------------------------------------------------------------------------------------- taylor


@pytest.mark.parametrize("name", ["gated-resnet14", "gated-plain-fc6"])
def test_taylor_is_the_gate_times_the_slope_of_the_loss_in_it(name):
    checkpoint = spread_gates(draw(name))
    shape = checkpoint.network.base.input_shape
    images, chosen = random_images(20, shape), IMAGENET if shape[0] == 3 else GRAY
    found = scores(checkpoint, "taylor", images, normalization=chosen)
    for block in removable(checkpoint.network):
        key = checkpoint.network.gate_key(block)
        k = float(checkpoint.weights[key])

        def build(change: float, key: str = key, k: float = k) -> nn.Module:
            module = checkpoint.build().double()
            module.load_state_dict({key: torch.tensor(k + change)}, strict=False)
            module.get_parameter(key).data = torch.tensor(k + change, dtype=torch.float64)
            return module

        assert found[block] == pytest.approx(abs(k) * slopes(build, images, chosen), rel=1e-3)
    assert sum(score > 1e-4 for score in found.values()) >= len(found) - 1  # one is closed


def test_without_gates_taylor_is_the_slope_of_the_loss_in_a_factor_on_the_branch():
    checkpoint, images = draw("resnet8"), random_images(12)

    def build(change: float, block: str) -> nn.Module:
        module = checkpoint.build().double()
        for part in ("weight", "bias"):  # of the layer that the branch ends in
            module.get_parameter(f"{block}.bn2.{part}").data *= 1 + change
        return module

    for block, score in scores(checkpoint, "taylor", images).items():
        slope = slopes(lambda change, block=block: build(change, block), images)
        assert score == pytest.approx(slope, rel=1e-3)


def test_taylor_computes_gradients_where_the_caller_computes_none():
    checkpoint, images = draw("resnet8"), random_images(8)
    with torch.no_grad():
        found = scores(checkpoint, "taylor", images)
    assert found == scores(checkpoint, "taylor", images)
    assert all(not weight.requires_grad for weight in checkpoint.weights.values())


# ---------------------------------------------------------------------- leave-one-out and greedy


@pytest.mark.parametrize("name", ["resnet14", "gated-plain-fc6"])
def test_leave_one_out_is_the_loss_of_every_rebuilt_network(name):
    checkpoint = spread_gates(draw(name))
    shape = checkpoint.network.base.input_shape
    images, chosen = random_images(20, shape), IMAGENET if shape[0] == 3 else GRAY
    given: dict[str, Any] = {**CPU, "normalization": chosen}
    whole = accuracy(checkpoint, images, **given).loss
    expected = {
        block: accuracy(remove(checkpoint, [block]), images, **given).loss - whole
        for block in removable(checkpoint.network)
    }
    assert scores(checkpoint, "leave-one-out", images, normalization=chosen) == expected
    assert len(set(expected.values())) == len(expected) or name != "resnet14"


def test_greedy_removes_what_harms_least_and_recalibrates_after_it():
    checkpoint, images = draw("resnet14"), random_images(20)
    whole = accuracy(checkpoint, images, **CPU).loss
    small, expected = checkpoint, []
    for _ in range(6):
        losses = {
            block: accuracy(
                recalibrate(remove(small, [block]), images, whole=checkpoint, **CPU), images, **CPU
            ).loss
            for block in removable(small.network)
        }
        best = min(losses, key=losses.__getitem__)
        expected.append((best, losses[best] - whole))
        small = recalibrate(remove(small, [best]), images, whole=checkpoint, **CPU)
    ranking = rank(checkpoint, "greedy", images, **CPU)
    assert ranking.names == tuple(name for name, _ in expected)
    assert [score for _, score in ranking.scores] == pytest.approx([it for _, it in expected])
    # recalibration and repetition both matter here
    assert ranking.names != rank(checkpoint, "leave-one-out", images, **CPU).names


class Nested(nn.Module):
    """A residual block whose branch has a residual block in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.last, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(x)
        x = x + (y + self.inner(y))
        return self.head((x + self.last(x)).mean((2, 3)))


def test_greedy_takes_a_block_within_a_branch_along():
    module = Nested()
    nn.init.constant_(module.outer.weight, 9.0)
    nn.init.zeros_(module.inner.bias)  # y + inner(y) is 0, so that only both may go
    module.inner.weight.data = -torch.eye(3)[:, :, None, None]
    checkpoint = Checkpoint.of(module, (3, 8, 8))
    inner, outer, last = removable(checkpoint.network)
    assert removable(remove(checkpoint, [outer]).network) == [last]
    ranking = rank(checkpoint, "greedy", random_images(8, (3, 8, 8)), **CPU)
    pairs = [pair for pair in ranking.scores if pair[0] != last]
    assert [name for name, _ in pairs] == [outer, inner]
    assert pairs[0][1] == pairs[1][1]


class Explosive(nn.Module):
    """A block whose output is 0, and one that multiplies what it gets beyond float32."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.huge = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.zero.weight.data = -torch.eye(3)[:, :, None, None]
        self.huge.weight.data = 3e38 * torch.ones(3, 3, 1, 1)
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.zero(x)
        return self.head((x + self.huge(x)).mean((2, 3)))


def test_greedy_keeps_a_block_while_the_loss_without_it_is_not_finite():
    checkpoint, images = Checkpoint.of(Explosive(), (3, 8, 8)), random_images(8, (3, 8, 8))
    first, second = removable(checkpoint.network)
    assert rank(checkpoint, "greedy", images, **CPU).names == (second, first)
    with pytest.raises(PlanError, match=f"cannot rank by leave-one-out: .* found nan for {first}"):
        rank(checkpoint, "leave-one-out", images, **CPU)


# ------------------------------------------------------------------- cosine, CKA and magnitude


@pytest.fixture(scope="module", params=["resnet18", "vit_b_32"])
def family(request: pytest.FixtureRequest) -> tuple[Checkpoint, nn.Module]:
    """A network of torchvision's, and torchvision's own module with the same weights."""
    name, shape = request.param, LIBRARY[request.param]
    checkpoint = draw(f"torchvision:{name}", input_shape=shape)
    arguments = {"image_size": shape[1]} if name.startswith("vit") else {}
    module = getattr(torchvision.models, name)(num_classes=10, **arguments)
    return checkpoint, load_into(module, checkpoint.weights)


def ends_of(module: nn.Module) -> dict[str, Any]:
    """For each block the module to hook, and what enters and leaves the block from its call."""

    def of_resnet(block: nn.Module, taken: tuple, made: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = block.downsample(taken[0]) if block.downsample else taken[0]
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(taken[0])))))
        return shortcut, shortcut + branch

    def first(block: nn.Module, taken: tuple, made: Tensor) -> tuple[Tensor, Tensor]:
        x = block.ln_1(taken[0])
        return taken[0], taken[0] + block.self_attention(x, x, x, need_weights=False)[0]

    def second(block: nn.Module, taken: tuple, made: Tensor) -> tuple[Tensor, Tensor]:
        return first(block, taken, made)[1], made

    found: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if type(layer).__name__ == "BasicBlock":
            found[name] = (layer, of_resnet)
        elif type(layer).__name__ == "EncoderBlock":
            found |= {f"{name}:1": (layer, first), f"{name}:2": (layer, second)}
    return found


def forward(module: nn.Module, images: Images) -> None:
    with torch.no_grad():
        for pixels, _ in batches_of(images, IMAGENET):
            module(pixels.float())


def test_cosine_compares_what_enters_and_leaves_the_blocks_of_torchvisions_module(family):
    checkpoint, module = family
    images = random_images(12, checkpoint.network.base.input_shape)
    expected: dict[str, list[float]] = {}
    hooks = []
    for name, (layer, ends) in ends_of(module).items():

        def note(layer, taken, made, name=name, ends=ends) -> None:
            enters, leaves = (end.flatten(1).numpy() for end in ends(layer, taken, made))
            for one, other in zip(enters, leaves, strict=True):
                size = np.linalg.norm(one) * np.linalg.norm(other)
                expected.setdefault(name, []).append(float(one @ other / size))

        hooks.append(layer.register_forward_hook(note))
    forward(module, images)
    for hook in hooks:
        hook.remove()
    found = scores(checkpoint, "cosine", images)
    assert sorted(found) == sorted(expected) == sorted(removable(checkpoint.network))
    for name, values in expected.items():
        assert len(values) == 12
        assert found[name] == pytest.approx(1 - np.mean(values), abs=2e-6)
    assert max(found.values()) > 0.05


def silent(module: nn.Module, name: str) -> Any:
    """Makes the branch of a block of torchvision's module nothing; returns the hook."""
    path, _, number = name.partition(":")
    block = module.get_submodule(path)
    if not number:
        return block.bn2.register_forward_hook(lambda layer, taken, made: made * 0)
    if number == "1":
        return block.self_attention.register_forward_hook(lambda *it: (it[2][0] * 0, None))
    return block.mlp.register_forward_hook(lambda layer, taken, made: made * 0)


def numpy_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By the Hilbert-Schmidt independence criterion of the two Gram matrices."""
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    k, l = x @ x.T, y @ y.T  # noqa: E741 - the paper's letters

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        return float(np.trace(k @ centring @ l @ centring)) / (n - 1) ** 2

    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def test_cka_compares_the_features_before_the_head_of_torchvisions_module(family):
    checkpoint, module = family
    images = random_images(12, checkpoint.network.base.input_shape)
    (head,) = [layer for layer in module.modules() if getattr(layer, "out_features", 0) == 10]

    def features() -> np.ndarray:
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda layer, taken: seen.append(taken[0]))
        forward(module, images)
        hook.remove()
        return torch.cat(seen).double().numpy()

    whole, found = features(), scores(checkpoint, "cka", images)
    assert sorted(found) == sorted(removable(checkpoint.network))
    for name in list(found)[:: 9 if len(found) > 8 else 1]:
        hook = silent(module, name)
        assert found[name] == pytest.approx(1 - numpy_cka(whole, features()), abs=1e-5)
        hook.remove()
    assert max(found.values()) > 1e-3


def test_magnitude_is_the_mean_absolute_weight_of_convolutions_and_matrices(family):
    checkpoint, module = family
    for name, score in scores(checkpoint, "magnitude").items():
        path, _, number = name.partition(":")
        block = module.get_submodule(path)
        if not number:  # neither norms nor the projection of the shortcut
            weights = [block.conv1.weight, block.conv2.weight]
        elif number == "1":
            weights = [block.self_attention.in_proj_weight, block.self_attention.out_proj.weight]
        else:
            weights = [block.mlp[0].weight, block.mlp[3].weight]
        every = np.concatenate([weight.detach().numpy().ravel() for weight in weights])
        assert score == pytest.approx(np.abs(every.astype(np.float64)).mean())


@pytest.mark.parametrize("by", ["taylor", "leave-one-out", "greedy"])
def test_what_the_loss_tells_ranks_every_block_of_torchvisions_families(family, by):
    checkpoint, _ = family
    if by == "greedy" and len(checkpoint.network.blocks) > 8:
        return  # as many passes as blocks
    images = random_images(4, checkpoint.network.base.input_shape)
    ranking = rank(checkpoint, by, images, **CPU)
    assert sorted(ranking.names) == sorted(removable(checkpoint.network))
    assert ranking.criterion == by


# -------------------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", ["gated-resnet8", "gated-highway-fc6", "gated-plain-fc6"])
def test_a_closed_gate_is_nothing_to_every_criterion_that_looks_at_what_a_block_does(name):
    checkpoint = draw(name)
    shape = checkpoint.network.base.input_shape
    closed = removable(checkpoint.network)[1]
    checkpoint = with_gates_at(checkpoint, -0.5, [closed])
    chosen = IMAGENET if shape[0] == 3 else GRAY
    for by in ("gate", "taylor", "leave-one-out", "cosine", "cka"):
        found = scores(checkpoint, by, random_images(12, shape), normalization=chosen)
        assert found[closed] == pytest.approx(0, abs=1e-6)
        assert max(map(abs, found.values())) > 1e-4


def test_no_criterion_changes_the_checkpoint_or_the_random_state(callers):
    checkpoint = Checkpoint.of(callers, (3, 8, 8))
    before, images = fingerprint(checkpoint), random_images(10, (3, 8, 8))
    state = torch.get_rng_state()
    for by in CRITERIA:
        if by != "gate":
            rank(checkpoint, by, images, **CPU)
    assert fingerprint(checkpoint) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in callers.parameters())


@pytest.mark.parametrize("by", [name for name in NEED_IMAGES if name != "taylor"])
def test_the_number_of_images_in_a_pass_changes_no_score(by):
    checkpoint, images = draw("resnet8"), random_images(10)
    ones = scores(checkpoint, by, images, batch_size=3)
    assert ones == pytest.approx(scores(checkpoint, by, images, batch_size=10), abs=1e-5)


@pytest.mark.parametrize("by", NEED_IMAGES)
def test_progress_is_shown_in_as_many_steps_as_are_announced(by):
    seen: list[tuple[int, int]] = []

    def track(steps):
        taken = list(steps)
        seen.append((len(steps), len(taken)))
        return taken

    checkpoint = draw("resnet8")
    rank(checkpoint, by, random_images(20), track=track, **CPU)
    assert seen == [(3, 3)]  # three batches, or three blocks that go one after the other


def test_the_normalisation_is_the_checkpoints_or_the_one_that_is_given():
    plain, images = draw("resnet8"), random_images(10)
    other = Normalization((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    recorded = {"normalize": {"mean": list(other.mean), "std": list(other.std)}}
    noted = replace(plain, notes=recorded)
    for by in NEED_IMAGES:
        found = scores(noted, by, images)
        assert found == scores(plain, by, images, normalization=other)
        assert found != scores(plain, by, images)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("by", NEED_IMAGES)
@pytest.mark.parametrize("images", [None, random_images(0)])
def test_a_criterion_that_needs_images_is_refused_without(by, images):
    message = f"cannot rank by {by} without images: .*magnitude or .*random or depth"
    with pytest.raises(DataError, match=message):
        rank(draw("resnet8"), by, images)


@pytest.mark.parametrize("by", NEED_IMAGES)
def test_images_of_another_size_are_refused(by):
    with pytest.raises(DataError, match=r"made up has images of \(3, 16, 16\)"):
        rank(draw("resnet8"), by, random_images(4, (3, 16, 16)), **CPU)


@pytest.mark.parametrize("by", NEED_IMAGES)
def test_labels_of_other_classes_are_refused_where_labels_count(by):
    images = random_images(4, classes=7)
    if by in LABELLED:
        with pytest.raises(DataError, match="made up has 7 classes"):
            rank(draw("resnet8"), by, images, **CPU)
    else:
        assert len(scores(draw("resnet8"), by, images)) == 3


@pytest.mark.parametrize("by", [*NEED_IMAGES, "magnitude"])
def test_a_score_that_is_not_finite_is_refused_by_the_name_of_the_block(by):
    checkpoint = draw("resnet8")
    key = "layer2.0.conv1.weight"
    weights = {**checkpoint.weights, key: torch.full_like(checkpoint.weights[key], torch.nan)}
    with pytest.raises(PlanError, match=rf"cannot rank by {by}: .*(nan|inf) for layer2\.0"):
        rank(replace(checkpoint, weights=weights), by, random_images(8), **CPU)


def test_a_branch_without_convolution_or_matrix_has_no_magnitude():
    class Pooling(Callers):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.stem(x))
            return self.head((x + F.avg_pool2d(x, 3, 1, 1)).mean((2, 3)))

    module = Pooling()
    module.load_state_dict(drawn(module.state_dict()))
    with pytest.raises(PlanError, match=r"cannot rank by magnitude: .*nan for root"):
        rank(Checkpoint.of(module, (3, 8, 8)), "magnitude")


# ----------------------------------------------------------------------------- one file, one line


def test_a_new_entry_ranks_without_anything_else(monkeypatch):
    """A stranger's criterion: how bright the images are, times the block's number of layers."""

    def brightness(checkpoint, names, evidence):
        layers = {block.name: len(block.layers) for block in checkpoint.network.blocks}
        bright = float(evidence.images.pixels.float().mean())
        return {name: bright * layers[name] - index for index, name in enumerate(names)}

    monkeypatch.setitem(CRITERIA, "brightness", Criterion(brightness, "images", "made up, 2026"))
    checkpoint, images = draw("resnet8"), random_images(4)
    ranking = rank(checkpoint, "brightness", images)
    assert ranking.names == tuple(removable(checkpoint.network)[::-1])
    assert (ranking.criterion, ranking.reversed().criterion) == (
        "brightness",
        "reversed brightness",
    )
    with pytest.raises(DataError, match="cannot rank by brightness without images"):
        rank(checkpoint, "brightness")
    with pytest.raises(PlanError, match=r"expected gate, .*, brightness"):
        rank(checkpoint, "taste")


def test_an_entry_that_forgets_a_block_is_refused(monkeypatch):
    forgetful = Criterion(lambda checkpoint, names, evidence: {names[0]: 1.0}, "nothing", "made up")
    monkeypatch.setitem(CRITERIA, "forgetful", forgetful)
    with pytest.raises(PlanError, match=r"found none for layer2\.0, none for layer3\.0"):
        rank(draw("resnet8"), "forgetful")


def test_every_entry_says_where_it_comes_from_and_is_a_documented_function():
    for name, criterion in CRITERIA.items():
        baseline = name in ("random", "depth")
        assert criterion.source == "a baseline" if baseline else "https://" in criterion.source
        assert list(inspect.signature(criterion.scores).parameters) == [
            *("checkpoint", "names", "evidence")
        ]


def test_the_names_of_the_criteria_are_known_without_torch():
    code = (
        "import sys; from gatepruner.pruning.criteria import CRITERIA; "
        "print(*CRITERIA, *({'torch', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(CRITERIA)
