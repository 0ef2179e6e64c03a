"""Files as they are in the world: the same network in all the ways in which people keep it.

The author's module is a ResNet-20 or what a repository has; what is loaded has to give its logits.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import pathlib
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases.case import RIGHT, TOLERANCE, WRONG, Case, Row, difference, randomised
from torch import Tensor, nn

import gatepruner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # where the modules of well-known repositories are
from test_layouts import FILES as REPOSITORIES  # noqa: E402
from test_layouts import Akamaster  # noqa: E402

KIND, LAYOUTS = "files as they are in the world", "files of well-known repositories"
SHAPE = (3, 32, 32)
State = dict[str, Any]


@dataclasses.dataclass
class Options:
    """What training loops keep beside the weights."""

    rate: float = 0.1


class Phase(enum.Enum):
    """A choice that somebody keeps."""

    LAST = 1


def author(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(Akamaster(3), seed)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda w: {f"{prefix}{key}": value for key, value in w.items()}


def beside(**more: Any) -> Callable[[State], State]:
    return lambda w: {"state_dict": w, **more}


def with_keys(**more: Any) -> Callable[[State], State]:
    return lambda w: {**w, **{key.replace("__", "."): value for key, value in more.items()}}


def mapped(change: Callable[[str, Tensor], Any]) -> Callable[[State], State]:
    return lambda w: {key: change(key, value) for key, value in w.items()}


def floats(change: Callable[[Tensor], Any]) -> Callable[[State], State]:
    return mapped(lambda key, value: change(value) if value.is_floating_point() else value)


def spoiled(number: float) -> Callable[[State], State]:
    def change(w: State) -> State:
        weight = w["layer1.0.conv1.weight"].clone()
        weight[0, 0, 0, 0] = number
        return {**w, "layer1.0.conv1.weight": weight}

    return change


def split_head(w: State) -> State:
    inner = {f"backbone.{key}": value for key, value in w.items() if "linear" not in key}
    return {**inner, **{f"head.{key}": value for key, value in w.items() if "linear" in key}}


# What is written with torch.save: of the state dict of the network.
CONTENTS: dict[str, Callable[[State], Any]] = {
    "a state dict": dict,
    "an OrderedDict": collections.OrderedDict,
    "a defaultdict": lambda w: collections.defaultdict(list, w),
    **{
        f"under {key}": functools.partial(lambda key, w: {key: w, "epoch": 3}, key)
        for key in ("state_dict", "model_state_dict", "model", "net", "weights", "params")
    },
    "in a nest": lambda w: {"ckpt": {"model": {"state": w}}},
    "in a list": lambda w: [w],
    "in a tuple": lambda w: (3, w),
    **{
        f"prefix {prefix}": prefixed(prefix)
        for prefix in (
            *("module.", "module.module.", "_orig_mod.", "net._orig_mod.module.", "model."),
            *("backbone.", "student.", "encoder_q.", "_forward_module."),
        )
    },
    "_orig_mod inside of keys": lambda w: {
        key.replace("layer1.", "layer1._orig_mod."): value for key, value in w.items()
    },
    "criterion.weight beside": with_keys(criterion__weight=torch.ones(10)),
    "counts of a profiler beside": with_keys(
        conv1__total_ops=torch.zeros(1), total_params=torch.zeros(1)
    ),
    "Namespace beside": beside(args=argparse.Namespace(lr=0.1, data=pathlib.Path("data"))),
    "a dataclass beside": beside(options=Options()),
    "an enum beside": beside(phase=Phase.LAST),
    "date, decimal and uuid beside": beside(
        at=datetime.datetime(2026, 1, 1), by=decimal.Decimal("1.5"), of=uuid.UUID(int=3)
    ),
    "numpy scalars and random states beside": beside(
        best=np.float64(0.9), state=np.random.RandomState(0).get_state(), dtype=np.dtype("f4")
    ),
    "an optimizer's state beside": beside(optimizer={"state": {0: {"step": torch.tensor(3.0)}}}),
    "a torch.Generator's state beside": beside(rng=torch.Generator().get_state()),
    "device, dtype and size beside": beside(
        device=torch.device("cpu"), dtype=torch.float16, size=torch.Size([1])
    ),
    "Parameters": floats(nn.Parameter),
    "weights with gradients": floats(lambda value: value.clone().requires_grad_()),
    "weights not contiguous": floats(
        lambda value: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
    ),
    "no counters of batch norm": lambda w: {k: v for k, v in w.items() if "num_batch" not in k},
    "an average beside, under ema": lambda w: {"model": other(w), "ema": w},
    "an average of torch": lambda w: {
        "swa_state_dict": {"n_averaged": torch.tensor(3), **prefixed("module.")(w)},
        "epoch": 3,
    },
    "a pickled module": lambda w: loaded(w),
    "a pickled module in DataParallel": lambda w: {"model": nn.DataParallel(loaded(w)), "epoch": 1},
    "numpy arrays": mapped(lambda key, value: value.numpy()),
    "float16": floats(Tensor.half),
    "bfloat16": floats(Tensor.bfloat16),
    "float64": floats(Tensor.double),
    "float16, norms in float32": mapped(
        lambda key, value: value.half() if value.ndim > 1 else value
    ),
}
REFUSED: dict[str, Callable[[State], Any]] = {
    "NaN": spoiled(float("nan")),
    "infinity": spoiled(float("inf")),
    "quantised": floats(lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "sparse": floats(lambda value: value.to_sparse() if value.ndim == 2 else value),
    "meta": floats(lambda value: value.to("meta")),
    "complex": floats(lambda value: value.to(torch.complex64)),
    "integers": floats(lambda value: (value * 100).to(torch.int8)),
    "one weight missing": lambda w: {k: v for k, v in w.items() if k != "layer1.0.bn1.weight"},
    "one weight too many": lambda w: {**w, "layer1.0.extra.weight": torch.ones(3)},
    "one wrong shape": lambda w: {**w, "linear.weight": torch.ones(10, 63)},
    "two networks": lambda w: {"generator": w, "discriminator": other(w)},
    "a head apart": split_head,
    "an empty dictionary": lambda w: {},
    "None": lambda w: None,
    "a number": lambda w: 3,
    "a tensor": lambda w: torch.ones(3),
    "a function of the shell": lambda w: {"state_dict": w, "hook": Running()},
    "deep nests": lambda w: functools.reduce(lambda inner, _: {"a": inner}, range(90), w),
    "an optimizer alone": lambda w: {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
}


class Running:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch canary",)


def other(w: State) -> State:
    """The state of another network of the same architecture."""
    return dict(author(1).state_dict())


def loaded(w: State) -> nn.Module:
    module = author()
    module.load_state_dict(w)
    return module


def legacy(module: nn.Module, path: Path) -> Path:
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def whole_legacy(module: nn.Module, path: Path) -> Path:
    torch.save({"model": module}, path, _use_new_zipfile_serialization=False)
    return path


def safetensors(module: nn.Module, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(module.state_dict(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def shards(module: nn.Module, path: Path) -> Path:
    from safetensors.torch import save_file

    state = module.state_dict()
    names = {key: f"model-{index % 2}.safetensors" for index, key in enumerate(state)}
    for name in set(names.values()):
        save_file({k: v for k, v in state.items() if names[k] == name}, path.with_name(name))
    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def built(module: nn.Module, path: Path) -> Path:
    whole = gatepruner.Network.named("resnet20")
    torch.save(whole.build(module.state_dict()), path)
    return path


WRITTEN: dict[str, Callable[[nn.Module, Path], Path]] = {
    "torch.save without zip": legacy,
    "a pickled module without zip": whole_legacy,
    "safetensors": safetensors,
    "safetensors in shards": shards,
    "a whole network, built and pickled": built,
}


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.trace(module, torch.randn(2, *SHAPE)).save(str(path))
    return path


def exported(module: nn.Module, path: Path) -> Path:
    program = torch.export.export(module, (torch.randn(2, *SHAPE),))
    torch.export.save(program, path.with_suffix(".pt2"))
    return path.with_suffix(".pt2")


def truncated(module: nn.Module, path: Path) -> Path:
    torch.save(module.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def pickled(module: nn.Module, path: Path) -> Path:
    path.write_bytes(pickle.dumps({"state_dict": {"a": 1}}))
    return path


def words(module: nn.Module, path: Path) -> Path:
    path.write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n")
    return path


def pointer(module: nn.Module, path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path


def pruned(module: nn.Module, path: Path) -> Path:
    checkpoint = gatepruner.Checkpoint.of(module, SHAPE)
    torch.save(gatepruner.remove(checkpoint, checkpoint.network.removable[0]).build(), path)
    return path


def nothing(module: nn.Module, path: Path) -> Path:
    path.touch()
    return path


def absent(module: nn.Module, path: Path) -> Path:
    return path.with_name("absent.pt")


NOT_READ: dict[str, Callable[[nn.Module, Path], Path]] = {
    "TorchScript": scripted,
    "torch.export": exported,
    "a pruned network, built and pickled": pruned,
    "a truncated file": truncated,
    "a pickle without tensors": pickled,
    "a web page": words,
    "a pointer of git-lfs": pointer,
    "an empty file": nothing,
    "no file": absent,
}


def same(module: nn.Module, path: Path, images: Tensor) -> Row:
    """Whether what is loaded computes what the author's module computes."""
    checkpoint = gatepruner.load(path)
    with torch.no_grad():
        found = difference(checkpoint.build()(images), module.eval()(images))
    said = "; ".join(checkpoint.notes.get("remarks", ()))
    close = 1e-2 if " cast " in f" {said} " else TOLERANCE  # of weights that had fewer bits
    return {"outcome": RIGHT if found <= close else WRONG, "difference": found, "text": said}


