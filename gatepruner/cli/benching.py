"""`bench`: the command that compares networks on the engines that they are deployed on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatepruner.cli.options import COMMON, Call, Data, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.several import writes
from gatepruner.measuring.engines import ENGINES

if TYPE_CHECKING:
    from gatepruner.networks.onnx_file import Subject


@dataclass(frozen=True)
class Sources:
    """Files without the project's header.

    Attributes:
        ckpts: checkpoints or ONNX files, the one to compare with first.
        arch: architecture of all of them, as in torchvision:resnet50.
        num_classes: number of logits, where the files do not tell.
        input_size: side of the images, or CxHxW.
        module: your own module of all of them, as in net.py:Net or package.module:function.
        leaves: classes of its parts to keep whole where they cannot be traced.
    """

    ckpts: Annotated[list[Path], typer.Argument(metavar="CKPT...")]
    arch: str | None = None
    num_classes: Annotated[int | None, typer.Option(min=1)] = None
    input_size: Annotated[str | None, typer.Option(metavar="SIZE")] = None
    module: Annotated[str | None, typer.Option(metavar="FILE.py:CALLABLE")] = None
    leaves: Annotated[str | None, typer.Option(metavar="CLASS,…")] = None

    def read(self, problems: Problems) -> dict[str, Subject]:
        """The networks by the shortest names that tell them apart."""
        stems = [path.stem for path in dict.fromkeys(self.ckpts)]
        checkpoints: dict[str, Subject] = {}
        for path in dict.fromkeys(self.ckpts):
            name = path.stem if stems.count(path.stem) == 1 else str(path)
            with problems:
                if path.suffix == ".onnx":
                    checkpoints[name] = Source(path).subject()
                else:
                    shared = {key: value for key, value in vars(self).items() if key != "ckpts"}
                    checkpoints[name] = Source(path, **shared).read()
        problems.refuse()
        return checkpoints


@dataclass(frozen=True)
class Cases:
    """Cases.

    Attributes:
        batch: images in a pass, with commas for several sizes.
        threads: CPU threads of a pass; by default as many as PyTorch uses.
        seconds: for about how long to measure.
        output: folder to write to.
        force: replace files that exist.
    """

    engine: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMMON,
            metavar="ENGINES",
            help=f"Engines to compare, with commas: {', '.join(ENGINES)}.",
        ),
    ] = "eager"
    batch: Annotated[str, typer.Option(rich_help_panel=COMMON, metavar="SIZES")] = "1"
    threads: Annotated[int | None, typer.Option(min=1)] = None
    seconds: Annotated[float, typer.Option(min=0)] = 10.0
    output: Annotated[Path, typer.Option("--output", "-o", rich_help_panel=COMMON)] = Path(
        "gatepruner-bench"
    )
    force: Annotated[bool, typer.Option("--force", rich_help_panel=COMMON)] = False

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.engine.split(",")))

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes, each once."""
        sizes = [size.strip() for size in self.batch.split(",")]
        if not all(size.isdecimal() and int(size) for size in sizes):
            raise typer.BadParameter(f"--batch {self.batch!r}: expected sizes such as 1,8")
        return tuple(dict.fromkeys(map(int, sizes)))

    def check(self, device: str, problems: Problems) -> None:
        """Collect why nothing can be measured or written."""
        from gatepruner.files.writing import refuse_existing
        from gatepruner.measuring.device import pick_device
        from gatepruner.measuring.engines import check_engine, threads_of
        from gatepruner.report.bench import FILES

        with problems:
            pick_device(device)
        for engine in self.engines:
            with problems:
                check_engine(engine)
        with problems:
            threads_of(self.threads)
        for file in FILES:
            with problems:
                refuse_existing(self.output / file, force=self.force)


def bench(source: Sources, *, cases: Cases, call: Call, data: Data) -> None:
    """Compare the latency of networks on engines and batch sizes, all measured in turns.

    With `--data` also their accuracy. ONNX files, such as those of `export --int8`, are measured on
    the engines that read ONNX. Writes a JSON document and a figure.

    Example: `gatepruner bench whole.pt small.pt --engine eager,onnxruntime --batch 1,8 --threads 1`
    """
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.bench import bench as measure
    from gatepruner.measuring.bench import check_engines
    from gatepruner.measuring.recorded import Recorded
    from gatepruner.report.bench import bench_table, write_bench
    from gatepruner.report.tables import counted

    problems, batches = Problems(), cases.batches
    cases.check(data.device, problems)
    checkpoints = source.read(problems)
    check_engines(checkpoints, cases.engines)
    noted = {name: Recorded.of(one.notes) for name, one in checkpoints.items()}
    accuracies = {name: one for name, one in noted.items() if one is not None and not data.data}
    for name, checkpoint in checkpoints.items() if data.data else ():
        shown = data.images(checkpoint, call.terminal)
        track = call.terminal.track(f"accuracy of {name}")
        one = accuracy(checkpoint, shown, **data.how, track=track)
        accuracies[name] = Recorded(one.accuracy, *one.interval, one.images, shown.source)
    measured = measure(
        checkpoints,
        cases.engines,
        batches,
        device=data.device,
        threads=cases.threads,
        seconds=cases.seconds,
        track=call.terminal.track("measuring latency"),
    )
    first = measured[0].latency
    configuration = {
        "inputs": [str(path) for path in source.ckpts],
        "rounds": first.runs,
        "threads": first.threads,
        "accuracy": "measured" if data.data else "as the files record it",
    }
    if not writes():
        return None
    document = write_bench(measured, accuracies, configuration, cases.output)
    call.terminal.say(bench_table(measured, accuracies))
    threads = counted(first.threads, "CPU thread") if first.threads else first.device
    call.terminal.say(f"medians and quartiles of {first.runs} interleaved rounds, {threads}")
    for name, known in accuracies.items() if not data.data else ():
        call.terminal.say(f"accuracy of {name}: of {known}, as its file records")
    call.terminal.say(f"wrote {cases.output / 'bench.json'} and its figure")
    return call.finish({**document, "output": str(cases.output)})
