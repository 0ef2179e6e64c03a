"""Rankings: the blocks of a network in the order in which they are to go."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gatepruner.errors import PlanError, listed
from gatepruner.networks.checkpoint import Checkpoint


@dataclass(frozen=True)
class Ranking:
    """Blocks that can be removed, least important first.

    Attributes:
        criterion: `"gate"`, `"random"` or `"depth"`, with `"reversed "` before it if it is so.
        scores: `(block name, score)` pairs; the lower the score, the sooner it goes.
        subject: what the blocks belong to, for messages.
    """

    criterion: str
    scores: tuple[tuple[str, float], ...]
    subject: str = ""

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
        return Ranking(self.criterion, kept, self.subject)

    def up_to(self, threshold: float) -> tuple[str, ...]:
        """The plan that removes every block with a score of at most `threshold`."""
        return tuple(name for name, score in self.scores if score <= threshold)


def _by_gate(checkpoint: Checkpoint, names: list[str], seed: int) -> list[float]:
    closed = dict.fromkeys(checkpoint.path.blocks, 0.0)
    gates = {**checkpoint.known_gates, **closed}
    missing = [name for name in names if name not in gates]
    if missing:
        raise PlanError(
            f"{checkpoint.network} has no gate in {listed(missing, 4)}: its blocks cannot be "
            "ranked by gate; learn gates first (gatepruner gate), or rank with --by depth or "
            "--by random"
        )
    return [gates[name] for name in names]


def _by_depth(checkpoint: Checkpoint, names: list[str], seed: int) -> list[float]:
    return [float(len(names) - 1 - index) for index in range(len(names))]


def _at_random(checkpoint: Checkpoint, names: list[str], seed: int) -> list[float]:
    order = list(range(len(names)))
    random.Random(seed).shuffle(order)
    return [float(position) for position in order]


CRITERIA: dict[str, Callable[[Checkpoint, list[str], int], list[float]]] = {
    "gate": _by_gate,
    "random": _at_random,
    "depth": _by_depth,
}


def rank(
    checkpoint: Checkpoint,
    by: str = "gate",
    *,
    seed: int = 0,
    saved: Mapping[str, float] | None = None,
) -> Ranking:
    """Rank the removable blocks, least important first; ties in the order of depth.

    The blocks of a checkpoint's path, whose gates have closed while they were learned, come
    first in the order in which they went.

    Args:
        checkpoint: a network with its weights.
        by: `"gate"`, the learned gate |g(k)| with g = ReLU (Savarese, Mazza, Figueiredo, 2016,
            https://arxiv.org/abs/1611.01260); or a baseline: `"random"`, or `"depth"`, the
            last block first.
        seed: of the random order.
        saved: what the removal of each block saves (MACs, say): gates are then compared for what
            is saved by them.

    Raises:
        PlanError: the criterion is unknown, or a block has no gate to rank it by.
    """
    if by not in CRITERIA:
        raise PlanError(f"unknown criterion {by!r}: expected {', '.join(CRITERIA)}")
    there = checkpoint.network.removable
    path = checkpoint.path.blocks if by == "gate" else ()
    names = [*path, *(name for name in there if name not in path)]
    scores = CRITERIA[by](checkpoint, names, seed)
    if saved is not None and by == "gate":
        scores = [one / max(saved[name], 1e-12) for name, one in zip(names, scores, strict=True)]
    pairs = sorted(zip(names, scores, strict=True), key=lambda pair: pair[1])
    return Ranking(by, tuple(pairs), str(checkpoint.network))
