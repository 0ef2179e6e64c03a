"""Foreign state dicts: where files keep them, and the prefixes that wrappers add to their keys."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from gatepruner.errors import CheckpointError, listed

NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in the content of a foreign file.

    Raises:
        CheckpointError: the file has none.
    """
    description = f"a {type(content).__name__}"
    if isinstance(content, dict):
        for nest in NESTS:
            if isinstance(content.get(nest), Mapping):
                content = content[nest]
                break
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
        description = f"a dictionary with {listed(map(str, content))}"
    raise CheckpointError(
        f"{path} contains {description}: expected a state dict, alone or under {', '.join(NESTS)}"
    )


def without_prefixes(state: dict[str, Tensor], known: Set[str] = frozenset()) -> dict[str, Tensor]:
    """A state dict without wrappers' prefixes, and without the counter of AveragedModel.

    Args:
        state: tensors by key.
        known: keys of the network, if known; prefixes are removed only until keys are among them.
    """
    if "n_averaged" not in known:
        state = {key: tensor for key, tensor in state.items() if key != "n_averaged"}
    for prefix in PREFIXES * 2:
        if known & state.keys():
            return state
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
