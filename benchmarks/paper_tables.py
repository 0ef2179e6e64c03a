"""The tables of the paper's experiments, from the results of `paper/*.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cells import means, table

Result = Mapping[str, Any]


def _kinds(result: Result, key: str = "kind") -> list[str]:
    return list(dict.fromkeys(row[key] for row in result["rows"]))


def _of(result: Result, **wanted: Any) -> list[Any]:
    return [row for row in result["rows"] if all(row[key] == it for key, it in wanted.items())]


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mnist_trials(result: Result) -> str:
    kinds, found = _kinds(result), {}
    for row in result["rows"]:
        gate = f", k {_mean(row['gates']):.2f}" if row.get("gates") else ""
        said = f"{100 * row['accuracy']:.1f}{gate}" if "accuracy" in row else "diverged"
        name = f"{row['depth']} layers, {row['setting']}"
        found.setdefault(name, {})[row["kind"]] = said
    rows = [[name, *(cells.get(kind, "") for kind in kinds)] for name, cells in found.items()]
    return table(("accuracy (%), mean gate", *kinds), rows)


def cifar_trials(result: Result) -> str:
    rows = [
        [row["setting"], f"{100 * row['accuracy']:.1f}", " ".join(f"{k:.2f}" for k in row["gates"])]
        for row in result["rows"]
    ]
    return table(("setting", "accuracy (%)", "k of blocks 1 to 12"), rows)


def depth(result: Result) -> str:
    depths = sorted({row["depth"] for row in result["rows"]})
    rows = []
    for kind in _kinds(result):
        cells = []
        for layers in depths:
            found = _of(result, kind=kind, depth=layers)
            errors = [100 * (1 - row["accuracy"]) for row in found if "accuracy" in row]
            failed = len(found) - len(errors)
            cells.append(means(errors, ".2f") + (f", {failed} diverged" if failed else ""))
        rows.append([kind, *cells])
    return table(("error (%) at depth", *map(str, depths)), rows)


def mean_gate(result: Result) -> str:
    depths = sorted({row["depth"] for row in result["rows"]})
    rows = [
        [
            kind,
            *(
                means([_mean(row["gates"]) for row in _of(result, kind=kind, depth=it)], ".2f")
                for it in depths
            ),
        ]
        for kind in _kinds(result)
    ]
    return table(("mean gate at depth", *map(str, depths)), rows)


def gate_of_every_block(result: Result) -> str:
    blocks = len(result["rows"][0]["gates"])
    size = max(blocks // 5, 1)
    parts = [(at, min(at + size, blocks)) for at in range(0, blocks, size)]
    rows = []
    for kind in _kinds(result):
        gates = [row["gates"] for row in _of(result, kind=kind)]
        cells = [means([_mean(it[start:end]) for it in gates], ".2f") for start, end in parts]
        lowest = ", ".join(_lowest(it) for it in gates)
        rows.append([kind, *cells, lowest])
    columns = (f"{start + 1}-{end}" for start, end in parts)
    return table(("mean gate of blocks", *columns, "lowest block, each seed"), rows)


def _lowest(gates: Sequence[float]) -> str:
    """The block with the lowest gate, or how many are closed."""
    closed = sum(gate == 0 for gate in gates)
    return f"{closed} at 0" if closed > 1 else str(gates.index(min(gates)) + 1)


def _removal(result: Result, kind: str, counts: Sequence[int]) -> list[list[str]]:
    """A row for every order."""
    rows = []
    for order in dict.fromkeys(row["order"] for row in _of(result, kind=kind)):
        found = _of(result, kind=kind, order=order)
        at = [found[0]["removed"].index(count) for count in counts]
        cells = [means(_percent([row["accuracy"][it] for row in found])) for it in at]
        rows.append([f"{kind}, {order} (n = {len(found)})", *cells])
    return rows


def layers_removed(result: Result) -> str:
    every = result["rows"][0]["removed"]
    counts = every[:: max(len(every) // 5, 1)]
    half = every[len(every) // 2]
    rows = []
    for kind in _kinds(result):
        for order, cells in zip(
            dict.fromkeys(row["order"] for row in _of(result, kind=kind)),
            _removal(result, kind, counts),
            strict=True,
        ):
            found = _of(result, kind=kind, order=order)
            kept = [row["accuracy"][every.index(half)] / row["accuracy"][0] for row in found]
            rows.append([*cells, means(_percent(kept))])
    columns = (str(2 * count) for count in counts)
    return table(("accuracy (%) at layers removed", *columns, "kept at half (%)"), rows)


def every_block(result: Result) -> str:
    found, number = result["rows"], range(1, len(result["rows"][0]["gates"]) + 1)
    rows = [
        [
            str(block),
            means([row["gates"][block - 1] for row in found], ".2f"),
            *(
                means(_percent([row["without"][f"{part} of {block}"]["accuracy"] for row in found]))
                for part in ("branch", "shortcut")
            ),
        ]
        for block in number
    ]
    return table(("block", "gate", "without its branch (%)", "without its shortcut (%)"), rows)


def removals(result: Result) -> str:
    found = result["rows"]
    rows = [
        [
            plan,
            *(
                means(_percent([row[key][plan]["accuracy"] for row in found]), ".2f")
                for key in ("without", "recalibrated")
            ),
        ]
        for plan in found[0]["recalibrated"]
    ]
    return table(("removed", "accuracy (%)", "recalibrated (%)"), rows)


def blocks_removed(result: Result) -> str:
    tables = []
    for kind in _kinds(result):
        every = _of(result, kind=kind)[0]["removed"]
        counts = every[:: max(len(every) // 6, 1)]
        columns = ("accuracy (%) at blocks removed", *map(str, counts))
        tables.append(table(columns, _removal(result, kind, counts)))
    return "\n".join(tables)


def wide(result: Result) -> str:
    rows = []
    for network in _kinds(result, "network"):
        found = _of(result, network=network)
        errors = [100 * (1 - row["accuracy"]) for row in found]
        losses, times = ([row[key] for row in found] for key in ("training_loss", "seconds"))
        rows.append([network, means(errors, ".2f"), f"{_mean(losses):.3f}", f"{_mean(times):.0f}"])
    return table(("network", "error (%)", "training loss", "time (s)"), rows)


def identity(result: Result) -> str:
    depths = list(dict.fromkeys(row["depth"] for row in result["rows"]))
    rows = []
    for kind in _kinds(result):
        cells = []
        for depth in depths:
            found = _of(result, kind=kind, depth=depth)
            first, last = ([row[key] for row in found] for key in ("first", "end"))
            cells += [means(first, ".2g"), means(last, ".2g"), f"{found[0]['rate']}"]
        rows.append([kind, *cells])
    columns = (f"{it} layers: {what}" for it in depths for what in ("first loss", "last", "rate"))
    return table(("network", *columns), rows)


TABLES: dict[str, Callable[[Result], str]] = {
    "paper_mnist_trials": mnist_trials,
    "paper_cifar_trials": cifar_trials,
    "paper_depth": depth,
    "paper_mean_gate": mean_gate,
    "paper_gate_of_every_block": gate_of_every_block,
    "paper_layers_removed": layers_removed,
    "paper_every_block": every_block,
    "paper_removals": removals,
    "paper_blocks_removed": blocks_removed,
    "paper_wide_wrn_16_2_cifar10": wide,
    "paper_identity": identity,
}
FILES = {"paper_removals": "paper_every_block"}  # results that a second table shows
