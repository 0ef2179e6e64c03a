"""What becomes of damaged and hostile files: mutations of every format that is read, and pickles.

Each mutation is drawn from its number, so that a failure can be made again with `--format` and
`--first`. The outcomes are counted: the file is read as it was before; it is read as another sound
checkpoint; it is refused by a `GatePrunerError` in one line; anything else is a failure, and is
written down. Children read the files, so that a crash is a failure like any other. The result is
written after every round of mutations; `--resume` adds to what it counts.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image

from gatepruner.compression.folder import Folder
from gatepruner.errors import GatePrunerError
from gatepruner.files.checkpoints import load, save
from gatepruner.images.decoding import decode
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import Path as LearnedPath
from gatepruner.networks.path import Removal
from gatepruner.pruning.surgery import follow, narrow

SHARE = 250  # mutations that one child reads
ROUND = 500  # mutations of each format between two writings of the result
NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
PICKLES = "pickles that call"  # what the row of those is called
Row = dict[str, Any]  # of the result
VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "blocks.0", "\x1b[2J", "\ud800", "x" * 5000, [], {}, [[]], [0, 0, 0], {"": []}),
)
NETWORK = "gated-residual-fc6,width=4"  # of our own files; those of others have a resnet8
CUT = ("layer1.0.conv1[0-7]", "layer2.0.conv1[1,3-5]")  # of the narrowed file, a gated-resnet8


def whole() -> Checkpoint:
    """A small checkpoint with all that a file can have."""
    network = Network.named(NETWORK)
    weights = network.initial_weights(0)
    learned = {key: it + 0.25 for key, it in weights.items() if key.endswith(".k")}
    notes = {
        "normalize": {"mean": [0.5], "std": [0.25]},
        "scaling": {"side": 40, "interpolation": "bicubic", "squash": False},
        "classes": [f"class {index}" for index in range(10)],
        "gates": {"blocks.1": 0.5},
        "history": [{"trained": "here", "images": 100}, {"recalibrated": "x", "augmented": True}],
    }
    path = LearnedPath((Removal("blocks.1", 0.5, 0.1, 1.5, 3, learned),))
    return Checkpoint(network, weights, notes, path)


def small() -> Checkpoint:
    """A small narrowed checkpoint with a path of units."""
    network = Network.named("gated-resnet8", input_shape=(3, 8, 8))
    narrowed = narrow(Checkpoint(network, network.initial_weights(0)), CUT)
    learned = {key: it + 0.25 for key, it in narrowed.weights.items() if key.endswith(".k")}
    one = Removal("layer2.0.conv1[0-3]", 1.0, 0.1, 1.5, 3, {})
    path = LearnedPath((one, Removal("layer1.0", 0.5, 0.1, 1.5, 3, learned)))
    return replace(narrowed, path=path)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, left out, put in, or cut off."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        at = dice.randrange(len(changed) + 1)
        kind = dice.randrange(7)
        if kind == 0:
            changed[at : at + 1] = bytes([dice.randrange(256)])
        elif kind == 1:
            changed[at : at + 1] = bytes(
                [changed[at] ^ 1 << dice.randrange(8)] if changed[at:] else b""
            )
        elif kind == 2:
            number = struct.pack("<Q", dice.choice(NUMBERS))[: dice.choice((2, 4, 8))]
            changed[at : at + len(number)] = number
        elif kind == 3:
            del changed[at : at + dice.choice((1, 2, 8, 64))]
        elif kind == 4:
            changed[at:at] = dice.randbytes(dice.choice((1, 2, 8, 64)))
        elif kind == 5:
            begin = dice.randrange(len(changed) + 1)
            changed[at:at] = changed[begin : begin + dice.choice((8, 64, 512))]
        elif dice.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def rewritten(document: Any, dice: random.Random) -> Any:
    """A JSON document in which values were changed, left out, or put elsewhere."""
    document = copy.deepcopy(document)
    for _ in range(dice.choice((1, 1, 2, 4))):
        places = [*_places(document)]
        if not places:
            break
        holder, key = dice.choice(places)
        kind = dice.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, place = dice.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                holder[key] = copy.deepcopy(other[place])
        elif kind == 2:
            holder[key] = [holder[key]] * dice.choice((1, 2, 100))
        elif kind == 3 and isinstance(holder, dict):
            holder[dice.choice(("", "x", "module", "leaves", "path"))] = dice.choice(VALUES)
        else:
            holder[key] = copy.deepcopy(dice.choice(VALUES))
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All places in a document: a list or an object, and an index or a key."""
    if isinstance(value, (dict, list)):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


