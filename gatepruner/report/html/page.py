"""The content of `report.html`, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gatepruner.networks.network import Block
from gatepruner.report.numbers import kept, milliseconds, percent, span
from gatepruner.report.tables import width_text


@dataclass(frozen=True)
class State:
    """A network that was measured.

    Attributes:
        title: what was done, as `10 blocks removed`.
        removed: how many units of its curve's order are gone.
        share: accuracy or agreement, as a fraction of 1.
        low: lower end of its interval.
        high: upper end.
        macs: multiply-accumulates for one image.
        params: number of parameters.
        latency: measured quartiles in seconds, by what they depend on; may be empty.
        modelled: other latencies in seconds, which follow from those of single blocks.
        command: how to get the network; may be empty.
        left: of narrowed layers, by block; see `left_of_widths`.
    """

    title: str
    removed: int
    share: float
    low: float
    high: float
    macs: int
    params: int
    latency: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    command: str = ""
    modelled: Mapping[str, float] = field(default_factory=dict)
    left: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """The states of networks that follow from each other.

    Attributes:
        name: in one word, for tables.
        label: for the legend.
        spread: what `low` and `high` are.
        order: names of blocks, and of slices of inner widths, in the order of removal.
        states: in order, as many as those of every other curve.
    """

    name: str
    label: str
    spread: str
    order: Sequence[str]
    states: Sequence[State]


@dataclass(frozen=True)
class Page:
    """The content of `report.html`.

    Attributes:
        title: the heading.
        lead: sentences below it.
        measure: what `share` is, as `top-1 accuracy`.
        axis: label of the x axis, and of the slider.
        ticks: what is written below the x axis, by the index of a state.
        blocks: all blocks of the whole network, in the order of depth.
        gates: the known gates by block.
        curves: at least one.
        start: index of the state that is shown first.
        ranked: whether blocks go one after another.
        how: what `command` is, as `In a shell`.
        conditions: what the numbers depend on.
    """

    title: str
    lead: Sequence[str]
    measure: str
    axis: str
    ticks: Mapping[int, str]
    blocks: Sequence[Block]
    gates: Mapping[str, float]
    curves: Sequence[Curve]
    start: int
    ranked: bool
    how: str
    conditions: Mapping[str, object]

    @property
    def engines(self) -> list[str]:
        """What latencies depend on, each once."""
        states = (state for curve in self.curves for state in curve.states)
        known = (engine for state in states for engine in (*state.latency, *state.modelled))
        return list(dict.fromkeys(known))

    @property
    def models(self) -> bool:
        """Whether some latencies are modelled."""
        return any(state.modelled for curve in self.curves for state in curve.states)

    def narrows(self, home: str | None = None) -> bool:
        """Whether some state has narrowed layers, in any home or in this one."""
        states = (state for curve in self.curves for state in curve.states)
        return any(state.left if home is None else home in state.left for state in states)


def readings(page: Page, curve: Curve, state: State) -> list[tuple[str, str]]:
    """The numbers of a state, each with what it is."""
    whole = curve.states[0]
    timed = [(f"latency ({engine})", _latency(page, state, engine)) for engine in page.engines]
    return [
        (page.measure, percent(state.share)),
        ("interval", f"{span(state.low, state.high)} ({curve.spread})"),
        ("MACs", f"{state.macs:,} ({kept(state.macs, whole.macs)})"),
        ("parameters", f"{state.params:,} ({kept(state.params, whole.params)})"),
        *timed,
        *([("channels left apart from blocks", _apart(state))] if page.narrows("") else []),
    ]


def _apart(state: State) -> str:
    """What is left of the widths of modules that are in no block."""
    return width_text(state.left[""]) if "" in state.left else "all"


def _latency(page: Page, state: State, engine: str) -> str:
    if engine in state.latency:
        low, median, high = state.latency[engine]
        how = ", measured" if page.models else ""
        return f"{milliseconds(median)} ({1e3 * low:.2f} to {1e3 * high:.2f}{how})"
    if engine in state.modelled:
        return f"{milliseconds(state.modelled[engine])} (modelled)"
    return "not measured"
