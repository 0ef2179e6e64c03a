"""Tables, sentences and progress for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from gatepruner.learning.moments import GateMoment, Moment
    from gatepruner.measuring.accuracy import Accuracy
    from gatepruner.measuring.cost import Cost
    from gatepruner.networks.network import Block
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.goals import Reach
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.compression import Step


class Terminal:
    """Says things on stdout, shows progress on stderr, or is quiet.

    Args:
        quiet: whether to show no progress.
        silent: whether stdout is for a JSON document alone.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        self.out = Console(highlight=False, soft_wrap=True, quiet=silent)
        self.err = Console(stderr=True, highlight=False, quiet=quiet)

    def say(self, *what: Any) -> None:
        """Print to stdout."""
        self.out.print(*what, markup=False)

    def track(self, description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        """A wrapper for an iterable that shows how far it is."""

        def wrapped(items: Iterable[Any]) -> Iterator[Any]:
            with self._progress() as progress:
                yield from progress.track(items, description=description)

        return wrapped

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
            disable=self.err.quiet or not self.err.is_terminal,
        )

    @contextmanager
    def training(self) -> Iterator[Callable[[Moment], None]]:
        """A watcher for a training run: a bar on a terminal, else a line for every epoch."""
        with self._progress() as progress:
            task = progress.add_task("training", total=None)

            def watch(moment: Moment) -> None:
                text = moment_text(moment)
                progress.update(task, completed=moment.step, total=moment.steps, description=text)
                if moment.ends_epoch and not self.err.is_terminal:
                    self.err.print(text)

            yield watch

    @contextmanager
    def gating(self) -> Iterator[Callable[[GateMoment], None]]:
        """A watcher for the learning of gates: a bar on a terminal, else a line for every block."""
        with self._progress() as progress:
            task = progress.add_task("learning gates", total=None)

            def watch(moment: GateMoment) -> None:
                text = f"learning gates, {moment.gone} gone  loss {moment.loss:.4f}"
                progress.update(task, completed=moment.step, total=moment.steps, description=text)
                if moment.block is not None and not self.err.is_terminal:
                    number = f"{moment.gone} of {moment.blocks}"
                    self.err.print(f"{number}: {moment.block}, loss {moment.loss:.4f}")

            yield watch


def path_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Blocks in the order in which they went, their gates then, and the loss without them."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "block", "gate", "loss"):
        table.add_column(column, justify="left" if column == "block" else "right")
    for number, record in enumerate(records, start=1):
        gate, loss = f"{record['gate']:.4f}", f"{record['loss']:.4f}"
        table.add_row(str(number), record["block"], gate, loss)
    return table


def moment_text(moment: Moment) -> str:
    """Loss, accuracy and mean gate of the epoch so far."""
    gate = "" if moment.gate is None else f"  mean gate {moment.gate:.3f}"
    held = "" if moment.validation is None else f"  held out {100 * moment.validation:.2f} %"
    return (
        f"epoch {moment.epoch}  loss {moment.loss:.4f}  "
        f"accuracy {100 * moment.accuracy:.2f} %{gate}{held}"
    )


def block_table(blocks: Sequence[Block], gates: Mapping[str, float]) -> Table:
    """Every block in the order of depth and what is left of it."""
    table = Table(box=None, pad_edge=False)
    for column in ("block", "stage", "shortcut", "branch"):
        table.add_column(column)
    table.add_column("gate", justify="right")
    for block in blocks:
        shortcut = "identity" if block.identity else "changes shape"
        branch = ", ".join(_runs(block.layers))
        gate = gates.get(block.name)
        table.add_row(
            block.name,
            block.stage,
            shortcut if block.shortcut else "removed",
            branch if block.branch else "removed",
            "" if gate is None else f"{gate:.4f}",
        )
    return table


def _runs(layers: Sequence[str]) -> list[str]:
    """`["2 Conv2d", "ReLU"]` for two convolutions and a ReLU: each kind once."""
    counts = {layer: layers.count(layer) for layer in layers}
    return [layer if count == 1 else f"{count} {layer}" for layer, count in counts.items()]


