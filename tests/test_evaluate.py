"""Accuracy is what a loop over single images counts, however the work is shared."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw, fingerprint, logits, random_images
from PIL import Image

from gatepruner.errors import DataError
from gatepruner.files.checkpoints import load, save
from gatepruner.images.images import Images
from gatepruner.images.normalization import NORMALIZATIONS, Normalization
from gatepruner.measuring.accuracy import Accuracy, accuracy, mcnemar, tally
from gatepruner.measuring.inputs import normalization_of
from gatepruner.networks.checkpoint import Checkpoint

SHARED = Path(__file__).parents[2] / "shared" / "data"

# --------------------------------------------------------------------------------- counted by hand


def counted(checkpoint: Checkpoint, images: Images, mean, std) -> tuple[int, float]:
    """How many are right and the mean loss, one image after the other, in Python's numbers."""
    module, right, loss = checkpoint.build(), 0, 0.0
    for pixels, label in zip(images.pixels, images.labels.tolist(), strict=True):
        scaled = (pixels.numpy() / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        with torch.no_grad():
            (logits,) = module(torch.from_numpy(scaled)[None].float()).double().tolist()
        right += max(range(len(logits)), key=logits.__getitem__) == label
        loss += math.log(math.fsum(math.exp(logit) for logit in logits)) - logits[label]
    return right, loss / len(images)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.25,), (0.5,)


def made(name: str) -> tuple[Checkpoint, Images]:
    """A network that records a normalisation if its images are grey, and images for it."""
    checkpoint = draw(name)
    shape = checkpoint.network.base.input_shape
    notes = {} if shape[0] == 3 else {"normalize": {"mean": list(GREY[0]), "std": list(GREY[1])}}
    return Checkpoint(checkpoint.network, checkpoint.weights, notes), random_images(37, shape)


@pytest.mark.parametrize("name", ["gated-resnet8", "wrn-10-1,dropout=0.5", "gated-residual-fc4"])
def test_accuracy_is_that_of_a_loop_over_single_images(name):
    checkpoint, images = made(name)
    found = accuracy(checkpoint, images, batch_size=8)
    right, loss = counted(checkpoint, images, *(IMAGENET if images.shape[0] == 3 else GREY))
    assert (found.correct, found.images) == (right, 37)
    assert 0 < right < 37
    assert found.accuracy == right / 37
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["gated-resnet8", "gated-residual-fc4"])
def test_accuracy_does_not_depend_on_the_batch_size(name):
    checkpoint, images = made(name)
    whole = accuracy(checkpoint, images, batch_size=100)
    for size in (1, 5, 36, 37):
        found = accuracy(checkpoint, images, batch_size=size)
        assert (found.correct, found.images) == (whole.correct, 37)
        assert found.loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_chosen_normalisation_takes_the_place_of_the_recorded_one():
    checkpoint, images = made("gated-residual-fc4")
    chosen = accuracy(checkpoint, images, normalization=NORMALIZATIONS["mnist"])
    assert chosen.loss == pytest.approx(counted(checkpoint, images, 0.1307, 0.3081)[1], rel=1e-5)
    assert chosen.loss != pytest.approx(accuracy(checkpoint, images).loss, rel=1e-3)


def test_evaluating_leaves_the_checkpoint_and_the_random_numbers_as_they_were():
    checkpoint, images = made("gated-resnet8")
    before, state = fingerprint(checkpoint), torch.get_rng_state()
    first = accuracy(checkpoint, images)
    assert fingerprint(checkpoint) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy(checkpoint, images) == first


def test_a_module_in_training_mode_is_evaluated_and_its_statistics_stay_as_they_are():
    checkpoint, images = made("wrn-10-1,dropout=0.5")
    module = checkpoint.build().train()
    (found,) = tally(module, images, Normalization(*IMAGENET), "cpu", 8)
    assert found == accuracy(checkpoint, images, batch_size=8)
    state = module.state_dict()
    assert all(torch.equal(state[key], it) for key, it in checkpoint.weights.items())


