"""Recalibration: re-estimating batch-norm statistics, since a removal changes the layers' inputs.

The estimate is exact: every batch norm gets the mean and variance over all images at once, with
the layers before it recalibrated already. The result depends on the batch size only by rounding. A
batch norm that a network uses several times gets the mean of the statistics of its uses, each of
which is normalised by its own until then: that is where training without momentum ends up, too.

Statistics from training are those of the training images, augmented or not. If they were
augmented, statistics of plain images reduce the accuracy even without a removal. The statistics of
the first batch norm show whether they were, and recalibration uses images of that kind.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from gatepruner import processes
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.images.preprocessing import Preprocessing
from gatepruner.images.views import Part, varied
from gatepruner.measuring.device import pick_device, wide_type
from gatepruner.measuring.inputs import check_several, check_shared, check_size, normalization_of
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.norms import statistics

MEMORY = 2 * 2**30  # most bytes of activations in memory


def recalibrate(
    checkpoint: Checkpoint,
    data: Examples,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 128,
    normalization: Normalization | None = None,
    augment: bool | None = None,
    whole: Checkpoint | None = None,
    memory: int = MEMORY,
    track: Track = iter,
) -> Checkpoint:
    """Re-estimate the statistics of every batch norm; parameters stay as they are.

    All images go through the network together, node by node. If their activations exceed
    `memory`, fewer images are used, evenly spaced over the set; the notes say how many. Several
    processes share the images: each passes all of them, takes its part, and adds what it has seen
    at every node.

    Args:
        checkpoint: a network with its weights.
        data: training images of the network's size; labels are not used.
        device: where to compute.
        batch_size: images per pass through a node; affects time, and rounding: statistics differ
            by less than 1e-5 of themselves, means by less than 1e-5 of the deviation.
        normalization: replaces the one that the checkpoint records.
        augment: whether to vary the images at random, as in training: to shift small ones, to
            crop large ones, and to mirror both; by default as when the network was recalibrated
            last, or else if the first batch norm's statistics are closer to those of varied images.
        whole: the network before any removal, which decides on `augment` in the checkpoint's
            place.
        memory: most bytes of activations in the memory of a process.
        track: wraps the nodes of the network, to show progress.

    Returns:
        The checkpoint with new statistics and without a path.

    Raises:
        DataError: the images have another size, or there are fewer than two, or than processes.
        ProcessError: the processes do different things.
    """
    check_size(checkpoint.network, data)
    check_several(data)
    given = {"normalization": normalization, "augment": augment, "memory": memory}
    check_shared("recalibrate", checkpoint, data, **given)
    normalization = normalization_of(checkpoint, data, normalization)
    module, device = checkpoint.build(), pick_device(device)
    if not statistics(module):
        return checkpoint
    data = data.spread(most_images(module, data, memory)).to(device)
    views = Views(data, normalization, batch_size)
    if augment is None:
        augment = not data.prepared and _seen_augmented(whole or checkpoint, views, device)
    estimated = estimate(module, views(augment), device, track)
    weights = {
        key: estimated[key].to(tensor.dtype) if key in estimated else tensor
        for key, tensor in checkpoint.weights.items()
    }
    notes = checkpoint.noting(recalibrated=data.source, images=len(data), augmented=augment)
    notes |= Preprocessing(normalization, data.resize).to_json()
    return Checkpoint(checkpoint.network, MappingProxyType(weights), notes)


@dataclass(frozen=True)
class Views:
    """This process's part of the images, normalised, as they are or augmented, in batches.

    Attributes:
        data: the images.
        normalization: of their pixels.
        batch_size: images per batch.
    """

    data: Examples
    normalization: Normalization
    batch_size: int = 128

    def __call__(self, augment: bool) -> list[Tensor]:
        """All batches `(B, C, H, W)`, shifted or cropped and mirrored as in training if `augment`.

        The augmentation of an image does not depend on the batch size.
        """
        batches = self._batches
        if augment:
            device = batches[0].device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                part = Part(self._mine, len(self.data))
                pixels = varied(torch.cat(batches), part)
            batches = list(torch.split(pixels, [len(batch) for batch in batches]))
        return [self.normalization(batch) for batch in batches]

    @functools.cached_property
    def _mine(self) -> Tensor:
        return processes.share(len(self.data)).mine

    @functools.cached_property
    def _batches(self) -> list[Tensor]:
        batches = self.data.batches(self._mine, self.batch_size)
        return [pixels for pixels, _ in batches]


def seen_augmented(
    checkpoint: Checkpoint, data: Examples, normalization: Normalization, device: torch.device
) -> bool:
    """Whether the statistics of a trained network are those of augmented images.

    They are if they were estimated from such images when the network was recalibrated last, or
    else if the first batch norm's are closer to those of augmented images than of plain ones.

    Args:
        checkpoint: a trained network before any removal.
        data: training images.
        normalization: of their pixels.
        device: where to compute.
    """
    module = checkpoint.build()
    if data.prepared or not statistics(module):
        return False
    data = data.spread(most_images(module, data)).to(device)
    return _seen_augmented(checkpoint, Views(data, normalization), device)


@torch.inference_mode()
def _seen_augmented(checkpoint: Checkpoint, views: Views, device: torch.device) -> bool:
    history = checkpoint.notes.get("history", ())
    recorded = [bool(done["augmented"]) for done in history if "augmented" in done]
    if recorded:
        return recorded[-1]
    module = checkpoint.build().to(device)
    return _divergence(module, views(True)) < _divergence(module, views(False))


@torch.inference_mode()
def estimate(
    module: fx.GraphModule, images: list[Tensor], device: torch.device, track: Track = iter
) -> dict[str, Tensor]:
    """Recalibrate every batch norm of a module in place, on all images.

    Args:
        module: its statistics are replaced.
        images: batches `(B, C, H, W)`, normalised.
        device: where to compute.
        track: wraps the nodes of the module, to show progress.

    Returns:
        The new statistics on the CPU, by state-dict key.
    """
    uses, norms = defaultdict[str, list[Tensor]](list), statistics(module.to(device))
    for node, values in walk(module, images, norms, track):
        for key, value in zip(norms[node], values, strict=True):
            module.get_buffer(key).copy_(value)
            uses[key].append(value)
    estimated = {key: torch.stack(values).mean(0) for key, values in uses.items()}
    for key, value in estimated.items():
        module.get_buffer(key).copy_(value)
    return {key: value.cpu() for key, value in estimated.items()}


def _divergence(module: fx.GraphModule, images: list[Tensor]) -> float:
    """The divergence of the first batch norm's statistics from those of the images."""
    norms = statistics(module)
    node, seen = next(walk(module, images, norms, iter))
    mean, variance = (module.get_buffer(key) for key in norms[node])
    return float(divergence(seen, (mean, variance)).mean())