class Kind:
    """A format: what is written of a mutation, and what reading it should give."""

    def __init__(
        self, suffix: str, make: Callable[[random.Random], bytes], read: Callable[[Path], str]
    ):
        self.suffix, self.make, self.read = suffix, make, read


def checkpoint_kinds(folder: Path) -> dict[str, Kind]:
    """The formats of checkpoints."""
    own = whole()
    files = {suffix: save(own, folder / f"own{suffix}") for suffix in (".pt", ".safetensors")}
    content = torch.load(files[".pt"], weights_only=True)
    header = json.loads(content["gatepruner"])
    read = reader(own)

    def legacy(value: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=False)
        return file.getvalue()

    def headed(document: Any) -> bytes:
        text = document if isinstance(document, str) else json.dumps(document)
        return safetensors(files[".safetensors"].read_bytes(), text)

    def notes(dice: random.Random) -> bytes:
        return headed({**header, "notes": rewritten(header["notes"], dice)})

    network, text = Network.named("resnet8"), json.dumps(header)
    foreign = network.initial_weights(0)
    return {
        "zip": Kind(".pt", lambda dice: mutated(files[".pt"].read_bytes(), dice), read),
        "pickle in a zip": Kind(".pt", lambda dice: repickled(files[".pt"], dice), read),
        "pickles (before torch 1.6)": Kind(
            ".pth", lambda dice: mutated(legacy(content), dice), read
        ),
        "pickles of others": Kind(".pth", lambda dice: mutated(legacy(foreign), dice), read),
        "tar (before torch 0.1.10)": Kind(".tar", lambda dice: mutated(tar(foreign), dice), read),
        "safetensors": Kind(
            ".safetensors", lambda dice: mutated(files[".safetensors"].read_bytes(), dice), read
        ),
        "header, its text": Kind(
            ".safetensors",
            lambda dice: headed(mutated(text.encode(), dice).decode("utf-8", "replace")),
            read,
        ),
        "header, its values": Kind(
            ".safetensors", lambda dice: headed(rewritten(header, dice)), read
        ),
        "notes": Kind(".safetensors", notes, read),
        **narrowed_kinds(folder),
    }


def narrowed_kinds(folder: Path) -> dict[str, Kind]:
    """A narrowed file: what its header says of sizes, and of slices on its path."""
    narrowed = small()
    data = save(narrowed, folder / "narrowed.safetensors").read_bytes()
    content = torch.load(save(narrowed, folder / "narrowed.pt"), weights_only=True)
    header, read = json.loads(content["gatepruner"]), reader(narrowed)

    def values(dice: random.Random) -> bytes:
        if dice.random() < 0.5:
            return safetensors(
                data, json.dumps({**header, "path": rewritten(header["path"], dice)})
            )
        network = {**header["network"], "edits": rewritten(header["network"]["edits"], dice)}
        return safetensors(data, json.dumps({**header, "network": network}))

    def text(dice: random.Random) -> bytes:
        before, sizes, after = json.dumps(header).partition('"narrowed": ')
        after = mutated(after.encode(), dice).decode("utf-8", "replace")
        return safetensors(data, before + sizes + after)

    return {
        "narrowed, its values": Kind(".safetensors", values, read),
        "narrowed, its text": Kind(".safetensors", text, read),
    }


def reader(written: Checkpoint) -> Callable[[Path], str]:
    """What reads mutations of a checkpoint's file."""
    known = written.fingerprint, json.dumps(written.notes, sort_keys=True)
    return lambda path: sound(load(path), known)


