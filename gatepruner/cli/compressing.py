"""`compress`: from a trained network and a goal to a smaller network, in one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.changing import write_export
from gatepruner.cli.foretelling import LEARNING, Work, foretell
from gatepruner.cli.goals import GOALS, Goals, reached_text
from gatepruner.cli.keeping import stopping
from gatepruner.cli.learning import (
    gating_work,
    held_out_fifth,
    read,
    training_work,
    warn_of_misfit,
)
from gatepruner.cli.options import Data, HoldOut, Resumable, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.several import writes
from gatepruner.cli.signature import Group
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import DataError
from gatepruner.learning.recipes import CHOICES, FINE_TUNING, GateRecipe, Recipe
from gatepruner.processes import agreed

if TYPE_CHECKING:
    from gatepruner.files.quantization import Calibration
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.network import Network
    from gatepruner.pruning.goals import Goal
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Steps:
    """Steps.

    Attributes:
        gate_images: training images to learn gates from.
        recalibrate: training images to estimate batch-norm statistics from; 0 leaves this out.
        epochs: epochs of fine-tuning; by default 10, or as many as take 400 steps if there are few
            images; 0 leaves this out.
        export: also write this file for other software: .onnx, .pt2, .xml for OpenVINO,
            .safetensors, or .pth for the stock class of torchvision or timm.
        int8: write the export, an ONNX file, in 8-bit integers, calibrated on training images.
        least_agreement: smallest fraction of these images that must stay in the same class in 8-bit
            integers; 0 accepts any.
    """

    gate_images: Annotated[int, typer.Option(min=2)] = CompressionRecipe.gate_images
    recalibrate: Annotated[int, typer.Option(min=0)] = CompressionRecipe.recalibrate
    epochs: Annotated[int | None, typer.Option(min=0)] = None
    export: Path | None = None
    int8: Annotated[bool, typer.Option("--int8")] = False
    least_agreement: Annotated[float, typer.Option(min=0, max=1)] = 0.95

    def format(self, network: Network) -> str | None:
        """The format to export to, if any."""
        from gatepruner.files.formats import format_of

        return format_of(self.export, network) if self.export is not None else None

    def check(self, network: Network) -> None:
        """Refuse an export that cannot be made, before any work is done."""
        from gatepruner.files.formats import (
            check_format,
            check_quantizable,
            check_whole_blocks,
            rehearse,
        )

        to = self.format(network)
        if self.export is not None and to is not None:
            check_format(to, self.export, network)
            check_whole_blocks(to, network)
            if self.int8:
                check_quantizable(to)
            rehearse(to, network)
        elif self.int8:
            raise typer.BadParameter("--int8 says how to write an ONNX file: give --export, too")

    def calibration(self, train: Images, normalization: Normalization) -> Calibration | None:
        """What to quantise the export with, if that is asked for."""
        from gatepruner.files.quantization import IMAGES, Calibration

        if not self.int8:
            return None
        return Calibration(train.spread(IMAGES), normalization, self.least_agreement)

    def recipe(self, gating: GateRecipe, tuning: Recipe, network: Network) -> CompressionRecipe:
        """How to compress."""
        from gatepruner.files.formats import FORMATS

        to = self.format(network)
        gating = replace(gating, identity_only=to is not None and FORMATS[to].identity_only)
        batch = min(tuning.batch_size, gating.batch_size)
        tuned = replace(tuning, epochs=self.epochs, batch_size=batch) if self.epochs != 0 else None
        trial = CompressionRecipe.trial if tuning.learning_rate is None else 0
        return CompressionRecipe(gating, tuned, self.gate_images, self.recalibrate, 0, trial)


GATING = {
    "units": "units",
    "multiple": "multiple",
    "warmup": "gate_warmup",
    "steps": "gate_steps",
    "learning_rate": "gate_learning_rate",
    "norm_learning_rate": "norm_learning_rate",
    "latency_batch": "latency_batch",
    "engine": "engine",
    "threads": "threads",
    "batch_size": "batch_size",
    "micro_batch_size": "micro_batch_size",
    "amp": "amp",
    "seed": "seed",
}
IMAGES = Data(batch_size=GateRecipe.batch_size)
TUNING = {name: name for name in ("match", "learning_rate", "micro_batch_size", "amp", "seed")}


def compress(
    source: Source,
    *,
    goals: Goals,
    call: Annotated[Resumable, Group(needs=("output",))],
    data: Annotated[Data, Group(needs=("data",))] = IMAGES,
    steps: Steps,
    gating: Annotated[GateRecipe, Group(only=GATING, words=CHOICES)],
    tuning: Annotated[Recipe, Group(only=TUNING, words=CHOICES)] = FINE_TUNING,
    held: HoldOut,
) -> None:
    """Gate, remove, fold, recalibrate, fine-tune, evaluate, export and report, in one go.

    The folder OUTPUT-compress beside the output keeps the network of every step, and the report.
    Interrupted or killed, it continues with `--resume`.

    Example: `gatepruner compress resnet56.th --data imagefolder:cifar10 --target-latency 50%
    -o small.pt`
    """
    from gatepruner.compression.compress import compress as compressed
    from gatepruner.compression.compress import refuse, refuse_unreachable, removal_checks
    from gatepruner.files.checkpoints import save
    from gatepruner.files.formats import format_of
    from gatepruner.files.writing import refuse_existing
    from gatepruner.learning.units import meter_of
    from gatepruner.measuring.device import pick_device
    from gatepruner.report.compression import write_compression
    from gatepruner.report.tables import loading_text, steps_table

    goal = goals.goal
    if goal is None:
        raise typer.BadParameter(f"give one of {GOALS}")
    if goal.kind == "loss" and not held.hold_out:
        raise typer.BadParameter("--max-loss is measured on held-out images: --hold-out above 0")
    output = call.target(source.ckpt, "")
    exports = [steps.export] if steps.export else []
    folder = output.with_name(f"{output.stem}-compress")
    problems = Problems()
    begun = call.resume and agreed((folder / "steps.json").exists)
    call.check([output], problems, resume=begun)
    for export in exports:
        with problems:
            refuse_existing(export, force=call.force or begun)
    whole = read(source, data, problems, gating.amp)
    with problems:  # before images are decoded, which may take minutes
        asked = steps.recipe(gating, tuning, whole.network).gating
        for check in removal_checks(goal, whole.network, asked):
            with problems:
                check()
    train, held_out, test = _images(whole, data, held, steps, call.terminal, problems)
    recipe = steps.recipe(gating, tuning, whole.network).fitted(len(train))
    if call.dry_run:
        refuse(whole, train, goal, recipe, test, held_out)
        meter = meter_of(whole.network, recipe.gating, pick_device(data.device))
        refuse_unreachable(goal, recipe, meter)
        works = _works(whole, train, test, goal, recipe)
        how = replace(data, batch_size=recipe.at_once(data.batch_size))
        return foretell(call, whole, [output, folder, *exports], works, how)
    warn_of_misfit(source.ckpt, whole, train, data)
    for line in _remarks(whole, train, recipe):
        call.terminal.say(line)
    normalization = data.normalization(whole, test, call.terminal)
    with stopping(folder / "steps.json"), call.terminal.watching() as watch:
        result = compressed(
            whole,
            train,
            goal,
            recipe,
            test=test,
            held_out=held_out,
            normalization=normalization,
            device=data.device,
            folder=folder,
            resume=call.resume,
            force=call.force,
            watch=_watch(watch, call.terminal),
            track=call.terminal.track,
            on_stop=call.terminal.stopping,
        )
    if not writes():
        return None
    save(result.checkpoint, output, force=True)
    report = write_compression(result, folder)
    call.record(output)
    call.terminal.say(steps_table(result.steps))
    if result.target is not None:
        call.terminal.say(str(result.target))
    call.terminal.say(f"wrote {output} and {report}\n{loading_text(str(output), whole)}")
    exported: dict[str, Any] = {}
    for export in exports:  # last: in 8-bit integers it may be refused
        to, calibration = format_of(export, whole.network), steps.calibration(train, normalization)
        again = replace(call, force=True)
        exported = {"export": write_export(result.checkpoint, export, to, again, calibration)}
    done = {"output": str(output), "removed": list(result.removed)}
    records = [asdict(record) for record in result.steps]
    target = {"target": result.target.to_json()} if result.target is not None else {}
    configuration = dict(result.configuration)
    return call.finish(
        {**done, "steps": records, "configuration": configuration, **target, **exported}
    )


def _images(
    whole: Checkpoint,
    data: Data,
    held: HoldOut,
    steps: Steps,
    terminal: Terminal,
    problems: Problems,
) -> tuple[Images, Images | None, Images]:
    """Images to learn from, those held out, and those that accuracy is measured on."""
    from gatepruner.images.readers import has_split

    with problems:
        steps.check(whole.network)
    with problems:
        train = data.training_listed(whole, terminal)
        if train is None:
            raise DataError(f"{data.data} has no train split: compress learns from training images")
        apart = data.split or has_split(data.data, "test") or has_split(data.data, "val")
        test = data.listed(whole, terminal) if apart else None
    problems.refuse()
    assert train is not None
    train, held_out = held_out_fifth(train, held, terminal)
    if steps.epochs != 0:  # else only some of them are learned from
        train = data.kept(train, terminal)
    held_out = None if held_out is None else data.kept(held_out, terminal)
    test = None if test is None else data.kept(test, terminal)
    if test is None:
        test = train if held_out is None else held_out
        measure = "accuracy" if test.labelled else "agreement"
        chosen = ", on which the best state is chosen, too" if held_out is not None else ""
        measured = f"{measure} is measured on {len(test):,} of these{chosen}"
        terminal.say(f"{data.data} has no other images: {measured}")
    return train, held_out, test


def _remarks(whole: Checkpoint, train: Images, recipe: CompressionRecipe) -> list[str]:
    """What a user should know of the images and the network before it begins."""
    from gatepruner.learning.learner import matched
    from gatepruner.networks.norms import statistics

    remarks = []
    if recipe.tuning is not None:
        what = matched(recipe.tuning.match, whole.network, whole)
        remarks.append(f"recovery matches {what} of the whole network")
    if recipe.recalibrate and not statistics(whole.network.build_blank()):
        remarks.append(f"{whole.network} has no batch norm: there is nothing to recalibrate")
    if train.labelled and len(set(train.labels.tolist())) == 1 and whole.network.num_classes > 1:
        remarks.append(
            f"all {len(train):,} training images are of one class: the smaller network may forget "
            "the others; add pictures of them, they need no labels"
        )
    return remarks


def _works(
    whole: Checkpoint, train: Images, test: Images, goal: Goal, recipe: CompressionRecipe
) -> list[Work]:
    """What a compression would do; for a cost, as if all blocks were on the path."""
    blocks = int(goal.amount) if goal.kind == "blocks" else None
    learned = train.spread(recipe.gate_images)
    works = [gating_work(whole, learned, replace(recipe.gating, blocks=blocks))]
    if recipe.tuning is not None:
        if recipe.trial:
            steps = 2 * recipe.trial
            seen = steps * recipe.tuning.batch_size
            works.append(Work(f"try two recipes, {steps} steps", seen * (LEARNING + 1)))
        works.append(training_work(train, recipe.tuning, "fine-tune", taught=True))
    return [*works, Work(f"measure networks on {len(test):,} images", 6 * len(test))]


def _watch(show: Callable[[Any], None], terminal: Terminal) -> Callable[[Any], None]:
    """Says what each step has left and what the goal takes, and shows where long steps are."""
    from gatepruner.compression.record import Choice, StepRecord, Trial
    from gatepruner.pruning.goals import Reach
    from gatepruner.report.tables import step_text

    def watch(event: Any) -> None:
        if isinstance(event, StepRecord):
            terminal.say(step_text(event))
        elif isinstance(event, Reach):
            terminal.say(reached_text(event))
        elif isinstance(event, Trial):
            terminal.say(f"trying {event.recipe} for {event.steps} steps")
        elif isinstance(event, Choice):
            found = ", ".join(f"{name} {one:.3f}" for name, one in event.gaps.items())
            terminal.say(f"{event.what}: {event.best} (distance on held-out images: {found})")
        else:
            show(event)

    return watch
