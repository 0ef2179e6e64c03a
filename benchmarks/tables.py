"""Render the tables of the documents from `results/*.json`.

A region between `<!-- table: NAME -->` and `<!-- end -->` in `README.md` or `docs/*.md` is
replaced by the table of that name and the conditions it was measured under. With `--check`
nothing is written, and the exit code is 1 if a region is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import paper_tables
from cases.case import OUTCOMES
from columns import PERCENT, PERCENTS, Column, Record, Table, grouped, mean, means, quartiles, table
from record import RESULTS

ROOT = Path(__file__).parents[1]
REGION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ABSENT = "Not measured yet.\n"


def above_torch(result: Record) -> Iterator[Record]:
    """Times of commands, and their medians above that of importing torch."""
    rows = result["rows"]
    torch = next(it["seconds"]["median"] for it in rows if "import torch" in it["command"])
    return ({**it, "above": it["seconds"]["median"] - torch} for it in rows)


def points(result: Record) -> Iterator[Record]:
    """The points of all curves."""
    return ({**row, **point} for row in result["rows"] for point in row["points"])


def along_orders(result: Record) -> Iterator[Record]:
    """The whole network, then the points of every order; the first has the mean time of all."""
    whole = result["settings"]["whole"]
    yield {"label": "whole network", "removed": 0, "accuracy": whole}
    for method, rows in grouped(result["rows"], itemgetter("method")).items():
        last = {row["seed"]: row["seconds"] for row in rows}
        named = {"label": f"{method} (n = {len(last)})"}
        yield {**named, "time": fmean(last.values())}
        yield from ({**row, **named} for row in rows)


def shares_of_whole(result: Record) -> Iterator[Record]:
    """Every step, and the share of the whole network's cost that it leaves."""
    whole, costs = result["rows"][0], ("macs", "params", "latency")
    for row in result["rows"]:
        yield {**row, **{f"{cost}_kept": row[cost] / whole[cost] for cost in costs}}


def by_default(result: Record) -> Iterator[Record]:
    """The measurements, and how many of a way's were taken by default."""
    for rows in grouped(result["rows"], itemgetter("way")).values():
        share = f"{sum(row['by default'] for row in rows)} of {len(rows)}"
        yield from ({**row, "default": share} for row in rows)


def at_targets(result: Record) -> Iterator[Record]:
    """A cell for every target and method, and the best methods of the target."""
    yield from compared(result["rows"], itemgetter("epochs", "batch", "share"))


def before_and_after(result: Record) -> Iterator[Record]:
    """The same for networks that are recalibrated, and then fine-tuned."""
    for key, state in (("accuracy_before", "recalibrated"), ("accuracy", "fine-tuned")):
        rows = [{**row, "state": state, "accuracy": row.get(key)} for row in result["rows"]]
        yield from compared(rows, itemgetter("engine", "batch", "share"))


def on_engines(result: Record) -> Iterator[Record]:
    """Every row, and then its latency at each place and its accuracy with each kind of weights."""
    for row in result["rows"]:
        yield {**row, "left": row["depth"] if row["reached"] else "not reached"}
        own = {"share": row["share"], "method": row["method"]}
        for place, time in row.get("latency", {}).items():
            engine, _, batch = place.partition(" ")
            yield {**own, "place": f"{engine}, batch size {batch}", "kept": time["kept"]}
        for kind, answer in row.get("answers", {}).items():
            yield {**own, "weights": kind, "accuracy": answer["accuracy"]}


def compared(rows: Sequence[Record], target: Callable[[Record], Any]) -> Iterator[Record]:
    """A cell for every target and method, and the best methods of the target."""
    for own in grouped(rows, target).values():
        methods = grouped(own, itemgetter("method"))
        reached = {
            name: fmean(row["accuracy"] for row in of)
            for name, of in methods.items()
            if all(row["reached"] for row in of)
        }
        best = [name for name, accuracy in reached.items() if accuracy == max(reached.values())]
        for name, of in methods.items():
            yield {**of[0], "cell": target_cell(of, name in best), "best": ", ".join(best)}


def target_cell(rows: Sequence[Record], best: bool) -> str:
    """`accuracy ± deviation over seeds (share of the latency)`."""
    kept = f"{100 * fmean(row['kept'] for row in rows):.0f} %"
    if not all(row["reached"] for row in rows):
        return f"not reached ({kept})"
    values = [100 * row["accuracy"] for row in rows]
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    number = f"{fmean(values):.2f}{deviation}"
    return f"{f'**{number}**' if best else number} ({kept})"