def sound(checkpoint: Checkpoint, known: tuple[str, str]) -> str:
    """Whether a checkpoint is the one that was written; another one has to be of one piece."""
    found = checkpoint.fingerprint, json.dumps(checkpoint.notes, sort_keys=True)
    if found == known:
        return "as before"
    state = checkpoint.network.state()
    assert state.keys() == checkpoint.weights.keys()
    assert all(tuple(it.shape) == tuple(checkpoint.weights[key].shape) for key, it in state.items())
    shape = checkpoint.network.base.input_shape
    with torch.no_grad():
        checkpoint.build()(torch.zeros(2, *shape))
    assert checkpoint.known_gates is not None
    with contextlib.suppress(GatePrunerError):
        follow(checkpoint, checkpoint.path.blocks)
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(checkpoint, Path(folder) / "again.pt"))
    assert again.fingerprint == found[0]
    assert json.dumps(again.notes, sort_keys=True) == found[1]
    return "another sound one"


def repickled(path: Path, dice: random.Random) -> bytes:
    """A zip file whose pickle is mutated and whose checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as other:
        for info in archive.infolist():
            data = archive.read(info)
            other.writestr(
                info.filename, mutated(data, dice) if "data.pkl" in info.filename else data
            )
    return out.getvalue()


def safetensors(data: bytes, text: str) -> bytes:
    """A file of safetensors with another header of ours."""
    (size,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + size])
    head["__metadata__"] = {"gatepruner": text}
    new = json.dumps(head).encode()
    return struct.pack("<Q", len(new)) + new + data[8 + size :]


def tar(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Weights as torch before 0.1.10 wrote them; see `torch.serialization._legacy_load`."""
    tensors = [*weights.items()]

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            places = [str(at) for at, (_, it) in enumerate(tensors) if it is value]
            return places[0] if places else None

    content, storages, listed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Pickler(content, 2).dump(dict(weights))
    for file in (storages, listed):
        pickle.dump(len(tensors), file, 2)
    for at, (_, tensor) in enumerate(tensors):
        kind = torch.LongStorage if tensor.dtype == torch.int64 else torch.FloatStorage
        storages.write(pickle.dumps((at, "cpu", kind), 2))
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        listed.write(pickle.dumps((at, at, torch.FloatTensor), 2))
        numbers = (*tensor.shape, *tensor.contiguous().stride(), 0)
        listed.write(struct.pack(f"<ii{len(numbers)}q", tensor.ndim, 0, *numbers))
    pickle.dump([], storages, 2)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for name, file in (("storages", storages), ("tensors", listed), ("pickle", content)):
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            archive.addfile(info, io.BytesIO(file.getvalue()))
    return out.getvalue()


def steps_kind(folder: Path) -> Kind:
    """The `steps.json` of a compression."""
    numbers = {"accuracy": 0.5, "agreement": 1.0, "distance": 0.0, "low": 0.4, "high": 0.6}
    counts = {"images": 100, "blocks": 3, "params": 10, "macs": 10, "seconds": 1.0}
    latency = {"median": 1.0, "low": 0.5, "high": 2.0, "runs": 3, "batch": 1, "device": "cpu"}
    configuration = {"goal": {"blocks": 1}, "images": "x"}
    document = {
        "configuration": configuration,
        "facts": {"latencies": {"a": latency}, "choices": {"recipe": "b"}},
        "steps": [{"name": "whole", **numbers, **counts}],
    }

    def read(path: Path) -> str:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name)
            path.rename(place / "steps.json")
            steps = Folder(place, configuration)
            steps.begin(["whole", "gated"], resume=True, force=False)
            steps.write()
            assert steps.records[0].name == "whole" if steps.records else True
            same = json.loads((place / "steps.json").read_text()) == document
        return "as before" if same else "another sound one"

    def make(dice: random.Random) -> bytes:
        if dice.random() < 0.5:
            return mutated(json.dumps(document).encode(), dice)
        return json.dumps(rewritten(document, dice)).encode()

    return Kind(".json", make, read)


def image_kinds() -> dict[str, Kind]:
    """The formats of images."""
    pixels = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3) % 256
    kinds = {}
    for name in ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF"):
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, name)
        data = file.getvalue()

        def read(path: Path, before: list[Any] = [], data: bytes = data) -> str:  # noqa: B006
            if not before:
                (whole_image := path.with_suffix(".whole")).write_bytes(data)
                before.append(decode(str(whole_image), (3, 16, 16), None))
            found = decode(str(path), (3, 16, 16), None)
            assert (found.shape, found.dtype) == ((3, 16, 16), torch.uint8)
            return "as before" if torch.equal(found, before[0]) else "another sound one"

        kinds[f"image, {name}"] = Kind(".png", lambda dice, data=data: mutated(data, dice), read)
    return kinds


