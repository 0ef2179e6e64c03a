"""The tables of the paper's experiments, from the results of `paper/*.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from operator import itemgetter
from statistics import fmean

from columns import PERCENT, PERCENTS, Column, Record, Table, grouped, mean, means, table


def trials(result: Record) -> Iterator[Record]:
    """Short trainings, each in words: accuracy and mean gate."""
    for row in result["rows"]:
        gate = f", k {fmean(row['gates']):.2f}" if row.get("gates") else ""
        said = f"{100 * row['accuracy']:.1f}{gate}" if "accuracy" in row else "diverged"
        yield {**row, "said": said}


def by_depth(result: Record) -> list[Record]:
    """Networks, the shallow ones first."""
    return sorted(result["rows"], key=lambda row: int(row["depth"]))


def fifths(result: Record) -> Iterator[Record]:
    """The mean gate of every fifth of the blocks of every network."""
    for kind, rows in grouped(result["rows"], itemgetter("kind")).items():
        blocks = len(rows[0]["gates"])
        size = max(blocks // 5, 1)
        yield {"kind": kind, "lowest": ", ".join(lowest(row["gates"]) for row in rows)}
        for start in range(0, blocks, size):
            part = f"{start + 1}-{min(start + size, blocks)}"
            for row in rows:
                yield {"kind": kind, "part": part, "gate": fmean(row["gates"][start:][:size])}


def lowest(gates: Sequence[float]) -> str:
    """The block with the lowest gate, or how many are closed."""
    closed = sum(gate == 0 for gate in gates)
    return f"{closed} at 0" if closed > 1 else str(gates.index(min(gates)) + 1)


def curves(result: Record, parts: int, layers: int = 1) -> Iterator[Record]:
    """The points of all orders at some counts, and what half of the removals leaves."""
    for (kind, order), rows in grouped(result["rows"], itemgetter("kind", "order")).items():
        named = {"kind": kind, "order": f"{kind}, {order} (n = {len(rows)})"}
        for row in rows:
            found, half = row["accuracy"], len(row["removed"]) // 2
            step = max(len(row["removed"]) // parts, 1)
            yield {**named, "kept": found[half] / found[0]}
            for removed, accuracy in list(zip(row["removed"], found, strict=True))[::step]:
                yield {**named, "removed": layers * removed, "accuracy": accuracy}


def blocks(result: Record) -> Iterator[Record]:
    """Every block of every network: its gate, and accuracy without a part of it."""
    for block in range(1, len(result["rows"][0]["gates"]) + 1):
        for row in result["rows"]:
            without = {
                part: row["without"][f"{part} of {block}"]["accuracy"]
                for part in ("branch", "shortcut")
            }
            yield {"block": block, "gate": row["gates"][block - 1], **without}


def plans(result: Record) -> Iterator[Record]:
    """Accuracy of every network after every removal."""
    for plan in result["rows"][0]["recalibrated"]:
        for row in result["rows"]:
            found = {way: row[way][plan]["accuracy"] for way in ("without", "recalibrated")}
            yield {"plan": plan, **found}


def losses(result: Record) -> Iterator[Record]:
    """First and last loss of every run at every depth, and the learning rate of these."""
    for (kind, depth), rows in grouped(result["rows"], itemgetter("kind", "depth")).items():
        for title, key in (("first loss", "first"), ("last", "end")):
            named = {"kind": kind, "title": f"{depth} layers: {title}"}
            yield from ({**named, "value": row[key]} for row in rows)
        yield {"kind": kind, "title": f"{depth} layers: rate", "value": rows[0]["rate"]}


KIND = "kind"
TABLES: dict[str, Table] = {
    "paper_mnist_trials": table(
        Column("accuracy (%), mean gate", "{depth} layers, {setting}"),
        Column("{}", "said", over=KIND),
        records=trials,
    ),
    "paper_cifar_trials": table(
        Column("setting", "setting"),
        Column("accuracy (%)", "accuracy", PERCENT),
        Column("k of blocks 1 to 12", lambda row: " ".join(f"{k:.2f}" for k in row["gates"])),
    ),
    "paper_depth": table(
        Column("error (%) at depth", KIND),
        Column("{}", lambda row: 1 - row.get("accuracy", nan), PERCENTS, over="depth"),
        records=by_depth,
    ),
    "paper_mean_gate": table(
        Column("mean gate at depth", KIND),
        Column("{}", lambda row: fmean(row["gates"]), means(".2f"), over="depth"),
        records=by_depth,
    ),
    "paper_gate_of_every_block": table(
        Column("mean gate of blocks", KIND),
        Column("{}", "gate", means(".2f"), over="part"),
        Column("lowest block, each seed", "lowest"),
        records=fifths,
    ),
    "paper_layers_removed": table(
        Column("accuracy (%) at layers removed", "order"),
        Column("{}", "accuracy", PERCENT, over="removed"),
        Column("kept at half (%)", "kept", PERCENT),
        records=lambda result: curves(result, 5, layers=2),
    ),
    "paper_every_block": table(
        Column("block", "block"),
        Column("gate", "gate", means(".2f")),
        Column("without its branch (%)", "branch", PERCENT),
        Column("without its shortcut (%)", "shortcut", PERCENT),
        records=blocks,
    ),
    "paper_removals": table(
        Column("removed", "plan"),
        Column("accuracy (%)", "without", PERCENTS),
        Column("recalibrated (%)", "recalibrated", PERCENTS),
        records=plans,
    ),
    "paper_blocks_removed": table(
        Column("accuracy (%) at blocks removed", "order"),
        Column("{}", "accuracy", PERCENT, over="removed"),
        records=lambda result: curves(result, 6),
        split=KIND,
    ),
    "paper_wide_wrn_16_2_cifar10": table(
        Column("network", "network"),
        Column("error (%)", lambda row: 1 - row["accuracy"], PERCENTS),
        Column("training loss", "training_loss", mean(".3f")),
        Column("time (s)", "seconds", mean(".0f")),
    ),
    "paper_identity": table(
        Column("network", KIND),
        Column("{}", "value", means(".2g"), over="title"),
        records=losses,
    ),
}
FILES = {"paper_removals": "paper_every_block"}  # results that a second table shows
