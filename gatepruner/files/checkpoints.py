"""Checkpoint files: the project's own format written and read, files of others read.

The project's own file holds a format number, the network and the notes as JSON, and the
weights; see `docs/format.md`. It needs no class and no code to be read. Files of others are
state dicts; `gatepruner.files.recognition` tells their architecture.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import CheckpointError, PlanError, listed
from gatepruner.files.recognition import COUNTER, recognise
from gatepruner.files.storage import SUFFIXES, read_file, write_tensors
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint, State
from gatepruner.networks.network import Network

FORMAT = 2


READS = (1, 2)  # 2 brought the path


NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")


PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def save(checkpoint: Checkpoint, path: str | Path, *, force: bool = False) -> Path:
    """Write a checkpoint in the project's own format, whole or not at all.

    Args:
        checkpoint: what to write.
        path: a file ending in `.pt` or `.safetensors`.
        force: whether a file that is there may be replaced.

    Raises:
        CheckpointError: the file is there, its suffix is another one, or the disk is full.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "network": checkpoint.network.to_json(),
        "notes": dict(checkpoint.notes),
        "path": [state.gone for state in checkpoint.path],
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: its notes are no JSON ({error})") from None
    return write_tensors(checkpoint.tensors, path, text, force=force)


def _path_of(
    path: Path, network: Network, names: Sequence[str], content: Mapping[str, Tensor]
) -> tuple[State, ...]:
    """The path in what a file holds, if it is one that the network can go."""
    network.without(names)  # refuses a block that is not there
    states: list[dict[str, Tensor]] = [{} for _ in names]
    wanted, odd = network.state(), []
    for key, tensor in content.items():
        where, _, inner = key.removeprefix("path/").partition("/")
        index = int(where) if where.isdecimal() else -1
        if not 0 <= index < len(names) or inner not in wanted:
            odd.append(key)
        elif tensor.shape != wanted[inner].shape:
            odd.append(f"{key} {tuple(tensor.shape)}, not {tuple(wanted[inner].shape)}")
        elif not bool(tensor.isfinite().all()):
            odd.append(f"{key} is not finite")
        else:
            states[index][inner] = tensor
    if odd:
        raise CheckpointError(f"{path} is damaged: its path does not fit {network}: {listed(odd)}")
    return tuple(
        State(name, MappingProxyType(state)) for name, state in zip(names, states, strict=True)
    )


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | None = None,
    leaves: Iterable[type[nn.Module]] = (),
) -> Checkpoint:
    """Read a checkpoint of the project's own or a state dict of someone else's.

    Never runs code from the file (`weights_only=True`). The weights stay on the disk, memory
    mapped, until they are used.

    Args:
        path: a `.pt`, `.pth`, `.th`, `.ckpt` or `.safetensors` file.
        arch: the architecture of a foreign file, as `Network.named` takes it; recognised from
            the weights where it is not given.
        num_classes: number of logits of a foreign file; taken from the weights where the
            architecture is recognised.
        input_shape: `(C, H, W)` of the images of a foreign file.
        module: the caller's module that an own file was made of, or whose weights the foreign
            file holds.
        leaves: module classes that tracing keeps whole, for a caller's module.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, wants code to run, or its
            weights do not fit; all of them are named.
        ArchitectureError: the architecture is not known or cannot be told.
    """
    path = Path(path)
    content, header = _read(path)
    if header is None:
        known = module.state_dict().keys() if module is not None else frozenset()
        state = _strip_prefixes(_state_dict(content, path), known)
        if module is not None:
            network = Network.of(module, input_shape or (3, 224, 224), leaves)
        else:
            network = recognise(state, str(path), arch, num_classes, input_shape)
        return _fitted(path, network, state, {"source": path.name}, network.unused_keys())
    if header.get("format") not in READS:
        raise CheckpointError(
            f"{path} has format {header.get('format')}: this version of gatepruner reads "
            f"format {' and '.join(map(str, READS))}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(f"{path} says what it is: leave out --arch {arch}")
    try:
        network = Network.from_json(header["network"], module, leaves)
        notes = dict(header["notes"].items())
        names = list(map(str, header["path"])) if header["format"] > 1 else []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: its header does not describe a network and notes "
            f"({type(error).__name__}: {error})"
        ) from None
    odd = [key for key, it in content.items() if not isinstance(it, Tensor)]
    if odd:
        raise CheckpointError(f"{path} is damaged: {listed(odd)} is no tensor")
    learned = {key: it for key, it in content.items() if key.startswith("path/")}
    own = {key: it for key, it in content.items() if key not in learned}
    fitted = _fitted(path, network, own, notes)
    try:
        return replace(fitted, path=_path_of(path, network, names, learned))
    except PlanError as error:
        raise CheckpointError(f"{path} is damaged: its path cannot be gone: {error}") from None


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a file holds, and its header if it is one of the project's own."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: a file was expected")
    if not path.is_file():
        names = sorted(it.name for it in path.parent.glob("*") if it.suffix in SUFFIXES)
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0)
        hint = f"; there is {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: a checkpoint was expected")
    content, text = read_file(path)
    if text is None:
        return content, None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its header is no JSON ({error})") from None
    if not (isinstance(header, dict) and isinstance(content, dict)):
        raise CheckpointError(f"{path} is damaged: a header and weights were expected")
    return content, header


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a foreign file holds."""
    if isinstance(content, dict):
        for nest in NESTS:
            if isinstance(content.get(nest), Mapping):
                content = content[nest]
                break
        tensors = {str(key): it for key, it in content.items() if isinstance(it, Tensor)}
        if tensors:
            return tensors
        found = f"a dictionary with {listed(map(str, content))}"
    else:
        found = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path} holds {found}: a state dict was expected, alone or under {', '.join(NESTS)}"
    )


def _strip_prefixes(state: dict[str, Tensor], known: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name, and AveragedModel's counter.

    A name that is among the `known` ones is as it should be.
    """
    if "n_averaged" not in known:
        state = {key: tensor for key, tensor in state.items() if key != "n_averaged"}
    for prefix in PREFIXES * 2:
        if known & state.keys():
            return state
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _fitted(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    unused: Set[str] = frozenset(),
) -> Checkpoint:
    """A checkpoint of the weights, if they are just those that the network takes."""
    wanted = network.state()
    counters = {key for key in wanted if key.endswith(COUNTER)}
    state = {**{key: torch.tensor(0) for key in counters}, **state}
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys() - unused)
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems = [
        f"{what}: {listed(names, 20)}"
        for what, names in (("missing", missing), ("extra", extra), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {network}: {'; '.join(problems)}; "
            "name the architecture it was trained with (--arch)"
        )
    weights = MappingProxyType({key: state[key] for key in wanted})
    checkpoint = Checkpoint(network, weights, dict(notes))
    try:
        checkpoint.gates  # noqa: B018 - refuses gates that are not numbers
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return checkpoint
