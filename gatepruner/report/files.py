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
from gatepruner.pruning.curve import Point
from gatepruner.pruning.ranking import Ranking
from gatepruner.report.figures import curve_figure, gates_figure, save_figure

FILES = (
    *("curve.png", "curve.svg", "gates.png", "gates.svg"),
    *("curve.csv", "report.json", "report.md"),
)


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        checkpoint: the whole network.
        ranking: the order in which its blocks go.
        points: the removal curve of that order.
        baseline: curves of random orders.
        removed: blocks of the plan that was carried out, if one was.
        latency: measured times by name, as `cost.Latency` has them, if any were.
        configuration: data, device, seed and what else the numbers depend on.
    """

    checkpoint: Checkpoint
    ranking: Ranking
    points: Sequence[Point]
    baseline: Sequence[Sequence[Point]] = ()
    removed: Sequence[str] = ()
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON; accuracies are fractions of 1, times seconds."""
        network = self.checkpoint.network
        gates = self.checkpoint.known_gates
        return {
            "network": network.to_json(),
            "name": str(network),
            "criterion": self.ranking.criterion,
            "ranking": [
                {"name": name, "gate": gates.get(name), "score": score}
                for name, score in self.ranking.scores
            ],
            "removed": list(self.removed),
            "points": [point.to_json() for point in self.points],
            "random": [[point.to_json() for point in curve] for curve in self.baseline],
            "latency": {name: dict(found) for name, found in self.latency.items()},
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
    marked = len(report.removed) or None
    criterion = report.ranking.criterion
    if criterion == "gate" and report.checkpoint.path:
        criterion = "along the learned path"
    curve = curve_figure(report.points, report.baseline, criterion=criterion, removed=marked)
    save_figure(curve, directory / "curve")
    gates = {row["name"]: row["gate"] for row in document["ranking"] if row["gate"] is not None}
    if gates:
        blocks = [block for block in report.checkpoint.network.blocks if block.name in gates]
        save_figure(gates_figure(blocks, gates, report.removed), directory / "gates")
    with (directory / "curve.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, fieldnames=list(document["points"][0]))
        rows.writeheader()
        rows.writerows(document["points"])
    (directory / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "report.md").write_text(_markdown(report, document, bool(gates)))


def _markdown(report: Report, document: Mapping[str, Any], has_gates: bool) -> str:
    """The report for a reader."""
    whole = report.points[0]
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
        *(["![gate of every block](gates.png)", ""] if has_gates else []),
        *_plan_lines(report),
        "| removed | blocks | accuracy (%) | 95 % interval | random (%) | MACs kept | parameters |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for index, point in enumerate(report.points):
        low, high = point.accuracy.interval
        others = [curve[index].accuracy.accuracy for curve in report.baseline if index < len(curve)]
        mean = f"{100 * sum(others) / len(others):.1f}" if others else ""
        lines.append(
            f"| {point.removed} | {point.blocks} | {100 * point.accuracy.accuracy:.1f} "
            f"| {100 * low:.1f} to {100 * high:.1f} | {mean} "
            f"| {point.cost.macs / whole.cost.macs:.1%} | {point.cost.params:,} |"
        )
    lines += ["", "Computed with:", ""]
    known = {**document["configuration"], **document["versions"]}
    lines += [f"- {key}: {value}" for key, value in known.items()]
    return "\n".join(lines) + "\n"


def _plan_lines(report: Report) -> list[str]:
    lines = []
    if report.removed:
        lines += [f"Removed, {len(report.removed)} blocks: {', '.join(report.removed)}.", ""]
    for name, found in report.latency.items():
        lines.append(
            f"- latency of the {name} network: median {1e3 * found['median']:.2f} ms, quartiles "
            f"{1e3 * found['low']:.2f} and {1e3 * found['high']:.2f} ms (batch size "
            f"{found['batch']}, {found['device']}, {found['runs']} interleaved runs)"
        )
    return [*lines, ""] if report.latency else lines


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
