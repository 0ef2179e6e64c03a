"""Deferred tensors in a file that torch writes: each is read when its turn comes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gatepruner.files.rebuilding import STORAGES
from gatepruner.networks.deferred import Deferred, Source


class _Storage(torch.UntypedStorage):
    """Stands for the storage of a tensor; `torch.save` calls `cpu` when it writes the storage."""

    tensor: Deferred

    @classmethod
    def of(cls, tensor: Deferred) -> _Storage:
        made = cls(tensor.nbytes, device="meta")
        made.tensor = tensor
        return made

    def cpu(self) -> torch.UntypedStorage:
        return compact(self.tensor.read()).untyped_storage()


class _Streamed:
    """Is pickled as a tensor is, with another storage in its place."""

    def __init__(self, tensor: Deferred, storage: _Storage) -> None:
        self.tensor, self.storage = tensor, storage

    def __reduce__(self) -> tuple[Any, ...]:
        tensor = self.tensor
        typed: Any = torch.storage.TypedStorage
        storage = typed(wrap_storage=self.storage, dtype=tensor.dtype, _internal=True)
        storage._fake_device = "cpu"  # where it is to be when the file is read
        place = storage, 0, tuple(tensor.shape), tensor.stride()
        return torch._utils._rebuild_tensor_v2, (*place, False, OrderedDict())


def streamed(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors for `torch.save`, which reads the deferred ones one by one."""
    storages: dict[Source, _Storage] = {}
    content: dict[str, Any] = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Deferred):
            content[key] = tensor
        elif tensor.dtype not in STORAGES.values():
            content[key] = compact(tensor.read())
        else:
            storage = storages.setdefault(tensor.source, _Storage.of(tensor))
            content[key] = _Streamed(tensor, storage)
    return content


def compact(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own if it is a view of a larger one, or deferred."""
    if isinstance(tensor, Deferred):
        return tensor
    tensor = tensor.detach()
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if alone else tensor.contiguous().clone()
