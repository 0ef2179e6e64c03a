"""Surgery: removing blocks and shortcuts, adding and folding gates; every verb is pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from gatepruner.errors import PlanError, listed
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.deferred import changed
from gatepruner.networks.network import Network, listed_names
from gatepruner.networks.path import Path
from gatepruner.networks.slices import EXAMPLE, sorted_out, united
from gatepruner.pruning.groups import narrowed, slices_left, widths_of
from gatepruner.pruning.ranking import Ranking
from gatepruner.pruning.widths import cut_out


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


def remove(checkpoint: Checkpoint, units: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks and slices of inner widths.

    A block with an identity shortcut vanishes; a shortcut that changes shape stays. The logits
    equal, bit for bit, those of the whole network with gates of 0 in those blocks; with slices, up
    to rounding.

    Args:
        checkpoint: a network with its weights.
        units: names of removable blocks and of slices, such as `layer1.0.conv1[0-7]`.

    Raises:
        PlanError: there is no such block, or it has only its branch or its shortcut left; or see
            `narrow`.
    """
    blocks, slices = sorted_out(listed_names(units))
    network = checkpoint.network.without(blocks)
    if not slices:
        return _kept(checkpoint, network, removed=list(blocks))
    small = narrow(checkpoint, map(str, slices_left(checkpoint.network, network, slices)))
    notes = checkpoint.noting(removed=list(listed_names(units)))
    return replace(_kept(small, small.network.without(blocks)), notes=notes)


def narrow(checkpoint: Checkpoint, slices: str | Iterable[str]) -> Checkpoint:
    """Cut slices out of the inner widths of branches.

    The logits equal those of the whole network with gates of 0 in front of the layers that read
    those channels, up to rounding.

    Args:
        checkpoint: a network with its weights.
        slices: names of slices, such as `layer1.0.conv1[0-7]`; see `widths_of`.

    Raises:
        EngineError: Torch-Pruning, which finds the layers that hang together, is missing.
        PlanError: there is no such width or channel, nothing would be left of a width, or a name is
            that of no slice.
    """
    names = listed_names(slices)
    blocks, cut = sorted_out(names)
    if blocks:
        raise PlanError(
            f"cannot cut {listed(blocks)} out: expected channels as in {EXAMPLE}; `remove` takes "
            "the names of blocks, too"
        )
    gone = united(cut)
    if not gone:
        return checkpoint
    network = narrowed(checkpoint.network, gone)
    weights = cut_out(checkpoint.weights, widths_of(checkpoint.network).found, gone)
    notes = checkpoint.noting(narrowed=list(names))
    return Checkpoint(network, MappingProxyType(weights), notes)


def follow(checkpoint: Checkpoint, units: str | Iterable[str]) -> Checkpoint:
    """Remove residual blocks and slices, and use the weights learned along the checkpoint's path.

    The longest start of the path whose units are all to be removed decides on gates, scales,
    shifts and statistics. All other units are removed as by `remove`.

    Args:
        checkpoint: a network with its weights and its learned path.
        units: names of removable blocks, and of slices.

    Raises:
        PlanError: see `remove`.
    """
    units = listed_names(units)
    followed = checkpoint.path.followed(units)
    if not followed:
        return remove(checkpoint, units)
    weights = MappingProxyType({**checkpoint.weights, **checkpoint.path.learned(units)})
    small = remove(replace(checkpoint, weights=weights), units)
    gates = Path(followed).gates
    notes = checkpoint.noting(removed=list(units), path=len(followed))
    notes = {**notes, "gates": {**notes.get("gates", {}), **gates}}
    return replace(small, notes=notes)


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
            weights[key] = _scaled(weights[key], g)
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


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    return changed(tensor, lambda values: values.mul_(factor))
