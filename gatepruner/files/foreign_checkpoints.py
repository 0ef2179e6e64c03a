"""Checkpoints from the files of others: state dicts, pickled modules, folders of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gatepruner.errors import ArchitectureError, CheckpointError, listed, visible
from gatepruner.files.fitting import fitted, naming
from gatepruner.files.folders import Folder
from gatepruner.files.foreign import has_built, pickled_modules, state_dicts, word
from gatepruner.files.huggingface import read_model
from gatepruner.files.recognition import Match, Wanted, matched
from gatepruner.files.settings import differing
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.graph import remarks_on
from gatepruner.networks.network import Network
from gatepruner.networks.weights import cast, refuse_unusable


def from_transformers(path: Path, content: Any, folder: Folder, wanted: Wanted) -> Checkpoint:
    """The checkpoint of a model of transformers, whose weights a file has."""
    tensors = isinstance(content, dict) and all(isinstance(it, Tensor) for it in content.values())
    if not tensors:
        raise CheckpointError(f"{path} has something else than tensors: expected a state dict")
    with naming(path):
        model = read_model(folder.config, folder.processor, content, wanted)
    notes = {"source": path.name, **model.notes}
    return fitted(path, Network(model.base), model.weights, notes)


def from_state_dicts(
    path: Path, content: Any, wanted: Wanted, weights: str | None, known: Mapping[str, Any]
) -> Checkpoint:
    """A checkpoint from the content of a foreign file, with what is to be noted, too."""
    try:
        dicts = state_dicts(content)
        if not dicts:
            raise CheckpointError(f"contains {_described(content)}: expected a state dict")
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    try:
        with naming(path):
            match = matched(dicts, str(path), wanted, weights)
    except (ArchitectureError, CheckpointError):
        if has_built(content):
            raise CheckpointError(
                f"{path} contains a network that gatepruner has built (a graph module), which does "
                "not tell what was removed from it: expected the file that gatepruner.save wrote"
            ) from None
        raise
    _refuse_differing(path, match, content)
    expected = match.network.state()
    with naming(path):
        refuse_unusable(match.weights)
        state, casts = cast(match.weights, expected)
    notes: dict[str, Any] = {"source": visible(path.name), **known}
    if match.others:
        notes["weights"] = match.name
    remarks = [*match.remarks, *casts, *remarks_on(match.network.kept)]
    if remarks:
        notes["remarks"] = remarks
    return fitted(path, match.network, state, notes)


def _refuse_differing(path: Path, match: Match, content: Any) -> None:
    """Raise a `CheckpointError` if a pickled module has other layers than the network."""
    problems = differing(match.network, match.layers(pickled_modules(content)))
    if problems:
        name = match.candidate.name or match.network
        raise CheckpointError(
            f"{path} has a module whose weights fit {name}, but not its layers: "
            f"{listed(problems, 4)}; name another architecture, or pass the module",
            arch="NAME",
        )


def _described(content: Any) -> str:
    """What a file without tensors has."""
    if isinstance(content, dict):
        return f"a dictionary without tensors ({listed(map(word, content))})"
    return f"a {type(content).__name__}"
