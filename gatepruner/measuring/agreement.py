"""Agreement of a network with the whole one, on images whose labels are not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatepruner import processes
from gatepruner.errors import PlanError
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import wilson
from gatepruner.measuring.device import laid_out, pick_device, place, precision, wide_type
from gatepruner.measuring.inputs import check_shared, check_size, normalization_of
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import settle_in_place
from gatepruner.networks.features import features_of, with_features
from gatepruner.networks.network import Network

TINY = 1e-30  # instead of a square of 0
Normalizations = tuple[Normalization, Normalization]  # of a network, and of the whole one
Answers = tuple[Tensor, Tensor | None]  # logits `(N, K)` and features `(N, ...)`, if compared


@dataclass(frozen=True)
class Agreement:
    """How closely the answers of a network agree with those of the whole one.

    Attributes:
        agreeing: number of images that both assign to the same class; for other tasks the sum of
            the scores, see `Task`.
        images: number of images.
        divergence: mean Kullback-Leibler divergence of its class probabilities from those of the
            whole network, in nats; for other tasks the task's own distance.
        distance: mean squared difference of the features, relative to the mean square of the whole
            network's; `None` if they cannot be compared.
        correct: number of images classified correctly; `None` without labels.
    """

    agreeing: float
    images: int
    divergence: float
    distance: float | None
    correct: float | None = None

    @property
    def agreement(self) -> float:
        """Fraction of the images that both assign to the same class."""
        return self.agreeing / self.images

    @property
    def accuracy(self) -> float | None:
        """Fraction of the images classified correctly; `None` without labels."""
        return None if self.correct is None else self.correct / self.images

    @property
    def gap(self) -> float:
        """The number that choices are based on: the distance of the features, else the divergence.

        On a hundred pictures the distance tells which of two states is better on thousands; the
        divergence, and the agreement even more, scatter too much.
        """
        return self.divergence if self.distance is None else self.distance

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the agreement."""
        return wilson(self.agreeing, self.images)

    def to_json(self) -> dict[str, Any]:
        """Agreement, its interval, divergence and distance as plain JSON."""
        low, high = self.interval
        return {
            "agreement": self.agreement,
            "agreement_low": low,
            "agreement_high": high,
            "agreement_images": self.images,
            "divergence": self.divergence,
            "distance": self.distance,
        }


def agreement(
    checkpoint: Checkpoint,
    whole: Checkpoint,
    data: Examples,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 128,
    normalization: Normalization | None = None,
    track: Track = iter,
) -> Agreement:
    """Measure how closely a network agrees with the whole one.

    Several processes share the images: each passes all of them, and takes its part.

    Args:
        checkpoint: a network with its weights.
        whole: a network that takes the same images and has the same classes.
        data: images of the networks' size, with or without labels.
        device: where to compute.
        batch_size: images per batch.
        normalization: replaces those that the checkpoints record.
        track: wraps the batches, to show progress.

    Raises:
        DataError: the images have another size.
        PlanError: the networks have different numbers of classes.
        ProcessError: the processes do different things.
    """
    check_shared("agreement", checkpoint, data, whole=whole, normalization=normalization)
    for network in (checkpoint.network, whole.network):
        check_size(network, data)
    if checkpoint.network.num_classes != whole.network.num_classes:
        raise PlanError(
            f"cannot compare {checkpoint.network} with {whole.network}: they have "
            f"{checkpoint.network.num_classes} and {whole.network.num_classes} classes; expected "
            "the same"
        )
    features = comparable(checkpoint.network, whole.network)
    normalizations = normalizations_of(checkpoint, whole, data, normalization)
    device = pick_device(device)
    own, others = (
        place(answering(one.build(), one.network, features), device) for one in (checkpoint, whole)
    )
    return compared(own, others, data, normalizations, device, batch_size=batch_size, track=track)


def normalizations_of(
    checkpoint: Checkpoint,
    whole: Checkpoint,
    data: Examples,
    chosen: Normalization | None = None,
) -> Normalizations:
    """The normalisations of a network and of the whole one, or its teacher.

    The whole one has that of the network if it records none; see `normalization_of`.
    """
    own = normalization_of(checkpoint, data, chosen)
    recorded = chosen is None and "normalize" in whole.notes
    return own, normalization_of(whole, data) if recorded else own


