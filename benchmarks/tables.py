"""Render the tables of the documents from `results/*.json`.

A region between `<!-- table: NAME -->` and `<!-- end -->` in `README.md` or `docs/*.md` is
replaced by the table of that name and the conditions it was measured under. With `--check`
nothing is written, and the exit code is 1 if a region is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paper_tables
from cells import means, seconds, table
from record import RESULTS

ROOT = Path(__file__).parents[1]
REGION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ABSENT = "Not measured yet.\n"


def cli_overhead(result: Mapping[str, Any]) -> str:
    times = {row["command"]: row["seconds"] for row in result["rows"]}
    torch = next(found["median"] for name, found in times.items() if "import torch" in name)
    rows = [
        [f"`{name}`", seconds(found), f"{found['median'] - torch:+.2f}", str(found["n"])]
        for name, found in times.items()
    ]
    return table(("command", "time (s)", "above import torch (s)", "n"), rows)


def latency(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['network']}, batch size {row['batch']}",
            str(point["removed"]),
            seconds(point["seconds"], 1e-3),
            f"{100 * point['latency_kept']:.1f}",
            f"{100 * point['macs_kept']:.1f}",
            "" if point["ratio"] is None else f"{point['ratio']:.2f}",
            str(point["seconds"]["n"]),
        ]
        for row in result["rows"]
        for point in row["points"]
    ]
    kept = ("latency kept (%)", "MACs kept (%)", "saving in time / in MACs")
    return table(("network", "removed", "latency (ms)", *kept, "n"), rows)


def prune_large(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['network']}, {row['suffix']}, {row['file_bytes'] / 1e9:.2f} GB",
            f"`{row['command']}`",
            seconds(row["seconds"]),
            f"{row['peak_of_file']:.2f}",
            f"{row['anonymous_of_file']:.2f}",
            str(row["seconds"]["n"]),
        ]
        for row in result["rows"]
    ]
    memory = ("peak memory / file", "of it anonymous / file")
    return table(("checkpoint", "command", "time (s)", *memory, "n"), rows)


def sweep(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['network']}, {row['points']} points, {row['images']} images",
            seconds(row["shared_seconds"]),
            seconds(row["one_by_one_seconds"]),
            seconds(row["time_ratio"]),
            f"{row['macs_ratio']:.2f}",
            str(row["shared_seconds"]["n"]),
        ]
        for row in result["rows"]
    ]
    columns = ("sweep", "shared (s)", "one by one (s)", "ratio of times", "ratio of MACs", "n")
    return table(columns, rows)


def demo(result: Mapping[str, Any]) -> str:
    lines = ["$ gatepruner demo", *(line.rstrip() for line in result["rows"][0]["output"])]
    return "".join(f"    {line}\n" if line else "\n" for line in lines)


def accuracy(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["network"],
            str(row["removed"]),
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['low']:.2f} to {100 * row['high']:.2f}",
            f"{row['images']:,}",
        ]
        for row in result["rows"]
    ]
    return table(("network", "removed", "accuracy (%)", "95 % interval", "n"), rows)


def against_torch_pruning(result: Mapping[str, Any]) -> str:
    cells: dict[tuple[int, int, int], dict[str, list[Any]]] = {}
    for row in result["rows"]:
        target = (row["epochs"], row["batch"], row["share"])
        cells.setdefault(target, {}).setdefault(row["method"], []).append(row)
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    rows = []
    for (epochs, batch, share), found in cells.items():
        means = {name: _mean(of, "accuracy") for name, of in found.items() if _reached(of)}
        best = [name for name, mean in means.items() if mean == max(means.values())]
        shown = [_against_cell(found.get(name, []), name in best) for name in methods]
        rows.append([f"epochs {epochs}, batch size {batch}, {share} %", *shown, ", ".join(best)])
    return table(("accuracy (%) at latency kept", *methods, "best"), rows)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(float(row[key]) for row in rows)


def _reached(rows: Sequence[Mapping[str, Any]]) -> bool:
    return bool(rows) and all(row["reached"] for row in rows)


def _against_cell(rows: Sequence[Mapping[str, Any]], best: bool) -> str:
    """`accuracy ± deviation over seeds (share of the latency)`."""
    if not rows:
        return ""
    kept = f"{100 * _mean(rows, 'kept'):.0f} %"
    if not _reached(rows):
        return f"not reached ({kept})"
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    number = f"{statistics.mean(values):.2f}{spread}"
    return f"{f'**{number}**' if best else number} ({kept})"


def gates(result: Mapping[str, Any]) -> str:
    whole = result["settings"]["whole"]
    counts = [3, 5, 8, 10, 13]
    rows = [["whole network", f"{100 * whole:.1f}", *("" for _ in counts), ""]]
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        found = [row for row in result["rows"] if row["method"] == method]
        curves = {
            count: [100 * row["accuracy"] for row in found if row["removed"] == count]
            for count in counts
        }
        last = {row["seed"]: row["seconds"] for row in found}
        seeds = len(last)
        cells = [means(values) for values in curves.values()]
        rows.append([f"{method} (n = {seeds})", "", *cells, f"{sum(last.values()) / seeds:.0f}"])
    return table(("removed", "0", *map(str, counts), "time (s)"), rows)


def gate_step(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["learned"],
            f"{row['parameters']:,}",
            seconds(row["seconds"], 1e-3, 0),
            f"{row['kept_bytes'] / 2**20:.0f}",
            str(row["seconds"]["n"]),
        ]
        for row in result["rows"]
    ]
    return table(("learned", "parameters", "step (ms)", "kept for backward (MiB)", "n"), rows)


def gate_trials(result: Mapping[str, Any]) -> str:
    counts = list(result["rows"][0]["accuracy"])
    rows = [
        [
            row["variant"],
            *(f"{100 * row['accuracy'][count]:.1f}" for count in counts),
            f"{row['seconds']:.0f}",
        ]
        for row in result["rows"]
    ]
    return table(("variant", *counts, "time (s)"), rows)


def compress(result: Mapping[str, Any]) -> str:
    whole = result["rows"][0]
    rows = [
        [
            row["name"],
            str(row["blocks"]),
            f"{100 * row['accuracy']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})",
            f"{row['macs'] / whole['macs']:.1%}",
            f"{row['params'] / whole['params']:.1%}",
            f"{1e3 * row['latency']:.2f} ({row['latency'] / whole['latency']:.1%})",
            f"{row['seconds']:.0f}",
        ]
        for row in result["rows"]
    ]
    images = whole["images"]
    accuracy = f"accuracy (%), 95 % interval, n = {images:,}"
    return table(
        ("step", "blocks", accuracy, "MACs", "parameters", "latency (ms)", "time (s)"), rows
    )


def recalibration(result: Mapping[str, Any]) -> str:
    counts = list(dict.fromkeys(row["removed"] for row in result["rows"]))
    rows = []
    for way in dict.fromkeys(row["way"] for row in result["rows"]):
        found = [row for row in result["rows"] if row["way"] == way]
        at = {it: [100 * row["accuracy"] for row in found if row["removed"] == it] for it in counts}
        share = sum(row["by default"] for row in found)
        cells = (means(values, ".2f") for values in at.values())
        rows.append([way, *cells, f"{share} of {len(found)}"])
    return table(("statistics", *map(str, counts), "taken by default"), rows)


def families(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["network"],
            str(row["side"]),
            str(row["blocks"]),
            ", ".join(row["gone"]),
            f"{row['difference']:.0e}",
            str(row["constants"]),
        ]
        for row in result["rows"]
    ]
    difference = "largest difference of logits / largest logit"
    return table(("network", "side", "gates", "gone", difference, "constants left"), rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy": accuracy,
    "against_torch_pruning": against_torch_pruning,
    "cli_overhead": cli_overhead,
    "compress": compress,
    "demo": demo,
    "families": families,
    "gate_step": gate_step,
    "gate_trials": gate_trials,
    "gates": gates,
    "latency": latency,
    "prune_large": prune_large,
    "recalibration": recalibration,
    "sweep": sweep,
    **paper_tables.TABLES,
}


EXACT = (
    "accuracy",
    "demo",
    "gates",
    "gate_trials",
    "recalibration",
    "compress",
    "families",
    "against_torch_pruning",
    *paper_tables.TABLES,
)


def conditions(result: Mapping[str, Any]) -> str:
    """One line on what the numbers of a table depend on."""
    hardware, versions = result["hardware"], result["versions"]
    settings = ", ".join(
        f"{key} {seconds(value) if isinstance(value, dict) else value}"
        for key, value in result["settings"].items()
    )
    exact = result["benchmark"] in EXACT
    numbers = "" if exact else "Median (quartiles) of n runs. "
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"\n{numbers}{hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['threads']} threads, {hardware['system']}; {software}; {result['date']}. "
        f"Settings: {settings}.\n"
    )


def rendered(name: str) -> str:
    """The table of that name with its conditions."""
    if name not in TABLES:
        sys.exit(f"unknown table {name!r}: expected {', '.join(TABLES)}")
    path = RESULTS / f"{paper_tables.FILES.get(name, name)}.json"
    if not path.exists():
        return ABSENT
    result = json.loads(path.read_text())
    return "\n" + TABLES[name](result) + conditions(result) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing, compare")
    check = options.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = path.read_text()
        new = REGION.sub(lambda found: found[1] + rendered(found[2]) + found[3], old)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for name in stale:
        print(f"{name}: {'differs from the results' if check else 'tables written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
