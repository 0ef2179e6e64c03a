"""The report on a compression: accuracy or agreement, and costs, after every step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.files.writing import text_filling, write_files
from gatepruner.report.files import as_csv, condition_lines, literal, versions
from gatepruner.report.style import GONE, OURS, STYLE, WIDE, figure_fillings

MEASURES = {"accuracy": "top-1 accuracy", "agreement": "agreement with the whole network"}


def write_compression(compressed: Compressed, directory: Path) -> Path:
    """Write `steps.csv`, `report.json`, `report.md` and the figure `tradeoff` (png, svg).

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
    texts = {
        "steps.csv": as_csv([asdict(step) for step in steps]),
        "report.json": json.dumps(document, indent=1) + "\n",
        "report.md": _markdown(compressed, document),
    }
    fillings = figure_fillings(tradeoff_figure(steps), directory / "tradeoff")
    write_files(fillings | {directory / name: text_filling(text) for name, text in texts.items()})
    return directory / "report.md"


def tradeoff_figure(steps: Sequence[StepRecord]) -> Figure:
    """Accuracy, or agreement without labels, against latency, from step to step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, 3.4), layout="constrained")
        axes = figure.add_subplot()
        shown = [step for step in steps if step.shown]
        x = [1e3 * (step.latency or 0.0) for step in shown]
        y = [100 * step.share for step in shown]
        errors = [[100 * (step.share - step.low) for step in shown]]
        errors += [[100 * (step.high - step.share) for step in shown]]
        axes.plot(x, y, color=GONE, linewidth=0.8, linestyle="--", zorder=1)
        label = f"95 % interval (n = {shown[0].images:,})"
        axes.errorbar(x, y, yerr=errors, fmt="o", color=OURS, markersize=4, capsize=2, label=label)
        for index, step in enumerate(shown):
            right = index % 2 == 1  # after folding, the steps differ only in height
            axes.annotate(
                step.name,
                (x[index], y[index]),
                xytext=(7 if right else -7, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
        axes.margins(x=0.25, y=0.2)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101.0))  # no share is above 100 %
        axes.set_xlabel("latency (ms)")
        axes.set_ylabel(f"{MEASURES[shown[0].measure]} (%)")
        figure.legend(loc="outside upper right")
    return figure


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
        f"![{last.measure} against latency](tradeoff.png)",
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
        ("95 % interval", f"{100 * step.low:.1f} to {100 * step.high:.1f}"),
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
