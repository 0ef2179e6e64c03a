"""The formats in which a network is handed to other software, as data.

Every export is written to a temporary folder, loaded again as the other software loads it, and
compared with the network on random images before it gets to its place.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gatepruner import __version__
from gatepruner.errors import CheckpointError, PlanError, listed
from gatepruner.files import programs, quantization, standalone, timm, transformers
from gatepruner.files.export import to_torchvision
from gatepruner.files.quantization import Calibration
from gatepruner.files.storage import read_file, write_tensors
from gatepruner.files.writing import Fill, refuse_existing, text_filling, write_files
from gatepruner.images.preprocessing import preprocessing_of
from gatepruner.measuring.engines import require
from gatepruner.measuring.programs import check_same
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import fold_gates

FOLDER = ""  # the suffix of a folder
CHECKED = 3  # images; another number than the batch that a program was made from
Loaded = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: of the file or folder.
        sidecar: of the JSON file beside it, with preprocessing and classes.
        format: a key of `FORMATS`.
        difference: greatest difference of a logit from the network's, relative to the greatest;
            on the calibration images if it was quantised.
        recipe: Python code that loads the file without gatepruner.
        details: what else there is to know, plain JSON.
    """

    path: Path
    sidecar: Path
    format: str
    difference: float
    recipe: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        suffixes: of its files, the usual one first; of a folder, `FOLDER`.
        write: writes a network without gates to a file, with a description; returns code that
            loads it, for a path, and details.
        read: loads such a file as the other software does.
        packages: what it needs.
        extra: the extra of gatepruner that installs these.
        check: refuses a network of which no part could be exported, before any work is done.
        identity_only: whether only blocks with an identity shortcut may be removed.
        beside: suffixes of further files that have the same stem.
        quantize: quantises a file in its place to 8 bits; returns what that changes.
        rehearse: exports a network to memory, which shows whether the format lacks an operation.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Checkpoint, Path, Mapping[str, Any]], tuple[Callable[[str], str], Any]]
    read: Callable[[Checkpoint, Path], Loaded]
    packages: tuple[str, ...] = ()
    extra: str = ""
    check: Callable[[Network], object] = lambda network: None
    identity_only: bool = False
    beside: tuple[str, ...] = ()
    quantize: Callable[[Checkpoint, Path, Calibration], Mapping[str, Any]] | None = None
    rehearse: Callable[[Checkpoint], object] = lambda checkpoint: None


def _write_torchvision(
    checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]
) -> tuple[Callable[[str], str], Any]:
    stock = to_torchvision(checkpoint)
    write_tensors(stock.state, path, force=True)
    details = {"block": stock.block, "layers": stock.layers, "arguments": dict(stock.arguments)}
    return stock.recipe, details


def _read_torchvision(checkpoint: Checkpoint, path: Path) -> Loaded:
    state: Mapping[str, Tensor] = read_file(path)[0]
    return replace(to_torchvision(checkpoint), state=state).build()


def _check_torchvision(network: Network) -> None:
    to_torchvision(Checkpoint(network.without_gates(), network.initial_weights()))


FORMATS: dict[str, Format] = {
    "onnx": Format(
        (".onnx",),
        programs.write_onnx,
        programs.read_onnx,
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
        quantize=quantization.quantize,
        rehearse=lambda checkpoint: programs.program_of(checkpoint).onnx,
    ),
    "torch": Format(
        (".pt2",),
        programs.write_torch,
        programs.read_torch,
        rehearse=lambda checkpoint: programs.program_of(checkpoint).exported,
    ),
    "openvino": Format(
        (".xml",),
        programs.write_openvino,
        programs.read_openvino,
        ("onnx", "onnxscript", "openvino"),
        "openvino",
        beside=(".bin",),
        rehearse=programs.openvino_model,
    ),
    "torchvision": Format(
        (".pth", ".pt", ".safetensors"),
        _write_torchvision,
        _read_torchvision,
        check=_check_torchvision,
        identity_only=True,
    ),
    "timm": Format(
        (".pth", ".pt", ".safetensors"),
        timm.write,
        timm.read,
        ("timm",),
        "timm",
        check=timm.check,
        identity_only=True,
    ),
    "transformers": Format(
        (FOLDER,),
        transformers.write,
        transformers.read,
        ("transformers",),
        "transformers",
        check=transformers.check,
        identity_only=True,
    ),
    "safetensors": Format((".safetensors",), standalone.write, standalone.read),
}
"""The formats of exports by name."""


def format_of(path: Path, network: Network) -> str:
    """The format that a file's name asks for; a state dict is of the network's own library.

    A name without a suffix is of a folder of transformers, for a network of transformers.

    Raises:
        CheckpointError: no format has such names.
    """
    named = {format.suffixes[0]: name for name, format in FORMATS.items()}
    stock = network.base.source if network.base.source in ("torchvision", "timm") else "torchvision"
    named |= {".pth": stock, ".pt": stock}
    if network.base.source != "transformers":
        del named[FOLDER]
    if path.suffix not in named:
        raise CheckpointError(
            f"cannot write {path}: expected a name ending in {_endings(sorted(named), ', ')}"
        )
    return named[path.suffix]


def _endings(suffixes: Iterable[str], by: str) -> str:
    return by.join(suffix or "no suffix, for a folder" for suffix in suffixes)


def refuse_outputs(to: str, path: Path, *, force: bool) -> Path:
    """The sidecar of an export, if nothing that may not be replaced is in its place.

    Raises:
        CheckpointError: there is a file that is not to be replaced, or a folder with something in.
    """
    sidecar = path.with_name(f"{path.name}.config.json")
    folder = FOLDER in FORMATS[to].suffixes and path.is_dir()
    if folder and any(path.iterdir()) and not force:
        raise CheckpointError(
            f"{path} already exists: write to another folder, or into it", force=True
        )
    files = [sidecar, *map(path.with_suffix, FORMATS[to].beside)]
    for file in files if folder else [path, *files]:
        refuse_existing(file, force=force)
    return sidecar


