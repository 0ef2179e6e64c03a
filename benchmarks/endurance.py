"""What becomes of files when runs are killed, the disk is full, or two runs meet.

Every command that writes is run on a tiny network and a few images, in a process of its own, and

- killed (SIGKILL) at random moments and just before random calls of the file system (opening a
  file to write, renaming, linking, removing, making a folder, locking). Then every file must be
  whole and every input untouched; the same command with `--resume`, or with `--force` where there
  is nothing to resume, must end with the same bits, and leave nothing temporary behind;
- run twice, and the outputs compared byte for byte;
- run on a disk that is full, in a folder that is read-only (both need the right to mount), and
  beside another run on the same output: each must be refused, and leave no half file;
- for training, watched over many epochs: memory and open files must not grow.

The result is written after every few kills; `--resume` adds to what it counts. The processes are
forks of one that has imported everything. Linux only.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import record

CALLS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock"}
SHAPE, CLASSES = (3, 8, 8), 4
OUT = "out"
ROUND = 10  # kills of a command between two writings of the result
FULL = 8192  # bytes of the disk that is full
GROWTH = "train, over many epochs"  # what that row is called
Row = dict[str, Any]  # of the result


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: the call, with all outputs in the folder `out`.
        result: the file that must have the same bits after a kill.
        again: what is added to the call after a kill.
    """

    words: str
    result: str = "out/it.pt"
    again: str = "--force"

    @property
    def arguments(self) -> list[str]:
        return self.words.split()


DATA = "--data imagefolder:images --device cpu --batch-size 16"
COMMANDS = {
    "prune": Command("prune gated.pt --drop 1 -o out/it.pt"),
    "export": Command(
        "export gated.pt --to safetensors -o out/it.safetensors", "out/it.safetensors"
    ),
    "recalibrate": Command(f"recalibrate gated.pt {DATA} -o out/it.pt"),
    "sweep": Command(
        f"sweep gated.pt {DATA} --random 1 --recalibrate 16 -o out/report", "out/report/curve.csv"
    ),
    "gate": Command(
        f"gate whole.pt {DATA} --warmup 2 --steps 3 --hold-out 0 -o out/it.pt", again="--resume"
    ),
    "train": Command(
        f"train gated-resnet8 --num-classes {CLASSES} --input-size 8 {DATA} --epochs 4 "
        "-o out/it.pt",
        again="--resume",
    ),
    "finetune": Command(
        f"finetune gated.pt --teacher whole.pt {DATA} --hold-out 8 --epochs 4 -o out/it.pt",
        again="--resume",
    ),
    "compress": Command(
        f"compress whole.pt {DATA} --drop 1 --gate-images 32 --gate-warmup 2 --gate-steps 3 "
        "--recalibrate 32 --hold-out 8 --epochs 2 -o out/it.pt",
        again="--resume",
    ),
}


def make_inputs(root: Path) -> None:
    """Two networks with fresh weights, and images in a folder for each class."""
    import torch
    from PIL import Image

    import gatepruner

    for name, file in (("resnet8", "whole.pt"), ("gated-resnet8", "gated.pt")):
        network = gatepruner.Network.named(name, num_classes=CLASSES, input_shape=SHAPE)
        notes = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
        checkpoint = gatepruner.Checkpoint(network, network.initial_weights(0), notes)
        gatepruner.save(checkpoint, root / file)
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 48), ("test", 16)):
        for index in range(number):
            folder = root / "images" / split / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{index:03d}.png")


# ------------------------------------------------------------------------------------- processes