def outcome(kind: Kind, number: int, path: Path) -> str:
    """What becomes of a mutation."""
    path.write_bytes(kind.make(random.Random(number)))
    try:
        return kind.read(path)
    except GatePrunerError as error:
        said = str(error)
        if "\n" in said or not said.isprintable() or len(said) > 5000:
            return f"failure: the message {said!r:.200}"
        return "refused"
    except Exception as error:  # that is what is looked for
        return f"failure: {type(error).__name__}: {error}"[:300]


def counted(kind: Kind, first: int, count: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """The outcomes of mutations, read by children."""
    outcomes, failures = Counter[str](), list[str]()
    for begin in range(first, first + count, SHARE):
        numbers = range(begin, min(begin + SHARE, first + count))
        inward, outward = os.pipe()
        if not (child := os.fork()):
            with os.fdopen(outward, "w") as pipe, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number in numbers:
                    told = outcome(kind, number, folder / f"mutation{kind.suffix}")
                    print(json.dumps(told), file=pipe, flush=True)
            os._exit(0)
        os.close(outward)
        with os.fdopen(inward) as pipe:
            told = [json.loads(line) for line in pipe]
        if os.waitpid(child, 0)[1]:
            told.append("failure: the process died")
        for number, said in zip(numbers, told, strict=False):
            outcomes[said.partition(":")[0]] += 1
            failures += [f"{number}: {said}"] if said.startswith("failure") else []
    return outcomes, failures


# ------------------------------------------------------------------------- pickles that run code

CALLED = (
    *("os system", "posix system", "subprocess Popen", "builtins eval", "builtins exec"),
    *("builtins __import__", "canary run", "canary Thing", "canary Thing.run", "builtins getattr"),
    *("operator methodcaller", "functools partial", "functools reduce", "importlib import_module"),
    *("torch load", "torch.storage _load_from_bytes", "torch.hub load", "torch.jit load"),
    *("runpy run_path", "pickle loads", "_codecs encode", "types FunctionType", "ctypes CDLL"),
    *(
        "torch._utils _rebuild_tensor_v2",
        "collections OrderedDict",
        "torch.nn.modules.linear Linear",
    ),
)


def program(dice: random.Random, marker: Path) -> bytes:
    """A pickle that calls something by some route, with arguments that would leave a mark."""
    words = (f"touch {marker}", f"open({str(marker)!r}, 'w')", "canary", str(marker), "run")

    def word(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def name() -> bytes:
        module, _, last = dice.choice(CALLED).partition(" ")
        if dice.random() < 0.5:
            return f"c{module}\n{last}\n".encode()
        return word(module) + word(last) + b"\x93"

    def arguments() -> bytes:
        return b"(" + b"".join(word(dice.choice(words)) for _ in range(dice.randrange(3)))

    def thing(depth: int = 0) -> bytes:
        module, _, last = dice.choice(CALLED).partition(" ")
        inner = thing(depth + 1) if depth < 2 and dice.random() < 0.5 else word(dice.choice(words))
        routes = (
            lambda: name() + arguments() + b"tR",
            lambda: name() + b"(" + inner + b"tR",
            lambda: arguments() + f"i{module}\n{last}\n".encode(),
            lambda: b"(" + name() + arguments()[1:] + b"o",
            lambda: name() + arguments() + b"t\x81",
            lambda: name() + arguments() + b"t}\x92",
            lambda: name() + b")\x81" + b"}" + word("run") + inner + b"sb",
            lambda: name() + b"N}" + word("run") + inner + b"s\x86b",
            lambda: name() + b")R" + inner + inner + b"s",
            lambda: name() + b")R" + inner + b"a",
            lambda: b"P" + dice.choice(words).encode() + b"\n",
            lambda: b"(" + word("module") + name() + inner + inner + b"tQ",
            lambda: b"(" + word("storage") + name() + word("0") + word("cpu") + b"K\x01tQ",
            lambda: inner + b"Q",
            lambda: bytes([0x82, dice.randrange(256)]),
            lambda: b"\x83" + dice.randbytes(2),
            lambda: b"\x84" + dice.randbytes(4),
            lambda: b"}" + thing(depth + 1) + inner + b"s" if depth < 2 else name(),
        )
        return dice.choice(routes)()

    return b"\x80\x02}" + word("state_dict") + thing() + b"s."


CANARY = """
import pathlib

MARKER = pathlib.Path({marker!r})
MARKER.write_text("imported")


def run(*_, **__):
    MARKER.write_text("run")


class Thing:
    __new__ = __setstate__ = __setitem__ = append = run
"""


def executed(count: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """How many pickles run anything, in each of the three kinds of files."""
    import sys

    marker = folder / "marker"
    (folder / "canary.py").write_text(CANARY.format(marker=str(marker)))
    sys.path.insert(0, str(folder))
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))

    def make(dice: random.Random) -> bytes:
        content, out = program(dice, marker), io.BytesIO()
        how = dice.randrange(4)
        if how == 0:
            with zipfile.ZipFile(out, "w") as archive:
                archive.writestr("archive/data.pkl", content)
                archive.writestr("archive/version", "3")
        elif how == 1:
            with tarfile.open(fileobj=out, mode="w:") as archive:
                none = pickle.dumps(0, 2)
                parts = {"storages": none + pickle.dumps([], 2), "tensors": none, "pickle": content}
                for name, data in parts.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        else:
            out.write(head * (how == 2) + content + pickle.dumps([], 2))
        return out.getvalue()

    def read(path: Path) -> str:
        try:
            load(path)
        finally:
            assert not marker.exists(), "something was run"
            assert "canary" not in sys.modules, "something was imported"
        return "another sound one"

    return counted(Kind(".pt", make, read), 0, count, folder)


def in_rounds(
    kinds: Mapping[str, Kind], rows: dict[str, Row], count: int, folder: Path
) -> Iterator[None]:
    """Add mutations to the rows until each counts so many; stops after every round of them."""
    while short := [label for label in kinds if rows[label]["n"] < count]:
        for label in short:
            first = rows[label]["n"]
            part = counted(kinds[label], first, min(ROUND, count - first), folder)
            rows[label] = added(rows[label], *part)
        yield


def added(row: Row, outcomes: Counter[str], failures: list[str]) -> Row:
    """A row of the result with further outcomes."""
    total = Counter({key: n for key, n in row.items() if isinstance(n, int) and key != "n"})
    total += outcomes
    failures = [*row["failures"], *failures]
    return {"format": row["format"], "n": total.total(), **total, "failures": failures}


def empty(label: str) -> Row:
    """The row of a format of which nothing was tried."""
    return {"format": label, "n": 0, "failures": []}


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--mutations", type=int, default=20_000, help="of each format, in all")
    options.add_argument("--pickles", type=int, default=300, help="that name what runs code")
    options.add_argument("--resume", action="store_true", help="add to what the result counts")
    options.add_argument("--format", help="only this one; prints its outcomes")
    options.add_argument("--first", type=int, default=0, help="with --format: its first mutation")
    chosen: argparse.Namespace = options.parse_args()
    count = 200 if chosen.quick else chosen.mutations
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {**checkpoint_kinds(folder), "steps.json": steps_kind(folder), **image_kinds()}
        if chosen.format is not None:
            outcomes, failures = counted(kinds[chosen.format], chosen.first, count, folder)
            print(dict(outcomes), *failures, sep="\n")
            return
        known = record.rows_of("trust", quick=chosen.quick) if chosen.resume else []
        rows = {label: empty(label) for label in kinds} | {row["format"]: row for row in known}
        if PICKLES not in rows:
            rows[PICKLES] = added(empty(PICKLES), *executed(chosen.pickles, folder))
        for _ in in_rounds(kinds, rows, count, folder):
            reached = min(rows[label]["n"] for label in kinds)
            settings = {"mutations": reached, "pickles": chosen.pickles, "network": NETWORK}
            ordered = [rows[label] for label in (*kinds, PICKLES)]
            record.write("trust", settings, ordered, quick=chosen.quick)


if __name__ == "__main__":
    main()
