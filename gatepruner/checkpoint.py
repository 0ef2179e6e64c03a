"""Checkpoints: a network, its weights and notes, and every way to read and write them.

The project's own file holds a format number, the network and the notes as JSON, and the
weights; see `docs/format.md`. It needs no class and no code to be read. Files of others are
state dicts; `gatepruner.recognition` tells their architecture.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatepruner.errors import CheckpointError, listed
from gatepruner.models import Shape
from gatepruner.network import Network
from gatepruner.recognition import COUNTER, recognise

FORMAT = 1
SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors")
NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights.

    Attributes:
        network: base and edits.
        weights: tensors by their state-dict keys; not to be written to.
        notes: plain JSON: `normalize` (`mean` and `std` of each channel), `classes` (names),
            `history` (what was done, oldest first) and what else a writer cares to record.
    """

    network: Network
    weights: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, module: nn.Module, input_shape: Shape, notes: Mapping[str, Any] = EMPTY
    ) -> Checkpoint:
        """A checkpoint of a module that the caller brings; the module is left as it is.

        Args:
            module: any residual network that `torch.fx` can trace.
            input_shape: `(C, H, W)` of one image.
            notes: what to record.
        """
        network = Network.of(module, input_shape)
        state, wanted = module.state_dict(), network.state()
        weights = {key: state[key].detach().clone() for key in wanted}
        return cls(network, MappingProxyType(weights), dict(notes))

    def build(self) -> fx.GraphModule:
        """An `nn.Module` with copies of the weights, in evaluation mode."""
        return self.network.build({key: value.clone() for key, value in self.weights.items()})

    @property
    def gates(self) -> dict[str, float]:
        """The gate `g = relu(k)` of every gated block, in the order of depth.

        Raises:
            CheckpointError: a gate is not a finite number.
        """
        network = self.network
        values = {name: float(self.weights[network.gate_key(name)]) for name in network.edits.gated}
        bad = [f"{name} (k = {k})" for name, k in values.items() if k - k != 0]
        if bad:
            raise CheckpointError(
                f"{listed(bad)}: a gate has to be a finite number; train it again, "
                "with a lower gate learning rate"
            )
        return {name: max(k, 0.0) for name, k in values.items()}

    def noting(self, **done: Any) -> dict[str, Any]:
        """The notes with one more entry in their history."""
        return {**self.notes, "history": [*self.notes.get("history", ()), done]}


# ------------------------------------------------------------------------------ writing


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
    }
    return write(checkpoint.weights, path, header, force=force)


def write(
    weights: Mapping[str, Tensor],
    path: Path,
    header: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write tensors, with the project's header or as a bare state dict without one.

    Into a temporary file beside `path` that is renamed once it is whole.
    """
    refuse_existing(path, force=force)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise CheckpointError(f"cannot write {path}: expected a name ending in .pt or .safetensors")
    text = None if header is None else json.dumps(header)
    tensors = {key: _alone(tensor) for key, tensor in weights.items()}

    def put(partial: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, partial, None if text is None else {"gatepruner": text})
        else:
            torch.save(
                tensors if text is None else {"gatepruner": text, "weights": tensors}, partial
            )

    return _write_whole(path, put)


def save_state(snapshot: Mapping[str, Any], path: Path) -> Path:
    """Write the state of a training run over the one before, whole or not at all."""
    return _write_whole(path, lambda partial: torch.save(dict(snapshot), partial))


def _write_whole(path: Path, put: Callable[[Path], None]) -> Path:
    """Have `put` write a temporary file beside `path`, and rename it once it is whole."""
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
    os.close(descriptor)
    partial = Path(name)
    try:
        put(partial)
        partial.chmod(0o666 & ~_umask())
        _flush(partial)
        partial.replace(path)
    except Exception as error:  # torch and safetensors tell of a full disk in their own ways
        free = shutil.disk_usage(path.parent).free
        full = getattr(error, "errno", None) == errno.ENOSPC or free < 2**16
        reason = f"the disk is full ({free / 2**20:.1f} MiB free)" if full else _first_line(error)
        raise CheckpointError(f"cannot write {path}: {reason}; nothing was written") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if there is something at `path` that may not be replaced."""
    if path.exists() and not force:
        raise CheckpointError(
            f"{path} is there already: give another name, or --force to replace it"
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: a file name was expected")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of a larger storage that it may be a view of."""
    tensor = tensor.detach()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Have the file on the disk before it takes the place of another one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# ------------------------------------------------------------------------------ reading


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | None = None,
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

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, wants code to run, or its
            weights do not fit; all of them are named.
        ArchitectureError: the architecture is not known or cannot be told.
    """
    path = Path(path)
    content, header = _read(path)
    if header is None:
        state = _strip_prefixes(_state_dict(content, path))
        if module is not None:
            network = Network.of(module, input_shape or (3, 224, 224))
        else:
            network = recognise(state, str(path), arch, num_classes, input_shape)
        return _fitted(path, network, state, {"source": path.name}, network.unused_keys())
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header.get('format')}: this version of gatepruner reads "
            f"format {FORMAT}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(f"{path} says what it is: leave out --arch {arch}")
    network = Network.from_json(header["network"], module)
    checkpoint = _fitted(path, network, content, header["notes"])
    checkpoint.gates  # noqa: B018 - refuses gates that are not numbers
    return checkpoint


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a file holds, and its header if it is one of the project's own."""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES][:5]
        hint = f"; there is {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: a checkpoint was expected")
    content: Any
    text: str | None
    if path.suffix == ".safetensors":
        content, text = _read_safetensors(path)
    else:
        content, text = _read_torch(path), None
        if isinstance(content, dict) and isinstance(content.get("gatepruner"), str):
            content, text = content.get("weights"), content["gatepruner"]
    if text is None:
        return content, None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its header is no JSON ({error})") from None
    if not (isinstance(header, dict) and isinstance(content, dict)):
        raise CheckpointError(f"{path} is damaged: a header and weights were expected")
    return content, header


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get("gatepruner")  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short: {error}") from None


def _read_torch(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        wants = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:?) *(\S+)", str(error))
        if wants is None:
            raise CheckpointError(f"{path} is no checkpoint, or is damaged") from None
        raise CheckpointError(
            f"{path} holds {wants[1].strip('`')}, which would run code: tensors alone were "
            "expected; save the state dict alone, torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:  # zip, pickle and torch tell of damage in many ways
        reason = _first_line(error)
        raise CheckpointError(f"{path} is no checkpoint, or is cut short: {reason}") from None


def load_state(path: Path) -> dict[str, Any]:
    """The state of a training run that `save_state` wrote."""
    content = _read_torch(path)
    if not isinstance(content, dict) or "identity" not in content:
        raise CheckpointError(f"{path} is no state of a training run")
    return content


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


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name."""
    for prefix in PREFIXES * 2:
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
    return Checkpoint(network, MappingProxyType({key: state[key] for key in wanted}), dict(notes))