def outcomes(result: Record) -> Iterator[Record]:
    """How many cases of each kind had each outcome."""
    for kind, rows in grouped(result["rows"], itemgetter("kind")).items():
        counts = Counter(row["outcome"] for row in rows)
        yield {"kind": kind, "cases": len(rows), **{key: counts[key] or "" for key in OUTCOMES}}


def blocks_found(row: Record) -> str:
    """How many blocks were found, of how many."""
    return f"{row['blocks']} of {row['oracle']}" if row.get("oracle") else ""


def at_sizes(row: Record) -> str:
    """The seconds or the memory that each size takes."""
    if "bytes" in row:
        return ", ".join(f"{size / 2**20:.0f}" for size in row["bytes"]) + " MiB"
    return ", ".join(f"{seconds:.2f}" for seconds in row["seconds"]) + " s"


def difference(key: str) -> Callable[[Record], str | None]:
    """Writes a difference of logits; 0 is bit for bit."""

    def written(row: Record) -> str | None:
        value = row.get(key)
        return None if value is None else f"{value:.0e}" if value else "0"

    return written


def of_commands(result: Record) -> Iterator[Record]:
    """What killing, running twice and a full disk did to each command."""
    for row in result["rows"]:
        if "kills" not in row:
            continue
        kills = row["kills"]
        yield {
            "command": row["command"],
            "killed": kills["at_calls"] + kills["at_moments"],
            "problems": len(kills["problems"]),
            "equal": "equal" if row["twice"]["result_equal"] else "not equal",
            **{
                key: "refused" if row[key][told] else "not refused"
                for key, told in (
                    ("two_writers", "second_refused"),
                    ("full_disk", "refused"),
                    ("read_only", "refused"),
                )
            },
        }


