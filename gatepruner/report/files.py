"""The report on a removal curve, as a directory of figures, tables and one JSON document."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gatepruner import __version__
from gatepruner.errors import CheckpointError
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.orders import NOISE, Order
from gatepruner.report.figures import curve_figure, gates_figure
from gatepruner.report.style import save_figure

FILES = (
    *("curve.png", "curve.svg", "gates.png", "gates.svg"),
    *("curve.csv", "report.json", "report.md"),
)


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        checkpoint: the whole network.
        orders: removal curves at the same numbers of blocks, that of the report's subject first.
        removed: blocks of the plan that was carried out, if one was.
        latency: measured times by name, as `Latency` has them, if any were.
        configuration: data, device, seed and what else the numbers depend on.
    """

    checkpoint: Checkpoint
    orders: Sequence[Order]
    removed: Sequence[str] = ()
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON; accuracies are fractions of 1, times seconds."""
        network, gates = self.checkpoint.network, self.checkpoint.known_gates
        return {
            "network": network.to_json(),
            "name": str(network),
            "gates": {name: gates[name] for name in network.removable if name in gates},
            "orders": [order.to_json() for order in self.orders],
            "removed": list(self.removed),
            "latency": {name: dict(one) for name, one in self.latency.items()},
            "configuration": dict(self.configuration),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "gatepruner": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def write_report(report: Report, directory: str | Path, *, force: bool = False) -> Path:
    """Write `curve` and `gates` (png, svg), `curve.csv`, `report.json` and `report.md`.

    Args:
        report: what to tell.
        directory: where; made if it is not there.
        force: whether files of an older report may be replaced; no other file is touched.

    Raises:
        CheckpointError: there is a report already, or the disk is full.
    """
    directory = Path(directory)
    refuse_report(directory, force=force)
    written: set[str] = set()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report.", dir=directory) as partial:
            _write_all(report, Path(partial))
            for file in sorted(Path(partial).iterdir()):
                shutil.move(file, directory / file.name)
                written.add(file.name)
        for name in set(FILES) - written:  # of an older report, on a network with gates
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write the report {directory}: {error.strerror}") from error
    return directory


def refuse_report(directory: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if there is a report already that may not be replaced."""
    there = [name for name in FILES if (directory / name).exists()]
    if there and not force:
        raise CheckpointError(
            f"{directory} has a report already ({there[0]}): give another folder, or --force to "
            "replace it"
        )
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file: a folder was expected")


def _write_all(report: Report, directory: Path) -> None:
    document = report.to_json()
    gates = document["gates"]
    curve = curve_figure(report.orders, len(report.removed) or None)
    save_figure(curve, directory / "curve")
    if gates:
        blocks = [block for block in report.checkpoint.network.blocks if block.name in gates]
        save_figure(gates_figure(blocks, gates, report.removed), directory / "gates")
    rows = _rows(report)
    with (directory / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (directory / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "report.md").write_text(_markdown(report, document))


def _rows(report: Report) -> list[dict[str, Any]]:
    """Every point of every run."""
    return [
        {"criterion": order.criterion, "run": run, **point.to_json()}
        for order in report.orders
        for run, points in enumerate(order.runs)
        for point in points
    ]


def _markdown(report: Report, document: Mapping[str, Any]) -> str:
    """The report for a reader."""
    whole = report.orders[0].points[0]
    low, high = whole.accuracy.interval
    lines = [
        f"# {document['name']}: accuracy against blocks removed",
        "",
        f"{whole.blocks} blocks, {whole.cost.params:,} parameters, {whole.cost.macs:,} MACs. "
        f"Top-1 accuracy of the whole network {_percent(whole.accuracy.accuracy)} "
        f"(95 % interval {_percent(low)} to {_percent(high)}, n = {whole.accuracy.images:,}).",
        "",
        "![accuracy against blocks removed](curve.png)",
        "",
        *(["![gate of every block](gates.png)", ""] if document["gates"] else []),
        *_plan_lines(report),
        *_table(report.orders),
        "",
        *(f"- {order.label}: ranked in {order.seconds:.1f} s" for order in report.orders),
    ]
    if len(report.orders) > 1:
        lines.append(
            f"- ≈: within noise of {report.orders[0].criterion} (McNemar's test on the same "
            f"images, p ≥ {NOISE:g})"
        )
    lines += ["", "Computed with:", ""]
    known = {**document["configuration"], **document["versions"]}
    lines += [f"- {key}: {value}" for key, value in known.items()]
    return "\n".join(lines) + "\n"


def _table(orders: Sequence[Order]) -> list[str]:
    """Accuracy at every number of blocks removed, a column for each order."""
    columns = ["removed", "blocks", *(f"{order.criterion} (%)" for order in orders), "MACs kept"]
    columns += ["parameters"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    first = orders[0].points
    for index, point in enumerate(first):
        cells = [str(point.removed), str(point.blocks)]
        cells += [accuracy_cell(order, orders[0], index) for order in orders]
        cells += [f"{point.cost.macs / first[0].cost.macs:.1%}", f"{point.cost.params:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def accuracy_cell(order: Order, first: Order, index: int) -> str:
    """Accuracy at one point: with its 95 % interval, or the mean and range of several runs.

    Marked with ≈ where it is within noise of the first order's.
    """
    accuracies = [100 * one for one in order.accuracies(index)]
    mean = sum(accuracies) / len(accuracies)
    low, high = min(accuracies), max(accuracies)
    if len(accuracies) == 1:
        low, high = (100 * end for end in order.points[index].accuracy.interval)
    same = order is not first and order.within_noise(first, index)
    return f"{'≈ ' if same else ''}{mean:.1f} ({low:.1f} to {high:.1f})"


def _plan_lines(report: Report) -> list[str]:
    lines = []
    if report.removed:
        lines += [f"Removed, {len(report.removed)} blocks: {', '.join(report.removed)}.", ""]
    for name, one in report.latency.items():
        lines.append(
            f"- latency of the {name} network: median {1e3 * one['median']:.2f} ms, quartiles "
            f"{1e3 * one['low']:.2f} and {1e3 * one['high']:.2f} ms (batch size "
            f"{one['batch']}, {one['device']}, {one['runs']} interleaved runs)"
        )
    return [*lines, ""] if report.latency else lines


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
