"""Whether the statistics that batch norm recorded in training are those of the images at hand.

Weights do not tell all that their author's network computed: activations, strides and pooling
between them leave no trace in a file, nor does the preprocessing of the images. The recorded
statistics do: they are those of the training images, layer by layer, unless something differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from gatepruner import processes
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.device import pick_device
from gatepruner.measuring.inputs import check_several, check_shared, check_size, normalization_of
from gatepruner.measuring.recalibration import Views, divergence, most_images, walk
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.norms import statistics

IMAGES = 128  # that are looked at
LEAST = 16  # images that tell anything; with fewer, chance alone takes layers above the limit
LIMIT = 0.05  # docs/survey.md says what was measured on both sides of it
SHARE = 1 / 3  # of the batch norms of a wrong network; images of one class are off in a few
FIRST = 0.2  # of the first batch norm, for which the images and the stem alone count


@dataclass(frozen=True)
class StatisticsFit:
    """How far the statistics that batch norm recorded are from those of images.

    Attributes:
        divergences: of every batch norm, in the order of computation: the Kullback-Leibler
            divergence between normal distributions, median over channels; 0 if they are equal.
        images: how many images were looked at.
        augmented: whether they were varied at random, as in training.
    """

    divergences: Mapping[str, float]
    images: int
    augmented: bool

    @property
    def worst(self) -> float:
        """The greatest divergence."""
        return max(self.divergences.values(), default=0.0)

    @property
    def misfits(self) -> tuple[str, ...]:
        """The batch norms that are off by more than `LIMIT`."""
        return tuple(name for name, one in self.divergences.items() if not one <= LIMIT)

    @property
    def first_misfit(self) -> str | None:
        """The first batch norm from which on the network does not fit the images.

        `None` if it fits: unusual images take a few layers above the limit, another network takes
        at least a third of them, another normalisation the first one far above it. `None`, too,
        for fewer than 16 images, which tell nothing.
        """
        count, misfits = len(self.divergences), self.misfits
        stem = next(iter(self.divergences.values()), 0.0)
        wrong = stem > FIRST or len(misfits) >= max(SHARE * count, min(3, count))
        return misfits[0] if misfits and wrong and self.images >= LEAST else None


def compare_statistics(
    checkpoint: Checkpoint,
    data: Examples,
    *,
    device: str | torch.device = "auto",
    normalization: Normalization | None = None,
    limit: int = IMAGES,
) -> StatisticsFit:
    """Compare the recorded statistics of every batch norm with those of training images.

    Where they do not fit from some layer on, the network differs there from the one that was
    trained, or the images were prepared otherwise. If images as they are do not fit, they are
    varied at random as in training, and the better fit counts. Several processes share the images:
    each passes all of them, and takes its part.

    Args:
        checkpoint: a trained network from which nothing was removed since.
        data: training images of the network's size; labels are not used.
        device: where to compute.
        normalization: replaces the one that the checkpoint records.
        limit: most images to look at, spread evenly over the set.

    Raises:
        DataError: the images have another size, or there are fewer than two.
        ProcessError: the processes do different things.
    """
    check_shared("compare_statistics", checkpoint, data, normalization=normalization, limit=limit)
    check_size(checkpoint.network, data)
    check_several(data)
    normalization, device = normalization_of(checkpoint, data, normalization), pick_device(device)
    module = checkpoint.build()
    if not statistics(module):
        return StatisticsFit({}, 0, augmented=False)
    limit = max(limit, processes.count())
    data = data.spread(min(limit, most_images(module, data))).to(device)
    module, views = module.to(device), Views(data, normalization)
    plain = StatisticsFit(_divergences(module, views(False)), len(data), augmented=False)
    if plain.first_misfit is None or data.prepared:
        return plain
    varied = StatisticsFit(_divergences(module, views(True)), len(data), augmented=True)
    return min(plain, varied, key=lambda fit: sum(fit.divergences.values()))


@torch.inference_mode()
def _divergences(module: fx.GraphModule, images: list[Tensor]) -> dict[str, float]:
    """The divergence of every batch norm; of one that is used several times, that of all uses."""
    norms, uses = (
        statistics(module),
        defaultdict[tuple[str, str], list[tuple[Tensor, Tensor]]](list),
    )
    for node, seen in walk(module, images, norms, iter):
        uses[norms[node]].append(seen)
    return {
        keys[0].removesuffix(".running_mean"): _divergence(module, keys, seen)
        for keys, seen in uses.items()
    }


def _divergence(
    module: fx.GraphModule, keys: tuple[str, str], seen: list[tuple[Tensor, Tensor]]
) -> float:
    mean, variance = (torch.stack(values).mean(0) for values in zip(*seen, strict=True))
    own_mean, own_variance = (module.get_buffer(key) for key in keys)
    return float(divergence((mean, variance), (own_mean, own_variance)).median())
