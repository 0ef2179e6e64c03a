"""All pictures of a set decoded at once, into memory where they fit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.errors import DataError
from gatepruner.images.decoding import decode
from gatepruner.images.examples import Track
from gatepruner.images.scaling import Scaling
from gatepruner.images.tables import Picture, read
from gatepruner.models import Shape

IN_MEMORY = 4 * 2**30  # bytes; larger sets are decoded batch by batch instead of once
AHEAD = 256  # pictures that are read before they are needed
MOST_TOLD = 10  # pictures that cannot be decoded, after which no others are looked for


def fits(images: int, shape: Shape) -> bool:
    """Whether so many decoded images are kept in memory."""
    return images * math.prod(shape) <= IN_MEMORY


def decode_all(
    pictures: Sequence[Picture], shape: Shape, resize: Scaling | None, track: Track
) -> Tensor:
    """Decode pictures into memory; returns `(N, C, H, W)` uint8, see `decoded`."""
    pixels = torch.empty(len(pictures), *shape, dtype=torch.uint8)
    for index, image in enumerate(decoded(pictures, shape, resize, track)):
        pixels[index] = image
    return pixels


def decoded(
    pictures: Sequence[Picture], shape: Shape, resize: Scaling | None, track: Track
) -> Iterable[Tensor]:
    """Decode pictures in several threads.

    Args:
        pictures: files, or pictures in tables.
        shape: `(C, H, W)` of every decoded image.
        resize: how to scale; `None` if they have this size.
        track: wraps the decoding, to show progress.

    Returns:
        The pixels `(C, H, W)` uint8 of each in turn.

    Raises:
        DataError: some pictures cannot be decoded; it names them all, after the others were.
    """
    return track(_Counted(_decoded(pictures, shape, resize), len(pictures)))


def _decoded(pictures: Sequence[Picture], shape: Shape, resize: Scaling | None) -> Iterator[Tensor]:
    """Decoded pictures, of which a few are read ahead."""
    problems: list[DataError] = []
    with ThreadPoolExecutor(processes.cores()) as pool:
        pending: deque[Future[Tensor]] = deque()
        for picture in read(pictures):
            pending.append(pool.submit(decode, picture, shape, resize))
            if len(pending) == AHEAD:
                yield from _result(pending.popleft(), problems)
        while pending:
            yield from _result(pending.popleft(), problems)
    _refuse(problems)


def _result(decoding: Future[Tensor], problems: list[DataError]) -> Iterator[Tensor]:
    """The decoded picture, if it can be decoded; adds to the problems otherwise."""
    try:
        image = decoding.result()
    except DataError as error:
        problems.append(error)
        if len(problems) == MOST_TOLD:
            _refuse(problems)
    else:
        yield image


def _refuse(problems: Sequence[DataError]) -> None:
    """Raise what is wrong with pictures as one error."""
    if len(problems) > 1:
        least = " at least" * (len(problems) == MOST_TOLD)
        texts = "; ".join(str(problem.args[0]) for problem in problems)
        text = f"{len(problems)} pictures{least} cannot be used: {texts}"
        raise DataError(text, **problems[0].arguments)
    if problems:
        raise problems[0]


class _Counted(Iterable[Any]):
    """An iterable with a length, for progress bars."""

    def __init__(self, items: Iterable[Any], length: int) -> None:
        self.items, self.length = items, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return self.length