def test_every_head_of_a_module_is_counted():
    first, images = made("gated-resnet8")
    second = draw("gated-resnet8", seed=1)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList([first.build(), second.build()])

        def forward(self, x):
            return tuple(part(x) for part in self.parts)

    found = tally(Both(), images, Normalization(*IMAGENET), "cpu", 10)
    alone = [accuracy(it, images, batch_size=10) for it in (first, second)]
    assert found == alone
    assert alone[0].loss != alone[1].loss


def test_progress_is_shown_by_the_callers_own_means():
    checkpoint, images = made("gated-residual-fc4")
    seen = []

    def track(steps):
        assert len(steps) == 4
        for step in steps:
            seen.append(len(step))
            yield step

    accuracy(checkpoint, images, batch_size=10, track=track)
    assert seen == [10, 10, 10, 7]


# ----------------------------------------------------------------------------- Wilson's interval


def solved(correct: int, images: int) -> tuple[float, float]:
    """The roots p of (correct/n - p)^2 = z^2 p (1 - p) / n, by halving; z from erf."""
    low, high = 0.0, 10.0
    while high - low > 1e-13:
        z = (low + high) / 2
        low, high = (z, high) if math.erf(z / math.sqrt(2)) < 0.95 else (low, z)
    share = correct / images

    def outside(p: float) -> bool:
        return (share - p) ** 2 > low**2 * p * (1 - p) / images

    ends = []
    for out, inside in ((0.0, share), (1.0, share)):
        for _ in range(200):
            middle = (out + inside) / 2
            out, inside = (middle, inside) if outside(middle) else (out, middle)
        ends.append(inside)
    return ends[0], ends[1]


@pytest.mark.parametrize(
    ("correct", "images"), [(0, 10), (5, 10), (10, 10), (1, 1), (915, 1000), (0, 1), (9999, 10**4)]
)
def test_the_interval_is_where_the_normal_test_would_not_reject(correct, images):
    low, high = Accuracy(correct, images, 0.0).interval
    assert 0 <= low <= correct / images <= high <= 1
    expected = solved(correct, images)
    assert (low, high) == pytest.approx(expected, abs=1e-9)


# Newcombe, 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E,
# table I, method 3.
@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(correct, images, low, high):
    found = Accuracy(correct, images, 0.0).interval
    assert found == pytest.approx((low, high), abs=5e-5)


# ------------------------------------------------------------------------------- several processes

