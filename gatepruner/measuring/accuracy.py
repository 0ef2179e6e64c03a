"""Accuracy of a network on labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

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
    """

    correct: int
    images: int
    loss: float

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
    total: Tensor | None = None
    for _, (pixels, labels) in zip(track(steps), batches, strict=True):
        images = laid_out(normalization(pixels))
        with precision(device):
            heads = module(images)
        counts = torch.stack([_count(head, labels) for head in _heads(heads)])
        total = counts if total is None else total + counts
    if total is None:  # more processes than images
        total = torch.zeros(len(_heads(module(_blank(data, device)))), 2, device=device)
        total = total.double() if device.type != "mps" else total
    if shared:
        dist.all_reduce(total)
    return [Accuracy(int(c), len(data), float(loss) / len(data)) for c, loss in total.tolist()]


def _heads(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (logits,) if isinstance(logits, Tensor) else tuple(logits)


def _blank(data: Images, device: torch.device) -> Tensor:
    return torch.zeros(1, *data.shape, device=device)


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """`(2,)`: how many are right, and the sum of their losses."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    logits = logits.float()
    right = (logits.argmax(1) == labels).sum().to(wide)
    loss = F.cross_entropy(logits, labels, reduction="none").to(wide).sum()
    return torch.stack([right, loss])
