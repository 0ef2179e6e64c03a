"""Tables and sentences for a terminal or a pipe: plain text in which nothing is ever cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatepruner.compression.record import StepRecord
    from gatepruner.measuring.accuracy import Accuracy
    from gatepruner.networks.network import Block
    from gatepruner.pruning.orders import Order
    from gatepruner.pruning.ranking import Ranking

LEFT = frozenset({"block", "stage", "shortcut", "branch", "step", "what"})  # columns of words


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns under their titles, as wide as their longest entry."""
    lines = [[("" if column == "what" else column) for column in columns], *map(list, rows)]
    widths = [max(map(len, entries)) for entries in zip(*lines, strict=True)]

    def padded(entry: str, column: str, width: int) -> str:
        return entry.ljust(width) if column in LEFT else entry.rjust(width)

    return "\n".join("  ".join(map(padded, line, columns, widths)).rstrip() for line in lines)


def path_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Blocks in the order of their removal, their gates then, and the loss without them."""
    return table(
        ("#", "block", "gate", "loss"),
        (
            (str(number), record["block"], f"{record['gate']:.4f}", f"{record['loss']:.4f}")
            for number, record in enumerate(records, start=1)
        ),
    )


def block_table(blocks: Sequence[Block], gates: Mapping[str, float]) -> str:
    """Every block in the order of depth and what is left of it."""
    rows = []
    for block in blocks:
        shortcut = "identity" if block.identity else "changes shape"
        rows.append(
            (
                block.name,
                block.stage,
                shortcut if block.shortcut else "removed",
                ", ".join(_runs(block.layers)) if block.branch else "removed",
                f"{gates[block.name]:.4f}" if block.name in gates else "",
            )
        )
    return table(("block", "stage", "shortcut", "branch", "gate"), rows)


def _runs(layers: Sequence[str]) -> list[str]:
    """`["2 Conv2d", "ReLU"]` for two convolutions and a ReLU: each kind once."""
    counts = {layer: layers.count(layer) for layer in layers}
    return [layer if count == 1 else f"{count} {layer}" for layer, count in counts.items()]


def ranking_table(ranking: Ranking, gates: Mapping[str, float], limit: int | None = None) -> str:
    """Blocks in the order of their removal, with their gates and scores."""
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
    """Accuracy in every order at about twenty numbers of blocks, and the time it took to find."""
    first = orders[0].points
    step = max(1, round(len(first) / 20))
    shown = [at for at in range(len(first)) if at % step == 0 or at == len(first) - 1]
    rows = []
    for at in shown:
        low, high = first[at].accuracy.interval
        kept = f"{first[at].cost.macs / first[0].cost.macs:.0%}"
        compared = [_compared(order, orders[0], at) for order in orders]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append((str(first[at].removed), *compared, interval, kept))
    rows.append(("ranking", *(f"{order.seconds:.1f} s" for order in orders), "", ""))
    names = [order.criterion for order in orders]
    text = table(("removed", *names, f"95 % of {names[0]}", "MACs kept"), rows)
    noise = f"\n~: within noise of {names[0]}, by McNemar's test" if "~" in text else ""
    return text + noise


def _compared(order: Order, first: Order, at: int) -> str:
    """Mean accuracy of an order's runs, marked if it differs from the first order by chance."""
    accuracies = order.accuracies(at)
    marked = "~" if order is not first and order.within_noise(first, at) else ""
    return f"{marked}{100 * fmean(accuracies):.1f} %"


def accuracy_text(measured: Accuracy) -> str:
    """`91.5 % (89.6 to 93.1, 915 of 1,000 images), loss 0.3842`."""
    low, high = measured.interval
    return (
        f"{100 * measured.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}, "
        f"{measured.correct:,} of {measured.images:,} images), loss {measured.loss:.4f}"
    )


def change_table(document: Mapping[str, Any]) -> str:
    """Blocks, parameters and MACs before and after."""
    rows = []
    for what, key in (("blocks", "blocks"), ("parameters", "params"), ("MACs", "macs")):
        old, new = document[f"{key}_before"], document[f"{key}_after"]
        rows.append((what, f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else ""))
    return table(("what", "before", "after", "kept"), rows)


def latency_text(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Measured times side by side."""
    parts = [
        f"{name} {1e3 * one['median']:.2f} ms ({1e3 * one['low']:.2f} to {1e3 * one['high']:.2f})"
        for name, one in measured.items()
    ]
    one = next(iter(measured.values()))
    return (
        f"latency, median and quartiles of {one['runs']} interleaved runs, batch size "
        f"{one['batch']}, {one['device']}: {', '.join(parts)}"
    )


def step_text(step: StepRecord) -> str:
    """What a step of a compression has left, in one line."""
    return (
        f"{step.name}: {step.blocks} blocks, {step.macs:,} MACs, accuracy "
        f"{100 * step.accuracy:.2f} % ({100 * step.low:.1f} to {100 * step.high:.1f}), "
        f"{step.seconds:.1f} s"
    )


def steps_table(steps: Sequence[StepRecord]) -> str:
    """Every step of a compression."""
    return table(
        ("step", "blocks", "accuracy", "MACs", "parameters", "latency", "time"),
        (
            (
                step.name,
                str(step.blocks),
                f"{100 * step.accuracy:.2f} %",
                f"{step.macs / steps[0].macs:.1%}",
                f"{step.params / steps[0].params:.1%}",
                f"{1e3 * (step.latency or 0.0):.2f} ms",
                f"{step.seconds:.1f} s",
            )
            for step in steps
        ),
    )


def loading_text(path: str) -> str:
    """How to load a network that was written."""
    return (
        f'to load it in Python:\n  import gatepruner\n  module = gatepruner.load("{path}").build()'
    )