RECOVERIES = (
    Column("blocks removed", "removed"),
    Column("order", "order"),
    Column("state", "state"),
    Column("matched", "match"),
    Column("accuracy (%)", "accuracy", PERCENTS),
    Column("agreement (%)", "agreement", PERCENTS),
    Column("time (s)", "seconds", mean(".0f")),
)
FEW_PICTURES = table(Column("images", "{images:,}"), *RECOVERIES, keys=5)
CORRELATED = table(
    Column("score", "score"),
    Column("rank correlation", "{correlation:.2f}"),
    Column("95 % interval", "{low:.2f} to {high:.2f}"),
    Column("time (s)", "seconds", mean(".0f")),
)
COMPRESSED = table(
    Column("step", "name"),
    Column("blocks", "blocks"),
    Column(
        "accuracy (%), 95 % interval, n = {images:,}",
        lambda row: "{:.2f} ({:.2f} to {:.2f})".format(
            *(100 * row[key] for key in ("accuracy", "low", "high"))
        ),
    ),
    Column("MACs", "{macs_kept:.1%}"),
    Column("parameters", "{params_kept:.1%}"),
    Column(
        "latency (ms)",
        lambda row: f"{1e3 * row['latency']:.2f} ({row['latency_kept']:.1%})",
    ),
    Column("time (s)", "{seconds:.0f}"),
    records=shares_of_whole,
)
SAVINGS = table(
    Column("network", "{network}, batch size {batch}"),
    Column("engine", "{engine}"),
    Column("latency (ms)", "seconds", quartiles(scale=1e3)),
    Column("networks to prepare", "{networks[sums]} instead of {networks[each]}"),
    Column("greatest error of the sums (%)", lambda row: row["errors"]["sums"], PERCENT),
    Column("of scaling with MACs (%)", lambda row: row["errors"]["macs"], PERCENT),
    keys=2,
    timed=True,
)
ON_ENGINES = table(
    Column("MACs kept at most", "{share} %"),
    Column("removed", "method"),
    Column("MACs kept (%)", "macs_kept", PERCENT),
    Column("blocks left", "left"),
    Column("latency kept (%), {}", "kept", PERCENT, over="place"),
    records=on_engines,
    keys=2,
)
RUNS = Column("n", "{seconds[n]}")
MEGABYTES = means(".0f", 1e-6)
TIME = Column("time (s)", "seconds", quartiles())
TABLES: dict[str, Table] = {
    "after_recovery": CORRELATED,
    "after_recovery_resnet20": CORRELATED,
    "few_pictures": FEW_PICTURES,
    "few_pictures_lite0": FEW_PICTURES,
    "much_data": table(*RECOVERIES[:1], *RECOVERIES[3:], keys=2),
    "recovery": table(Column("epochs", "epochs"), *RECOVERIES, keys=5),
    "accuracy": table(
        Column("network", "network"),
        Column("removed", "removed"),
        Column("accuracy (%)", "accuracy", PERCENTS),
        Column("95 % interval", lambda row: f"{100 * row['low']:.2f} to {100 * row['high']:.2f}"),
        Column("n", "{images:,}"),
        keys=2,
    ),
    "against_torch_pruning": table(
        Column("accuracy (%) at latency kept", "epochs {epochs}, batch size {batch}, {share} %"),
        Column("{}", "cell", over="method"),
        Column("best", "best"),
        records=at_targets,
    ),
    "units": table(
        Column("MACs kept at most", "{share} %"),
        Column("removed", "method"),
        Column("MACs kept (%)", "macs_kept", PERCENT),
        Column("blocks left", "depth"),
        Column("recalibrated (%)", "accuracy_before", PERCENTS),
        Column("fine-tuned (%)", "accuracy", PERCENTS),
        keys=2,
    ),
    "units_latency": table(
        Column("accuracy (%) at latency kept", "{engine}, batch size {batch}, {share} %, {state}"),
        Column("{}", "cell", over="method"),
        Column("best", "best"),
        records=before_and_after,
    ),
    "units_resnet50": ON_ENGINES,
    "units_vit": ON_ENGINES,
    "units_lite0": table(
        *ON_ENGINES.columns,
        Column("accuracy (%), weights {}", "accuracy", PERCENT, over="weights"),
        records=on_engines,
        keys=2,
    ),
    "cli_overhead": table(
        Column("command", "`{command}`"),
        TIME,
        Column("above import torch (s)", "{above:+.2f}"),
        RUNS,
        records=above_torch,
        timed=True,
    ),
    "compress": COMPRESSED,
    "compress_pictures": COMPRESSED,
    "endurance": table(
        Column("command", "`{command}`"),
        Column("killed", "killed"),
        Column("half files, changed inputs, other bits after resuming", "{problems}"),
        Column("weights of two runs", "equal"),
        Column("second run on one output", "two_writers"),
        Column("full disk", "full_disk"),
        Column("read-only folder", "read_only"),
        records=of_commands,
    ),
    "families": table(
        Column("network", "network"),
        Column("side", "side"),
        Column("gates", "blocks"),
        Column("gone", lambda row: ", ".join(row["gone"])),
        Column("largest difference of logits / largest logit", "{difference:.0e}"),
        Column("constants left", "constants"),
    ),
    "gate_step": table(
        Column("learned", "learned"),
        Column("parameters", "{parameters:,}"),
        Column("step (ms)", "seconds", quartiles(0, 1e3)),
        Column("kept for backward (MiB)", lambda row: f"{row['kept_bytes'] / 2**20:.0f}"),
        RUNS,
        timed=True,
    ),
    "gates": table(
        Column("removed", "label"),
        Column("{}", "accuracy", PERCENT, over="removed", at=(0, 3, 5, 8, 10, 13)),
        Column("time (s)", "time", mean(".0f")),
        records=along_orders,
    ),
    "gate_recipes": table(
        Column("steps", "recipe"),
        Column("{} removed", "accuracy", PERCENT, over="removed"),
        Column("time (s)", "seconds", mean(".0f")),
    ),
    "growth": table(
        Column("{of}", "what"),
        Column("sizes", lambda row: ", ".join(f"{size:,}" for size in row["sizes"])),
        Column("at each size", at_sizes),
        Column("exponent", "{exponent:.2f}"),
        split="of",
    ),
    "engines": SAVINGS,
    "engines_cuda": SAVINGS,
    "int8": table(
        Column("ResNet-56", "network"),
        Column("precision", "precision"),
        Column("accuracy (%)", "accuracy", PERCENTS),
        Column("95 % interval", lambda row: f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"),
        Column("same class as in float32 (%)", "agreement", PERCENTS),
        Column("CPU time of a pass (ms)", "seconds", quartiles(scale=1e3)),
        Column("time kept", "{kept:.1%}"),
        Column(
            "if savings multiply",
            lambda row: f"{row['product']:.1%}" if row["product"] != row["kept"] else None,
        ),
        Column("file (MB)", lambda row: f"{row['file_bytes'] / 1e6:.1f}"),
        keys=2,
        timed=True,
    ),
    "latency": table(
        Column("network", "{network}, batch size {batch}"),
        Column("removed", "removed"),
        Column("latency (ms)", "seconds", quartiles(scale=1e3)),
        Column("latency kept (%)", "latency_kept", PERCENT),
        Column("MACs kept (%)", "macs_kept", PERCENT),
        Column("saving in time / in MACs", "ratio", means(".2f")),
        RUNS,
        records=points,
        keys=2,
        timed=True,
    ),
    "memory": table(
        Column("network", "{network}, {images:,} images of {side} x {side}, batches of {batch}"),
        Column("memory", "way"),
        Column("CPU time (s)", "cpu", quartiles(1)),
        Column("of it in the kernel (s)", "kernel", quartiles()),
        Column("page faults (thousands)", "pages", quartiles(0, 1e-3)),
        Column("peak memory (MiB)", "peak", quartiles(0, 2**-20)),
        Column("n", "{cpu[n]}"),
        keys=2,
        timed=True,
    ),
    "prune_large": table(
        Column(
            "checkpoint",
            lambda row: f"{row['network']}, {row['suffix']}, {row['file_bytes'] / 1e9:.2f} GB",
        ),
        Column("command", "`{command}`"),
        TIME,
        Column("peak memory (MB)", "peak_bytes", MEGABYTES),
        Column("of it anonymous (MB)", "anonymous_bytes", MEGABYTES),
        Column("above `import torch` (MB)", "above_import_bytes", MEGABYTES),
        Column("/ file", "above_import_of_file", means(".2f")),
        Column("weights / largest tensor", "weights_of_largest", means(".2f")),
        RUNS,
        keys=2,
        timed=True,
    ),
    "reading": table(
        Column("read by", "way"),
        Column("CPU time per picture (ms)", "seconds", quartiles(scale=1e3)),
        Column("greatest difference of pixels", "difference"),
        RUNS,
        timed=True,
    ),
    "scaling": table(
        Column("work", "work"),
        Column("processes", "processes"),
        TIME,
        Column("times as fast", "{speedup:.2f}"),
        RUNS,
        keys=2,
        timed=True,
    ),
    "recalibration": table(
        Column("statistics", "way"),
        Column("{}", "accuracy", PERCENTS, over="removed"),
        Column("taken by default", "default"),
        records=by_default,
    ),
    "survey": table(
        Column("{kind}", "name"),
        Column("outcome", "outcome"),
        Column("blocks", blocks_found),
        Column("difference", difference("difference")),
        Column("without blocks", difference("removed")),
        Column("said", lambda row: row.get("text", "").replace("|", "\\|")),
        split="kind",
    ),
    "survey_counts": table(
        Column("what is brought", "kind"),
        Column("cases", "cases"),
        *(Column(outcome, outcome) for outcome in OUTCOMES),
        records=outcomes,
    ),
    "sweep": table(
        Column("sweep", "{network}, {points} points, {images} images"),
        Column("shared (s)", "shared_seconds", quartiles()),
        Column("one by one (s)", "one_by_one_seconds", quartiles()),
        Column("ratio of times", "time_ratio", quartiles()),
        Column("ratio of MACs", "{macs_ratio:.2f}"),
        Column("n", "{shared_seconds[n]}"),
        timed=True,
    ),
    "trust": table(
        Column("format", "format"),
        Column("n", "{n:,}"),
        Column("as before", lambda it: it.get("as before", 0)),
        Column("another sound one", lambda it: it.get("another sound one", 0)),
        Column("refused in one line", lambda it: it.get("refused", 0)),
        Column("anything else", lambda it: len(it["failures"])),
    ),
    **paper_tables.TABLES,
}

FILES = {**paper_tables.FILES, "survey_counts": "survey"}  # results that a second table shows


def conditions(table: Table, result: Record) -> str:
    """What the numbers of a table depend on; the settings are folded away."""
    hardware = result["hardware"]
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    software = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    gpu = f"{hardware['gpu']}, " if "gpu" in hardware else ""
    return (
        f"\n{'Median (quartiles) of n runs. ' if table.timed else ''}{gpu}{hardware['cpu']}, "
        f"{hardware['cores']} cores, {hardware['threads']} threads, {hardware['system']}; "
        f"{software}; {result['date']}.\n\n"
        f"<details><summary>Settings</summary>\n\n{settings}.\n\n</details>\n"
    )


def rendered(name: str) -> str:
    """The table of that name with its conditions."""
    if name not in TABLES:
        sys.exit(f"unknown table {name!r}: expected {', '.join(TABLES)}")
    path = RESULTS / f"{FILES.get(name, name)}.json"
    if not path.exists():
        return ABSENT
    result: Any = json.loads(path.read_text())
    return f"\n{TABLES[name].render(result)}{conditions(TABLES[name], result)}\n"


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
