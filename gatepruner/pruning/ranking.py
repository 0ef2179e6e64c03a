"""Rankings: the blocks of a network in the order in which they are to go."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gatepruner.errors import DataError, PlanError, listed
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.inputs import check_size
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.path import NO_PATH, Path
from gatepruner.pruning.criteria import CRITERIA
from gatepruner.pruning.criteria.criterion import Evidence


@dataclass(frozen=True)
class Ranking:
    """Blocks that can be removed, least important first.

    Attributes:
        criterion: a name in `CRITERIA`, with `"reversed "` before it if the order is reversed.
        scores: `(block name, score)` pairs, in the order in which the blocks go.
        subject: what the blocks belong to, for messages.
        learned: whether its plans take what was learned along the checkpoint's path.
    """

    criterion: str
    scores: tuple[tuple[str, float], ...]
    subject: str = ""
    learned: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The block names, least important first."""
        return tuple(name for name, _ in self.scores)

    def first(self, count: int) -> tuple[str, ...]:
        """The plan that removes the `count` least important blocks.

        Raises:
            PlanError: there are fewer.
        """
        if not 0 <= count <= len(self.scores):
            names = self.names if len(self.names) < 9 else (*self.names[:4], "…", *self.names[-4:])
            raise PlanError(
                f"cannot remove {count} blocks: {self.subject} has {len(self.scores)} removable "
                f"ones ({listed(names, 9)})"
            )
        return self.names[:count]

    def last(self, count: int) -> tuple[str, ...]:
        """The `count` most important blocks, whose shortcuts matter least."""
        self.first(count)
        return self.names[::-1][:count]

    def reversed(self) -> Ranking:
        """The most important block first: what removal costs at worst."""
        pairs = tuple((name, -score) for name, score in self.scores[::-1])
        return Ranking(f"reversed {self.criterion}", pairs, self.subject)

    def among(self, names: Collection[str]) -> Ranking:
        """The same without other blocks."""
        kept = tuple(pair for pair in self.scores if pair[0] in names)
        return replace(self, scores=kept)

    def up_to(self, threshold: float) -> tuple[str, ...]:
        """The plan that removes every block with a score of at most `threshold`.

        The order is kept: where scores go up and down along it, all blocks before the last one
        of these go, too.
        """
        low = [index for index, (_, score) in enumerate(self.scores) if score <= threshold]
        return self.names[: low[-1] + 1] if low else ()


def rank(
    checkpoint: Checkpoint,
    by: str = "gate",
    images: Images | None = None,
    *,
    seed: int = 0,
    saved: Mapping[str, float] | None = None,
    normalization: Normalization | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 128,
    track: Track = iter,
) -> Ranking:
    """Rank the removable blocks, least important first; ties in the order of depth.

    By gate, the blocks of a learned path come first, in its order and with the scores that
    decided it.

    Args:
        checkpoint: a network with its weights.
        by: a name in `gatepruner.pruning.criteria.CRITERIA`, which tells what each criterion
            needs and where it comes from.
        images: training images of the network's size, for a criterion that needs them; those
            that compute a loss use the labels. A criterion that needs none ignores them.
        seed: of the random order.
        saved: what the removal of each block saves (MACs, say): scores are divided by it, so that
            blocks are compared by the harm for each unit that is saved. It makes no difference
            to a criterion that gives an order instead of independent scores: `"greedy"`,
            `"random"` and `"depth"`.
        normalization: instead of the one that the checkpoint records.
        device: where to compute.
        batch_size: images in one pass; `"taylor"` alone depends on it, beyond rounding.
        track: wraps the steps of a criterion that needs images, to show progress.

    Raises:
        PlanError: the criterion is unknown, a block has no gate to rank it by, or a score is not
            a finite number.
        DataError: the criterion needs images and there are none, or they do not fit the network.
    """
    if by not in CRITERIA:
        raise PlanError(f"unknown criterion {by!r}: expected {', '.join(CRITERIA)}")
    criterion = CRITERIA[by]
    path = path_of(checkpoint, by).scores
    names = [name for name in checkpoint.network.removable if name not in path]
    _check_needs(checkpoint, by, names, images)
    evidence = Evidence(images, normalization, device, batch_size, seed, track)
    scores = _scored(checkpoint, by, names, evidence)
    if saved is not None and not criterion.ordered:
        scores = [(name, score / max(saved[name], 1e-12)) for name, score in scores]
    if not criterion.ordered:
        scores = sorted(scores, key=lambda pair: pair[1])
    pairs = (*path.items(), *scores)
    return Ranking(by, pairs, str(checkpoint.network), learned=bool(path))


def path_of(checkpoint: Checkpoint, by: str) -> Path:
    """The learned path that a criterion follows: the checkpoint's, if it looks at gates."""
    return checkpoint.path if CRITERIA[by].needs == "gates" else NO_PATH


def _check_needs(
    checkpoint: Checkpoint, by: str, names: Sequence[str], images: Images | None
) -> None:
    """Raise an error if a criterion lacks what it needs."""
    needs = CRITERIA[by].needs
    others = " or ".join(name for name, other in CRITERIA.items() if other.needs == "nothing")
    gates = checkpoint.known_gates if needs == "gates" else {}
    missing = [name for name in names if name not in gates]
    if needs == "gates" and missing:
        raise PlanError(
            f"{checkpoint.network} has no gate in {listed(missing, 4)}: cannot rank its blocks by "
            f"{by}; learn gates first, or rank by {others}"
        )
    if needs != "images":
        return
    if images is None or not len(images):
        raise DataError(
            f"cannot rank by {by} without images: give training images, or rank by {others}"
        )
    check_size(checkpoint.network, images)


def _scored(
    checkpoint: Checkpoint, by: str, names: Sequence[str], evidence: Evidence
) -> list[tuple[str, float]]:
    """A finite score for every name, in the order of the names or in that of the criterion."""
    criterion = CRITERIA[by]
    scores = criterion.scores(checkpoint, names, evidence) if names else {}
    odd = [name for name in names if not math.isfinite(scores.get(name, math.nan))]
    if odd:
        raise PlanError(
            f"cannot rank by {by}: expected a finite score for every block, found "
            + listed(f"{scores.get(name, 'none')} for {name}" for name in odd)
            + "; check the weights and the images, or rank by another criterion"
        )
    return [(name, scores[name]) for name in (scores if criterion.ordered else names)]