def ranking_table(ranking: Ranking, gates: Mapping[str, float], limit: int | None = None) -> Table:
    """Blocks in the order in which they are to go."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("block")
    table.add_column("gate", justify="right")
    if ranking.criterion != "gate":
        table.add_column(ranking.criterion, justify="right")
    for position, (name, score) in enumerate(ranking.scores[:limit], start=1):
        gate = gates.get(name)
        row = [str(position), name, "" if gate is None else f"{gate:.4f}"]
        table.add_row(*row, *([f"{score:g}"] if ranking.criterion != "gate" else []))
    return table


def curve_table(points: Sequence[Point], baseline: Sequence[Sequence[Point]]) -> Table:
    """The removal curve, about twenty of its points."""
    table = Table(box=None, pad_edge=False)
    for column in ("removed", "accuracy", "95 % interval", "random", "MACs kept"):
        table.add_column(column, justify="right")
    step = max(1, round(len(points) / 20))
    for index, point in enumerate(points):
        if index % step and point is not points[-1]:
            continue
        low, high = point.accuracy.interval
        others = [curve[index].accuracy.accuracy for curve in baseline if index < len(curve)]
        table.add_row(
            str(point.removed),
            f"{100 * point.accuracy.accuracy:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{100 * sum(others) / len(others):.1f} %" if others else "",
            f"{point.cost.macs / points[0].cost.macs:.0%}",
        )
    return table


def accuracy_text(found: Accuracy) -> str:
    """`91.5 % (89.6 to 93.1, 915 of 1,000 images), loss 0.3842`."""
    low, high = found.interval
    return (
        f"{100 * found.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}, "
        f"{found.correct:,} of {found.images:,} images), loss {found.loss:.4f}"
    )


def change_table(before: tuple[int, Cost], after: tuple[int, Cost]) -> Table:
    """Blocks, parameters and MACs before and after."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", "after", "kept"):
        table.add_column(column, justify="left" if not column else "right")
    for what, old, new in (
        ("blocks", before[0], after[0]),
        ("parameters", before[1].params, after[1].params),
        ("MACs", before[1].macs, after[1].macs),
    ):
        table.add_row(what, f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else "")
    return table


def latency_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Measured times side by side."""
    parts = [
        f"{name} {1e3 * it['median']:.2f} ms ({1e3 * it['low']:.2f} to {1e3 * it['high']:.2f})"
        for name, it in found.items()
    ]
    one = next(iter(found.values()))
    return (
        f"latency, median and quartiles of {one['runs']} interleaved runs, batch size "
        f"{one['batch']}, {one['device']}: {', '.join(parts)}"
    )


def reached_text(found: Reach, removed: int) -> str:
    """What a target of cost takes."""
    limit = found.target.text(found.target.limit(found.whole), found.whole)
    return f"target: {limit}, reached without {removed} blocks"


def loss_text(points: Sequence[Point], removed: int, loss: float) -> str:
    """What a target of accuracy allows."""
    whole, worst = points[0].accuracy, points[-1].accuracy
    chosen = next(point for point in points if point.removed == removed).accuracy
    return (
        f"reachable: accuracy on {whole.images:,} held-out training images from "
        f"{100 * worst.accuracy:.1f} % ({points[-1].removed} blocks removed) to "
        f"{100 * whole.accuracy:.1f} %\n"
        f"target: at most {loss:g} points lower, kept without {removed} blocks "
        f"({100 * chosen.accuracy:.1f} %)"
    )


def step_text(step: Step) -> str:
    """What a step of a compression has left, in one line."""
    return (
        f"{step.name}: {step.blocks} blocks, {step.macs:,} MACs, accuracy "
        f"{100 * step.accuracy:.2f} % ({100 * step.low:.1f} to {100 * step.high:.1f}), "
        f"{step.seconds:.1f} s"
    )


def steps_table(steps: Sequence[Step]) -> Table:
    """Every step of a compression."""
    table = Table(box=None, pad_edge=False)
    for column in ("step", "blocks", "accuracy", "MACs", "parameters", "latency", "time"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step in steps:
        table.add_row(
            step.name,
            str(step.blocks),
            f"{100 * step.accuracy:.2f} %",
            f"{step.macs / steps[0].macs:.1%}",
            f"{step.params / steps[0].params:.1%}",
            f"{1e3 * (step.latency or 0.0):.2f} ms",
            f"{step.seconds:.1f} s",
        )
    return table
