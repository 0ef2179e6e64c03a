"""The content of `report.html` for a compression: a state for every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatepruner.compression.record import Compressed, StepRecord
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.edits import Edits
from gatepruner.networks.network import Network
from gatepruner.pruning.widths import left_of_widths
from gatepruner.report.html.page import Curve, Page, State
from gatepruner.report.numbers import percent
from gatepruner.report.tables import loading_call

MEASURES = {"accuracy": "top-1 accuracy", "agreement": "agreement with the whole network"}


def compression_page(
    compressed: Compressed, directory: Path, conditions: Mapping[str, Any]
) -> Page:
    """The page of a compression.

    Args:
        compressed: its result.
        directory: the folder that keeps the network of every step.
        conditions: what the numbers depend on.
    """
    steps, network = compressed.steps, _whole(compressed)
    whole, last = steps[0], steps[-1]
    engine = str(conditions.get("latency", conditions.get("device", "")))
    curve = Curve(
        name="steps",
        label=f"{MEASURES[last.measure]} after every step, 95 % interval",
        spread="95 % interval",
        order=compressed.removed,
        states=[_state(compressed, step, directory, engine) for step in steps],
    )
    return Page(
        title=f"{conditions.get('network', network)}: compression, step by step",
        lead=[
            f"Removed {len(compressed.removed)} of {whole.blocks} blocks. "
            f"{MEASURES[last.measure].capitalize()}: {percent(whole.share)} before, "
            f"{percent(last.share)} after (n = {last.images:,}).",
            *([] if compressed.target is None else [f"Latency {compressed.target}."]),
        ],
        measure=MEASURES[last.measure],
        axis="step",
        ticks={index: step.name for index, step in enumerate(steps)},
        blocks=network.blocks,
        gates=compressed.checkpoint.known_gates,
        curves=[curve],
        start=len(steps) - 1,
        ranked=False,
        how="To load this network in Python",
        conditions=conditions,
    )


def _whole(compressed: Compressed) -> Network:
    """The network that the compression began with."""
    network = compressed.checkpoint.network
    before = tuple(name for name in network.edits.removed if name not in compressed.removed)
    edits = Edits(removed=before, shortcuts_removed=network.edits.shortcuts_removed)
    return Network(network.base, edits)


def _state(compressed: Compressed, step: StepRecord, directory: Path, engine: str) -> State:
    smaller = step.macs < compressed.steps[0].macs
    median = step.latency
    low, high = step.latency_low or 0.0, step.latency_high or 0.0
    return State(
        title=step.name,
        removed=len(compressed.removed) if smaller else 0,
        share=step.share,
        low=step.low,
        high=step.high,
        macs=step.macs,
        params=step.params,
        latency={} if median is None else {engine: (low, median, high)},
        command=_loading(directory / f"{step.name}.pt", compressed.checkpoint),
        left=left_of_widths(compressed.checkpoint.network) if smaller else {},
    )


def _loading(path: Path, checkpoint: Checkpoint) -> str:
    """How to load a step's network, if it was kept."""
    if not path.is_file():
        return ""
    return f"import gatepruner; module = {loading_call(str(path), checkpoint)}"