def comparable(network: Network, other: Network) -> bool:
    """Whether both networks have features, and of the same shape."""
    own, others = features_of(network), features_of(other)
    return own is not None and others is not None and own.shape == others.shape


def answering(root: nn.Module, network: Network, features: bool) -> fx.GraphModule:
    """A module of a network that shares the tensors of `root` and computes `Answers`.

    Args:
        root: a module of the network, or of the whole one.
        network: the network.
        features: whether to compute its features, too.
    """
    found = features_of(network) if features else None
    graph = with_features(network, found) if found else network.graph()
    module = fx.GraphModule(root, graph)
    settle_in_place(module)
    return module


def answers(
    module: nn.Module,
    images: Tensor,
    device: torch.device,
    fast: bool | None,
    *,
    classes: bool = True,
) -> Answers:
    """The answers of an answering module, in float32.

    Where outputs tell classes, a single logit is that of class 1 against class 0, whose logit is
    0, as a sigmoid has it.
    """
    with precision(device, fast):
        result = module(images)
    logits, features = (result, None) if isinstance(result, Tensor) else result
    if classes and logits.shape[1] == 1:
        logits = F.pad(logits, (1, 0))
    return logits.float(), None if features is None else features.float()


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers to images that passed in parts."""
    if len(parts) == 1:
        return parts[0]
    features = [each for _, each in parts if each is not None]
    return torch.cat([logits for logits, _ in parts]), torch.cat(features) if features else None


def feature_distance(features: Tensor, target: Tensor, squares: Tensor) -> Tensor:
    """The squared difference of features from those of the whole network, relative to their square.

    It does not depend on the scale of the features: 0 if they are equal, 1 if they are all zero. Of
    a part of a batch it is a share: the shares of all parts, in all processes, add up to the whole.

    Args:
        features: of some images, `(N, ...)`.
        target: those of the whole network, `(N, ...)`.
        squares: the sum of the squares of the whole network's features over the whole batch, `()`.
    """
    return (features - target).square().sum() / squares.clamp_min(TINY)


@torch.inference_mode()
def compared(
    module: nn.Module,
    whole: nn.Module,
    data: Examples,
    normalizations: Normalizations,
    device: torch.device,
    *,
    batch_size: int = 128,
    fast: bool | None = None,
    track: Track = iter,
) -> Agreement:
    """The agreement of two answering modules, which are on the device already."""
    module.eval()
    whole.eval()
    rows: list[Tensor] = []
    mine = processes.share(len(data)).mine
    starts = range(0, len(mine), batch_size)
    batches = data.to(device).batches(mine, batch_size)
    for _, (pixels, labels) in zip(track(starts), batches, strict=True):
        own, others = (
            answers(
                one, laid_out(normalization(pixels), fast), device, fast, classes=data.task.classes
            )
            for one, normalization in zip((module, whole), normalizations, strict=True)
        )
        rows.append(_sums(own, others, labels, data))
    if not rows:  # there are more processes than images
        inputs = torch.zeros(1, *data.shape, device=device)
        _, features = answers(module, inputs, device, fast, classes=data.task.classes)
        rows.append(torch.zeros(3 if features is None else 5, device=device).to(wide_type(device)))
    sums = processes.add(torch.stack(rows).sum(0))
    agreeing, correct, divergence, *squares = sums.tolist()
    return Agreement(
        agreeing=int(agreeing) if data.task.classes else agreeing,
        images=len(data),
        divergence=divergence / len(data),
        distance=squares[0] / max(squares[1], TINY) if squares else None,
        correct=None if not data.labelled else int(correct) if data.task.classes else correct,
    )


def _sums(own: Answers, others: Answers, labels: Tensor, data: Examples) -> Tensor:
    """Agreeing and correct images, divergence and, of features, squared differences and squares."""
    (logits, features), (targets, target), task = own, others, data.task
    agreeing = task.score(logits, task.decide(targets)).sum()
    correct = task.score(logits, labels).sum() if data.labelled else torch.zeros_like(agreeing)
    sums = [agreeing, correct, len(logits) * task.distance(logits, targets, 1.0)]
    if features is not None and target is not None:
        sums += [(features - target).square().sum(), target.square().sum()]
    return torch.stack([value.to(wide_type(logits.device)) for value in sums])
