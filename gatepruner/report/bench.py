"""The report of `gatepruner bench`: a table, a JSON document and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from gatepruner.files.writing import text_filling, write_files
from gatepruner.measuring.bench import Measured
from gatepruner.measuring.recorded import Recorded
from gatepruner.report.files import versions
from gatepruner.report.numbers import percent
from gatepruner.report.style import COLORS, MARKERS, STYLE, WIDE, figure_fillings
from gatepruner.report.tables import table

FILES = ("bench.json", "bench.png", "bench.svg", "bench.pdf")
MOST_PANELS = 4  # batch sizes in one figure


def bench_table(measured: Sequence[Measured], accuracies: Mapping[str, Recorded]) -> str:
    """Every measurement, and how many times faster each is than the first network there."""
    first = {
        (one.latency.engine, one.latency.batch): one.latency.median for one in reversed(measured)
    }
    rows = []
    for one in measured:
        time = one.latency
        faster = first[time.engine, time.batch] / time.median
        known = accuracies.get(one.name)
        accuracy = [percent(known.accuracy) if known is not None else ""]
        rows.append(
            (
                one.name,
                time.engine,
                str(time.batch),
                f"{1e3 * time.median:.3f} ms",
                f"{1e3 * time.low:.3f} to {1e3 * time.high:.3f}",
                f"{time.batch / time.median:,.0f}",
                f"{faster:.2f}x",
                *(accuracy if accuracies else []),
            )
        )
    columns = ("network", "engine", "batch", "median", "quartiles", "images/s", "faster")
    return table((*columns, *(["accuracy"] if accuracies else [])), rows)


def write_bench(
    measured: Sequence[Measured],
    accuracies: Mapping[str, Recorded],
    configuration: Mapping[str, Any],
    directory: Path,
) -> dict[str, Any]:
    """Write `bench.json` and the figure `bench` (png, svg, pdf); returns the document."""
    document = {
        "measured": [{**one.to_json(), **_known(accuracies.get(one.name))} for one in measured],
        "configuration": dict(configuration),
        "versions": versions(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    figures = figure_fillings(bench_figure(measured, accuracies), directory / "bench")
    text = json.dumps(document, indent=1) + "\n"
    write_files({**figures, directory / "bench.json": text_filling(text)})
    return document


def _known(accuracy: Recorded | None) -> dict[str, Any]:
    """An accuracy and what it is of, as plain JSON."""
    if accuracy is None:
        return {"accuracy": None}
    of = {"images": accuracy.images, "data": accuracy.source}
    return {"accuracy": accuracy.accuracy, "accuracy_of": of}


def bench_figure(measured: Sequence[Measured], accuracies: Mapping[str, Recorded]) -> Figure:
    """Accuracy, or else the network, against latency, with a panel for every batch size."""
    batches = list(dict.fromkeys(one.latency.batch for one in measured))[:MOST_PANELS]
    names = list(dict.fromkeys(one.name for one in measured))
    known = {str(accuracies[name]) for name in names if name in accuracies}
    shown = len(known) == 1 and all(name in accuracies for name in names)  # of the same images
    height = {
        name: 100 * accuracies[name].accuracy if shown else len(names) - at
        for at, name in enumerate(names)
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(WIDE * max(1, len(batches) / 2), 2.4 + 0.2 * len(names)), layout="constrained"
        )
        panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
        for axes, batch in zip(panels, batches, strict=True):
            _draw(axes, [one for one in measured if one.latency.batch == batch], height)
            axes.set_title(f"batch size {batch}", fontsize=9)
        panels[0].set_ylabel("top-1 accuracy (%)" if shown else "")
        if not shown:
            panels[0].set_yticks(list(height.values()), labels=list(height))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def _draw(axes: Axes, measured: Sequence[Measured], height: Mapping[str, float]) -> None:
    """A series for every engine: medians with quartiles."""
    engines = list(dict.fromkeys(one.latency.engine for one in measured))
    for engine, color, marker in zip(engines, COLORS, MARKERS, strict=False):
        own = [one for one in measured if one.latency.engine == engine]
        x = [1e3 * one.latency.median for one in own]
        spread = [
            [1e3 * (one.latency.median - one.latency.low) for one in own],
            [1e3 * (one.latency.high - one.latency.median) for one in own],
        ]
        y = [height[one.name] for one in own]
        axes.errorbar(
            x, y, xerr=spread, fmt=marker, color=color, label=engine, markersize=4, capsize=2
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("latency (ms)")
    axes.margins(y=0.2)
