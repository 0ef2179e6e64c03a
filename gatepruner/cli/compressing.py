"""`compress`: from a trained network and a goal to a smaller network, in one command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli import options as o
from gatepruner.cli.changing import curves
from gatepruner.cli.goals import Goal
from gatepruner.cli.keeping import stopping
from gatepruner.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from gatepruner.checkpoint import Checkpoint
    from gatepruner.curve import Point
    from gatepruner.data import Images, Normalization
    from gatepruner.report.compression import Step
    from gatepruner.report.terminal import Terminal


@dataclass
class _Work:
    """The folder in which a compression keeps what is done, to go on from where it stopped.

    Attributes:
        folder: where.
        configuration: what has to be the same for it to be gone on with.
        evaluated: a network as a step, on the test images.
        terminal: where to say it.
        rows: the steps done.
    """

    folder: Path
    configuration: dict[str, Any]
    evaluated: Callable[[str, Checkpoint, float], Step]
    terminal: Terminal
    rows: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, *, resume: bool, force: bool) -> None:
        """Make the folder, or read what was done in it."""
        kept = self.folder / "steps.json"
        if kept.exists() and not resume and not force:
            raise CheckpointError(
                f"{self.folder} holds a compression: --resume to go on with it, or --force to "
                "begin anew"
            )
        if not resume:
            self.folder.mkdir(exist_ok=True)
            for file in ("steps.json", "gated.pt.state", "fine-tuned.pt.state"):
                (self.folder / file).unlink(missing_ok=True)
            return
        if not kept.exists():
            raise CheckpointError(f"there is no compression to resume: {kept} is not there")
        found = json.loads(kept.read_text())
        other = [
            key for key, it in self.configuration.items() if found["configuration"].get(key) != it
        ]
        if other:
            raise CheckpointError(
                f"{self.folder} is of another compression, its {' and '.join(other)} differ: give "
                "the options of that one, or leave out --resume and give another --output"
            )
        self.rows = found["steps"]

    def step(self, name: str, make: Callable[[], Checkpoint]) -> Checkpoint:
        """The network that a step makes: made, kept and evaluated, or read if that was done."""
        from gatepruner.checkpoint import load, save
        from gatepruner.report.compression import Step
        from gatepruner.report.terminal import step_text

        path = self.folder / f"{name}.pt"
        done = next((row for row in self.rows if row["name"] == name), None)
        if done is not None:
            self.terminal.say(step_text(Step(**done)))
            return load(path)
        start = time.monotonic()
        made = make()
        row = self.evaluated(name, made, time.monotonic() - start)
        save(made, path, force=True)
        self.rows.append(asdict(row))
        self.write()
        (self.folder / f"{name}.pt.state").unlink(missing_ok=True)
        self.terminal.say(step_text(row))
        return made

    def state(self, name: str) -> tuple[Path, bool]:
        """Where the state of a long step is kept, and whether there is one to go on from."""
        path = self.folder / f"{name}.pt.state"
        return path, path.exists()

    def write(self) -> None:
        """Keep what is done, whole or not at all."""
        partial = self.folder / ".steps.json.part"
        partial.write_text(
            json.dumps({"configuration": self.configuration, "steps": self.rows}, indent=1) + "\n"
        )
        partial.replace(self.folder / "steps.json")


def compress(
    ckpt: o.File,
    data: o.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    drop: Annotated[o.MaybeInt, typer.Option(help="Remove this many blocks.", min=1)] = None,
    target_macs: o.TargetMacs = None,
    target_params: o.TargetParams = None,
    target_latency: o.TargetLatency = None,
    max_loss: o.MaxLoss = None,
    epochs: Annotated[int, typer.Option(help="Of fine-tuning; 0 for none.", min=0)] = 10,
    gate_images: Annotated[int, typer.Option(help="Images to learn gates from.", min=2)] = 10_000,
    gate_steps: Annotated[int, typer.Option(help="Steps after each block's going.", min=1)] = 50,
    learning_rate: Annotated[float, typer.Option(help="Of fine-tuning.")] = 0.02,
    recalibrate: o.Recalibrate = 2000,
    hold_out: o.HoldOut = 1000,
    export: Annotated[
        o.MaybePath,
        typer.Option(help="Also write this .safetensors, or .pth for stock torchvision."),
    ] = None,
    split: o.Split = None,
    limit: o.Limit = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    latency_batch: o.LatencyBatch = 1,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Gate, remove, fold, recalibrate, fine-tune, evaluate, export and report, in one go.

    The folder OUTPUT-compress beside the output keeps the network of every step, and the report.
    Interrupted or killed, it goes on with `--resume`.

    Example: `gatepruner compress resnet56.th --data imagefolder:cifar10 --target-latency 50%
    -o small.pt`
    """
    from gatepruner.checkpoint import save
    from gatepruner.storage import refuse_existing, refuse_name

    goal = Goal(target_macs, target_params, target_latency, max_loss, device, latency_batch)
    if (drop is None) == (not goal.given):
        raise typer.BadParameter(
            "give one of --drop, --target-macs, --target-params, --target-latency and --max-loss"
        )
    refuse_name(output)
    for file in (output, *([export] if export else [])):
        refuse_existing(file, force=force or resume)
    terminal = o.terminal_of(quiet, as_json)
    whole = o.read(ckpt, arch, num_classes, input_size)
    if goal.target is not None:
        _refuse_unreachable(whole, goal, terminal)
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    shape = whole.network.base.input_shape
    train = measuring.training(shape, terminal)
    if train is None:
        raise DataError(f"{data} has no train split: compress learns from training images")
    train, held_out = train.held_out(hold_out, seed)
    test = measuring.images(shape, terminal)
    normalization = measuring.normalization(whole, test, terminal)
    learning = _Learning(
        goal, drop, train, held_out, normalization, device, batch_size, seed, terminal
    )
    configuration = {
        "input": str(ckpt),
        "network": whole.fingerprint,
        "goal": f"drop{drop}" if drop is not None else goal.given[0],
        "training images": f"{train.source}, {len(train)}",
        "test images": f"{test.source}, {len(test)}",
        "gate_images": gate_images,
        "gate_steps": gate_steps,
        "recalibrate": recalibrate,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
    }
    folder = output.with_name(f"{output.stem}-compress")

    def evaluated(name: str, network: Checkpoint, seconds: float) -> Step:
        return _evaluated(name, network, seconds, test, normalization, measuring, terminal)

    work = _Work(folder, configuration, evaluated, terminal)
    work.begin(resume=resume, force=force)
    with stopping(folder / "steps.json"):
        work.step("whole", lambda: whole)
        gated = work.step(
            "gated", lambda: learning.gated(whole, gate_images, gate_steps, work.state("gated"))
        )
        removed = work.step("removed", lambda: learning.removed(gated))
        small = work.step("folded", lambda: learning.folded(removed))
        if recalibrate:
            small = work.step("recalibrated", lambda: learning.recalibrated(small, recalibrate))
        if epochs:
            state = work.state("fine-tuned")
            small = work.step(
                "fine-tuned",
                lambda: learning.tuned(small, whole, epochs, learning_rate, state),
            )
        steps = _timed(work, whole, removed, small, goal, terminal)
    save(small, output, force=True)
    if export is not None:
        _export(small, export, terminal)
    _report(steps, configuration, folder, output, terminal)
    o.finish({"output": str(output), "steps": [asdict(step) for step in steps]}, as_json)