def content(change: Callable[[State], Any]) -> Row:
    """A file that torch.save has written."""
    module, path = author(), Path("file.pt")
    torch.save(change(dict(module.state_dict())), path)
    return same(module, path, torch.randn(2, *SHAPE))


def written(write: Callable[[nn.Module, Path], Path]) -> Row:
    """A file that something else has written."""
    module = author()
    return same(module, write(module, Path("file.pt")), torch.randn(2, *SHAPE))


def repository(make: Callable[[], nn.Module], images: tuple[int, ...]) -> Row:
    """A file of a well-known repository."""
    torch.manual_seed(0)
    module = randomised(make())
    torch.save({"net": module.state_dict(), "acc": 0.9}, "file.pt")
    return same(module, Path("file.pt"), torch.randn(images))


def _cases() -> Iterator[Case]:
    for cases, refusable in ((CONTENTS, False), (REFUSED, True)):
        for name, change in cases.items():
            yield Case(KIND, name, functools.partial(content, change), refusable)
    for files, refusable in ((WRITTEN, False), (NOT_READ, True)):
        for name, write in files.items():
            yield Case(KIND, name, functools.partial(written, write), refusable)
    for name, (make, _, images, _) in REPOSITORIES.items():
        yield Case(LAYOUTS, name, functools.partial(repository, make, images))


CASES = tuple(_cases())
