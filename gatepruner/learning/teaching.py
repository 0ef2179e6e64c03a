"""A teacher's answers: to the images of a batch, and kept for later ones.

They depend on nothing but the image and whether it is mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.images.examples import Examples
from gatepruner.measuring.agreement import Answers

MEMORY = 2**29  # most bytes of kept answers


@dataclass(frozen=True)
class Targets:
    """A teacher's answers to images of a batch.

    Attributes:
        logits: `(N, K)`.
        features: `(N, ...)`, if they are matched.
        squares: the sum of the squares of its features over the whole batch, `()`.
    """

    logits: Tensor
    features: Tensor | None
    squares: Tensor

    @classmethod
    def of(cls, answers: Answers) -> Targets:
        """The targets of this process's share of a batch, from the answers to it."""
        logits, features = answers
        own = logits.new_zeros(()) if features is None else features.square().sum()
        return cls(logits, features, own if features is None else processes.add(own))

    def part(self, at: slice) -> Targets:
        """The targets of some of the images."""
        features = None if self.features is None else self.features[at]
        return Targets(self.logits[at], features, self.squares)


class KeptAnswers:
    """The answers to every image and its mirror, each computed once, when it is first needed.

    Images are answered in groups that never change, so that a resumed run gets the same numbers
    to the bit as an uninterrupted one.
    """

    def __init__(
        self,
        data: Examples,
        groups: tuple[Tensor, ...],
        answer: Callable[[Tensor], Answers],
        *,
        mirror: bool,
    ) -> None:
        """Keep the answers to a set of images.

        Args:
            data: uint8 images in memory.
            groups: indices of images that are answered together, each image in one of them.
            answer: computes the answers to pixels `(N, C, H, W)` uint8.
            mirror: whether mirrored images are asked for, too.
        """
        self.data, self.groups, self.answer = data, groups, answer
        self.sides = 1 + mirror
        self.group_of = torch.empty(len(data), dtype=torch.int64)
        for number, group in enumerate(groups):
            self.group_of[group] = number
        self.known = torch.zeros(len(groups), dtype=torch.bool)
        self.kept: tuple[Tensor, ...] = ()  # logits, and features if there are any

    def __call__(self, indices: Tensor, viewed: Tensor) -> Answers:
        """The answers to some images.

        Args:
            indices: `(B,)`, of the images.
            viewed: `(B, C, H, W)`, their pixels, or those of their mirrors.
        """
        for number in sorted({*self.group_of[indices].tolist()}):
            if not self.known[number]:
                self._keep(number)
        ((pixels, _),) = self.data.batches(indices, len(indices))
        mirrored = (viewed != pixels).flatten(1).any(1).long()
        found = [values[mirrored, indices.to(values.device)] for values in self.kept]
        return found[0], found[1] if len(found) > 1 else None

    def _keep(self, number: int) -> None:
        """Compute the answers to a group."""
        group = self.groups[number]
        ((pixels, _),) = self.data.batches(group, len(group))
        for side in range(self.sides):
            answers = self.answer(pixels.flip(3) if side else pixels)
            given = [one for one in answers if one is not None]
            if not self.kept:
                shape = (self.sides, len(self.data))
                self.kept = tuple(one.new_empty(*shape, *one.shape[1:]) for one in given)
            for values, one in zip(self.kept, given, strict=True):
                values[side, group.to(values.device)] = one
        self.known[number] = True


def worth_keeping(
    images: int, sides: int, seen: int, logits: int, features: Sequence[int] | None
) -> bool:
    """Whether answers are kept: if they fit in memory, and fewer are computed than asked for.

    Args:
        images: number of images.
        sides: 2 if their mirrors are asked for, too, else 1.
        seen: how many answers are asked for in all.
        logits: number of logits.
        features: shape of the features of one image, if they are asked for.
    """
    size = 4 * (logits + (math.prod(features) if features else 0))
    return images * sides < seen and images * sides * size <= MEMORY
