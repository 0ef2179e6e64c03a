"""Gradient accumulation: a batch passes in parts, and the step is that of the whole batch."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.errors import OutOfMemoryError, is_out_of_memory
from gatepruner.models import Shape


def parts_of(batch: int, most: int | None) -> tuple[slice, ...]:
    """The parts in which this process passes its share of a batch, of nearly equal sizes.

    All processes pass equally many, since batch norm may add up statistics over the processes in
    each of them. No part has a single image, which batch norm could not normalise; this may take
    an image more than asked for.

    Args:
        batch: images of a step in all processes together, at least 2 for each.
        most: images that pass at once; `None` for all.
    """
    least, largest = batch // processes.count(), math.ceil(batch / processes.count())
    count = max(min(math.ceil(largest / (most or largest)), least // 2), 1)
    mine = processes.slice_of(batch)
    edges = [(mine.stop - mine.start) * part // count for part in range(count + 1)]
    return tuple(slice(*pair) for pair in itertools.pairwise(edges))


def averaged(parts: Sequence[slice], buffers: Sequence[Tensor]) -> Iterator[slice]:
    """The parts in turn, each beginning with the same buffers; the mean of what they leave stays.

    Running statistics then move once in a step, at the momentum that they have, and become what
    as many processes would have made of them: there, too, each normalises a part by itself.

    Args:
        parts: of a batch; gradients have to be computed before the next one is asked for.
        buffers: of the module, such as running statistics and the counts of batches.
    """
    if len(parts) == 1:  # with the same bits as ever
        yield parts[0]
        return
    start = [buffer.clone() for buffer in buffers]
    change = [torch.zeros_like(buffer) for buffer in buffers]
    for part in parts:
        _copy(start, buffers)
        yield part
        for total, buffer, first in zip(change, buffers, start, strict=True):
            if buffer.is_floating_point():
                total += (buffer - first) / len(parts)
            else:  # a count, to which every part adds the same
                total.copy_(buffer - first)
    _copy([first + total for first, total in zip(start, change, strict=True)], buffers)


def _copy(values: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    for value, buffer in zip(values, buffers, strict=True):
        buffer.copy_(value)


@contextlib.contextmanager
def room_for(images: int, shape: Shape, device: torch.device) -> Iterator[None]:
    """Say what helps if there is not enough memory for a step.

    Args:
        images: that pass at once.
        shape: of an image.
        device: where they pass.

    Raises:
        OutOfMemoryError: there was not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fewer = {"micro_batch_size": images // 2} if images >= 4 else {}
        size = "x".join(map(str, shape))
        raise OutOfMemoryError(
            f"out of memory: {device} cannot learn from {images} images of {size} at once", **fewer
        ) from error
