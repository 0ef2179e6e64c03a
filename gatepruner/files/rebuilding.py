"""Tensors from the storages of a file, as torch's own functions of these names rebuild them.

Sizes are checked before anything is made of them: a tensor stays within its storage, and all
tensors of a file together are not many times larger than the file. Tensors that no network
computes with (sparse, quantised, without values …) become `Unusable`, so that they are refused
by name where they are weights.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatepruner.files.places import Span, View
from gatepruner.files.stand_ins import Name, StandIn, encoded, filled, members, within
from gatepruner.networks.weights import Unusable

MOST_SHARED = 16  # times the bytes of the file in all of its tensors, which may share them
SHARED = 2**26  # bytes that its tensors may have in any case
LARGEST_SIDE, MOST_AXES = 2**40, 64
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,  # of quantised tensors, which are refused
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
DTYPES = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
DENSE = frozenset(
    f"torch.{name}" for name in ("Tensor", "nn.parameter.Parameter", "nn.parameter.Buffer")
)


@dataclass(frozen=True)
class Storage:
    """Bytes of a file.

    Attributes:
        data: the bytes, in memory or where they lie.
        dtype: of the tensors that have them, if they do not say another.
    """

    data: torch.UntypedStorage | Span
    dtype: torch.dtype


class Rebuilder:
    """Makes the tensors of a file."""

    def __init__(self, size: int) -> None:
        """Prepare for a file of `size` bytes."""
        self.left = MOST_SHARED * size + SHARED

    @property
    def makers(self) -> Mapping[str, Callable[..., Any]]:
        """What makes the objects of known names, in a `Machine`."""
        utils: dict[str, Callable[..., Any]] = {
            "_rebuild_tensor": self.tensor,
            "_rebuild_tensor_v2": self.tensor_v2,
            "_rebuild_tensor_v3": self.tensor_v3,
            "_rebuild_parameter": _parameter,
            "_rebuild_parameter_with_state": _parameter,
            "_rebuild_sparse_tensor": _sparse,
            "_rebuild_qtensor": lambda _, offset, size, *rest: _unusable("quantised", size),
            "_rebuild_nested_tensor": lambda *_: _unusable("nested", ()),
            "_rebuild_meta_tensor_no_storage": lambda _, size, *rest: _unusable(
                "meta (without values)", size
            ),
            "_rebuild_wrapper_subclass": lambda _, dtype, size, *rest: _unusable(
                "of an unknown class", size
            ),
        }
        return {
            **{f"torch._utils.{name}": maker for name, maker in utils.items()},
            "torch._tensor._rebuild_from_type_v2": self.of_type,
            "torch.nn.parameter.UninitializedParameter": _lazy,
            "torch.nn.parameter.UninitializedBuffer": _lazy,
            "torch.Size": sides,
            "collections.OrderedDict": filled,
            "builtins.set": members,
            "builtins.getattr": within,
            "_codecs.encode": encoded,
        }

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """A view of a storage."""
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return self.view(storage.data, storage.dtype, offset, size, stride)

    def view(
        self,
        data: torch.UntypedStorage | Span,
        dtype: torch.dtype,
        offset: Any,
        size: Any,
        stride: Any,
    ) -> Tensor:
        """A tensor of these bytes, if it lies within them."""
        size, stride = sides(size), sides(stride)
        (offset,) = sides((offset,))
        if len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor with other strides than sides")
        count = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        held = data.nbytes() // dtype.itemsize
        if count and last >= held:
            raise pickle.UnpicklingError(
                f"a tensor of {last + 1:,} values, of which it has {held:,}"
            )
        self.left -= count * dtype.itemsize
        if self.left < 0:
            raise pickle.UnpicklingError(
                f"tensors that share their values and take more than {MOST_SHARED} times the "
                "size of the file"
            )
        if isinstance(data, Span):
            return View(data, dtype, offset, size, stride).deferred()
        return torch.empty(0, dtype=dtype).set_(data, offset, size, stride)

    def tensor_v2(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """The same; `rest` is whether it is learned, hooks, and how its values are to be read."""
        if len(rest) > 2 and rest[2]:
            return _unusable("conjugate or negative views", size)
        return self.tensor(storage, offset, size, stride)

    def tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        learned: Any,
        hooks: Any,
        dtype: Any,
        *rest: Any,
    ) -> Tensor:
        """The same, of another type than the storage's."""
        if not isinstance(storage, Storage) or not isinstance(dtype, Name):
            raise pickle.UnpicklingError("a tensor without a storage or a type")
        if rest and rest[0]:
            return _unusable("conjugate or negative views", size)
        return self.view(storage.data, DTYPES[dtype.full], offset, size, stride)

    def of_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor with attributes, which are left out, or of a class of its own."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a tensor without a function")
        maker = self.makers.get(function.full)
        rebuilds = function.full.startswith("torch._utils.") and len(arguments) <= MOST_AXES
        if maker is None or not rebuilds or not isinstance(kind, Name):
            return StandIn(function.full, arguments)
        made = maker(*arguments)
        if kind.full in DENSE or not isinstance(made, Tensor):
            return made
        return _unusable("of an unknown class", tuple(made.shape))


def storage_key(value: Any) -> str:
    """The key of a storage: text, whose hash takes no time."""
    if not isinstance(value, str):
        raise pickle.UnpicklingError("a storage whose key is no text")
    return value


def storage_type(name: Any) -> torch.dtype:
    """The type of the numbers in a storage of torch's class of this name."""
    if not isinstance(name, Name) or name.full.rpartition(".")[2] not in STORAGES:
        raise pickle.UnpicklingError("a storage of an unknown type")
    return STORAGES[name.full.rpartition(".")[2]]


def sides(values: Any = ()) -> tuple[int, ...]:
    """Whole numbers that may be sides, strides or offsets."""
    if not isinstance(values, (tuple, list)) or len(values) > MOST_AXES:
        raise pickle.UnpicklingError("a tensor without a shape")
    if not all(type(value) is int and 0 <= value <= LARGEST_SIDE for value in values):
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    return tuple(values)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _sparse(layout: Any, data: Any) -> Tensor:
    sizes = [part for part in data if isinstance(part, tuple)] if isinstance(data, tuple) else []
    return _unusable("sparse", sizes[-1] if sizes else ())


def _lazy(*rest: Any) -> Tensor:
    return _unusable("without a shape yet", ())


def _unusable(kind: str, size: Any) -> Tensor:
    size = sides(size)
    if math.prod(size) > LARGEST_SIDE:
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    return Unusable.of(kind, size)
