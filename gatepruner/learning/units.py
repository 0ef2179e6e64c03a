"""The units that a run may remove, blocks and slices of inner widths, and which is to go next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor, nn

from gatepruner.errors import PlanError
from gatepruner.images.examples import Track
from gatepruner.learning.channel_gates import ChannelGates, Unit
from gatepruner.learning.recipes import GateRecipe
from gatepruner.networks.network import Network
from gatepruner.networks.slices import Slice
from gatepruner.pruning.groups import widths_of
from gatepruner.pruning.latency_table import latency_table
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.unit_costs import Table, UnitCosts
from gatepruner.pruning.widths import Width


class Units:
    """The slices that a run may remove, and what units save.

    Attributes:
        gates: of the channels; none if only blocks are removed.
        left: how many channels are left of each width.
    """

    def __init__(
        self,
        network: Network,
        recipe: GateRecipe,
        root: nn.Module,
        device: torch.device,
        meter: Meter,
    ) -> None:
        self.network, self.recipe, self.meter = network, recipe, meter
        widths = slicable(network, recipe) if recipe.units != "blocks" else {}
        self.gates = ChannelGates(root, widths, device)
        self.left: dict[str, int] = {}

    @cached_property
    def table(self) -> Table:
        """What blocks take in seconds, at several widths; empty unless latency is the cost.

        All processes ask the meter, so that all know what the first one has measured.
        """
        widths, recipe = self.gates.widths, self.recipe
        if not widths or recipe.cost != "latency":
            return {}
        return latency_table(self.meter, widths, recipe.multiple)

    @cached_property
    def costs(self) -> UnitCosts:
        """What units save now; MACs unless the recipe says otherwise."""
        costs = self._of_the_whole()
        costs.left = self.left
        return costs

    @cached_property
    def whole(self) -> float:
        """What all units of the whole network cost."""
        return self._of_the_whole().total()

    @property
    def share(self) -> float:
        """What a block of the whole network costs on average: the saving of a turn."""
        return self.whole / len(candidates(self.network, self.recipe))

    def _of_the_whole(self) -> UnitCosts:
        """What units save while none is gone."""
        kind = "macs" if self.recipe.cost == "none" else self.recipe.cost
        return UnitCosts(self.network, self.gates.widths, kind, self.table)

    def saved(self, gone: Collection[str]) -> float:
        """What all removals have saved.

        Args:
            gone: the blocks that are gone.
        """
        return self.whole - self.costs.total(gone)

    def close(self, slices: Sequence[Slice]) -> None:
        """Close the channels of these slices, and open all others."""
        if not self.gates.widths:
            return
        self.gates.close(slices)
        for name, gate in self.gates.gates.items():
            self.left[name] = int(gate.detach().sum())

    def slices(self, blocks: Mapping[str, float], gone: Collection[str]) -> list[Unit]:
        """The slice of each width whose block is not gone that is least important for its saving.

        Args:
            blocks: the importance of each gated block.
            gone: the blocks that are gone.
        """
        if not self.gates.widths:
            return []
        homes = {home: blocks.get(home) for home in self.costs.homes if home not in gone}
        return self.gates.slices(self.costs, homes, self.recipe.multiple)


def meter_of(
    network: Network, recipe: GateRecipe, device: str | torch.device, track: Track = iter
) -> Meter:
    """What measures the costs of a network's blocks as a recipe says."""
    batch, engine, threads = recipe.latency_batch, recipe.engine, recipe.threads
    return Meter(network, device, batch, engine=engine, threads=threads, track=track)


def choose(gates: Tensor, slopes: Tensor, costs: Sequence[float]) -> tuple[int, float]:
    """The index and score of the block that is least important per cost; ties go to the first.

    Its importance is the squared first-order estimate of how the loss changes when its gate
    closes.

    Args:
        gates: `(B,)`, g = relu(k) of every block.
        slopes: `(B,)`, mean squares of the loss's derivatives with respect to k.
        costs: the cost of every block.
    """
    importances = (gates.square() * slopes).tolist()
    scores = [importance / cost for importance, cost in zip(importances, costs, strict=True)]
    index = min(range(len(scores)), key=scores.__getitem__)
    return index, scores[index]


def least(units: Sequence[Unit]) -> Unit:
    """The unit that is least important for what it saves; ties go to the first."""
    return min(units, key=attrgetter("price"))


def slicable(network: Network, recipe: GateRecipe) -> dict[str, Width]:
    """The inner widths that have more than one slice, by name.

    Raises:
        EngineError: Torch-Pruning is missing or too old.
        PlanError: there is none, Torch-Pruning cannot find any, or a stock class is to hold the
            result.
    """
    if recipe.identity_only:
        raise PlanError(
            "a library's own class cannot hold a narrowed network: remove blocks alone for it"
        )
    found = widths_of(network).found
    widths = {
        name: width for name, width in found.items() if width.size > width.step(recipe.multiple)
    }
    if not widths:
        widest = max((width.size * width.channels for width in found.values()), default=0)
        raise PlanError(
            f"cannot remove channels: {network} has no inner width above one slice of "
            f"{recipe.multiple} channels (the widest has {widest}); choose a smaller multiple, or "
            "blocks"
        )
    return widths


def removable_blocks(network: Network, recipe: GateRecipe) -> tuple[str, ...]:
    """The blocks whose removal the recipe allows, with gates or without."""
    return network.stock_removable if recipe.identity_only else network.removable


def candidates(network: Network, recipe: GateRecipe) -> tuple[str, ...]:
    """The gated blocks that the recipe may remove."""
    gated = network.edits.gated
    return tuple(name for name in removable_blocks(network, recipe) if name in gated)


def every_unit(network: Network, recipe: GateRecipe) -> tuple[str, ...]:
    """All that a recipe can remove, so that the network without it is the smallest one.

    These are the blocks, and all channels but one slice of each inner width, as at the end of a
    path. Which channels of a width are left makes no difference to its cost.

    Raises:
        EngineError, PlanError: see `slicable`.
    """
    blocks = removable_blocks(network, recipe) if recipe.units != "channels" else ()
    widths = slicable(network, recipe) if recipe.units != "blocks" else {}
    slices = (
        Slice(name, tuple(range(width.step(recipe.multiple), width.size)))
        for name, width in widths.items()
    )
    return (*blocks, *map(str, slices))
