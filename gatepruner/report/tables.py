"""Tables and sentences for a terminal or a pipe, as plain text that is never truncated."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from gatepruner.errors import listed, visible
from gatepruner.networks.slices import extent
from gatepruner.report.numbers import kept, percent, span

if TYPE_CHECKING:
    from gatepruner.compression.record import StepRecord
    from gatepruner.measuring.accuracy import Accuracy
    from gatepruner.measuring.agreement import Agreement
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.network import Block
    from gatepruner.pruning.orders import Order
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.pruning.widths import Widths

WORDS = ("block", "stage", "shortcut", "branch", "step", "home", "width", "width left", "")
LEFT = frozenset(WORDS)  # columns of words
COLUMNS = 79  # of a terminal
TIE = "\N{NO-BREAK SPACE}"  # where a line is not broken
NOTHING: Mapping[str, Any] = {}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns with titles, as wide as their longest entries."""
    lines = [[visible(entry) for entry in line] for line in (columns, *rows)]
    widths = [max(map(len, entries)) for entries in zip(*lines, strict=True)]

    def padded(entry: str, column: str, width: int) -> str:
        return entry.ljust(width) if column in LEFT else entry.rjust(width)

    return "\n".join("  ".join(map(padded, line, columns, widths)).rstrip() for line in lines)


