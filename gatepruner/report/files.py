"""The report on removal curves: a folder of figures, tables and a JSON document."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gatepruner import __version__
from gatepruner.errors import CheckpointError, visible
from gatepruner.files.writing import Fill, text_filling, write_files
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.block_times import BlockTimes
from gatepruner.pruning.groups import reduced
from gatepruner.pruning.orders import NOISE, Order, noun_of
from gatepruner.pruning.widths import left_of_widths
from gatepruner.report.curve_page import curve_page
from gatepruner.report.figures import curve_figure, gates_figure
from gatepruner.report.html.document import document as html_document
from gatepruner.report.html.page import Page
from gatepruner.report.numbers import kept, percent, span
from gatepruner.report.style import figure_fillings
from gatepruner.report.tables import width_text

FILES = (
    *("curve.png", "curve.svg", "curve.pdf", "gates.png", "gates.svg", "gates.pdf"),
    *("curve.csv", "report.html", "report.json", "report.md"),
)


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        checkpoint: the whole network.
        orders: removal curves at the same numbers of blocks; the report's subject comes first.
        removed: names of removed blocks, if any.
        latency: by name, the fields of each measured `Latency`.
        configuration: data, device, seed and all else that the numbers depend on.
        commands: by criterion, the words of a command that removes blocks in its order, to which
            `--drop N` is added.
        times: the latency of the networks of the curves, on each engine.
    """

    checkpoint: Checkpoint
    orders: Sequence[Order]
    removed: Sequence[str] = ()
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    times: Sequence[BlockTimes] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON; accuracies are fractions of 1, times seconds."""
        network, gates = self.checkpoint.network, self.checkpoint.known_gates
        return {
            "network": network.to_json(),
            "name": str(network),
            "gates": {name: gates[name] for name in network.removable if name in gates},
            "orders": [order.to_json() for order in self.orders],
            "removed": list(self.removed),
            "latency": {name: dict(time) for name, time in self.latency.items()},
            "block_times": [times.to_json() for times in self.times],
            "configuration": dict(self.configuration),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Versions of the software and the machine."""
    return {
        "gatepruner": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def write_report(report: Report, directory: str | Path, *, force: bool = False) -> Path:
    """Write `curve` and `gates` (png, svg, pdf), `curve.csv`, and `report` (json, html, md).

    Args:
        report: its content.
        directory: where to write; created if it does not exist.
        force: whether to replace the files of an existing report; no other file is touched.

    Returns:
        The path of the directory.

    Raises:
        CheckpointError: there is a report already, or it cannot be written.
    """
    directory = Path(directory)
    refuse_report(directory, force=force)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write the report {directory}: {error.strerror}") from error
    fillings = _fillings(report, directory)
    write_files(fillings)
    for name in set(FILES) - {path.name for path in fillings}:  # of a report on gates, before
        (directory / name).unlink(missing_ok=True)
    return directory


def refuse_report(directory: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if the folder has a report that may not be replaced."""
    existing = [name for name in FILES if os.path.lexists(directory / name)]
    if existing and not force:
        raise CheckpointError(
            f"{directory} already has a report ({existing[0]}): write to another folder, or "
            "replace it",
            force=True,
        )
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file: expected a folder")


def _fillings(report: Report, directory: Path) -> dict[Path, Fill]:
    """What fills each file of a report; the text that refers to the others comes last."""
    document = report.to_json()
    gates = document["gates"]
    curve = curve_figure(report.orders, len(report.removed) or None)
    fillings = figure_fillings(curve, directory / "curve")
    if gates:
        blocks = [block for block in report.checkpoint.network.blocks if block.name in gates]
        order = report.orders[0].rankings[0].names
        figure = gates_figure(blocks, gates, report.removed, order)
        fillings |= figure_fillings(figure, directory / "gates")
    texts = {
        "curve.csv": as_csv(_rows(report)),
        "report.json": json.dumps(document, indent=1) + "\n",
        "report.html": html_document(_page(report, conditions_of(document))),
        "report.md": _markdown(report, document),
    }
    return fillings | {directory / name: text_filling(text) for name, text in texts.items()}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as text."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _page(report: Report, conditions: Mapping[str, Any]) -> Page:
    """The content of `report.html`; latencies are of the whole network and of the pruned one."""
    removed = {"whole": 0, "pruned": len(report.removed)}
    latency = {
        removed[name]: {Latency(**time).conditions: (time["low"], time["median"], time["high"])}
        for name, time in report.latency.items()
        if name in removed
    }
    return curve_page(
        report.checkpoint,
        report.orders,
        len(report.removed) or None,
        latency=latency,
        times=report.times,
        commands=report.commands,
        conditions=conditions,
    )


def _rows(report: Report) -> list[dict[str, Any]]:
    """Every point of every run."""
    return [
        {"criterion": order.criterion, "run": run, **point.to_json()}
        for order in report.orders
        for run, points in enumerate(order.runs)
        for point in points
    ]


def _markdown(report: Report, document: Mapping[str, Any]) -> str:
    """The text of `report.md`."""
    whole = report.orders[0].points[0]
    low, high = whole.accuracy.interval
    subject = f"accuracy against {noun_of(report.orders)}s removed"
    lines = [
        f"# {literal(document['name'])}: {subject}",
        "",
        f"{whole.blocks} blocks, {whole.cost.params:,} parameters, {whole.cost.macs:,} MACs. "
        f"Top-1 accuracy of the whole network {percent(whole.accuracy.accuracy)} "
        f"(95 % interval {span(low, high)}, n = {whole.accuracy.images:,}).",
        "",
        f"![{subject}](curve.png)",
        "",
        *(["![gate of every block](gates.png)", ""] if document["gates"] else []),
        *_plan_lines(report),
        *_table(report.orders),
        "",
        *(f"- {literal(order.label)}: ranked in {order.seconds:.1f} s" for order in report.orders),
    ]
    if len(report.orders) > 1:
        lines.append(
            f"- ≈: within noise of {report.orders[0].criterion} (McNemar's test on the same "
            f"images, p ≥ {NOISE:g})"
        )
    lines += [f"- {literal(str(times))}" for times in report.times]
    return "\n".join([*lines, *condition_lines(document)]) + "\n"


def conditions_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration and versions of a report's document: what its numbers depend on."""
    return {**document["configuration"], **document["versions"]}


def condition_lines(document: Mapping[str, Any]) -> list[str]:
    """Configuration and versions of a report's document, as lines of Markdown."""
    conditions = conditions_of(document)
    return [
        "",
        "Computed with:",
        "",
        *(f"- {literal(str(name))}: {literal(str(value))}" for name, value in conditions.items()),
    ]


def literal(text: str) -> str:
    """A text from outside as Markdown that shows it as it is: no markup, link or picture."""
    return re.sub(
        r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", html.escape(visible(text), quote=False)
    )


def _table(orders: Sequence[Order]) -> list[str]:
    """Accuracy at every number of blocks removed, with a column per order."""
    columns = ["removed", "blocks", *(f"{order.criterion} (%)" for order in orders), "MACs kept"]
    columns += ["parameters"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    first = orders[0].points
    for index, point in enumerate(first):
        cells = [str(point.removed), str(point.blocks)]
        cells += [accuracy_cell(order, orders[0], index) for order in orders]
        cells += [kept(point.cost.macs, first[0].cost.macs), f"{point.cost.params:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def accuracy_cell(order: Order, first: Order, index: int) -> str:
    """Accuracy in percent with its 95 % interval, or the mean and range of several runs.

    Marked with ≈ if it is within noise of the first order's.
    """
    accuracies = order.accuracies(index)
    mean = 100 * sum(accuracies) / len(accuracies)
    low, high = min(accuracies), max(accuracies)
    if len(accuracies) == 1:
        low, high = order.points[index].accuracy.interval
    same = order is not first and order.within_noise(first, index)
    return f"{'≈ ' if same else ''}{mean:.2f} ({span(low, high)})"


def width_lines(network: Network) -> list[str]:
    """For each block of a narrowed network, what is left of its width, in markdown."""
    left = left_of_widths(network)
    rows = [
        f"| {literal(name) if name else 'apart from blocks'} | {literal(width_text(layers))} |"
        for name, layers in left.items()
    ]
    return ["| block | channels left |", "| :--- | :--- |", *rows, ""] if rows else []


def _plan_lines(report: Report) -> list[str]:
    lines = []
    if report.removed:
        blocks, slices = sorted_out(report.removed)
        names = f": {literal(', '.join(blocks))}" if blocks else ""
        lines += [f"Removed {len(blocks)} blocks{names}.", ""]
        if slices:
            lines += width_lines(reduced(report.checkpoint.network, report.removed))
    for name, time in report.latency.items():
        lines.append(
            f"- latency of the {name} network: median {1e3 * time['median']:.2f} ms, quartiles "
            f"{1e3 * time['low']:.2f} and {1e3 * time['high']:.2f} ms "
            f"({Latency(**time).conditions}, {time['runs']} interleaved runs)"
        )
    return [*lines, ""] if report.latency else lines
