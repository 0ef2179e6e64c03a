"""Without a GPU, mixes of devices are found: the forward part of each verb on tensors without data.

`FakeTensorMode` gives tensors a device and a shape but no data, also on a GPU that is not there. An
operation on tensors of two devices raises the error that it would raise on the GPU. The backward
part does not work there, so a step of learning ends with its loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import drawn
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from gatepruner.images.examples import Examples
from gatepruner.images.normalization import Normalization
from gatepruner.learning import gates, learner, training
from gatepruner.learning.recipes import GateRecipe, Recipe
from gatepruner.measuring.accuracy import tally
from gatepruner.measuring.agreement import answering, compared
from gatepruner.measuring.device import place
from gatepruner.measuring.merging import merged, with_own_statistics
from gatepruner.measuring.recalibration import Views, estimate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import add_gates

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
CUDA = torch.device("cuda:0")
BATCH = 8
NAMES = {
    "resnet8": (3, 8, 8),
    "gated-plain-fc6,width=8": (3, 8, 8),
    "torchvision:mobilenet_v3_small": (3, 32, 32),
}


@dataclass(frozen=True)
class FakeImages(Examples):
    """Images without data, whose batches are on a device."""

    shape: tuple[int, int, int]
    device: torch.device = CUDA
    count: int = 2 * BATCH
    classes: tuple[str, ...] = ("a", "b", "c", "d")
    source: str = "nothing"
    labelled: bool = True
    in_memory: bool = False
    fingerprint: str = "nothing"

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Tensor) -> FakeImages:
        return replace(self, count=len(indices))

    def to(self, device: torch.device) -> FakeImages:
        return replace(self, device=device)

    def batches(self, indices: Tensor, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(indices), size):
            number = min(size, len(indices) - start)
            pixels = torch.empty(number, *self.shape, dtype=torch.uint8, device=self.device)
            yield pixels, torch.empty(number, dtype=torch.int64, device=self.device)


@pytest.fixture(params=NAMES)
def whole(request) -> Checkpoint:
    shape = NAMES[request.param]
    classes = {} if "torchvision" not in request.param else {"num_classes": 4}
    network = Network.named(request.param, input_shape=shape, **{"num_classes": 4, **classes})
    return Checkpoint(network, drawn(network.initial_weights()), {})


# What builds or looks at networks, which does not happen on a GPU.
BUILT = [
    (Checkpoint, "build"),
    *((module, name) for module in (learner, gates) for name in ("check_learnable", "answering")),
    *((learner, name) for name in ("count", "matches")),
    *((gates, name) for name in ("use_batch_statistics", "statistics", "scales_and_shifts")),
    *((training, name) for name in ("answering", "statistics", "keep_statistics")),
]
BUILT = [(module, name) for module, name in BUILT if hasattr(module, name)]


def moved(module: nn.Module, device: torch.device, **options) -> nn.Module:
    """`Module.to`, which cannot swap tensors without data: a module with others in their places."""
    memo: dict[int, Tensor] = {}
    for layer in module.modules():
        for tensors in (layer._parameters, layer._buffers):
            for key, tensor in tensors.items():
                if tensor is None or tensor.device == device:
                    continue
                if id(tensor) not in memo:
                    there = tensor.detach().to(device)
                    learns = isinstance(tensor, nn.Parameter)
                    memo[id(tensor)] = (
                        nn.Parameter(there, tensor.requires_grad) if learns else there
                    )
                tensors[key] = memo[id(tensor)]
    return module


def without_fakes(function):
    def call(*arguments, **options):
        with unset_fake_temporarily():
            return function(*arguments, **options)

    return call


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeTensorMode]:
    """A GPU that is not there, on which nothing is computed; a loss has no gradient there."""
    monkeypatch.setattr(torch.autograd, "backward", lambda *losses: None)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    for owner, name in BUILT:
        monkeypatch.setattr(owner, name, without_fakes(getattr(owner, name)))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def normalization(whole: Checkpoint) -> Normalization:
    channels = whole.network.base.input_shape[0]
    return Normalization((0.5,) * channels, (0.25,) * channels)


def images_for(whole: Checkpoint) -> FakeImages:
    return FakeImages(whole.network.base.input_shape)


def test_mixed_devices_are_found(gpu):
    with pytest.raises(RuntimeError, match="on the same device, but found at least two"):
        torch.empty(2, device=CUDA) + torch.empty(2, device="cpu")


def test_accuracy_and_a_sweep(whole, gpu):
    names = [block.name for block in whole.network.blocks if block.removable]
    networks = [whole.network, whole.network.without(names[:1])]
    with unset_fake_temporarily():
        modules = whole.build(), merged(whole, networks)
    for module in modules:
        place(module, CUDA)
        with pytest.raises(DataDependentOutputException):  # once everything is computed
            tally(module, images_for(whole), normalization(whole), CUDA, BATCH)


def test_agreement(whole, gpu):
    roots = [place(whole.build(), CUDA) for _ in range(2)]
    with unset_fake_temporarily():
        modules = [answering(root, whole.network, True) for root in roots]
    both = (normalization(whole),) * 2
    with pytest.raises(DataDependentOutputException):
        compared(*modules, images_for(whole), both, CUDA, batch_size=BATCH)


@pytest.mark.parametrize("augment", [False, True])
def test_recalibration(whole, gpu, augment):
    views = Views(images_for(whole), normalization(whole), BATCH)
    names = [block.name for block in whole.network.blocks if block.removable]
    small = [whole.network.without(names[:count]) for count in (1, 2)]
    with unset_fake_temporarily():
        modules = whole.build(), with_own_statistics(merged(whole, small))
    for module in modules:
        estimate(place(module, CUDA), views(augment), CUDA)


@pytest.mark.parametrize(("match", "labels", "most"), [("logits", True, None), ("both", False, 3)])
def test_a_step_of_learning_gates(whole, gpu, match, labels, most):
    recipe = GateRecipe(warmup=1, steps=1, batch_size=BATCH, match=match, labels=labels, blocks=1)
    recipe = replace(recipe, micro_batch_size=most)
    options = {"normalization": normalization(whole), "device": CUDA}
    with unset_fake_temporarily():
        whole = add_gates(whole)
    run = gates._Run(whole, images_for(whole), recipe, None, **options)
    run.compute_gradients()
    assert run.sums.device == CUDA
    run.update()


@pytest.mark.parametrize(("taught", "most"), [(False, None), (True, None), (True, 3)])
def test_a_step_of_training(whole, gpu, taught, most):
    recipe = Recipe(batch_size=BATCH, micro_batch_size=most, epochs=1, match="both")
    options = {"normalization": normalization(whole), "device": CUDA}
    teacher = whole if taught else None
    images = images_for(whole)
    run = training._Run(whole, images, recipe, validation=None, teacher=teacher, **options)
    run.compute_gradients()
    assert run.sums.device == CUDA
