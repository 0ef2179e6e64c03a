"""Recalibration: batch-norm statistics estimated anew, since a removal changes what layers see.

Exact: every batch norm gets mean and variance of all images at once, as they are when the layers
before it have their new statistics already. No batch size is in the result.

The statistics that a network brings from its training are those of images as it was trained on
them. Where these were shifted at random, statistics of images that are not cost accuracy even
where nothing was removed: so they are estimated on images of the kind that the first batch norm
shows to be the network's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from gatepruner.errors import DataError
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.images.views import augmented
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_size, normalization_of
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.norms import statistics

MEMORY = 2 * 2**30  # bytes of activations that are held at a time


def recalibrate(
    checkpoint: Checkpoint,
    data: Images,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 128,
    normalization: Normalization | None = None,
    augment: bool | None = None,
    whole: Checkpoint | None = None,
    memory: int = MEMORY,
    track: Track = iter,
) -> Checkpoint:
    """Estimate the statistics of every batch norm anew; no weight is changed.

    All images go through the network together, node by node, so that each batch norm sees them
    all and no image is computed twice. Of more images than `memory` holds the activations of,
    as many as it holds are taken, evenly from all over the set; the notes say how many.

    Args:
        checkpoint: a network with its weights.
        data: training images of the network's size; their labels are not used.
        device: where to compute.
        batch_size: images in one pass through a node; it changes nothing but time.
        normalization: instead of the one that the checkpoint records.
        augment: whether to shift and mirror the images at random, as in training; by default, if
            the first batch norm's statistics are nearer to those of such images.
        whole: the network before anything was removed: its first batch norm, rather than that of
            the checkpoint, decides on `augment`.
        memory: bytes of activations to hold.
        track: wraps the nodes of the network, to show progress.

    Raises:
        DataError: the images are of another size, or there are fewer than two.
    """
    check_size(checkpoint.network, data)
    if len(data) < 2:
        raise DataError(f"{data.source} has {len(data)} images: statistics take at least 2")
    chosen = normalization_of(checkpoint.notes, data.shape[0], normalization)
    module = checkpoint.build()
    if not statistics(module):
        return checkpoint
    device = pick_device(device) if isinstance(device, str) else device
    data = data.spread(max(memory // peak(module, data.shape), 2)).to(device)
    views = Views(data, chosen, batch_size)
    if augment is None:
        trained = module if whole is None else whole.build()
        augment = _seen_augmented(trained, views, device)
    estimated = estimate(module, views(augment), device, track)
    weights = {
        key: estimated[key].to(tensor.dtype) if key in estimated else tensor
        for key, tensor in checkpoint.weights.items()
    }
    notes = checkpoint.noting(recalibrated=data.source, images=len(data), augmented=augment)
    return Checkpoint(checkpoint.network, MappingProxyType(weights), notes)


@dataclass(frozen=True)
class Views:
    """Images as a network sees them, in parts of at most `batch_size`.

    Attributes:
        data: the images.
        normalization: of their pixels.
        batch_size: images in one part.
    """

    data: Images
    normalization: Normalization
    batch_size: int = 128

    def __call__(self, augment: bool) -> list[Tensor]:
        """All parts `(B, C, H, W)`, as they are or shifted and mirrored as in training.

        What an image is shifted by does not depend on the parts.
        """
        parts = self._parts
        if augment:
            device = parts[0].device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                whole = augmented(torch.cat(parts))
            parts = list(torch.split(whole, [len(part) for part in parts]))
        return [self.normalization(part) for part in parts]

    @functools.cached_property
    def _parts(self) -> list[Tensor]:
        batches = self.data.batches(torch.arange(len(self.data)), self.batch_size)
        return [pixels for pixels, _ in batches]


def seen_augmented(
    checkpoint: Checkpoint, data: Images, normalization: Normalization, device: torch.device
) -> bool:
    """Whether a network's own statistics are those of images that were shifted at random.

    The first batch norm tells: its statistics are nearer to those of shifted images or to those
    of the images as they are.

    Args:
        checkpoint: a network that was trained and not pruned since.
        data: training images.
        normalization: of their pixels.
        device: where to compute.
    """
    module = checkpoint.build()
    if not statistics(module):
        return False
    data = data.spread(max(MEMORY // peak(module, data.shape), 2)).to(device)
    return _seen_augmented(module, Views(data, normalization), device)


@torch.inference_mode()
def _seen_augmented(module: fx.GraphModule, views: Views, device: torch.device) -> bool:
    module.to(device)
    return _divergence(module, views(True)) < _divergence(module, views(False))


@torch.inference_mode()
def estimate(
    module: fx.GraphModule, images: list[Tensor], device: torch.device, track: Track = iter
) -> dict[str, Tensor]:
    """Give every batch norm of a module the statistics of all images, in place.

    Returns:
        What was estimated, on the CPU, by the keys of the module's state dict.
    """
    estimated, norms = {}, statistics(module.to(device))
    for node, values in _walk(module, images, norms, track):
        for key, value in zip(norms[node], values, strict=True):
            module.get_buffer(key).copy_(value)
            estimated[key] = value.cpu()
    return estimated


def _divergence(module: fx.GraphModule, images: list[Tensor]) -> float:
    """How far the first batch norm's statistics are from those of the images.

    Kullback-Leibler divergence of two normal distributions, mean over channels.
    """
    norms = statistics(module)
    node, (mean, variance) = next(_walk(module, images, norms, iter))
    known = [module.get_buffer(key).to(mean.dtype) for key in norms[node]]
    here, there = (it.clamp_min(1e-5) for it in (variance, known[1]))
    squares = (here + (mean - known[0]).square()) / there
    return float((squares - 1 - (here / there).log()).mean()) / 2


def _walk(
    module: fx.GraphModule,
    images: list[Tensor],
    norms: dict[fx.Node, tuple[str, str]],
    track: Track,
) -> Iterator[tuple[fx.Node, tuple[Tensor, Tensor]]]:
    """Mean and variance that every batch norm gets, before it normalises with its own."""
    run = fx.Interpreter(module)
    env: dict[fx.Node, list[Any]] = {}
    last = {used: node for node in module.graph.nodes for used in node.all_input_nodes}
    for node in track(list(module.graph.nodes)):
        if node.op == "placeholder":
            env[node] = images
        elif node.op == "output":
            return
        else:
            if node in norms:
                yield node, moments(env[node.all_input_nodes[0]])
            env[node] = [_result(run, node, env, at) for at in range(len(images))]
        for used in node.all_input_nodes:
            if last[used] is node:
                del env[used]


def _result(run: fx.Interpreter, node: fx.Node, env: dict[fx.Node, list[Any]], at: int) -> Any:
    """What a node makes of one part of the images."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: env[used][at])
    return getattr(run, node.op)(node.target, args, kwargs)


def moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance `(C,)` over images and places of parts `(N, C, ...)` of the images.

    Those of the parts are put together in float64 (Chan, Golub, LeVeque, 1979).
    """
    wide = torch.float32 if parts[0].device.type == "mps" else torch.float64
    flat = [part.float().flatten(2) if part.ndim > 2 else part.float()[..., None] for part in parts]
    means = torch.stack([part.mean((0, 2)) for part in flat])
    around = (part - mean[:, None] for part, mean in zip(flat, means, strict=True))
    variances = torch.stack([part.square_().mean((0, 2)) for part in around]).to(wide)
    means = means.to(wide)
    counts = [part.numel() // part.shape[1] for part in parts]
    share = torch.tensor(counts, dtype=wide, device=means.device)[:, None] / sum(counts)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return mean, variance * sum(counts) / (sum(counts) - 1)


class _Measured(fx.Interpreter):
    """Notes how many bytes are alive at a time."""

    peak = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        alive = [it for it in (*self.env.values(), result) if isinstance(it, Tensor)]
        self.peak = max(self.peak, sum(it.numel() * it.element_size() for it in alive))
        return result


def peak(module: fx.GraphModule, shape: Shape) -> int:
    """Bytes of activations of one image that are alive at a time, at most."""
    measured = _Measured(module)
    measured.run(torch.zeros(1, *shape))
    return measured.peak
