"""What torch reads with `weights_only=True` is read as torch reads it: values, views, sharing."""

from __future__ import annotations

import collections
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatepruner.files.archives import read_archive

NAMES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e4m3fnuz", "uint16", "uint32", "uint64", "complex32", "float8_e8m0fnu"),
    "float4_e2m1fn_x2",
)
DTYPES = [getattr(torch, name) for name in NAMES if hasattr(torch, name)]
WRITERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip of protocol 3": {"pickle_protocol": 3},
    "legacy": {"_use_new_zipfile_serialization": False},
}
BESIDE = {"epoch": 3, "size": torch.Size([1, 2]), "betas": (0.9, (2,)), "names": {"a"}, "no": None}


def numbers(dice: random.Random, dtype: torch.dtype) -> Tensor:
    """Bytes of any value, but for truth values."""
    most, count = 2 if dtype == torch.bool else 256, 16 * dice.randint(1, 20)
    data = torch.tensor([dice.randrange(most) for _ in range(count)], dtype=torch.uint8)
    return data.view(dtype)


def view(dice: random.Random, whole: Tensor) -> Tensor:
    """A part of a tensor with any sides, strides and offset, also without values."""
    sides = [dice.choice((0, 1, 2, 3, 4)) for _ in range(dice.randint(0, 4))]
    steps = [dice.randint(0, 5) for _ in sides]
    last = sum((side - 1) * step for side, step in zip(sides, steps, strict=True) if side)
    room = whole.numel() - 1 - last
    return whole if room < 0 else whole.as_strided(sides, steps, dice.randint(0, room))


def wrapped(dice: random.Random, tensor: Tensor) -> Any:
    kind = dice.randrange(8)
    if kind == 0 and tensor.dtype in (torch.float32, torch.float64, torch.bfloat16):
        return nn.Parameter(tensor, requires_grad=dice.random() < 0.5)
    return nn.Buffer(tensor) if kind == 1 else tensor


def content(seed: int) -> dict[str, Any]:
    """A checkpoint whose tensors share a few storages."""
    dice = random.Random(seed)
    whole = [numbers(dice, dice.choice(DTYPES)) for _ in range(dice.randint(1, 4))]
    state: dict[str, Any] = dice.choice((dict, collections.OrderedDict))()
    for index in range(dice.randint(1, 8)):
        state[f"layer{index}.é"] = wrapped(dice, view(dice, dice.choice(whole)))
    if isinstance(state, collections.OrderedDict):
        state._metadata = collections.OrderedDict({"": {"version": 1}})
    return {"state_dict": state, **BESIDE} if dice.random() < 0.3 else state


def assert_same(read: Any, expected: Any, storages: dict[int, int]) -> None:
    """As torch read it; `storages` maps addresses to those of the same bytes in torch's."""
    if isinstance(expected, Tensor):
        for one in (Tensor.size, Tensor.stride, Tensor.storage_offset):
            assert one(read) == one(expected)
        assert read.dtype == expected.dtype
        ours, torchs = read.untyped_storage(), expected.untyped_storage()
        assert bytes(ours) == bytes(torchs)
        assert storages.setdefault(ours.data_ptr(), torchs.data_ptr()) == torchs.data_ptr()
    elif isinstance(expected, dict):
        assert type(read) is type(expected)
        assert list(read) == list(dict.keys(read)) == list(expected)
        for key, value in expected.items():
            assert_same(read[key], value, storages)
    else:
        assert read == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", WRITERS.values(), ids=WRITERS.keys())
def test_what_torch_reads_is_read_as_torch_reads_it(how, tmp_path):
    for seed in range(60):
        torch.save(content(seed), tmp_path / "a.pt", **how)
        try:
            expected = torch.load(tmp_path / "a.pt", weights_only=True)
        except AttributeError:  # it writes legacy files of the newest types, and cannot read them
            continue
        storages: dict[int, int] = {}
        assert_same(read_archive(tmp_path / "a.pt").value, expected, storages)
        assert len(set(storages.values())) == len(storages)