WORKER = """
import json, sys
import torch
import torch.distributed as dist
from gatepruner.files.checkpoints import load
from gatepruner.pruning.curve import sweep
from gatepruner.images.images import Images
from gatepruner.measuring.accuracy import accuracy
from gatepruner.pruning.ranking import rank

rank_, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank_, world_size=world)
checkpoint = load(f"{folder}/it.safetensors")
found = []
for count in json.loads(sys.argv[4]):
    content = torch.load(f"{folder}/images.pt")
    pixels, labels = content["pixels"][:count], content["labels"][:count]
    images = Images(labels, tuple("0123456789"), tuple(pixels.shape[1:]), "made up", pixels)
    result = accuracy(checkpoint, images, batch_size=3)
    found.append([result.correct, result.images, result.loss])
points = sweep(checkpoint, images, rank(checkpoint, "depth"), counts=[0, 1], batch_size=3)
found += [[it.accuracy.correct, it.accuracy.images, it.accuracy.loss] for it in points]
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_two_processes_count_what_one_counts(tmp_path):
    checkpoint, images = made("gated-residual-fc4")
    save(checkpoint, tmp_path / "it.safetensors")
    torch.save({"pixels": images.pixels, "labels": images.labels}, tmp_path / "images.pt")
    counts = [37, 8, 2, 1]  # of which two do not divide by two, and one is less than two
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), "2", str(tmp_path), json.dumps(counts)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=100)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    first, second = map(json.loads, outputs)
    assert first == second
    for count, (correct, total, loss) in zip(counts, first, strict=False):
        alone = accuracy(checkpoint, images.take(torch.arange(count)), batch_size=3)
        assert (correct, total) == (alone.correct, alone.images) == (alone.correct, count)
        assert loss == pytest.approx(alone.loss, rel=1e-5)
    assert len(first) == len(counts) + 2
    assert first[-2] == first[-3]  # with nothing removed, a sweep is an evaluation


# ---------------------------------------------------------------------- real networks, real images


@pytest.fixture(scope="module")
def cifar_test() -> Images:
    """The 1,000 test images of ../shared/data."""
    sheet = SHARED / "cifar10" / "test-00.webp"
    if not sheet.exists():
        pytest.skip(f"there is no {sheet}")
    with Image.open(sheet) as opened:
        grid = torch.from_numpy(np.array(opened.convert("RGB")))
    pixels = grid.view(25, 32, 40, 32, 3).permute(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    digits = json.loads((SHARED / "cifar10" / "labels.json").read_text())["test"]
    labels = torch.tensor([int(digit) for digit in digits])
    return Images(labels, tuple("0123456789"), (3, 32, 32), "CIFAR-10", pixels.contiguous())


@pytest.mark.parametrize(
    ("file", "correct"),
    [("resnet20-12fca82f.th", 915), ("resnet56-4bfd9763.th", 926), ("resnet56-split.pt", 918)],
)
def test_published_networks_classify_real_images_as_published(cifar_test, file, correct):
    found = accuracy(load(SHARED / "checkpoints" / file), cifar_test, batch_size=100)
    assert (found.correct, found.images) == (correct, 1000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_a_gpu_classifies_real_images_as_the_cpu_does_to_its_rounding(cifar_test, file):
    checkpoint = load(SHARED / "checkpoints" / file)
    cpu, cuda = (accuracy(checkpoint, cifar_test, device=device) for device in ("cpu", "cuda"))
    assert abs(cuda.correct - cpu.correct) <= 5
    assert cuda.loss == pytest.approx(cpu.loss, rel=0.02)


# ----------------------------------------------------------------------------- paired comparison


def judged(*right: int) -> Accuracy:
    flags = torch.tensor(right, dtype=torch.bool)
    return Accuracy(int(flags.sum()), len(flags), 0.0, flags)


def test_an_accuracy_knows_which_images_are_right():
    checkpoint = draw("resnet8", input_shape=(3, 8, 8))
    images = random_images(23, (3, 8, 8))
    counted = accuracy(checkpoint, images, batch_size=5, device="cpu")
    normalization = normalization_of(checkpoint, images)
    module = checkpoint.build()
    for index in range(23):
        one = normalization(images.pixels[index : index + 1])
        assert bool(logits(module, one).argmax() == images.labels[index]) == counted.right[index]
    assert int(counted.right.sum()) == counted.correct


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1] * 5 + [0] * 5, [0] * 5 + [1] * 5, 1.0),
        ([1] * 9 + [0], [0] * 9 + [0], 2 * 0.5**9),  # nine heads of nine coins, either side
        ([1] * 8 + [0, 1], [0] * 8 + [1, 1], 2 * 10 * 0.5**9),
    ],
)
def test_paired_counts_are_compared_by_the_exact_binomial(one, other, p):
    assert mcnemar(judged(*one), judged(*other)) == pytest.approx(p)
    assert mcnemar(judged(*other), judged(*one)) == pytest.approx(p)


def test_paired_counts_of_many_images_are_compared_too():
    right = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.6
    better = right.clone()
    better[~right] = torch.rand(int((~right).sum())) < 0.1
    assert mcnemar(judged(*right.tolist()), judged(*better.tolist())) < 1e-12


def test_accuracies_on_other_images_are_not_compared():
    with pytest.raises(DataError, match="on 2 and 3 images"):
        mcnemar(judged(1, 0), judged(1, 0, 1))
