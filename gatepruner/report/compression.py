"""The report on a compression: accuracy or agreement, and costs, after every step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.files.writing import text_filling, write_files
from gatepruner.pruning.goals import Goal, amount_text
from gatepruner.report.compression_page import MEASURES, compression_page
from gatepruner.report.files import (
    as_csv,
    condition_lines,
    conditions_of,
    literal,
    versions,
    width_lines,
)
from gatepruner.report.html.document import document as html_document
from gatepruner.report.numbers import span
from gatepruner.report.style import GONE, OURS, STYLE, WIDE, figure_fillings


@dataclass(frozen=True)
class Axis:
    """A cost as the x axis.

    Attributes:
        cost: name of the cost, which is that of a goal and of a step's field.
        label: in words, with its unit.
        scale: from the unit of the field to that of the axis.
    """

    cost: str
    label: str
    scale: float


GAP = 0.04  # of the x axis, between steps of the same cost
AXES = {
    "latency": Axis("latency", "latency of one pass (ms)", 1e3),
    "macs": Axis("macs", "multiply-accumulates (MACs) for one image (millions)", 1e-6),
    "params": Axis("params", "parameters (millions)", 1e-6),
}


def write_compression(compressed: Compressed, directory: Path) -> Path:
    """Write `steps.csv`, `report` (json, html, md) and the figure `tradeoff`.

    Args:
        compressed: the result of a compression.
        directory: an existing folder.

    Returns:
        The path of `report.md`.
    """
    steps = compressed.steps
    document = {
        "steps": [asdict(step) for step in steps],
        "removed": list(compressed.removed),
        "configuration": dict(compressed.configuration),
        "target": compressed.target and compressed.target.to_json(),
        "versions": versions(),
    }
    page = compression_page(compressed, directory, conditions_of(document))
    texts = {
        "steps.csv": as_csv([asdict(step) for step in steps]),
        "report.json": json.dumps(document, indent=1) + "\n",
        "report.html": html_document(page),
        "report.md": _markdown(compressed, document),
    }
    fillings = figure_fillings(tradeoff_figure(steps, compressed.goal), directory / "tradeoff")
    write_files(fillings | {directory / name: text_filling(text) for name, text in texts.items()})
    return directory / "report.md"


def tradeoff_figure(steps: Sequence[StepRecord], goal: Goal | None = None) -> Figure:
    """Accuracy, or agreement without labels, against the cost of the goal, from step to step.

    Steps of the same cost stand side by side, the middle of them at their cost.

    Args:
        steps: those with `shown` are drawn.
        goal: its cost is the x axis, where a line marks what was to be reached; by default, and
            for a goal in blocks or loss, the x axis is latency.
    """
    shown = [step for step in steps if step.shown]
    axis = AXES[goal.kind if goal is not None and goal.kind in AXES else "latency"]
    costs = [axis.scale * (getattr(step, axis.cost) or 0.0) for step in shown]
    x = _side_by_side(costs)
    y = [100 * step.share for step in shown]
    errors = [[100 * (step.share - step.low) for step in shown]]
    errors += [[100 * (step.high - step.share) for step in shown]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(x, y, color=GONE, linewidth=0.8, linestyle="--", zorder=1)
        label = f"95 % interval (n = {shown[0].images:,})"
        axes.errorbar(x, y, yerr=errors, fmt="o", color=OURS, markersize=4, capsize=2, label=label)
        if goal is not None and goal.kind == axis.cost:
            limit = goal.limit(costs[0] / axis.scale)
            label = f"goal: at most {amount_text(goal.kind, limit)}"
            axes.axvline(axis.scale * limit, color="black", lw=0.9, ls=":", label=label)
        axes.margins(x=0.12, y=0.1)
        _name_points(axes, shown, x)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.3 * (high - low), min(high, 101.0))  # room for names; at most 100 %
        beside = "" if x == costs else "\n(steps of the same cost side by side)"
        axes.set_xlabel(f"{axis.label}{beside}")
        axes.set_ylabel(f"{MEASURES[shown[0].measure]} (%)")
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def _side_by_side(x: Sequence[float]) -> list[float]:
    """Places of intervals: those of the same cost, or nearly, beside each other, about it."""
    gap = GAP * (max(x) - min(x) or max(x) or 1.0)
    groups: list[list[float]] = []
    for cost in x:
        if groups and abs(cost - groups[-1][0]) <= gap / 2:
            groups[-1].append(cost)
        else:
            groups.append([cost])
    return [
        group[0] + gap * (number - (len(group) - 1) / 2)
        for group in groups
        for number in range(len(group))
    ]


def _name_points(axes: Axes, steps: Sequence[StepRecord], x: Sequence[float]) -> None:
    """Write the name of each step upright below its interval."""
    for step, place in zip(steps, x, strict=True):
        axes.annotate(
            step.name,
            (place, 100 * step.low),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            rotation=90,
            fontsize=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def _markdown(compressed: Compressed, document: Mapping[str, Any]) -> str:
    steps, target = compressed.steps, compressed.target
    whole, last = steps[0], steps[-1]
    faster = (whole.latency or 0.0) / last.latency if last.latency else 0.0
    lines = [
        "# Compression, step by step",
        "",
        f"{whole.macs / last.macs:.2f} times fewer MACs, {whole.params / last.params:.2f} times "
        f"fewer parameters, {faster:.2f} times less latency; {MEASURES[last.measure]} "
        f"{100 * whole.share:.2f} % before and {100 * last.share:.2f} % after "
        f"(n = {last.images:,}).",
        "",
        *([f"Latency {target}.", ""] if target is not None else []),
        f"Removed {len(document['removed'])} blocks: {literal(', '.join(document['removed']))}.",
        "",
        *width_lines(compressed.checkpoint.network),
        f"![{last.measure} against cost](tradeoff.png)",
        "",
        *_table(steps),
        "",
        "Agreement: images that the whole network assigns to the same class. Distance: mean square "
        "of the difference of the features, relative to that of the whole network's features.",
    ]
    return "\n".join([*lines, *condition_lines(document)]) + "\n"


def _table(steps: Sequence[StepRecord]) -> list[str]:
    """The records of all steps in markdown."""
    rows = [_cells(step) for step in steps]
    titles, _ = zip(*rows[0], strict=True)
    lines = [titles, (":---", *("---:" for _ in titles[1:]))]
    lines += [tuple(cell for _, cell in row) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(step: StepRecord) -> list[tuple[str, str]]:
    """The titles and cells of a record."""
    agreement = [("agreement (%)", f"{100 * step.agreement:.2f}")]
    return [
        ("step", step.name),
        ("blocks", str(step.blocks)),
        (f"{step.measure} (%)", f"{100 * step.share:.2f}"),
        ("95 % interval", span(step.low, step.high)),
        *(agreement if step.accuracy is not None else []),
        ("distance", "" if step.distance is None else f"{step.distance:.3f}"),
        ("MACs", f"{step.macs:,}"),
        ("parameters", f"{step.params:,}"),
        ("latency (ms)", f"{1e3 * (step.latency or 0.0):.2f}"),
        (
            "quartiles",
            f"{1e3 * (step.latency_low or 0.0):.2f} to {1e3 * (step.latency_high or 0.0):.2f}",
        ),
        ("rounds", str(step.latency_rounds)),
        ("time (s)", f"{step.seconds:.1f}"),
    ]
