"""Latency against blocks removed, and against the MACs that are left.

For ResNet-56 (32 x 32 images) and torchvision's ResNet-50 (224 x 224), at batch sizes 1 and 64:
residual blocks with an identity shortcut are removed in one random order (seed 0), the gates are
folded, and the whole network and its pruned variants are timed in turns within every round
(`gatepruner.latency`). Weights are fresh: the time does not depend on their values. Reported for
each variant are median and quartiles, the share of the latency and of the MACs that is kept, and
how much of the saving in MACs arrives as a saving in time,
(1 - latency kept) / (1 - MACs kept).

Aim: latency falls at least 0.97 as much as the MACs do.

Also draws `results/latency.png` and `.svg`; `--draw` draws them again from the JSON.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import record
from matplotlib.figure import Figure

import gatepruner

SEED = 0
CASES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("ResNet-56", "gated-resnet56", (0, 5, 10, 15, 20)),
    ("ResNet-50", "gated-torchvision:resnet50", (0, 3, 6, 9, 12)),
)
RUNS = {("ResNet-56", 1): 200, ("ResNet-56", 64): 50, ("ResNet-50", 1): 60, ("ResNet-50", 64): 15}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "gatepruner",
}
COLORS = {"ResNet-56": "#0b5fa5", "ResNet-50": "#d1661a"}
MARKERS = {1: "o", 64: "s"}


def variants(name: str, counts: Sequence[int]) -> dict[int, gatepruner.Checkpoint]:
    """The network with these numbers of identity blocks removed, gates folded."""
    network = gatepruner.Network.named(name)
    whole = gatepruner.Checkpoint(network, network.initial_weights(SEED))
    order = [block.name for block in network.blocks if block.identity]
    random.Random(SEED).shuffle(order)
    return {n: gatepruner.fold_gates(gatepruner.remove(whole, order[:n])) for n in counts}


def measure(
    title: str, name: str, counts: Sequence[int], batch: int, runs: int, device: str
) -> Any:
    """One network at one batch size: a row of JSON."""
    pruned = variants(name, counts)
    shape = pruned[0].network.base.input_shape
    modules = {str(n): checkpoint.build() for n, checkpoint in pruned.items()}
    times = gatepruner.latency(modules, shape, batch=batch, device=device, runs=runs)
    macs = {n: gatepruner.count(checkpoint.network).macs for n, checkpoint in pruned.items()}
    points = []
    for n in counts:
        found = times[str(n)]
        latency_kept = found.median / times["0"].median
        macs_kept = macs[n] / macs[0]
        points.append(
            {
                "removed": n,
                "seconds": {
                    "median": found.median,
                    "low": found.low,
                    "high": found.high,
                    "n": found.runs,
                },
                "macs": macs[n],
                "latency_kept": latency_kept,
                "macs_kept": macs_kept,
                "ratio": (1 - latency_kept) / (1 - macs_kept) if n else None,
            }
        )
        print(f"{title}, batch size {batch}: {n} removed, {1e3 * found.median:.2f} ms", flush=True)
    return {"network": title, "name": name, "batch": batch, "device": device, "points": points}


def draw(rows: Sequence[Mapping[str, Any]], stem: Path) -> None:
    """Latency kept against MACs kept, a line for each network and batch size."""
    top = max(100 * point["latency_kept"] for row in rows for point in row["points"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color="#8a8a8a", linestyle="--", linewidth=1)
        axes.annotate(
            "latency = MACs",
            (3, 3),
            xytext=(7, -7),
            textcoords="offset points",
            color="#6a6a6a",
            fontsize=8,
            rotation=45,
            rotation_mode="anchor",
        )
        for row in rows:
            points = row["points"]
            whole = points[0]["seconds"]["median"]
            x = [100 * point["macs_kept"] for point in points]
            y = [100 * point["latency_kept"] for point in points]
            below = [100 * (p["seconds"]["median"] - p["seconds"]["low"]) / whole for p in points]
            above = [100 * (p["seconds"]["high"] - p["seconds"]["median"]) / whole for p in points]
            one = row["batch"] == min(MARKERS)
            axes.errorbar(
                x,
                y,
                yerr=[below, above],
                color=COLORS[row["network"]],
                marker=MARKERS.get(row["batch"], "^"),
                markerfacecolor=COLORS[row["network"]] if one else "white",
                linestyle="-" if one else ":",
                markersize=5,
                linewidth=1.2,
                elinewidth=0.8,
                capsize=2,
                label=f"{row['network']}, batch size {row['batch']}",
            )
        axes.set_xlim(0, 103)
        axes.set_ylim(0, 1.03 * top)
        axes.set_aspect("equal")
        axes.set_xlabel("MACs kept (%)")
        axes.set_ylabel("latency kept (%)")
        axes.legend(loc="upper left", handlelength=2.4)
        figure.savefig(stem.with_suffix(".png"), dpi=200)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {stem.with_suffix('.png')} and .svg")


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--device", default="cpu", help="where to measure")
    options.add_argument(
        "--draw", action="store_true", help="draw the last result, measure nothing"
    )
    chosen = options.parse_args()
    stem = record.folder(chosen.quick) / "latency"
    if not chosen.draw:
        rows = [
            measure(
                title,
                name,
                counts[:3] if chosen.quick else counts,
                min(batch, 2) if chosen.quick else batch,
                3 if chosen.quick else RUNS[title, batch],
                chosen.device,
            )
            for title, name, counts in CASES
            for batch in (1, 64)
        ]
        settings = {
            "order": f"random, seed {SEED}; identity blocks only",
            "weights": f"fresh, seed {SEED}; gates folded",
            "device": chosen.device,
            "warm_up_rounds": 3,
        }
        record.write("latency", settings, rows, quick=chosen.quick)
    draw(json.loads(stem.with_suffix(".json").read_text())["rows"], stem)


if __name__ == "__main__":
    main()
