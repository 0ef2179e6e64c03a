"""Gates of channels: in front of the layers that read the inner width of a branch.

They are 1 until their channel is closed, and are not learned: in front of them stands a scale that
is. They serve for their derivative, the slope of the loss as a channel is dimmed. Its mean square
is the channel's importance (Molchanov, Mallya, Tyree, Frosio, Kautz, 2019,
https://arxiv.org/abs/1906.10771), and the sum over a slice that of the slice, over all layers that
hang together (Liu et al., 2021, https://arxiv.org/abs/2108.00708).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gatepruner.networks.slices import Slice, united
from gatepruner.pruning.unit_costs import UnitCosts
from gatepruner.pruning.widths import Cut, Width

SHARE = 0.05  # of the newest square in the mean of the squared slopes
LEAST = 1e-12  # saving, so that the price of what saves nothing is a number
AHEAD = 32  # channels: no engine is known to compute more at once


class Unit(NamedTuple):
    """A block or a slice that may be removed.

    Attributes:
        name: of it.
        importance: what its removal does to the loss, as estimated.
        saving: what its removal saves now.
    """

    name: str
    importance: float
    saving: float

    @property
    def price(self) -> float:
        """Its importance for what it saves."""
        return price(self.importance, self.saving)


def price(importance: float, saving: float) -> float:
    """Importance for what is saved."""
    return importance / max(saving, LEAST)


class ChannelGates:
    """The gates of all inner widths of a module that learns.

    Attributes:
        widths: by name.
        gates: `(C,)` for the C channels of each width, 1 or 0 where closed.
        slopes: `(C,)`, mean squares of the loss's derivatives with respect to the gates.
    """

    def __init__(self, root: nn.Module, widths: Mapping[str, Width], device: torch.device) -> None:
        self.widths = widths
        self.gates = {
            name: torch.ones(width.size, device=device, requires_grad=True)
            for name, width in widths.items()
        }
        self.slopes = {name: torch.zeros_like(gate) for name, gate in self.gates.items()}
        for name, width in widths.items():
            for cut in width.readers:
                _put_in_front(root.get_submodule(cut.layer), cut, self.gates[name])

    def record(self) -> None:
        """Update the mean squared slopes from the gradients of a step."""
        for name, gate in self.gates.items():
            if gate.grad is not None:
                self.slopes[name].lerp_(gate.grad.square(), SHARE)
                gate.grad = None

    def restore(self, slopes: Mapping[str, Tensor]) -> None:
        """Restore the mean squared slopes of the same widths.

        Raises:
            ValueError: they are of other widths.
        """
        shapes = {name: tuple(each.shape) for name, each in slopes.items()}
        if shapes != {name: tuple(each.shape) for name, each in self.slopes.items()}:
            raise ValueError("the slopes of channels are those of other widths")
        for name, each in slopes.items():
            self.slopes[name].copy_(each)

    @torch.no_grad()
    def close(self, slices: Sequence[Slice]) -> None:
        """Close the channels of these slices, and open all others."""
        for gate in self.gates.values():
            gate.fill_(1.0)
        for name, channels in united(slices).items():
            self.gates[name][list(channels)] = 0.0

    def slices(
        self, costs: UnitCosts, blocks: Mapping[str, float | None], multiple: int
    ) -> list[Unit]:
        """The slice of each width that is least important for what it saves now.

        All channels of a width matter together as much as their block, and each by its share of the
        squares: as channels act together, the squares alone do not add up to it.

        Time falls in stairs. So where it is the cost, a slice may have several times as many
        channels: as many as it takes to reach the next stair.

        Args:
            costs: of units; knows how much is left of each width.
            blocks: the importance of each block with a width that is still there; `None` where it
                is unknown, as for a module apart from blocks.
            multiple: of channels that a slice has; the first slice also takes what is over.
        """
        found = []
        for name, width in self.widths.items():
            open_ = self.gates[name].detach() > 0
            step, left = width.step(multiple), int(open_.sum())
            first = left % step or step
            if width.home not in blocks or left <= first:
                continue
            ahead = AHEAD // width.channels if costs.kind == "latency" else 0
            counts = range(first, min(left, max(first, ahead) + 1), step)
            weakest, order = self.slopes[name].masked_fill(~open_, torch.inf).sort()
            sums, whole = weakest.cumsum(0).tolist(), blocks[width.home]
            total = sums[left - 1]
            scale = 1.0 if whole is None else whole / total if total else 0.0
            savings = {count: costs.saving(name, count) for count in counts}
            count = min(counts, key=lambda at: price(sums[at - 1], savings[at]))
            one = Slice(name, tuple(sorted(order[:count].tolist())))
            found.append(Unit(str(one), scale * sums[count - 1], savings[count]))
        return found


def _put_in_front(layer: nn.Module, cut: Cut, gate: Tensor) -> None:
    """Multiply what a layer reads by the gates of its channels."""
    weight: Any = layer.weight
    channels = torch.tensor([at for at, places in enumerate(cut.places) for _ in places])
    places = torch.tensor([place for each in cut.places for place in each])
    alone = len(places) == weight.shape[1]  # no other channels are read
    axis = -1 if isinstance(layer, nn.Linear) else 1
    channels = channels[places.argsort()] if alone else channels

    def gated(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        factors = gate[channels.to(gate.device)].to(x.dtype)
        if not alone:
            ones = torch.ones(x.shape[axis], dtype=x.dtype, device=x.device)
            factors = ones.index_copy(0, places.to(x.device), factors)
        return (
            x * factors.reshape(-1, *(1 for _ in range(x.ndim - 2))) if axis == 1 else x * factors
        )

    layer.register_forward_pre_hook(gated)
