"""Rankings: the blocks of a network in the order in which to remove them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gatepruner import processes
from gatepruner.errors import DataError, PlanError, listed
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.inputs import check_shared, check_size
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.path import NO_PATH, Path
from gatepruner.networks.slices import slice_named
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.criteria.criterion import Criterion, Evidence


@dataclass(frozen=True)
class Ranking:
    """Removable blocks, least important first.

    Attributes:
        criterion: a name in `CRITERIA`, after `"reversed "` if the order is reversed.
        scores: `(block name, score)` pairs in the order of removal.
        subject: name of the network, for messages.
        learned: whether removals use the weights of the checkpoint's learned path.
    """

    criterion: str
    scores: tuple[tuple[str, float], ...]
    subject: str = ""
    learned: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The block names, least important first."""
        return tuple(name for name, _ in self.scores)

    @property
    def noun(self) -> str:
        """What is ranked: `"block"`, or `"unit"` if slices of inner widths are among them."""
        return "unit" if any(map(slice_named, self.names)) else "block"

    def first(self, count: int) -> tuple[str, ...]:
        """The plan that removes the `count` least important blocks.

        Raises:
            PlanError: the ranking has fewer blocks.
        """
        if not 0 <= count <= len(self.scores):
            names = self.names if len(self.names) < 9 else (*self.names[:4], "…", *self.names[-4:])
            raise PlanError(
                f"cannot remove {count} {self.noun}s: {self.subject} has only {len(self.scores)} "
                f"removable ones ({listed(names, 9)})"
            )
        return self.names[:count]

    def last(self, count: int) -> tuple[str, ...]:
        """The `count` most important blocks, whose shortcuts matter least.

        Raises:
            PlanError: the ranking has fewer blocks.
        """
        self.first(count)
        return self.names[::-1][:count]

    def reversed(self) -> Ranking:
        """The ranking with the most important block first: the worst order of removal."""
        pairs = tuple((name, -score) for name, score in self.scores[::-1])
        return Ranking(f"reversed {self.criterion}", pairs, self.subject)

    def among(self, names: Collection[str]) -> Ranking:
        """The ranking of only these blocks."""
        kept = tuple(pair for pair in self.scores if pair[0] in names)
        return replace(self, scores=kept)

    def up_to(self, threshold: float) -> tuple[str, ...]:
        """The plan that removes every block with a score of at most `threshold`.

        It keeps the order of the ranking: if scores do not increase along it, the blocks before
        the last of these are removed as well.

        Raises:
            PlanError: the threshold is not a number.
        """
        if math.isnan(threshold):
            raise PlanError("the threshold is nan: expected a number that scores are compared with")
        low = [index for index, (_, score) in enumerate(self.scores) if score <= threshold]
        return self.names[: low[-1] + 1] if low else ()


def rank(
    checkpoint: Checkpoint,
    by: str = "gate",
    images: Examples | None = None,
    *,
    seed: int = 0,
    saved: Mapping[str, float] | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 128,
    track: Track = iter,
) -> Ranking:
    """Rank the removable blocks, least important first; ties keep the order of depth.

    By gate, the blocks of a learned path come first, in its order and with its scores. A path of
    slices alone is all that is ranked: whoever has learned it keeps the blocks. Several processes
    share the images of a criterion that needs some: each passes all of them, and takes its part.

    Args:
        checkpoint: a network with its weights.
        by: a name in `gatepruner.CRITERIA`, which lists what each criterion needs and its source.
        images: training images of the network's size, for criteria that need them; criteria that
            compute a loss use their labels.
        seed: seed of a random order.
        saved: what removing each block saves, by block name, in MACs for example. Scores are
            divided by it, so that blocks are compared by the harm per unit saved. Criteria that
            return an order instead of scores (`"greedy"`, `"random"`, `"depth"`) ignore it.
        normalization: replaces the one that the checkpoint records.
        device: where to compute.
        batch_size: images per batch; beyond rounding, only `"taylor"` depends on it.
        track: wraps the steps of a criterion that needs images, to show progress.

    Raises:
        PlanError: the criterion is unknown, a block has no gate to rank it by, or a score is not
            a finite number.
        DataError: the images that the criterion needs are missing or do not fit the network.
        ProcessError: the processes do different things.
    """
    criterion = criterion_named(by)
    path = path_of(checkpoint, by).scores
    blocks_stay = bool(path) and all(map(slice_named, path))
    names = [] if blocks_stay else [n for n in checkpoint.network.removable if n not in path]
    _check_needs(checkpoint, by, names, images)
    evidence = Evidence(images, normalization, device, batch_size, seed, track)
    if criterion.needs == "images":
        given = {"normalization": normalization, "batch_size": batch_size}
        check_shared(f"rank by {by}", checkpoint, images, **given)
        computed = _scored(checkpoint, by, names, evidence)
        scores = processes.agreed(lambda: computed)  # machines may round in different ways
    else:
        scores = _scored(checkpoint, by, names, evidence)
    if saved is not None and not criterion.ordered:
        if unknown := [name for name, _ in scores if name not in saved]:
            raise PlanError(
                f"cannot divide scores by savings: nothing is given for {listed(unknown, 4)}; "
                "give what the removal of each block saves"
            )
        scores = [(name, score / max(saved[name], 1e-12)) for name, score in scores]
    if not criterion.ordered:
        scores = sorted(scores, key=lambda pair: pair[1])
    pairs = (*path.items(), *scores)
    return Ranking(by, pairs, str(checkpoint.network), learned=bool(path))


def criterion_named(by: str) -> Criterion:
    """The criterion of that name.

    Raises:
        PlanError: there is none.
    """
    if by not in CRITERIA:
        raise PlanError(f"unknown criterion {by!r}: expected {', '.join(CRITERIA)}")
    return CRITERIA[by]


def path_of(checkpoint: Checkpoint, by: str) -> Path:
    """The learned path that a criterion follows: the checkpoint's if it needs gates, else none."""
    return checkpoint.path if criterion_named(by).needs == "gates" else NO_PATH


def _check_needs(
    checkpoint: Checkpoint, by: str, names: Sequence[str], images: Examples | None
) -> None:
    """Raise an error if the gates or images that a criterion needs are missing."""
    needs = CRITERIA[by].needs
    others = " or ".join(name for name, other in CRITERIA.items() if other.needs == "nothing")
    gates = checkpoint.known_gates if needs == "gates" else {}
    missing = [name for name in names if name not in gates]
    if needs == "gates" and missing:
        raise PlanError(
            f"cannot rank by {by}: {checkpoint.network} has no gate in {listed(missing, 4)}; learn "
            f"gates first, or rank by {others}"
        )
    if needs != "images":
        return
    if images is None or not len(images):
        raise DataError(
            f"cannot rank by {by} without images: pass training images, or rank by {others}"
        )
    check_size(checkpoint.network, images)


def _scored(
    checkpoint: Checkpoint, by: str, names: Sequence[str], evidence: Evidence
) -> list[tuple[str, float]]:
    """The finite score of every name, in the order of the names or of an ordered criterion."""
    criterion = CRITERIA[by]
    scores = criterion.scores(checkpoint, names, evidence) if names else {}
    bad = [name for name in names if not math.isfinite(scores.get(name, math.nan))]
    if bad:
        raise PlanError(
            f"cannot rank by {by}: expected a finite score for every block, found "
            + listed(f"{scores.get(name, 'none')} for {name}" for name in bad)
            + "; check the weights and the images, or rank by another criterion"
        )
    return [(name, scores[name]) for name in (scores if criterion.ordered else names)]
