"""Checkpoints of several files: sharded weights, and folders with a `config.json`.

An index (`*.index.json`) names the file of every tensor. A folder of timm has the name of its
architecture in `config.json`; see https://huggingface.co/docs/timm and `timm.models.save_for_hf`.
What a folder of transformers has is read by `gatepruner.files.huggingface`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatepruner.documents import parsed, text_of
from gatepruner.errors import CheckpointError, listed

INDEX = ".index.json"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Names of the weights in such a folder, in the order in which they are looked for.
FILES = (
    *("model.safetensors", f"model.safetensors{INDEX}", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin", f"pytorch_model.bin{INDEX}"),
)
NAME = re.compile(r"[a-z][a-z0-9_]*")  # of an architecture of timm: no path, no address
HUB = "hf:"  # before a folder, as models of a hub are called
TIMM = "timm_wrapper"  # what transformers calls a network of timm
MOST_MEAN = 1e9  # of pixels


@dataclass(frozen=True)
class Folder:
    """A folder of timm, or one of transformers.

    Attributes:
        weights: the file with its weights, or their index.
        arch: its architecture; empty for a folder of transformers.
        config: what its `config.json` says.
        processor: what its `preprocessor_config.json` says, if it has one.
        num_classes: number of logits, if the configuration has it.
        input_shape: `(C, H, W)` of one image, if the configuration has it.
        notes: what else the configuration says that is of use.
    """

    weights: Path
    arch: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    input_shape: tuple[int, int, int] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def local(path: str | Path) -> Path:
    """The path of a file or folder, without `hf:` before it."""
    text = str(path)
    return Path(text.removeprefix(HUB)).expanduser() if text.startswith(HUB) else Path(path)


def read_shards(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """The tensors of all files that an index names.

    Args:
        path: a file ending in `.index.json`.
        read: reads one of the files.

    Raises:
        CheckpointError: the index is damaged, or names a file that is not beside it.
    """
    places = _json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} is damaged: expected the file of each weight in weight_map")
    names = sorted({str(name) for name in places.values()})
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path} names {listed(strange)}: expected files beside it")
    absent = [name for name in names if not os.path.isfile(path.parent / name)]
    if absent:
        raise CheckpointError(f"{path} names files that are not there: {listed(absent)}")
    tensors: dict[str, Any] = {}
    for name in names:
        part = read(path.parent / name)
        if not isinstance(part, dict) or part.keys() & tensors.keys():
            raise CheckpointError(
                f"{path.parent / name} is damaged: expected weights that no other file of "
                f"{path.name} has"
            )
        tensors |= part
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise CheckpointError(f"the files of {path} lack {listed(lacking)}")
    return tensors


def read_folder(path: Path) -> Folder:
    """What a folder with a `config.json` holds.

    Raises:
        CheckpointError: it has none, or its architecture is not named as timm's are.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} is a folder: expected a file, or a folder with {CONFIG}")
    weights = next((path / name for name in FILES if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{path} has no weights: expected one of {', '.join(FILES)}")
    config = _json(path / CONFIG)
    name = config.get("architecture")
    if "model_type" in config and config["model_type"] != TIMM:
        settings = _json(path / PREPROCESSOR) if (path / PREPROCESSOR).exists() else {}
        return Folder(weights, config=config, processor=settings)
    if not isinstance(name, str):
        raise CheckpointError(
            f"{path / CONFIG} says neither model_type nor architecture: expected a folder as "
            "transformers or timm write it"
        )
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{path / CONFIG} has the architecture {name!r}: expected timm's")
    about = config.get("pretrained_cfg")
    about = about if isinstance(about, dict) else {}
    classes, shape = config.get("num_classes"), about.get("input_size")
    sized = isinstance(shape, list) and len(shape) == 3 and all(type(it) is int for it in shape)
    return Folder(
        weights,
        f"timm:{name}",
        config,
        num_classes=classes if type(classes) is int and classes > 0 else None,
        input_shape=(shape[0], shape[1], shape[2]) if sized and shape is not None else None,
        notes=_normalization(about),
    )


def _normalization(about: Mapping[str, Any]) -> dict[str, Any]:
    """The notes on the normalisation of the pictures, if a configuration has it."""
    mean, std = about.get("mean"), about.get("std")
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != len(std):
        return {}
    if not mean or not all(map(is_usual, (*mean, *std))) or min(std) <= 0:
        return {}
    return {"normalize": {"mean": mean, "std": std}}


def is_usual(value: Any) -> bool:
    """Whether a value is a number that can be a mean, a deviation or a factor of pixels."""
    return type(value) in (int, float) and abs(value) < MOST_MEAN


def _json(path: Path) -> dict[str, Any]:
    """A JSON document that has to be an object."""
    content = parsed(text_of(path), str(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected an object")
    return content
