"""Accuracy of a network on labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gatepruner.errors import DataError
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.device import laid_out, pick_device, place, precision
from gatepruner.measuring.inputs import check_fit, normalization_of
from gatepruner.networks.checkpoint import Checkpoint

Z95 = 1.959963984540054  # quantile of the normal distribution for 95 %


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, as counted.

    Attributes:
        correct: images whose largest logit is their class's.
        images: how many there were.
        loss: mean cross-entropy, in nats.
        right: `(images,)` bool on the CPU, which of them are right; not compared.
    """

    correct: int
    images: int
    loss: float
    right: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """Fraction of the images that are right."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson, 1927, https://doi.org/10.2307/2276774)."""
        n, p = self.images, self.accuracy
        middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
        return max(min(middle - half, p), 0.0), min(max(middle + half, p), 1.0)

    def to_json(self) -> dict[str, float | None]:
        """The counts, the accuracy and its interval as plain JSON, in fractions of 1.

        A loss that is no finite number is `None`: JSON has none.
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


def accuracy(
    checkpoint: Checkpoint,
    data: Images,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> Accuracy:
    """Top-1 accuracy and mean loss of a network.

    Where `torch.distributed` is initialised, every process takes its share of the images, none
    of them twice, and all get the same result.

    Args:
        checkpoint: a network with its weights.
        data: labelled images of the network's size and classes.
        device: where to compute; `"auto"` is CUDA where there is one, else MPS, else the CPU.
        batch_size: images at a time; it changes nothing but time and memory.
        normalization: instead of the one that the checkpoint records.
        track: wraps the batches, to show progress.

    Raises:
        DataError: the images are of another size or class count.
    """
    check_fit(checkpoint.network, data)
    chosen = normalization_of(checkpoint.notes, data.shape[0], normalization)
    (result,) = tally(checkpoint.build(), data, chosen, device, batch_size, track)
    return result


@torch.inference_mode()
def tally(
    module: nn.Module,
    data: Images,
    normalization: Normalization,
    device: str | torch.device,
    batch_size: int,
    track: Track = iter,
) -> list[Accuracy]:
    """Count for every head of a module that returns logits `(N, K)`, or a tuple of them.

    The counts stay on the device until the end, so that it is never waited for.
    """
    device = pick_device(device) if isinstance(device, str) else device
    module = place(module, device).eval()
    shared = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    indices = torch.arange(rank, len(data), world)
    steps = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    batches = data.to(device).batches(indices, batch_size)
    losses: list[Tensor] = []
    rights: list[Tensor] = []
    for _, (pixels, labels) in zip(track(steps), batches, strict=True):
        images = laid_out(normalization(pixels))
        with precision(device):
            heads = module(images)
        judged = [_judged(head, labels) for head in _heads(heads)]
        losses.append(torch.stack([loss for loss, _ in judged]))
        rights.append(torch.stack([right for _, right in judged]))
    count = len(losses[0]) if losses else len(_heads(module(_blank(data, device))))
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.stack(losses).sum(0) if losses else torch.zeros(count, device=device, dtype=wide)
    right = torch.zeros(count, len(data), dtype=torch.uint8, device=device)
    if rights:  # else there are more processes than images
        right[:, indices.to(device)] = torch.cat(rights, 1).to(torch.uint8)
    if shared:
        dist.all_reduce(total)
        dist.all_reduce(right)
    which = right.cpu().bool()
    return [
        Accuracy(int(one.sum()), len(data), loss / len(data), one)
        for one, loss in zip(which, total.tolist(), strict=True)
    ]


def _heads(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (logits,) if isinstance(logits, Tensor) else tuple(logits)


def _blank(data: Images, device: torch.device) -> Tensor:
    return torch.zeros(1, *data.shape, device=device)


def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses `()`, and which images are right `(B,)`."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="none").to(wide).sum()
    return loss, logits.argmax(1) == labels


def mcnemar(one: Accuracy, other: Accuracy) -> float:
    """Probability that two equally accurate networks differ by as much on the same images.

    McNemar's test, two-sided and exact: of the images that one alone gets right, either network
    gets as many (McNemar, 1947, https://doi.org/10.1007/BF02295996).

    Args:
        one: measured on some images.
        other: measured on the same images in the same order.

    Raises:
        DataError: they were measured on different numbers of images.
    """
    if one.right is None or other.right is None or one.images != other.images:
        raise DataError(
            f"cannot compare accuracies on {one.images} and {other.images} images: measure both "
            "on the same images"
        )
    only = int((one.right & ~other.right).sum())
    apart = only + int((other.right & ~one.right).sum())
    fewer = min(only, apart - only)
    below = sum(math.comb(apart, number) for number in range(fewer + 1))
    return min(1.0, 2 * below / (1 << apart))