def path_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The blocks of a path, with the gate of each at its removal and the loss after it."""
    return table(
        ("#", "block", "gate", "loss"),
        (
            (str(number), record["block"], f"{record['gate']:.4f}", f"{record['loss']:.4f}")
            for number, record in enumerate(records, start=1)
        ),
    )


def block_table(
    blocks: Sequence[Block],
    gates: Mapping[str, float],
    left: Mapping[str, Mapping[str, tuple[int, int]]] = NOTHING,
) -> str:
    """All blocks in the order of depth, with shortcut, branch, gate, and what is left of widths.

    Args:
        blocks: of a network.
        gates: by block.
        left: of the widths, if any is narrowed; see `left_of_widths`.
    """
    rows = []
    for block in blocks:
        shortcut = "identity" if block.identity else "changes shape"
        row = (
            block.name,
            block.stage,
            shortcut if block.shortcut else "removed",
            ", ".join(_runs(block.layers)) if block.branch else "removed",
            f"{gates[block.name]:.4f}" if block.name in gates else "",
        )
        rows.append((*row, width_text(left.get(block.name, {}))) if left else row)
    columns = ("block", "stage", "shortcut", "branch", "gate")
    return table((*columns, "width left") if left else columns, rows)


def width_text(left: Mapping[str, tuple[int, int]]) -> str:
    """The channels that are left of the widths of a block: `conv1 8 of 16`."""
    return ", ".join(
        f"{layer.rpartition('.')[2]} {some} of {whole}" for layer, (some, whole) in left.items()
    )


def plan_text(units: Iterable[str]) -> str:
    """What a plan removes, in lines of a terminal: blocks, and how many channels of each width."""
    extents = {name: extent(name) for name in map(visible, units)}
    blocks = [name for name, slice_ in extents.items() if slice_ is None]
    channels: dict[str, int] = {}
    for width, _, number in filter(None, extents.values()):
        channels[width] = channels.get(width, 0) + number
    counts = [f"{width}{TIE}{number}" for width, number in channels.items()]
    parts = (("removed", blocks), ("channels removed:", counts))
    return "\n".join(
        textwrap.fill(
            f"{title} {', '.join(names)}",
            COLUMNS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ).replace(TIE, " ")
        for title, names in parts
        if names
    )


def history_text(done: Mapping[str, Any]) -> str:
    """A record of what was done to a network; slices that were removed in short."""
    removed = done.get("removed")
    if not isinstance(removed, list) or not any(map(extent, map(str, removed))):
        return f"history: {json.dumps(done)}"
    rest = {key: value for key, value in done.items() if key != "removed"}
    more = f"\n  {json.dumps(rest)}" if rest else ""
    return f"history: {plan_text(map(str, removed))}{more}"


def path_text(units: Sequence[str]) -> str:
    """How many units a learned path has."""
    slices = sum(extent(name) is not None for name in units)
    text = f"path: {counted(len(units) - slices, 'block')}"
    return f"{text} and {counted(slices, 'slice')} of channels" if slices else text


def units_text(widths: Widths, multiple: int) -> str:
    """The inner widths, how many of their channels can go, and why the others cannot."""
    rows, free = [], 0
    for width in widths.found.values():
        step = width.step(multiple)
        slices = -(-width.size // step) - 1
        free += (width.size - (width.size % step or step)) * width.channels if slices else 0
        rows.append((width.home, width.name, f"{width.size} {width.kind}", str(slices)))
    total = sum(widths.totals.values())
    others: dict[str, list[str]] = {}
    for layer, why in widths.others.items():
        others.setdefault(why, []).append(layer)
    lines = [f"  {listed(layers, 3)}: {why}" for why, layers in others.items()]
    return "\n".join(
        [
            table(("home", "width", "size", "slices"), rows),
            f"{free:,} of {total:,} channels can go in slices of {multiple}; the others cannot:",
            *lines,
        ]
    )


def _runs(layers: Sequence[str]) -> list[str]:
    """The distinct layers with their counts: `["2 Conv2d", "ReLU"]`."""
    counts = {layer: layers.count(layer) for layer in layers}
    return [layer if count == 1 else f"{count} {layer}" for layer, count in counts.items()]


def ranking_table(ranking: Ranking, gates: Mapping[str, float], limit: int | None = None) -> str:
    """The blocks of a ranking, with their gates and scores."""
    return table(
        ("#", "block", "gate", f"score ({ranking.criterion})"),
        (
            (str(number), name, f"{gates[name]:.4f}" if name in gates else "", f"{score:g}")
            for number, (name, score) in enumerate(ranking.scores[:limit], start=1)
        ),
    )


def counted(number: int, noun: str) -> str:
    """`1 block`, `3 blocks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def curve_table(orders: Sequence[Order]) -> str:
    """Accuracy of every order at about twenty numbers of blocks, and the time of its ranking."""
    first = orders[0].points
    step, last = max(1, round(len(first) / 20)), len(first) - 1
    rows = []
    for index, point in enumerate(first):
        if index % step and index != last:
            continue
        low, high = point.accuracy.interval
        left = kept(point.cost.macs, first[0].cost.macs)
        compared = [_compared(order, orders[0], index) for order in orders]
        rows.append((str(point.removed), *compared, span(low, high), left))
    rows.append(("ranking", *(f"{order.seconds:.1f} s" for order in orders), "", ""))
    names = [order.criterion for order in orders]
    text = table(("removed", *names, f"95 % of {names[0]}", "MACs kept"), rows)
    noise = f"\n~: within noise of {names[0]}, by McNemar's test" if "~" in text else ""
    return text + noise


def _compared(order: Order, first: Order, index: int) -> str:
    """Mean accuracy of an order's runs, marked if it is within noise of the first order's."""
    mark = "~" if order is not first and order.within_noise(first, index) else ""
    return f"{mark}{percent(fmean(order.accuracies(index)))}"


def accuracy_text(measured: Accuracy) -> str:
    """`91.50 % (95 % interval 89.60 to 93.08, 915 of 1,000 images), loss 0.3842`."""
    low, high = measured.interval
    return (
        f"{percent(measured.accuracy)} (95 % interval {span(low, high)}, "
        f"{measured.correct:,} of {measured.images:,} images), loss {measured.loss:.4f}"
    )


def agreement_text(measured: Agreement) -> str:
    """`93.00 % (95 % interval 88.61 to 95.78, 186 of 200 images), distance of features 0.112`."""
    low, high = measured.interval
    text = (
        f"{percent(measured.agreement)} (95 % interval {span(low, high)}, "
        f"{measured.agreeing:,} of {measured.images:,} images)"
    )
    known = measured.distance is not None
    return f"{text}, distance of features {measured.distance:.3f}" if known else text


def change_table(document: Mapping[str, Any]) -> str:
    """Blocks, parameters and MACs before and after."""
    rows = []
    for title, key in (("blocks", "blocks"), ("parameters", "params"), ("MACs", "macs")):
        old, new = document[f"{key}_before"], document[f"{key}_after"]
        rows.append((title, f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else ""))
    return table(("", "before", "after", "kept"), rows)


def latency_text(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Latencies by name, and their conditions."""
    from gatepruner.measuring.latency import Latency

    texts = [
        f"{name} {1e3 * time['median']:.2f} ms "
        f"({1e3 * time['low']:.2f} to {1e3 * time['high']:.2f})"
        for name, time in measured.items()
    ]
    first = Latency(**next(iter(measured.values())))
    return (
        f"latency, median and quartiles of {first.runs} interleaved runs, {first.conditions}: "
        f"{', '.join(texts)}"
    )


def step_text(step: StepRecord) -> str:
    """The record of a step of a compression in one line."""
    return (
        f"{step.name}: {step.blocks} blocks, {step.macs:,} MACs, {step.measure} "
        f"{percent(step.share)} ({span(step.low, step.high)}), "
        f"{step.seconds:.1f} s"
    )


def steps_table(steps: Sequence[StepRecord]) -> str:
    """The records of all steps of a compression."""
    measures = ("accuracy", "agreement") if steps[0].accuracy is not None else ("agreement",)
    return table(
        ("step", "blocks", *measures, "MACs", "parameters", "latency", "time"),
        (
            (
                step.name,
                str(step.blocks),
                *(f"{100 * getattr(step, measure):.2f} %" for measure in measures),
                f"{step.macs / steps[0].macs:.1%}",
                f"{step.params / steps[0].params:.1%}",
                f"{1e3 * (step.latency or 0.0):.2f} ms",
                f"{step.seconds:.1f} s",
            )
            for step in steps
        ),
    )


def loading_call(path: str, checkpoint: Checkpoint) -> str:
    """The call that loads and builds a written network in Python."""
    brought = checkpoint.network.base.source == "caller"
    module = f", module={checkpoint.notes.get('module')!r}" if brought else ""
    return f"gatepruner.load({path!r}{module}).build()"


def loading_text(path: str, checkpoint: Checkpoint) -> str:
    """How to load a written network in Python."""
    call = loading_call(path, checkpoint)
    return f"to load it in Python:\n  import gatepruner\n  module = {call}"
