"""`inspect`, `rank` and `evaluate`: commands that only look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.completion import criterion_words
from gatepruner.cli.learning import read_subject
from gatepruner.cli.measuring import Timing
from gatepruner.cli.options import COMMON, Call, Data, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group
from gatepruner.errors import DataError
from gatepruner.learning.recipes import CHOICES, GateRecipe
from gatepruner.pruning.criteria import CRITERIA

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Looks:
    """What else to show.

    Attributes:
        units: show the inner widths of blocks, how many channels can go, and why others cannot.
        multiple: channels of a slice, 1 to 32.
    """

    units: bool = False
    multiple: Annotated[int, typer.Option(min=1, max=32)] = GateRecipe.multiple


def inspect(
    source: Source, *, looks: Looks, call: Annotated[Call, Group(leave_out=("quiet",))]
) -> None:
    """Show what a checkpoint holds: its network, blocks, gates, cost and history.

    Example: `gatepruner inspect resnet56.th`

    Example: `gatepruner inspect resnet56.th --units`
    """
    from gatepruner.measuring.cost import count
    from gatepruner.pruning.groups import widths_of
    from gatepruner.pruning.widths import left_of_widths
    from gatepruner.report.tables import block_table, history_text, path_text, units_text

    checkpoint = source.read()
    network, cost = checkpoint.network, count(checkpoint.network)
    gates, shape = checkpoint.known_gates, "x".join(map(str, checkpoint.network.base.input_shape))
    call.terminal.say(f"{source.ckpt}: {network}, images of {shape}")
    call.terminal.say(f"{network.depth} blocks, {cost.params:,} parameters, {cost.macs:,} MACs")
    call.terminal.say(block_table(network.blocks, gates, left_of_widths(network)))
    units: dict[str, Any] = {}
    if looks.units:
        widths = widths_of(network)
        call.terminal.say(units_text(widths, looks.multiple))
        found = [
            {
                "name": width.name,
                "home": width.home,
                "kind": width.kind,
                "size": width.size,
                "channels": width.channels,
                "step": width.step(looks.multiple),
            }
            for width in widths.found.values()
        ]
        units = {"widths": found, "fixed": dict(widths.others)}
    if checkpoint.path:
        call.terminal.say(path_text(checkpoint.path.blocks))
    if network.base.source == "caller":
        call.terminal.say(f"module: {checkpoint.notes.get('module', 'not recorded')}")
    for done in checkpoint.notes.get("history", ()):
        call.terminal.say(history_text(done))
    call.finish(
        {
            "input": str(source.ckpt),
            "name": str(network),
            "network": network.to_json(),
            "blocks": [{**vars(block), "gate": gates.get(block.name)} for block in network.blocks],
            "kept_whole": dict(network.kept),
            "params": cost.params,
            "macs": cost.macs,
            "notes": dict(checkpoint.notes),
            "path": checkpoint.path.records,
            **units,
        }
    )


@dataclass(frozen=True)
class Criterion:
    """Order of removal.

    Attributes:
        criterion_images: training images that a criterion looks at, if it needs any.
        seed: seed of all random choices.
    """

    by: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMMON,
            metavar="CRITERION",
            autocompletion=criterion_words,
            help=f"Criterion: {', '.join(CRITERIA)}.",
        ),
    ] = "gate"
    criterion_images: Annotated[int, typer.Option(min=1)] = 1000
    seed: Annotated[int, typer.Option(rich_help_panel=COMMON)] = 0

    def ranking(
        self,
        checkpoint: Checkpoint,
        data: Data,
        terminal: Terminal,
        saved: Mapping[str, float] | None = None,
    ) -> Ranking:
        """The blocks of a network, least important first."""
        from gatepruner.pruning.ranking import rank

        images = criterion_images([self.by], self.criterion_images, checkpoint, data, terminal)
        return rank(
            checkpoint,
            self.by,
            images,
            seed=self.seed,
            saved=saved,
            **data.how,
            track=terminal.track(f"ranking by {self.by}"),
        )


def criterion_images(
    criteria: Sequence[str], limit: int, checkpoint: Checkpoint, data: Data, terminal: Terminal
) -> Images | None:
    """Training images for criteria that look at some."""
    needing = [name for name in criteria if name in CRITERIA and CRITERIA[name].needs == "images"]
    labels = any(CRITERIA[name].labels for name in needing)
    images = data.training(checkpoint, terminal, limit, labels=labels) if needing else None
    if needing and images is None:
        raise DataError(
            f"--by {needing[0]} looks at training images: give --data with a train split"
        )
    return images


def rank(
    source: Source,
    *,
    criterion: Criterion,
    call: Call,
    data: Annotated[Data, Group(leave_out=("split", "limit"))],
) -> None:
    """List the blocks that can be removed, least important first.

    Example: `gatepruner rank gated.pt`

    Example: `gatepruner rank resnet56.th --by taylor --data imagefolder:cifar10`
    """
    from gatepruner.report.tables import ranking_table

    checkpoint = source.read()
    ranking = criterion.ranking(checkpoint, data, call.terminal)
    gates = checkpoint.known_gates
    call.terminal.say(ranking_table(ranking, gates))
    blocks = [
        {"name": name, "gate": gates.get(name), "score": score} for name, score in ranking.scores
    ]
    asked = {"criterion": criterion.by, "seed": criterion.seed}
    call.finish({"input": str(source.ckpt), **asked, "blocks": blocks})


def evaluate(
    source: Source,
    *,
    call: Call,
    data: Annotated[Data, Group(needs=("data",))],
    timing: Annotated[Timing, Group(words=CHOICES)],
) -> None:
    """Measure top-1 accuracy, with its 95 % interval, and mean loss; with `--latency` that, too.

    Takes ONNX files, too, such as those of `export --int8`.

    Example: `gatepruner evaluate resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.bench import check_engines
    from gatepruner.report.tables import accuracy_text, latency_text

    problems = Problems()
    timing.check(problems)
    checkpoint = read_subject(source, data, problems)
    if timing.latency:
        check_engines({str(source.ckpt): checkpoint}, [timing.engine])
    images = data.images(checkpoint, call.terminal)
    normalization = data.normalization(checkpoint, images, call.terminal)
    counted = accuracy(checkpoint, images, **data.how, track=call.terminal.track("evaluating"))
    call.terminal.say(accuracy_text(counted))
    times: dict[str, Any] = {}
    if timing.latency:
        times = {"latency": asdict(timing.latency_of(checkpoint, data, call.terminal))}
        call.terminal.say(latency_text({str(source.ckpt): times["latency"]}))
    chosen = {
        "mean": normalization.mean,
        "std": normalization.std,
        "source": normalization.source,
    }
    call.finish(
        {
            "input": str(source.ckpt),
            "data": images.source,
            "normalize": chosen,
            "scaling": images.resize.to_json() if images.resize is not None else None,
            **counted.to_json(),
            **times,
        }
    )
