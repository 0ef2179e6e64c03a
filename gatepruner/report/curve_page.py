"""The content of `report.html` for removal curves: a state for every number of blocks removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from gatepruner.measuring.accuracy import Accuracy
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.block_times import BlockTimes
from gatepruner.pruning.groups import reduced
from gatepruner.pruning.orders import Order, noun_of
from gatepruner.pruning.widths import left_of_widths
from gatepruner.report.html.page import Curve, Page, State
from gatepruner.report.numbers import percent, span
from gatepruner.report.shell import shell_text

Quartiles = tuple[float, float, float]


def curve_page(
    checkpoint: Checkpoint,
    orders: Sequence[Order],
    removed: int | None = None,
    *,
    latency: Mapping[int, Mapping[str, Quartiles]] | None = None,
    times: Sequence[BlockTimes] = (),
    commands: Mapping[str, Sequence[str]] | None = None,
    conditions: Mapping[str, Any],
) -> Page:
    """The page of one removal order or several.

    Args:
        checkpoint: the whole network.
        orders: at the same numbers of blocks removed; the first one is shown first.
        removed: the number of blocks removed that is shown first; by default the highest one at
            which the accuracy is not below the interval of the whole network's.
        latency: along the first order, by the number of blocks removed, by what it depends on.
        times: on every engine, of any network of the orders.
        commands: by criterion, the words of the command that removes blocks in its order, to which
            `--drop N` is added.
        conditions: what the numbers depend on.
    """
    alone, words = latency or {}, commands or {}
    curves = [
        _timed(
            _curve(
                checkpoint.network,
                order,
                alone if order is orders[0] else {},
                words.get(order.criterion, ()),
            ),
            times,
        )
        for order in orders
    ]
    points = orders[0].points
    counts = [point.removed for point in points]
    start = counts.index(removed) if removed in counts else _last_as_good(points)
    return Page(
        title=f"{checkpoint.network}: accuracy against {noun_of(orders)}s removed",
        lead=_lead(checkpoint, orders, points[start].removed, chosen=removed in counts),
        measure="top-1 accuracy",
        axis=f"{noun_of(orders)}s removed",
        ticks=_ticks(counts),
        blocks=checkpoint.network.blocks,
        gates=checkpoint.known_gates,
        curves=curves,
        start=start,
        ranked=True,
        how="To get this network",
        conditions={
            **conditions,
            **{f"latency ({one.conditions})": one.account for one in times},
        },
    )


def _curve(
    network: Network,
    order: Order,
    latency: Mapping[int, Mapping[str, Quartiles]],
    words: Sequence[str],
) -> Curve:
    """A curve of `report.html`; the mean of several runs, with the blocks of the first one."""
    states, noun, names = [], noun_of([order]), order.rankings[0].names
    for index, point in enumerate(order.points):
        low, high = _spread(order, index)
        command = shell_text([*words, "--drop", str(point.removed)])
        states.append(
            State(
                title=_removed(point.removed, noun),
                removed=point.removed,
                share=fmean(order.accuracies(index)),
                low=low,
                high=high,
                macs=point.cost.macs,
                params=point.cost.params,
                latency=latency.get(point.removed, {}),
                command=command if words and point.removed else "",
                left=_left(network, names[: point.removed]),
            )
        )
    several = f"range of {len(order.runs)} orders; the network is that of the first"
    return Curve(
        name=order.criterion,
        label=order.label,
        spread=several if len(order.runs) > 1 else "95 % interval",
        order=names,
        states=states,
    )


def _timed(curve: Curve, times: Sequence[BlockTimes]) -> Curve:
    """A curve with the latency of its networks, as measured or else as modelled."""
    states = []
    for state in curve.states:
        gone = curve.order[: state.removed]
        measured = {one.conditions: one.measured.get(frozenset(gone)) for one in times}
        quartiles = {name: (one.low, one.median, one.high) for name, one in measured.items() if one}
        sums = {one.conditions: one.modelled(gone) for one in times}
        modelled = {
            name: one for name, one in sums.items() if one is not None and name not in quartiles
        }
        latency = {**state.latency, **quartiles}
        states.append(replace(state, latency=latency, modelled=modelled))
    return replace(curve, states=states)


def _left(network: Network, units: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """What is left of the widths of a network without some units."""
    _, slices = sorted_out(units)
    return left_of_widths(reduced(network, units) if slices else network)


def _removed(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'} removed"


def _spread(order: Order, index: int) -> tuple[float, float]:
    """The 95 % interval at a point, or the range of several runs."""
    shares = order.accuracies(index)
    return (min(shares), max(shares)) if len(shares) > 1 else order.points[index].accuracy.interval


def _last_as_good(points: Sequence[Any]) -> int:
    """The last point whose accuracy is not below the interval of the whole network's."""
    low, _ = points[0].accuracy.interval
    good = [index for index, one in enumerate(points) if one.accuracy.accuracy >= low]
    return good[-1]


def _lead(
    checkpoint: Checkpoint, orders: Sequence[Order], removed: int, *, chosen: bool
) -> list[str]:
    whole = orders[0].points[0]
    measured: Accuracy = whole.accuracy
    shown = f"Shown first: {_removed(removed, noun_of(orders[:1]))}"
    most = f"the most at which accuracy by {orders[0].criterion} stays within this interval"
    return [
        f"The whole network has {whole.blocks} blocks, {whole.cost.params:,} parameters and "
        f"{whole.cost.macs:,} MACs. Its top-1 accuracy is {percent(measured.accuracy)} (95 % "
        f"interval {span(*measured.interval)}, n = {measured.images:,}).",
        f"{shown}{'' if chosen else f', {most}'}.",
    ]


def _ticks(counts: Sequence[int]) -> dict[int, str]:
    """About ten of the counts, by index."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(counts) / step <= 12)
    return {index: str(count) for index, count in enumerate(counts) if index % step == 0}