@dataclass(frozen=True)
class _Learning:
    """The steps of a compression, each from one network to the next."""

    goal: Goal
    drop: int | None
    train: Images
    held_out: Images | None
    normalization: Normalization
    device: str
    batch_size: int
    seed: int
    terminal: Terminal

    def gated(
        self, whole: Checkpoint, images: int, steps: int, state: tuple[Path, bool]
    ) -> Checkpoint:
        """With gates, and as much of the path as the goal can take."""
        from gatepruner.gates import GateRecipe, learn_gates

        target = self.goal.target
        recipe = GateRecipe(
            blocks=self._blocks(whole),
            steps=steps,
            batch_size=self.batch_size,
            cost=target.cost if target is not None else "none",
            seed=self.seed,
        )
        with self.terminal.gating() as watch:
            return learn_gates(
                whole,
                self.train.spread(images),
                recipe,
                normalization=self.normalization,
                device=self.device,
                state=state[0],
                resume=state[1],
                watch=watch,
            )

    def _blocks(self, whole: Checkpoint) -> int | None:
        """The most blocks that may have to go; `None` for all."""
        from gatepruner.cost import savings
        from gatepruner.targets import most_needed

        target = self.goal.target
        if target is None:
            return self.drop
        measure = self.goal.measure(target.cost)
        (cost,) = measure([whole.network])
        saved = savings(whole.network, target.cost, measure.device, measure.batch)
        spare = 3 if target.cost == "latency" else 0  # its measurements scatter
        needed = most_needed(cost, target.limit(cost), saved) + spare
        return max(1, needed) if needed < len(saved) else None

    def removed(self, gated: Checkpoint) -> Checkpoint:
        """Without the blocks that the goal asks for."""
        from gatepruner.surgery import follow

        ranking = self.goal.ranking(gated, "gate", self.seed)
        if self.drop is not None:
            return follow(gated, ranking.first(self.drop))
        if self.goal.target is None and self.held_out is None:
            raise DataError("--max-loss is measured on held-out images: --hold-out above 0")

        def curve() -> list[Point]:
            assert self.held_out is not None
            return curves(
                gated,
                [ranking],
                self.held_out,
                self.normalization,
                self.terminal,
                device=self.device,
                batch_size=self.batch_size,
            )[0]

        return follow(gated, ranking.first(self.goal.count(gated, ranking, curve, self.terminal)))

    def folded(self, removed: Checkpoint) -> Checkpoint:
        """Without a gate."""
        from gatepruner.surgery import fold_gates

        return fold_gates(removed)

    def recalibrated(self, small: Checkpoint, images: int) -> Checkpoint:
        """With the statistics of so many training images."""
        from gatepruner.recalibration import recalibrate

        return recalibrate(
            small,
            self.train.spread(images),
            device=self.device,
            normalization=self.normalization,
            track=self.terminal.track("recalibrating"),
        )

    def tuned(
        self,
        small: Checkpoint,
        teacher: Checkpoint,
        epochs: int,
        learning_rate: float,
        state: tuple[Path, bool],
    ) -> Checkpoint:
        """With all weights trained further, the whole network being the teacher."""
        from gatepruner.training import FINE_TUNING, finetune

        recipe = replace(
            FINE_TUNING,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        with self.terminal.training() as watch:
            return finetune(
                small,
                self.train,
                recipe,
                teacher=teacher,
                normalization=self.normalization,
                device=self.device,
                state=state[0],
                resume=state[1],
                watch=watch,
            )


def _refuse_unreachable(whole: Checkpoint, goal: Goal, terminal: Terminal) -> None:
    """Refuse a cost that cannot be reached before anything is learned; say what can."""
    from gatepruner.ranking import rank
    from gatepruner.targets import reach

    target = goal.target
    assert target is not None
    measure = goal.measure(target.cost)
    found = reach(whole.network, rank(whole, "depth"), target, measure)
    terminal.say(f"reachable: {found}")


def _evaluated(
    name: str,
    network: Checkpoint,
    seconds: float,
    test: Images,
    normalization: Normalization,
    measuring: o.Measuring,
    terminal: Terminal,
) -> Step:
    from gatepruner.cost import count
    from gatepruner.evaluate import accuracy
    from gatepruner.report.compression import Step

    found = accuracy(
        network,
        test,
        device=measuring.device,
        batch_size=measuring.batch_size,
        normalization=normalization,
        track=terminal.track(f"accuracy, {name}"),
    )
    cost, blocks = count(network.network), o.blocks_left(network)
    low, high = found.interval
    size = (found.images, blocks, cost.params, cost.macs)
    return Step(name, found.accuracy, low, high, *size, seconds)


def _timed(
    work: _Work,
    whole: Checkpoint,
    removed: Checkpoint,
    small: Checkpoint,
    goal: Goal,
    terminal: Terminal,
) -> list[Step]:
    """The steps with their latencies; from folding on it is one network with other weights."""
    from gatepruner.cost import latency
    from gatepruner.device import pick_device
    from gatepruner.gates import add_gates
    from gatepruner.report.compression import Step

    modules = {
        "whole": whole.build(),
        "gated": add_gates(whole).build(),
        "removed": removed.build(),
        "small": small.build(),
    }
    found = latency(
        modules,
        whole.network.base.input_shape,
        batch=goal.latency_batch,
        device=pick_device(goal.device),
        track=terminal.track("measuring latency"),
    )
    times = {
        name: found.get(name, found["small"]).median for name in (it["name"] for it in work.rows)
    }
    return [replace(Step(**row), latency=times[row["name"]]) for row in work.rows]


def _export(small: Checkpoint, path: Path, terminal: Terminal) -> None:
    """A file for other software, by its suffix."""
    from gatepruner.checkpoint import save
    from gatepruner.export import to_torchvision
    from gatepruner.storage import write_tensors

    if path.suffix == ".safetensors":
        save(small, path, force=True)
    else:
        stock = to_torchvision(small)
        write_tensors(stock.state, path, force=True)
        terminal.say(stock.recipe(str(path)))
    terminal.say(f"wrote {path}")


def _report(
    steps: list[Step],
    configuration: dict[str, Any],
    folder: Path,
    output: Path,
    terminal: Terminal,
) -> None:
    from gatepruner.report.compression import write_compression
    from gatepruner.report.terminal import steps_table

    report = write_compression(steps, configuration, folder)
    terminal.say(steps_table(steps))
    terminal.say(f"wrote {output} and {report}")
