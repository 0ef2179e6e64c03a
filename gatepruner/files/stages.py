"""The blocks of a pruned network as a stock class numbers them: whole, and without gaps.

Such a class can hold a network if it takes the number of its blocks as an argument, and every
block that is left has all its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gatepruner.errors import PlanError, listed
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

OTHERWISE = "choose .onnx, .pt2 or .xml instead"
# What keeps blocks that change shape, and one in every stage, from being removed.
BEFORE = "gate --identity-only, or compress with --export"


def check_widths(network: Network, to: str) -> None:
    """Refuse a network with narrowed layers.

    Args:
        network: to be exported.
        to: the library whose class is to hold it, for error messages.

    Raises:
        PlanError: it has some.
    """
    if narrowed := [layer for layer, _ in network.edits.narrowed]:
        raise PlanError(
            f"cannot export {network} to {to}: {listed(narrowed, 3)} are narrower than {to}'s "
            f"class makes them; {OTHERWISE}, or remove blocks alone"
        )


def stages_left(network: Network, to: str) -> dict[str, list[str]]:
    """The paths of the blocks that are left, by the path of the stage that they are in.

    Args:
        network: with whole blocks removed.
        to: the library whose class is to hold it, for error messages.

    Raises:
        PlanError: a block lacks a part, or a stage has no block left.
    """
    check_widths(network, to)
    whole, left = _modules(Network(network.base)), _modules(network)
    halves = [path for path, names in left.items() if names != whole[path]]
    halves += [*network.edits.scaled_branches, *network.edits.scaled_shortcuts]
    halves += [block.name for block in network.blocks if not block.removable]
    if halves:
        raise PlanError(
            f"cannot export {network} to {to}: {listed(dict.fromkeys(halves))} lacks a part, and "
            f"{to}'s blocks have all; remove blocks as a whole: prune --blocks, {BEFORE}; or "
            f"{OTHERWISE}"
        )
    stages: dict[str, list[str]] = {path.rpartition(".")[0]: [] for path in whole}
    for path in left:
        stages[path.rpartition(".")[0]].append(path)
    empty = [stage for stage, paths in stages.items() if not paths]
    if empty:
        raise PlanError(
            f"cannot export {network} to {to}: {listed(empty)} has no block left, and {to} needs "
            f"at least one; keep one ({BEFORE}), or {OTHERWISE}"
        )
    return stages


def moved_up(stages: Mapping[str, list[str]]) -> dict[str, str]:
    """The new path of every block: the gaps in each stage are closed."""
    return {
        path: f"{stage}.{index}"
        for stage, paths in stages.items()
        for index, path in enumerate(paths)
    }


def state_of(checkpoint: Checkpoint, moved: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict with its blocks at their new paths."""
    paths = "|".join(map(re.escape, sorted(moved, key=len, reverse=True)))
    pattern = re.compile(rf"^({paths})\.")
    return {
        pattern.sub(lambda match: f"{moved[match[1]]}.", key): tensor
        for key, tensor in checkpoint.weights.items()
    }


def _modules(network: Network) -> dict[str, list[str]]:
    """The names of the blocks that are left, by the path of their module."""
    modules: dict[str, list[str]] = {}
    for block in network.blocks:
        if block.branch or not block.identity:
            modules.setdefault(block.name.partition(":")[0], []).append(block.name)
    return modules
