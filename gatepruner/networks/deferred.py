"""Tensors that stay in their file until something is computed with them.

Choosing and removing blocks needs only the shapes and types of weights. So a file larger than
memory can be pruned: its weights are read one at a time, when they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Source = Callable[[], Tensor]
# What a tensor answers from its shape and type alone.
PROPERTIES = ("shape", "dtype", "ndim", "nbytes")
METHODS = ("size", "dim", "numel", "element_size", "stride", "is_floating_point", "is_complex")
DESCRIBING = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in PROPERTIES),
        *(getattr(Tensor, name) for name in (*METHODS, "__len__")),
    )
)


class Deferred(Tensor):
    """Stands for a tensor: it has a shape and type, and its values are read when they are needed.

    Every operation reads them again, and returns an ordinary tensor.

    Attributes:
        source: returns the tensor, which belongs to the caller.
    """

    source: Source

    @classmethod
    def of(cls, source: Source, shape: Sequence[int], dtype: torch.dtype) -> Deferred:
        """The stand-in of a tensor of this shape and type."""
        made = torch.empty(tuple(shape), dtype=dtype, device="meta").as_subclass(cls)
        made.source = source
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in DESCRIBING:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        args, kwargs = tree_map(in_memory, (args, kwargs or {}))
        return func(*args, **kwargs)

    def read(self) -> Tensor:
        """The tensor, which belongs to the caller."""
        return self.source()


def in_memory(value: Any) -> Any:
    """A tensor with its values; anything else as it is."""
    return value.read() if isinstance(value, Deferred) else value


def changed(
    tensor: Tensor,
    change: Callable[[Tensor], Tensor],
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a function makes of a tensor; of a deferred one when it is read.

    Args:
        tensor: it stays as it is.
        change: it may change its argument, which is a copy.
        shape: of the result; by default that of the tensor.
        dtype: of the result; by default that of the tensor.
    """
    if not isinstance(tensor, Deferred):
        return change(tensor.clone())
    source = tensor.source
    return Deferred.of(
        lambda: change(source()), tensor.shape if shape is None else shape, dtype or tensor.dtype
    )