def start(
    arguments: Sequence[str],
    folder: Path,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> int:
    """Run the command line in a fork whose folder is `folder`; returns the number of the process.

    Args:
        arguments: of `gatepruner`.
        folder: what is printed goes to the file `told` in it.
        before, after: called in the fork.
    """
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.chdir(folder)
        with Path("told").open("w") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
        sys.argv = ["gatepruner", *arguments]
        before()
        code = called()
        after()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def called() -> int:
    """The exit code of the command line."""
    from gatepruner.cli import main

    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def ended(process: int) -> int:
    """The exit code of a process; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(arguments: Sequence[str], folder: Path) -> int:
    """The exit code of a call that nobody disturbs."""
    return ended(start(arguments, folder))


def at_call(number: int, done: Callable[[], object]) -> Callable[[], None]:
    """What has `done` called just before the call of the file system with this number."""

    def begin() -> None:
        calls = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal calls
            calls += writes(event, arguments)
            if calls == number and writes(event, arguments):
                done()

        sys.addaudithook(hook)

    return begin


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(arguments: Sequence[str], folder: Path) -> int:
    """How many calls of the file system a command makes."""
    count = 0

    def begin() -> None:
        def hook(event: str, given: tuple[Any, ...]) -> None:
            nonlocal count
            count += writes(event, given)

        sys.addaudithook(hook)

    def end() -> None:
        (folder / "calls").write_text(str(count))

    if ended(start(arguments, folder, begin, end)):
        sys.exit((folder / "told").read_text())
    return int((folder / "calls").read_text())


def writes(event: str, given: tuple[Any, ...]) -> bool:
    """Whether an event of Python's audit is a call that changes the file system."""
    return event in CALLS or (event == "open" and isinstance(given[2], int) and given[2] & 3 > 0)


def warm(arguments: Sequence[str], folder: Path) -> None:
    """Import what a command imports, so that its forks need not."""

    def end() -> None:
        (folder / "modules").write_text("\n".join(sys.modules))

    ended(start(arguments, folder, after=end))
    for name in (folder / "modules").read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


# ----------------------------------------------------------------------------------------- files


def fresh(root: Path, folder: Path) -> Path:
    """A folder with the inputs, and an empty one for outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root, folder)
    (folder / OUT).mkdir()
    return folder


def fingerprints(folder: Path) -> dict[str, str]:
    """A hash of every input."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.relative_to(folder).parts[0] not in (OUT, "told", "calls", "modules")
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files and lock files."""
    return [path.name for path in (folder / OUT).rglob(".*gatepruner*")]


def halves(folder: Path) -> list[str]:
    """The outputs that are not whole, and why."""
    broken = []
    for path in (folder / OUT).rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            try:
                check(path)
            except Exception as error:
                broken.append(f"{path.name}: {type(error).__name__}: {error}")
    return broken


def check(path: Path) -> None:
    """Raise an error if a file is not whole."""
    import torch
    import yaml
    from PIL import Image

    import gatepruner

    if path.name.endswith((".pt", ".safetensors")):
        gatepruner.load(path)
    elif path.suffix == ".state":
        torch.load(path, weights_only=True)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".svg":
        ElementTree.parse(path)
    elif path.suffix == ".pdf":
        assert path.read_bytes().rstrip().endswith(b"%%EOF")
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text())
    elif path.suffix == ".csv":
        lengths = {len(row) for row in csv.reader(path.read_text().splitlines())}
        assert len(lengths) == 1, lengths
    else:
        assert path.read_text().endswith("\n")


def bits(path: Path) -> str:
    """A hash of a result: of the weights and the network of a checkpoint, else of the file."""
    import gatepruner

    if not path.exists():
        return "none"
    digest = hashlib.sha256()
    if path.suffix in (".pt", ".safetensors"):
        checkpoint = gatepruner.load(path)
        digest.update(json.dumps(checkpoint.network.to_json()).encode())
        for key, tensor in sorted(checkpoint.tensors.items()):
            digest.update(key.encode() + tensor.contiguous().reshape(-1).numpy().tobytes())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------- what is done


def killed(command: Command, root: Path, folder: Path, numbers: range) -> Row:
    """Kill a command once for each number, the odd ones at calls.

    Args:
        command: what is killed.
        root: the folder with the inputs.
        folder: where it runs.
        numbers: of the kills; each is drawn from its number.

    Returns:
        What became of its files.
    """
    fresh(root, folder)
    before, begin = fingerprints(folder), time.monotonic()
    calls = count_calls(command.arguments, folder)
    taken, expected = time.monotonic() - begin, bits(folder / command.result)
    problems: list[str] = []
    count = {"at_calls": 0, "at_moments": 0, "finished_before": 0, "left_temporary": 0}
    for number in numbers:
        fresh(root, folder)
        kind, where, code = killed_once(command, folder, number, calls, taken)
        count[kind if code else "finished_before"] += 1
        count["left_temporary"] += bool(leftovers(folder))
        found = halves(folder)
        if fingerprints(folder) != before:
            found.append("an input was changed")
        found += [] if code == 0 else continued(command, folder, expected)
        problems += [f"{number}, {where}: {one}" for one in found]
    return {**count, "calls": calls, "seconds": taken, "problems": problems}


def killed_once(
    command: Command, folder: Path, number: int, calls: int, taken: float
) -> tuple[str, str, int]:
    """Kill a command; returns at what it was killed, where exactly, and its exit code."""
    draw = random.Random(number)
    if number % 2:
        call = draw.randint(1, calls)
        code = ended(start(command.arguments, folder, at_call(call, kill)))
        return "at_calls", f"call {call} of {calls}", code
    wait = draw.uniform(0, taken)
    process = start(command.arguments, folder)
    time.sleep(wait)
    os.kill(process, signal.SIGKILL)
    return "at_moments", f"{wait:.3f} s of {taken:.3f} s", ended(process)


def tried(kills: Row) -> int:
    """How many kills a row counts."""
    return int(kills["at_calls"] + kills["at_moments"] + kills["finished_before"])


def both(known: Row | None, more: Row) -> Row:
    """The kills of two rows; the calls and seconds of the second one."""
    known = known or {}
    added = {key: known[key] + more[key] for key in known if key not in ("calls", "seconds")}
    return {**more, **added}


def continued(command: Command, folder: Path, expected: str) -> list[str]:
    """What is wrong after a killed command is run to its end."""
    code = run([*command.arguments, *command.again.split()], folder)
    told = (folder / "told").read_text()
    states = list((folder / OUT).rglob("*.state"))
    finished = "already exists" in told and not states  # it was killed on its very last steps
    found = [] if code == 0 or finished else [f"exit code {code}: {told[-300:]}"]
    found += [] if bits(folder / command.result) == expected else ["the result has other bits"]
    found += [f"left behind: {name}" for name in leftovers(folder) if not finished]
    return [*found, *halves(folder)]


def twice(command: Command, root: Path, folder: Path) -> Row:
    """Which files of the same call in two runs differ, and whether the result does."""
    found = []
    for _ in range(2):
        fresh(root, folder)
        run(command.arguments, folder)
        files = [path for path in (folder / OUT).rglob("*") if path.is_file()]
        found.append(
            (bits(folder / command.result), {path.name: path.read_bytes() for path in files})
        )
    (first, files), (second, others) = found
    different = sorted(name for name in files if files[name] != others.get(name))
    return {"result_equal": first == second, "files": len(files), "files_that_differ": different}


def two_writers(command: Command, root: Path, folder: Path) -> Row:
    """Start a second run while the first has made half of its calls."""
    fresh(root, folder)
    calls = count_calls(command.arguments, folder)
    expected = bits(folder / command.result)
    fresh(root, folder)
    reading, writing = os.pipe()
    go_reading, go_writing = os.pipe()

    def meet() -> None:
        os.write(writing, b".")
        os.read(go_reading, 1)

    first = start(command.arguments, folder, at_call(max(calls // 2, 3), meet))
    os.read(reading, 1)
    begin = time.monotonic()
    code = run([*command.arguments, "--force"], folder)
    seconds, told = time.monotonic() - begin, (folder / "told").read_text()
    os.write(go_writing, b".")
    ends = ended(first)
    for descriptor in (reading, writing, go_reading, go_writing):
        os.close(descriptor)
    return {
        "second_refused": code == 1 and "another run is writing" in told,
        "after_seconds": seconds,
        "first_as_alone": ends == 0 and bits(folder / command.result) == expected,
        "left_behind": leftovers(folder),
    }


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """A file system mounted on a folder; whether there is the right to."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(command: Command, root: Path, folder: Path, size: int) -> Row:
    """Run a command whose outputs do not fit."""
    fresh(root, folder)
    before = fingerprints(folder)
    with mounted(folder / OUT, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as possible:
        if not possible:
            return {"possible": False}
        code, told = run(command.arguments, folder), (folder / "told").read_text()
        return {
            "possible": True,
            "refused": code == 1 and "disk is full" in told,
            "said": "" if "disk is full" in told else told[-300:],
            "inputs_untouched": fingerprints(folder) == before,
            "left_behind": leftovers(folder),
            "half_files": halves(folder),
        }


def read_only(command: Command, root: Path, folder: Path) -> Row:
    """Run a command whose outputs cannot be written."""
    fresh(root, folder)
    with mounted(folder / OUT, "-t", "tmpfs", "-o", "ro", "tmpfs") as possible:
        if not possible:
            return {"possible": False}
        begin = time.monotonic()
        code, told = run(command.arguments, folder), (folder / "told").read_text()
        refused = code == 1 and ("read-only" in told.lower())
        return {"possible": True, "refused": refused, "after_seconds": time.monotonic() - begin}


def growth(epochs: int, folder: Path) -> Row:
    """Memory and open files at the end of epochs, of a training that keeps its state."""
    import torch

    import gatepruner

    network = gatepruner.Network.named("gated-resnet8", num_classes=CLASSES, input_shape=SHAPE)
    images = gatepruner.load_images("imagefolder:images", SHAPE, split="train")
    seen: list[tuple[int, int]] = []

    def watch(moment: Any) -> None:
        if moment.ends_epoch:
            status = Path("/proc/self/status").read_text().split("VmRSS:")[1]
            seen.append((int(status.split()[0]), len(os.listdir("/proc/self/fd"))))

    recipe = gatepruner.Recipe(epochs=epochs, batch_size=16)
    state = folder / "growth.state"
    gatepruner.train(network, images, recipe, device="cpu", state=state, watch=watch)
    state.unlink()
    torch.manual_seed(0)
    early, late = seen[len(seen) // 4], seen[-1]
    return {
        "epochs": epochs,
        "resident_kib": {"after_a_quarter": early[0], "at_the_end": late[0]},
        "open_files": {"after_a_quarter": early[1], "at_the_end": late[1]},
    }


def measured(word: str, row: Row, root: Path, folder: Path, kills: int) -> Row:
    """A row with further kills, until it counts so many, and with what is tried once."""
    command = COMMANDS[word]
    warm(command.arguments, fresh(root, folder))
    once = {
        "twice": lambda: twice(command, root, folder),
        "two_writers": lambda: two_writers(command, root, folder),
        "full_disk": lambda: full_disk(command, root, folder, FULL),
        "read_only": lambda: read_only(command, root, folder),
    }
    row = {"command": word, **row, **{key: act() for key, act in once.items() if key not in row}}
    done = tried(row["kills"]) if "kills" in row else 0
    if done < kills:
        more = killed(command, root, folder, range(done, min(done + ROUND, kills)))
        row["kills"] = both(row.get("kills"), more)
    return row


def in_rounds(rows: dict[str, Row], words: Sequence[str], kills: int) -> Iterator[None]:
    """Add kills to the rows of commands until each counts so many; stops after every command."""
    with tempfile.TemporaryDirectory() as name:
        root, folder = Path(name) / "inputs", Path(name) / "run"
        root.mkdir()
        make_inputs(root)
        for least in range(ROUND, kills + ROUND, ROUND):
            for word in words:
                known = rows.get(word, {})
                if "kills" not in known or tried(known["kills"]) < min(least, kills):
                    rows[word] = measured(word, known, root, folder, kills)
                    yield


def grown(epochs: int) -> Row:
    """The row of a training over many epochs."""
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        os.chdir(name)
        row = {"command": GROWTH, "growth": growth(epochs, Path(name))}
        os.chdir("/")
    return row


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--kills", type=int, default=200, help="of every command, in all")
    options.add_argument("--epochs", type=int, default=200, help="that growth is watched over")
    options.add_argument("--only", default=",".join(COMMANDS), help="commands, with commas")
    options.add_argument("--resume", action="store_true", help="add to what the result counts")
    chosen = options.parse_args()
    kills, epochs = (4, 8) if chosen.quick else (chosen.kills, chosen.epochs)
    import torch

    torch.set_num_threads(1)
    known = record.rows_of("endurance", quick=chosen.quick) if chosen.resume else []
    rows = {row["command"]: row for row in known}
    if GROWTH not in rows:
        rows[GROWTH] = grown(epochs)
    settings = {"threads": 1, "full_disk_bytes": FULL}
    for _ in in_rounds(rows, chosen.only.split(","), kills):
        ordered = [rows[word] for word in (*COMMANDS, GROWTH) if word in rows]
        record.write("endurance", settings, ordered, quick=chosen.quick)


if __name__ == "__main__":
    main()