def check_format(to: str, path: Path, network: Network) -> None:
    """Refuse what can be refused before any work is done.

    Raises:
        CheckpointError: the file's name has another suffix, or its folder is missing.
        EngineError: a package is missing; says how to install it.
        PlanError: the format cannot hold any network of this kind.
    """
    format = FORMATS[to]
    if path.suffix not in format.suffixes:
        raise CheckpointError(
            f"cannot write {path}: expected a name ending in {_endings(format.suffixes, ' or ')}"
        )
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    require(f"the format {to}", format.packages, format.extra)
    format.check(network)


def rehearse(to: str, network: Network) -> None:
    """Refuse a network with an operation that a format lacks, in the time that an export takes.

    Raises:
        EngineError: the format lacks an operation of the network; names it.
    """
    plain = network.without_gates()
    FORMATS[to].rehearse(Checkpoint(plain, plain.initial_weights()))


def check_whole_blocks(to: str, network: Network) -> None:
    """Refuse a format that needs blocks as a whole if blocks are removed part by part.

    Raises:
        PlanError: the network's modules have several residual additions each.
    """
    parts = [name for name in network.removable if ":" in name]
    if FORMATS[to].identity_only and parts:
        raise PlanError(
            f"cannot promise a {to} export of {network}: its blocks have several parts, such as "
            f"{listed(parts, 2)}, which are removed one by one; choose .onnx, .pt2 or .xml, or "
            "remove whole blocks with prune --blocks"
        )


def check_quantizable(to: str) -> None:
    """Refuse to quantise what is exported to a format.

    Raises:
        PlanError: the format has no quantised form.
    """
    if FORMATS[to].quantize is None:
        able = [name for name, format in FORMATS.items() if format.quantize is not None]
        raise PlanError(f"cannot quantise a {to} export to 8 bits: expected {listed(able)}")


def export(
    checkpoint: Checkpoint,
    path: str | Path,
    to: str | None = None,
    *,
    force: bool = False,
    calibration: Calibration | None = None,
) -> Export:
    """Write a network for other software, with its preprocessing, and check what was written.

    Gates are folded. Batches may be of any size.

    Args:
        checkpoint: a network.
        path: the file or folder; `PATH.config.json` beside it says how to prepare images.
        to: a key of `FORMATS`; by default what the suffix says.
        force: whether to replace existing files.
        calibration: quantises an ONNX file to 8 bits with these images.

    Raises:
        CheckpointError: a file exists, has another suffix or cannot be written.
        DataError: the calibration images do not fit.
        EngineError: a package is missing, the format lacks an operation of the network, or what
            was written computes something else; says by how much.
        PlanError: the format cannot hold the network, or not in 8 bits; says why.
    """
    path = Path(path)
    to = to or format_of(path, checkpoint.network)
    if to not in FORMATS:
        raise CheckpointError(f"unknown format {to!r}: expected {', '.join(FORMATS)}")
    sidecar = refuse_outputs(to, path, force=force)
    check_format(to, path, checkpoint.network)
    if calibration is not None:
        check_quantizable(to)
        quantization.check_calibration(checkpoint, calibration)
    checkpoint = fold_gates(checkpoint) if checkpoint.network.edits.gated else checkpoint
    about = description(checkpoint)
    with tempfile.TemporaryDirectory() as made:
        recipe, details = FORMATS[to].write(checkpoint, Path(made, path.name), about)
        loaded = FORMATS[to].read(checkpoint, Path(made, path.name))
        difference = _checked(checkpoint, loaded, f"the {to} export of {checkpoint.network}")
        quantize = FORMATS[to].quantize
        if calibration is not None and quantize is not None:
            int8 = quantize(checkpoint, Path(made, path.name), calibration)
            difference, details = int8["difference"], {**details, "int8": int8}
        text = json.dumps({**about, **details}, indent=1) + "\n"
        files = [file for file in Path(made).rglob("*") if file.is_file()]
        fills = {path.parent / file.relative_to(made): _copying(file) for file in files}
        if FOLDER in FORMATS[to].suffixes:
            path.mkdir(exist_ok=True)
        write_files({**fills, sidecar: text_filling(text)}, force=force)
    return Export(path, sidecar, to, difference, recipe(str(path)), details)


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a user of an exported network has to know, as plain JSON."""
    network, prepared = checkpoint.network, preprocessing_of(checkpoint)
    scaling = prepared.scaling
    return {
        "network": str(network),
        "input": {
            "name": "images",
            "shape": ["batch", *network.base.input_shape],
            "scale": 1 / 255,
        },
        "mean": list(prepared.normalization.mean),
        "std": list(prepared.normalization.std),
        "scaling": scaling.to_json() if scaling is not None else None,
        "num_classes": network.num_classes,
        "classes": [str(name) for name in checkpoint.notes.get("classes", ())],
        "removed": list(network.edits.removed),
        "made_with": f"gatepruner {__version__}",
    }


def _copying(file: Path) -> Fill:
    """What fills a file with the content of another."""

    def fill(target: BinaryIO) -> None:
        with file.open("rb") as source:
            shutil.copyfileobj(source, target)

    return fill


def _checked(checkpoint: Checkpoint, loaded: Loaded, what: str) -> float:
    """The difference of what was loaded from the network, relative to the greatest logit.

    Raises:
        EngineError: it is more than rounding.
    """
    shape = checkpoint.network.base.input_shape
    images = torch.randn(CHECKED, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = checkpoint.build()(images), loaded(images)
    return check_same(what, logits, expected)
