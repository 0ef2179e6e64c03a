"""Accuracy of a network on labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gatepruner import processes
from gatepruner.errors import DataError
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.images.task import Task
from gatepruner.measuring.device import laid_out, pick_device, place, precision, wide_type
from gatepruner.measuring.inputs import check_fit, check_shared, normalization_of
from gatepruner.measuring.onnx_program import running
from gatepruner.networks.onnx_file import OnnxFile, Subject

Z95 = 1.959963984540054  # quantile of the normal distribution for 95 %


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy and loss on a set of images; for other tasks the mean score, see `Task`.

    Attributes:
        correct: number of images classified correctly; for other tasks the sum of the scores.
        images: number of images.
        loss: mean loss; cross-entropy in nats.
        right: `(images,)` on the CPU: whether each image is classified correctly, or its score;
            ignored by `==`.
    """

    correct: float
    images: int
    loss: float
    right: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified correctly."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.correct, self.images)

    def to_json(self) -> dict[str, float | None]:
        """Counts, accuracy and its interval as plain JSON; accuracies are fractions of 1.

        A loss that is not finite is `None`, since JSON cannot express it.
        """
        low, high = self.interval
        return {
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "correct": self.correct,
            "images": self.images,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }


def wilson(count: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a fraction, `count` of `n` (Wilson, 1927, doi:10.2307/2276774)."""
    p = count / n
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(min(middle - half, p), 0.0), min(max(middle + half, p), 1.0)


def accuracy(
    checkpoint: Subject,
    data: Examples,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
    sharded: bool = False,
) -> Accuracy:
    """Top-1 accuracy and mean loss of a network.

    If `torch.distributed` is initialised, the processes share the images, and all of them return
    the result for the whole set. All of them have to call this: within `if rank == 0:` it waits
    for the others until it times out.

    Args:
        checkpoint: a network with its weights, or in an ONNX file, which ONNX Runtime runs on the
            CPU.
        data: labelled images of the network's size and classes; in several processes the same
            images in all of them.
        device: where to compute; `"auto"` is CUDA if available, else MPS, else the CPU.
        batch_size: images per batch; affects only time and memory.
        normalization: replaces the one that the checkpoint records.
        track: wraps the batches, to show progress.
        sharded: whether each process has been given images of its own, a shard of the whole set,
            instead of the whole set.

    Raises:
        DataError: the images have another size or number of classes.
        ProcessError: the processes have different images and `sharded` is not set, or not all
            of them have called this.
    """
    check_fit(checkpoint, data)
    given = {"sharded": sharded, "normalization": normalization}
    check_shared("accuracy", checkpoint, None if sharded else data, **given)
    chosen = normalization_of(checkpoint, data, normalization)
    if isinstance(checkpoint, OnnxFile):
        module, device = running(checkpoint), "cpu"
    else:
        module = checkpoint.build()
    (result,) = tally(module, data, chosen, device, batch_size, track, sharded=sharded)
    return result


@torch.inference_mode()
def tally(
    module: nn.Module,
    data: Examples,
    normalization: Normalization,
    device: str | torch.device,
    batch_size: int,
    track: Track = iter,
    *,
    sharded: bool = False,
) -> list[Accuracy]:
    """The accuracy of a module that returns logits `(N, K)`, or of each of a tuple of them.

    Counts stay on the device until the end, so that no batch waits for it. Of several processes
    each takes its part of the images, unless they are a shard of its own.
    """
    device = pick_device(device)
    module = place(module, device).eval()
    part = processes.share(len(data), sharded=sharded)
    starts = range(0, len(part.mine), batch_size)
    steps = [part.mine[start : start + batch_size] for start in starts]
    batches = data.to(device).batches(part.mine, batch_size)
    losses: list[Tensor] = []
    rights: list[Tensor] = []
    for _, (pixels, labels) in zip(track(steps), batches, strict=True):
        images = laid_out(normalization(pixels))
        with precision(device):
            outputs = heads(module(images))
        scored = [_measured(data.task, logits.float(), labels) for logits in outputs]
        losses.append(torch.stack([loss for loss, _ in scored]))
        rights.append(torch.stack([right for _, right in scored]))
    if rights:
        total, count = torch.stack(losses).sum(0), len(rights[0])
    else:  # there are more processes than images
        count = len(heads(module(torch.zeros(1, *data.shape, device=device))))
        total = torch.zeros(count, device=device, dtype=wide_type(device))
    kind = torch.uint8 if data.task.classes else torch.float32
    right = torch.zeros(count, part.all, dtype=kind, device=device)
    if rights:
        right[:, part.places.to(device)] = torch.cat(rights, 1).to(kind)
    processes.add(total)
    processes.add(right)
    return [
        Accuracy(head.sum().item(), part.all, loss / part.all, _flags(head))
        for head, loss in zip(right.cpu(), total.tolist(), strict=True)
    ]


def heads(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits `(N, K)` of every network that a module computes, one or several."""
    return (logits,) if isinstance(logits, Tensor) else tuple(logits)


def _measured(task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses of a batch, `()`, and the score of each example, `(N,)`."""
    losses = task.losses(outputs, targets).to(wide_type(outputs.device))
    return losses.sum(), task.score(outputs, targets)


def _flags(right: Tensor) -> Tensor:
    return right.bool() if right.dtype == torch.uint8 else right


def mcnemar(one: Accuracy, other: Accuracy) -> float:
    """The p-value of McNemar's test: whether two networks are equally accurate.

    Two-sided and exact (McNemar, 1947, https://doi.org/10.1007/BF02295996).

    Args:
        one: measured on some images.
        other: measured on the same images in the same order.

    Returns:
        The probability that two equally accurate networks differ at least this much.

    Raises:
        DataError: they were measured on different numbers of images.
    """
    if one.right is None or other.right is None or one.images != other.images:
        raise DataError(
            f"cannot compare accuracies on {one.images} and {other.images} images: measure both "
            "on the same images"
        )
    only_one = int((one.right & ~other.right).sum())
    differing = only_one + int((other.right & ~one.right).sum())
    fewer = min(only_one, differing - only_one)
    tail = sum(math.comb(differing, number) for number in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << differing))
