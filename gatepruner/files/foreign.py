"""State dicts in files of others: where they lie, and what wrappers put before their names."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from gatepruner.errors import CheckpointError, listed

NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
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


def without_prefixes(state: dict[str, Tensor], known: Set[str] = frozenset()) -> dict[str, Tensor]:
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
