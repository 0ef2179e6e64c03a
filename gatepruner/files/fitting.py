"""Weights from a file as a checkpoint: those of its network, all of them and no others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import ArchitectureError, CheckpointError, listed
from gatepruner.files.foreign import COUNTER
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Begin what is said of an architecture or of weights with the name of their file."""
    try:
        yield
    except (ArchitectureError, CheckpointError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error.args[0]}", **error.arguments) from None


def fitted(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint with exactly the weights of the network; raises a `CheckpointError` if not."""
    expected = network.state()
    counters = {key: torch.tensor(0) for key in expected if key.endswith(COUNTER)}
    state = {**counters, **state}
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "extra": sorted(state.keys() - expected.keys()),
        "wrong shape": [
            f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {listed(keys, 20)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(
            f"{path} does not fit {network}: {text}; name the architecture it was trained with",
            arch="NAME",
        )
    weights = MappingProxyType({key: state[key] for key in expected})
    checkpoint = Checkpoint(network, weights, dict(notes))
    with naming(path):
        checkpoint.gates  # noqa: B018 - raises if a gate is not finite
    return checkpoint
