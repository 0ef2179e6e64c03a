"""Surgery: from one checkpoint to a smaller one. Nothing is changed in place."""

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
    """Put a residual gate of k = 1 into every block: the same function, bit for bit.

    Args:
        checkpoint: a network with its weights; one that has gates stays as it is.

    Raises:
        PlanError: the network has no block for a gate.
    """
    if checkpoint.network.edits.gated:
        return checkpoint
    network = checkpoint.network.with_gates()
    if not network.edits.gated:
        raise PlanError(f"{network} has no block with both branch and shortcut: nothing to gate")
    ones = {key: torch.ones(()) for key in map(network.gate_key, network.edits.gated)}
    weights = {**ones, **checkpoint.weights}
    weights = {key: weights[key] for key in network.state()}
    notes = checkpoint.noting(gates_added=len(ones))
    return replace(checkpoint, network=network, weights=MappingProxyType(weights), notes=notes)


def remove(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks.

    A block with an identity shortcut vanishes; of one that changes shape the shortcut stays.
    What is left computes what the whole network computes with gates of 0 in those blocks, bit
    for bit.

    Raises:
        PlanError: a block is not there, or has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    network = checkpoint.network.without(blocks)
    return _kept(checkpoint, network, removed=list(blocks))


def follow(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks with what was learned when they went.

    Of the checkpoint's path as much is followed as the plan holds, from the beginning and without
    a gap: gates, scales, shifts and statistics are those of that state. The other blocks are
    removed as `remove` does. Without a path it is `remove`.

    Raises:
        PlanError: a block is not there, or has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    followed = checkpoint.path.followed(blocks)
    if not followed:
        return remove(checkpoint, blocks)
    learned = {**checkpoint.weights, **followed[-1].weights}
    network = checkpoint.network.without(blocks)
    weights = MappingProxyType({key: learned[key] for key in network.state()})
    gates = {**checkpoint.notes.get("gates", {}), **{one.block: one.gate for one in followed}}
    notes = checkpoint.noting(removed=list(blocks), path=len(followed))
    return Checkpoint(network, weights, {**notes, "gates": gates})


def prune(checkpoint: Checkpoint, ranking: Ranking, count: int) -> Checkpoint:
    """Remove the first blocks of a ranking.

    With what was learned when they were removed, if the ranking is that of the checkpoint's
    learned path; else plainly.

    Args:
        checkpoint: a network with its weights.
        ranking: its blocks, least important first.
        count: how many to remove.

    Raises:
        PlanError: the ranking has fewer.
    """
    return (follow if ranking.learned else remove)(checkpoint, ranking.first(count))


def remove_shortcuts(checkpoint: Checkpoint, blocks: str | Iterable[str]) -> Checkpoint:
    """Remove the shortcuts of residual blocks; their branches stay, and so do their gates.

    Raises:
        PlanError: a block is not there, or has only its branch or its shortcut left.
    """
    blocks = listed_names(blocks)
    network = checkpoint.network.without_shortcuts(blocks)
    return _kept(checkpoint, network, shortcuts_removed=list(blocks))


def _kept(checkpoint: Checkpoint, network: Network, **done: list[str]) -> Checkpoint:
    """The weights that the network still takes."""
    weights = {key: checkpoint.weights[key] for key in network.state()}
    return Checkpoint(network, MappingProxyType(weights), checkpoint.noting(**done))


def fold_gates(checkpoint: Checkpoint) -> Checkpoint:
    """Multiply every gate into the last affine layer of its branch.

    The logits stay the same to rounding and no gate is left. Where a branch does not end in an
    affine layer (an activation comes after it, say), and for the shortcut of a plain gate, a
    constant factor stays: `network.edits.scaled_branches` and `scaled_shortcuts` name those
    blocks. The notes keep the gates under `gates`, so that the blocks can still be ranked.
    """
    network, weights = checkpoint.network, dict(checkpoint.weights)
    folded, targets, constants = network.without_gates(), network.fold_targets(), []
    for name, gate in checkpoint.gates.items():
        g = torch.tensor(gate, dtype=torch.float64)
        weights.pop(network.gate_key(name))
        for key in targets[name]:
            weights[key] = (weights[key] * g).to(weights[key].dtype)
        operands = {} if targets[name] else {"branch": g}
        if network.edits.gate == "plain" and name not in network.edits.shortcuts_removed:
            operands["shortcut"] = 1 - g
        for operand, factor in operands.items():
            key = network.scale_key(name, operand)
            weights[key] = (weights.get(key, 1.0) * factor).float()
            constants.append(name)
    notes = checkpoint.noting(folded=list(network.edits.gated), constants=constants)
    notes = {**notes, "gates": checkpoint.known_gates}
    return Checkpoint(folded, MappingProxyType(weights), notes)