def divergence(seen: tuple[Tensor, Tensor], recorded: tuple[Tensor, Tensor]) -> Tensor:
    """The Kullback-Leibler divergence of two normal distributions, for each channel.

    Args:
        seen: means and variances, each `(C,)`.
        recorded: those of the distribution from which the seen one diverges.
    """
    (mean, variance), (own_mean, own_variance) = seen, recorded
    own_mean, own_variance = own_mean.to(mean.dtype), own_variance.to(mean.dtype).clamp_min(1e-5)
    variance = variance.clamp_min(1e-5)
    squares = (variance + (mean - own_mean).square()) / own_variance
    return (squares - 1 - (variance / own_variance).log()) / 2


def walk(
    module: fx.GraphModule,
    images: list[Tensor],
    norms: dict[fx.Node, tuple[str, str]],
    track: Track,
) -> Iterator[tuple[fx.Node, tuple[Tensor, Tensor]]]:
    """Every batch norm with the mean and variance of its input, before it is computed."""
    run = fx.Interpreter(module)
    env: dict[fx.Node, list[Any]] = {}
    last_user = {value: node for node in module.graph.nodes for value in node.all_input_nodes}
    for node in track(list(module.graph.nodes)):
        if node.op == "placeholder":
            env[node] = images
        elif node.op == "output":
            return
        else:
            if node in norms:
                yield node, moments(env[node.all_input_nodes[0]])
            env[node] = [_result(run, node, env, index) for index in range(len(images))]
        for value in node.all_input_nodes:
            if last_user[value] is node:
                del env[value]


def _result(run: fx.Interpreter, node: fx.Node, env: dict[fx.Node, list[Any]], index: int) -> Any:
    """The value of a node for one batch."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: env[value][index])
    return getattr(run, node.op)(node.target, args, kwargs)


def moments(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance `(C,)` over all images and positions of batches `(N, C, ...)`.

    Those of the batches, and then of the processes, are combined in float64 (Chan, Golub, LeVeque,
    1979).
    """
    wide = wide_type(batches[0].device)
    others = [axis for axis in range(batches[0].ndim) if axis != 1]
    pairs = [torch.var_mean(batch.float(), dim=others, correction=0) for batch in batches]
    variances, means = (torch.stack(values).to(wide) for values in zip(*pairs, strict=True))
    counts = [batch.numel() // batch.shape[1] for batch in batches]
    mean, variance, count = _combined(means, variances, counts)
    if processes.count() > 1:
        seen = torch.cat([mean, variance, mean.new_tensor([count])])
        parts = processes.gathered(seen)
        means, variances = parts[:, : len(mean)], parts[:, len(mean) : -1]
        mean, variance, count = _combined(means, variances, list(map(int, parts[:, -1].tolist())))
    return mean, variance * count / (count - 1)


def _combined(means: Tensor, variances: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, int]:
    """Mean, variance (of all, not of all but one) and count over parts, from those of each."""
    share = torch.tensor(counts, dtype=means.dtype, device=means.device)[:, None] / sum(counts)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), sum(counts)


class _MemoryMeter(fx.Interpreter):
    """Records the most bytes of activations that are in memory at a time."""

    peak = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        values = (*self.env.values(), result)
        sizes = (value.nbytes for value in values if isinstance(value, Tensor))
        self.peak = max(self.peak, sum(sizes))
        return result


def most_images(module: fx.GraphModule, data: Examples, memory: int = MEMORY) -> int:
    """How many images fit into the memory of all processes."""
    return max(memory // peak(module, data.shape) * processes.count(), 2, processes.count())


def peak(module: fx.GraphModule, shape: Shape) -> int:
    """The most bytes of activations of one image that are in memory at a time."""
    meter = _MemoryMeter(module)
    meter.run(torch.zeros(1, *shape))
    return meter.peak
