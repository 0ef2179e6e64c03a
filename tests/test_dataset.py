"""A data set of the caller's own serves where images do, and its task where classes would."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import KilledError, bright_images, draw, drawn, random_images, same, stopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import DataError
from gatepruner.images.dataset import examples_of
from gatepruner.images.images import Images
from gatepruner.images.normalization import IMAGENET
from gatepruner.images.task import Task
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe, Recipe
from gatepruner.learning.training import finetune, train
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.goals import Goal
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import remove

SHAPE = (3, 8, 8)
GATING = GateRecipe(blocks=1, warmup=2, steps=3, batch_size=4)
TUNING = Recipe(epochs=2, batch_size=4, learning_rate=0.01)


def of_images(images: Images) -> TensorDataset:
    return TensorDataset(images.pixels, images.labels)


def whole(name: str = "resnet8", seed: int = 0) -> Checkpoint:
    return draw(name, seed, SHAPE)


IMAGES = random_images(19, SHAPE)

# --------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 4, 30])
def test_batches_are_those_of_torchs_loader(workers, size):
    data = TensorDataset(torch.rand(19, *SHAPE), torch.arange(19) % 3)
    order = torch.randperm(19)[:11]
    known = list(DataLoader(Subset(data, order.tolist()), batch_size=size))
    found = list(examples_of(data, classes=3, workers=workers).batches(order, size))
    assert len(found) == len(known)
    for (inputs, targets), (others, known_targets) in zip(found, known, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, known_targets)


def test_parts_of_a_data_set_are_those_of_images():
    data = examples_of(of_images(IMAGES), classes=10)
    index = torch.tensor([4, 1, 1])
    for part, known in (
        (data.take(index), IMAGES.take(index)),
        (data.spread(7), IMAGES.spread(7)),
        (data.spread(7).take(index), IMAGES.spread(7).take(index)),
        *zip(data.held_out(5, 3), IMAGES.held_out(5, 3), strict=True),
    ):
        ((inputs, targets),) = part.batches(torch.arange(len(part)), 99)
        assert torch.equal(inputs, known.pixels)
        assert torch.equal(targets, known.labels)
        assert (part.alike, part.shape) == (known.alike, known.shape)
    parts = (data, data.spread(7), *data.held_out(5, 3), examples_of(of_images(IMAGES)))
    assert len({part.fingerprint for part in parts}) == 5
    assert data.fingerprint == examples_of(of_images(IMAGES), classes=10).fingerprint


VERBS: dict[str, Callable[[Any], Any]] = {
    "accuracy": lambda data: accuracy(whole(), data, batch_size=5, device="cpu"),
    "agreement": lambda data: agreement(whole(seed=1), whole(), data, device="cpu"),
    "recalibrate": lambda data: recalibrate(whole(), data, device="cpu"),
    "learn_gates": lambda data: learn_gates(whole(), data, GATING, device="cpu"),
    "finetune": lambda data: finetune(whole(), data, TUNING, teacher=whole(seed=1), device="cpu"),
    "train": lambda data: train(whole().network, data, TUNING, device="cpu"),
    "rank": lambda data: rank(whole(), "taylor", data, device="cpu"),
    "sweep": lambda data: [
        (point.removed, point.accuracy.correct)
        for point in sweep(whole(), data, rank(whole(), "depth"), statistics=data, device="cpu")
    ],
}


def equal(one: Any, other: Any) -> bool:
    return same(one, other) if isinstance(one, Checkpoint) else one == other


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_does_with_pixels_of_a_data_set_what_it_does_with_images(verb):
    data = examples_of(of_images(IMAGES), classes=[f"class{at}" for at in range(10)], workers=2)
    assert equal(VERBS[verb](data), VERBS[verb](IMAGES))


@pytest.mark.parametrize("verb", ["accuracy", "agreement", "recalibrate", "rank", "sweep"])
def test_prepared_inputs_go_into_the_network_as_they_are(verb):
    data = TensorDataset(IMAGENET(IMAGES.pixels), IMAGES.labels)
    assert equal(VERBS[verb](examples_of(data, classes=10)), VERBS[verb](IMAGES))


def test_prepared_inputs_are_not_augmented():
    """Bit for bit what images give whose recipe leaves augmentation out."""
    data = examples_of(TensorDataset(IMAGENET(IMAGES.pixels), IMAGES.labels), classes=10)
    for learn, recipe in ((finetune, TUNING), (learn_gates, GATING)):
        field = "augment" if recipe is TUNING else "mirror"
        known = learn(whole(), IMAGES, replace(recipe, **{field: False}), device="cpu")
        assert same(learn(whole(), data, recipe, device="cpu"), known)
        assert "normalize" not in learn(whole(), data, recipe, device="cpu").notes


def test_inputs_without_targets_teach_what_needs_none():
    class Bare(Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            return IMAGES.pixels[index]

    data = examples_of(Bare())
    assert not data.labelled
    for verb in ("agreement", "recalibrate", "learn_gates"):
        assert equal(VERBS[verb](data), VERBS[verb](IMAGES.unlabelled()))
    with pytest.raises(DataError, match="Bare has no labels"):
        VERBS["accuracy"](data)


# ---------------------------------------------------------------------------- random data sets


class Noisy(Dataset):
    """Draws from all three generators of random numbers, as transforms do."""

    classes = tuple("abcd")

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.rand(SHAPE) + random.random() + float(np.random.rand())
        return noise, index % 4


def read(data: Any, size: int, seed: int) -> Tensor:
    return torch.cat([inputs for inputs, _ in data.batches(torch.arange(12), size, seed)])


def test_what_is_random_in_a_data_set_depends_on_the_seed_and_the_index_alone():
    first = read(examples_of(Noisy()), 5, seed=1)
    for workers, size in ((0, 1), (1, 5), (2, 2)):
        assert torch.equal(read(examples_of(Noisy(), workers=workers), size, seed=1), first)
    assert not torch.equal(read(examples_of(Noisy()), 5, seed=2), first)
    part = torch.cat([part for part, _ in examples_of(Noisy()).batches(torch.arange(6, 9), 2, 1)])
    assert torch.equal(part, first[6:9])
    assert len({image.numpy().tobytes() for image in first}) == 12


def test_reading_leaves_the_random_numbers_of_the_caller_alone():
    def numbers() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = numbers()
    data = examples_of(Noisy())
    assert data.fingerprint
    read(data, 4, 0)
    assert numbers() == before


def test_a_resumed_run_ends_as_one_that_was_not_stopped(every_step):
    start = Checkpoint(
        *(lambda it: (it, drawn(it.initial_weights())))(
            Network.named("resnet8", num_classes=4, input_shape=SHAPE)
        )
    )
    recipe = Recipe(epochs=3, batch_size=4, learning_rate=0.01)
    known = finetune(start, examples_of(Noisy()), recipe, device="cpu")
    for workers in (0, 2):
        how = {"device": "cpu", "state": every_step}
        data = examples_of(Noisy(), workers=workers)
        with pytest.raises(KilledError):
            finetune(start, data, recipe, watch=stopping("killed", 5), **how)
        assert not multiprocessing.active_children()
        data = examples_of(Noisy(), workers=2 - workers)
        assert same(finetune(start, data, recipe, resume=True, **how), known)


# ---------------------------------------------------------------------------------- other tasks

MULTI_LABEL = Task(
    "multi-label",
    loss=F.binary_cross_entropy_with_logits,
    score=lambda outputs, targets: ((outputs > 0) == (targets > 0.5)).float().mean(1),
    decide=lambda outputs: (outputs > 0).float(),
    distance=lambda outputs, target, temperature: F.binary_cross_entropy_with_logits(
        outputs / temperature, (target / temperature).sigmoid()
    ),
)
REGRESSION = Task(
    "regression",
    loss=F.mse_loss,
    score=lambda outputs, targets: (outputs - targets).abs().squeeze(1) < 0.1,
    decide=lambda outputs: outputs,
    distance=lambda outputs, target, temperature: F.mse_loss(outputs, target),
)


def task_of(kind: str) -> tuple[Checkpoint, Dataset, Task]:
    """A network, and images of which it can tell what their brightest row is."""
    images = bright_images(32, SHAPE)
    pixels = images.pixels / 255
    if kind == "multi-label":
        targets: Tensor = F.one_hot(images.labels, 4).float()
        targets[:, 3] = (images.labels > 1).float()
        network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
        task = MULTI_LABEL
    else:
        targets, task = images.labels[:, None] / 4, REGRESSION
        network = Network.named("resnet8", num_classes=1, input_shape=SHAPE)
    weights = drawn(network.initial_weights())
    return Checkpoint(network, weights), TensorDataset(pixels, targets), task


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_another_task_is_measured_as_a_loop_over_single_examples_does(kind):
    checkpoint, dataset, task = task_of(kind)
    counted = accuracy(checkpoint, examples_of(dataset, task=task), batch_size=5, device="cpu")
    module, loss, right = checkpoint.build(), 0.0, 0.0
    with torch.no_grad():
        for inputs, target in dataset:
            output = module(inputs[None])[0]
            if kind == "multi-label":
                loss += nn.BCEWithLogitsLoss()(output, target).item()
                right += sum((output[at] > 0) == (target[at] == 1) for at in range(4)).item() / 4
            else:
                loss += nn.MSELoss()(output, target).item()
                right += abs(output - target).item() < 0.1
    assert counted.loss == pytest.approx(loss / 32, rel=1e-4)
    assert counted.accuracy == pytest.approx(right / 32)
    assert 0 <= counted.interval[0] <= counted.accuracy <= counted.interval[1] <= 1


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_a_network_for_another_task_is_gated_pruned_and_tuned(kind):
    checkpoint, dataset, task = task_of(kind)
    data = examples_of(dataset, task=task)
    recipe = Recipe(epochs=5, batch_size=8, learning_rate=0.02)
    trained = finetune(checkpoint, data, recipe, validation=data, device="cpu")
    before, after = (accuracy(it, data, device="cpu") for it in (checkpoint, trained))
    assert after.loss < before.loss / 2
    assert trained.notes["epochs"][-1]["validation"] == pytest.approx(after.accuracy)
    own = agreement(trained, trained, data, device="cpu")
    assert (own.agreement, own.divergence) == (1, pytest.approx(own.divergence))
    gated = learn_gates(trained, data, replace(GATING, batch_size=8), device="cpu")
    labelled = learn_gates(trained, data, replace(GATING, batch_size=8, labels=True), device="cpu")
    assert len(gated.path.blocks) == len(labelled.path.blocks) == 1
    assert set(rank(trained, "taylor", data, device="cpu").names) == {
        block.name for block in trained.network.blocks
    }
    small = remove(trained, gated.path.blocks)
    taught = {"teacher": trained, "validation": data, "device": "cpu"}
    for match in ("features", "logits"):
        tuned = finetune(small, data, replace(recipe, match=match), **taught)
        left, regained = (agreement(it, trained, data, device="cpu") for it in (small, tuned))
        assert regained.gap < left.gap


def test_a_network_for_another_task_is_compressed():
    checkpoint, dataset, task = task_of("multi-label")
    data = examples_of(dataset, task=task)
    recipe = CompressionRecipe(
        gating=replace(GATING, batch_size=8), tuning=None, gate_images=32, recalibrate=32
    )
    done = compress(checkpoint, data, Goal("blocks", 1), recipe, test=data, device="cpu")
    assert len(done.removed) == 1
    assert done.steps[-1].accuracy is not None


# -------------------------------------------------------------------------------------- refused


class Gives(Dataset):
    """Always the same example."""

    def __init__(self, example: Any, count: int = 4) -> None:
        self.example, self.count = example, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.example[index] if isinstance(self.example, list) else self.example


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(SHAPE), 0


IMAGE = torch.zeros(SHAPE)
REFUSED = {
    "a stream": (Stream(), "Stream has no length .*: expected a map-style data set"),
    "nothing": (Gives((IMAGE, 0), 0), "Gives has no examples"),
    "three parts": (Gives((IMAGE, 0, 0)), "Gives gives tuple of 3: expected a pair of input and"),
    "a dict": (Gives({"image": IMAGE}), "Gives gives dict: expected a pair"),
    "no tensor": (Gives((np.zeros(SHAPE), 0)), "Gives gives ndarray: expected .* a tensor"),
    "a vector": (Gives((IMAGE[0, 0], 0)), r"torch.float32 and shape \(8,\): expected \(C, H, W\)"),
    "integers": (Gives((IMAGE.long(), 0)), "an input of torch.int64 .*: expected"),
    "no classes": (
        Gives((IMAGE, 0)),
        "Gives does not say how many classes .*; pass classes=10$",
    ),
    "a class too high": (Gives((IMAGE, 10)), "targets from 10 to 10: expected 0 to 9 for 10"),
    "a class below 0": (Gives((IMAGE, -1)), "targets from -1 to -1: expected 0 to 9"),
    "no index": (Gives((IMAGE, 0.5)), "targets of torch.float64 and shape .*: expected the index"),
    "another shape": (
        Gives([(IMAGE, 0), (IMAGE[:, 1:], 0)], 2),
        r"an input of torch.float32 and shape \(3, 7, 8\), and first gave one of",
    ),
    "another size": (Gives((torch.zeros(3, 9, 9), 0)), r"images of \(3, 9, 9\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_data_set_that_gives_something_else_is_refused(case):
    dataset, message = REFUSED[case]
    with pytest.raises(DataError, match=message):  # noqa: PT012 - either of the two refuses it
        data = examples_of(dataset, classes=None if case == "no classes" else 10)
        accuracy(whole(), data, batch_size=1, device="cpu")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4, 7), r"multi-label.*outputs \(2, 10\) and targets \(2, 7\) fails"),
        (
            torch.zeros(4, dtype=torch.int64),
            r"multi-label.*outputs \(2, 10\) and targets \(2,\) fails",
        ),
    ],
)
def test_targets_that_do_not_fit_the_outputs_are_refused(targets, message):
    data = examples_of(TensorDataset(torch.zeros(4, *SHAPE), targets), task=MULTI_LABEL)
    with pytest.raises(DataError, match=message):
        accuracy(whole(), data, device="cpu")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, targets, reduction: F.mse_loss(outputs, targets), r"has the shape \(\)"),
        (F.mse_loss, r"targets \(2,\) has the shape \(2, 2\), expected \(2, 1\) or \(2,\)"),
        (lambda outputs, targets: F.mse_loss(outputs, targets), "fails: .*reduction"),
    ],
)
def test_a_loss_that_is_not_of_each_example_is_refused(loss, message):
    checkpoint, _, task = task_of("regression")
    data = TensorDataset(torch.zeros(4, *SHAPE), torch.zeros(4))
    with pytest.raises(DataError, match=message):
        accuracy(checkpoint, examples_of(data, task=replace(task, loss=loss)), device="cpu")
