"""Surgery: removing blocks and shortcuts, adding and folding gates; every verb is pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

import torch

from gatepruner.errors import PlanError
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network, listed_names
from gatepruner.pruning.ranking import Ranking


def add_gates(checkpoint: Checkpoint) -> Checkpoint:
    """Add a residual gate with k = 1 to every removable block; logits stay equal bit for bit.

    Args:
        checkpoint: a network with its weights; returned unchanged if it has gates.

    Raises:
        PlanError: the network has no removable block.
    """
    if checkpoint.network.edits.gated:
        return checkpoint
    network = checkpoint.network.with_gates()
    if not network.edits.gated:
        raise PlanError(
            f"cannot add gates: {network} has no block with both its branch and its shortcut"
        )
    ones = {key: torch.ones(()) for key in map(network.gate_key, network.edits.gated)}
    weights = {**ones, **checkpoint.weights}
    weights = {key: weights[key] for key in network.state()}
    notes = checkpoint.noting(gates_added=len(ones))
    return replace(checkpoint, network=network, weights=MappingProxyType(weights), notes=notes)


def remove(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks.

    A block with an identity shortcut vanishes; a shortcut that changes shape stays. The logits
    equal, bit for bit, those of the whole network with gates of 0 in those blocks.

    Args:
        checkpoint: a network with its weights.
        blocks: names of removable blocks.

    Raises:
        PlanError: there is no such block, or it has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    network = checkpoint.network.without(blocks)
    return _kept(checkpoint, network, removed=list(blocks))


def follow(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks and use the weights learned along the checkpoint's path.

    The longest start of the path whose blocks are all to be removed decides on gates, scales,
    shifts and statistics. All other blocks are removed as by `remove`.

    Args:
        checkpoint: a network with its weights and its learned path.
        blocks: names of removable blocks.

    Raises:
        PlanError: there is no such block, or it has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    followed = checkpoint.path.followed(blocks)
    if not followed:
        return remove(checkpoint, blocks)
    learned = {**checkpoint.weights, **followed[-1].weights}
    network = checkpoint.network.without(blocks)
    weights = MappingProxyType({key: learned[key] for key in network.state()})
    gates = {removal.block: removal.gate for removal in followed}
    notes = checkpoint.noting(removed=list(blocks), path=len(followed))
    return Checkpoint(network, weights, {**notes, "gates": {**notes.get("gates", {}), **gates}})


def prune(checkpoint: Checkpoint, ranking: Ranking, count: int) -> Checkpoint:
    """Remove the least important blocks of a ranking.

    Uses `follow` if the ranking is that of the checkpoint's learned path, else `remove`.

    Args:
        checkpoint: a network with its weights.
        ranking: its blocks, least important first.
        count: number of blocks to remove.

    Raises:
        PlanError: the ranking has fewer blocks.
    """
    return (follow if ranking.learned else remove)(checkpoint, ranking.first(count))


def remove_shortcuts(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove the shortcuts of residual blocks; their branches and gates stay.

    Args:
        checkpoint: a network with its weights.
        blocks: names of removable blocks.

    Raises:
        PlanError: there is no such block, or it has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    network = checkpoint.network.without_shortcuts(blocks)
    return _kept(checkpoint, network, shortcuts_removed=list(blocks))


def _kept(checkpoint: Checkpoint, network: Network, **done: list[str]) -> Checkpoint:
    """The network with the weights that it still has, and a note of what was done."""
    weights = {key: checkpoint.weights[key] for key in network.state()}
    return Checkpoint(network, MappingProxyType(weights), checkpoint.noting(**done))


def fold_gates(checkpoint: Checkpoint) -> Checkpoint:
    """Multiply every gate into the last affine layer of its branch.

    No gate is left, and the logits stay equal up to rounding. A constant factor replaces the gate
    of a branch that does not end in an affine layer, and scales the shortcut of a plain gate;
    `network.edits.scaled_branches` and `scaled_shortcuts` list those blocks. The notes keep the
    gates under `gates`, so that the blocks can still be ranked.

    Args:
        checkpoint: a network with its weights, with or without gates.
    """
    network, weights = checkpoint.network, dict(checkpoint.weights)
    folded, targets, constants = network.without_gates(), network.fold_targets(), []
    for name, gate in checkpoint.gates.items():
        g = torch.tensor(gate, dtype=torch.float64)
        weights.pop(network.gate_key(name))
        for key in targets[name]:
            weights[key] = (weights[key] * g).to(weights[key].dtype)
        factors = {} if targets[name] else {"branch": g}
        if network.edits.gate == "plain" and name not in network.edits.shortcuts_removed:
            factors["shortcut"] = 1 - g
        for operand, factor in factors.items():
            key = network.scale_key(name, operand)
            weights[key] = (weights.get(key, 1.0) * factor).float()
            constants.append(name)
    notes = checkpoint.noting(folded=list(network.edits.gated), constants=constants)
    notes = {**notes, "gates": checkpoint.known_gates}
    return Checkpoint(folded, MappingProxyType(weights), notes)
