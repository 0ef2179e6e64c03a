"""Files of a few bytes that ask for gigabytes or hours are refused before either is taken."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from conftest import draw
from safetensors.torch import save_file

from gatepruner.files.checkpoints import save

ROOM, SECONDS = 200 * 2**20, 20  # that a file of no size may take
# Reads each file in a child of its own, whose memory is limited. It prints what was said, and
# how much more memory and time it took than a child that reads nothing.
READ = """
import json, os, resource, sys, time
import gatepruner
from gatepruner.files.checkpoints import load
from gatepruner.networks.network import Network
Network.named("resnet8").blocks

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def read(path):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    room = int(1.2 * os.path.getsize(path)) + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * os.path.getsize(path) + ROOM,) * 2)
    with open("/proc/self/status") as file:
        before = int(next(it for it in file if it.startswith("VmRSS")).split()[1]) * 1024
    begin = time.process_time()
    try:
        load(path)
        said = ["", ""]
    except BaseException as error:
        said = [type(error).__name__, str(error)]
    seconds = time.process_time() - begin
    return [*said, peak() - before <= room, seconds, (peak() - before) // 2**20]

for path in sys.argv[1:]:
    begin, end = os.pipe()
    child = os.fork()
    if not child:
        os.write(end, json.dumps(read(path)).encode())
        os._exit(0)
    os.close(end)
    with os.fdopen(begin) as pipe:
        print(pipe.read() or json.dumps(["killed", "", False, 0, 0]), flush=True)
    os.waitpid(child, 0)
"""


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


FOUR = number(4 * 2**30)
PERSISTENT = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word("0") + word("cpu")
PRIME = 2**61 - 1  # modulo which Python hashes numbers
KEEP, AGAIN = b"q\x000", b"h\x00"  # a value of the memo
LETTERS = word("a" * 10**6) + KEEP
PAIRS = b"](" + b"NN\x86" * 10**4 + b"e" + KEEP
NOTHINGS = b"(" + b"N" * 10**5 + b"t" + KEEP
TOWER = b"](NNNe" + b"q\x000](h\x00h\x00h\x00e" * 40  # of lists: 3**40 values
TUPLES = b"NNN\x87" + b"q\x000h\x00h\x00h\x00\x87" * 40
STORAGE = b"ctorch\nFloatStorage\n"
DTYPE = call("numpy", "dtype", word("f4")) + b"(K\x03" + word("<") + b"tb"
ARRAY = b"(K\x01(M\x10\x27t" + DTYPE + b"\x89B" + struct.pack("<I", 40_000) + bytes(40_000) + b"t"
SENT_AGAIN = {
    "keys of one hash": b"}("
    + b"".join(
        b"\x8a\x10" + (PRIME * index).to_bytes(16, "little") + b"N" for index in range(1, 10**5)
    )
    + b"u",
    "places of one hash": b"N" + b"".join(b"p%d\n" % (PRIME * index) for index in range(10**5)),
    "sizes of a text": LETTERS + b"(" + call("torch", "Size", AGAIN) * 1000 + b"l",
    "dictionaries of a list": PAIRS
    + b"("
    + call("collections", "OrderedDict", AGAIN) * 5000
    + b"l",
    "sets of a list": PAIRS + b"(" + call("builtins", "set", AGAIN) * 5000 + b"l",
    "bytes of a text": LETTERS
    + b"("
    + call("_codecs", "encode", AGAIN, word("latin1")) * 1000
    + b"l",
    "objects of a tuple": NOTHINGS + b"(" + b"ca\nb\nh\x00}\x92" * 3000 + b"l",
    "long names": LETTERS + b"(" + (AGAIN + word("b") + b"\x93") * 1000 + b"l",
    "names that grow": b"(ca\nb\nq\x00"
    + (b"cbuiltins\ngetattr\n(" + AGAIN + word("a" * 200) + b"tRq\x00") * 20_000
    + b"l",
    "rebuilt from a type": PAIRS
    + b"("
    + call(
        *("torch._tensor", "_rebuild_from_type_v2", b"ccollections\nOrderedDict\n"),
        *(b"ctorch\nTensor\n", AGAIN + b"\x85", b"N"),
    )
    * 5000
    + b"l",
    "key of a storage": TUPLES + KEEP + b"(" + word("storage") + STORAGE + AGAIN + b"NK\x00tQ",
    "key that is an object": TOWER + KEEP + b"}ca\nb\n(" + AGAIN + b"tRNs",
    "long places": LETTERS
    + b"}"
    + b"h\x00}" * 60
    + word("b")
    + b"]("
    + b"]" * 9000
    + b"es"
    + b"s" * 60,
    "long keys": LETTERS
    + b"}("
    + b"".join(b"(" + AGAIN * 15 + b"M" + struct.pack("<H", index) + b"t]" for index in range(1000))
    + b"u",
    "arrays of the same bytes": ARRAY
    + KEEP
    + b"}("
    + b"".join(
        b"M" + struct.pack("<H", index) + b"ca\nb\n)R" + AGAIN + b"b" for index in range(20_000)
    )
    + b"u",
}
PICKLES = {
    "bytearray of 4 GiB": call("builtins", "bytearray", FOUR),
    "storage of 4 GiB": call("torch", "FloatStorage", FOUR),
    "tensor of 4 GiB": call("torch", "FloatTensor", FOUR),
    "persistent storage of 4 GiB": PERSISTENT + FOUR + b"tQ",
    "long of 2 GiB": b"\x8b\xff\xff\xff\x7f",
    "bytes of 2**40": b"\x8e" + struct.pack("<Q", 2**40),
    "text of 2**40": b"\x8d" + struct.pack("<Q", 2**40),
    "bytearray of 2**40": b"\x96" + struct.pack("<Q", 2**40),
    "frame of 2**60": b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "place 2**31 in the memo": b"Nr\xff\xff\xff\x7f",
    "lists in lists": b"(" * 10**5 + b"l" * 10**5,
    "tuples in tuples": b")" + b"\x85" * 10**5,
    "hash of tuples in tuples": b"})" + b"\x85" * 10**5 + b"Ns",
    "dictionaries": b"(" + b"}" * 2_100_000 + b"l",
    "objects": b"ccanary\nThing\nq\x00" + b"(" + b"h\x00)R" * 210_000 + b"l",
    "repeated memo": b"]q\x00" + b"(h\x00h\x00h\x00h\x00e" * 10**4,
    "powers of a list": b"]" + b"(NNNNNNNNNNe" + b"\x85q\x01h\x01h\x01h\x01\x87" * 10**4,
    "slow codec": call("_codecs", "encode", word("ä" * 10**6), word("punycode")),
    "number of many digits": b"L" + b"9" * 10**6 + b"L\n",
    "meta tensor of 2**60": call(
        *("torch._utils", "_rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n"),
        *(b"(" + number(2**40) + number(2**20) + b"t", b"(KAKAt", b"\x89"),
    ),
}
EVERYWHERE = (
    "bytearray of 4 GiB",
    "persistent storage of 4 GiB",
    "bytes of 2**40",
    "key of a storage",
)
HEADS = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))


def zipped(path, content: bytes, **records: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": content, "version": b"3", **records}.items():
            archive.writestr(f"archive/{name}", data)


def deflated(path, name: str, size: int) -> None:
    """A zip file in which one record of zeros inflates to `size` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for other in {"data.pkl", "version"} - {name}:
            archive.writestr(f"archive/{other}", pickle.dumps({}, 2))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"archive/{name}", "w") as file,
    ):
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def many_records(path) -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 2, *[0] * 6)
    entry += b"aa"
    count = 10**6
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 4, 0)
    path.write_bytes(b"PK\3\4" + entry * count + end)


ENTRIES = 350_000  # of a directory just too large


def directory_behind_another(path) -> None:
    """One end of a zip file within another: a small directory by the one, a large by the other."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 2, *[0] * 6) + b"aa"
    size = ENTRIES * len(entry)
    end = struct.pack("<4s4sHH2IH", b"PK\5\6", b"PK\5\6", 0, 0, size, 4, 0)
    path.write_bytes(b"PK\3\4" + entry * ENTRIES + end)


def directory_in_64_bits(path) -> None:
    """The directory's size in 32 bits is small, and that in 64 bits counts."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 2, *[0] * 6) + b"aa"
    size = ENTRIES * len(entry)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, ENTRIES, ENTRIES, size, 4)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, 4 + size, 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 46, 4, 0)
    path.write_bytes(b"PK\3\4" + entry * ENTRIES + end)


def expanded(path, name: str) -> None:
    """The weights of a wide network, all of them one value."""
    state = draw(name).network.state()
    torch.save({key: torch.zeros(()).expand(it.shape) for key, it in state.items()}, path)


def shared(path) -> None:
    storage = torch.zeros(2**20)
    torch.save({f"k{index}": storage[index:-1] for index in range(1000)}, path)


def header(path, change) -> None:
    """A file of our own whose header went through `change`, and in which no weight is."""
    document = {"format": 3, "network": draw("gated-resnet8").network.to_json(), "notes": {}}
    document["path"] = []
    text = change(document)
    text = text if isinstance(text, str) else json.dumps(text)
    save_file({"k": torch.zeros(1)}, path, {"gatepruner": text})


RECORD = {"block": "layer1.0", "gate": 1.0, "score": 1.0, "loss": 1.0, "step": 1, "state": []}


def with_path(document):
    return {**document, "path": [RECORD] * 20_000}


def with_states(document):
    """Few bytes for many states of many tensors without elements."""
    states = [["bn1.weight", "float32", [0]]] * 40_000
    record = {**RECORD, "state": [[0, 40_000]]}
    return {**document, "path": [record] * 5_000, "states": states}


def with_removed(document):
    document["network"]["edits"]["removed"] = ["layer1.0"] * 40_000
    return document


def with_name(name):
    def change(document):
        document["network"]["base"]["name"] = name
        return document

    return change


def own_pt(path, change) -> None:
    """A whole file of our own whose header went through `change`."""
    save(draw("gated-resnet8"), path)
    content = torch.load(path, weights_only=True)
    document = change(json.loads(content["gatepruner"]))
    torch.save({**content, "gatepruner": json.dumps(document)}, path)


def safetensors(path, text: bytes, size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)


def tar(path, kind: bytes, size: int) -> None:
    info = tarfile.TarInfo("storages")
    info.size, info.type = size, kind
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def many_members(path) -> None:
    block = tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(block * 400_000)


def keys(path, names) -> None:
    one = torch.zeros(16, 16, 3, 3)
    weights = dict.fromkeys(names, one)
    weights |= {"conv1.weight": one, "linear.weight": torch.zeros(10, 64)}
    torch.save(weights, path)


def blocks(count: int):
    return (f"layer1.{index}.conv1.weight" for index in range(count))


FILES = {
    "data.pkl inflates.pt": lambda path: deflated(path, "data.pkl", 2**28),
    "version inflates.pt": lambda path: deflated(path, "version", 2**28),
    "storage inflates.pt": lambda path: deflated(path, "data/0", 2**28),
    "a million records.pt": many_records,
    "a million records behind an end.pt": directory_behind_another,
    "a million records in 64 bits.pt": directory_in_64_bits,
    "weights of one value.pt": lambda path: expanded(path, "wrn-10-16"),
    "weights that share.pt": shared,
    "deep header.safetensors": lambda path: header(path, lambda _: "[" * 10**6),
    "deep notes.safetensors": lambda path: header(
        path, lambda it: json.dumps(it).replace('"notes": {}', '"notes": ' + "[" * 900 + "]" * 900)
    ),
    "large header.safetensors": lambda path: header(
        path, lambda _: "[" + "{}," * 2 * 10**6 + "{}]"
    ),
    "a long path.safetensors": lambda path: header(path, with_path),
    "a long path.pt": lambda path: own_pt(path, with_path),
    "many states.pt": lambda path: own_pt(path, with_states),
    "many removals.safetensors": lambda path: header(path, with_removed),
    **{
        f"{name}.safetensors": lambda path, name=name: header(path, with_name(name))
        for name in ("resnet999998", "wrn-16-100000", "residual-fc10000000", "resnet3008")
    },
    "header of 2**60.safetensors": lambda path: safetensors(path, b"{}", 2**60),
    "deep.safetensors": lambda path: safetensors(path, b'{"a":' * 10**6),
    "metadata.safetensors": lambda path: safetensors(path, b'{"__metadata__":{"a":' + b"[" * 10**6),
    "header of 20 MB.safetensors": lambda path: safetensors(path, b'{"' + b"a" * 2 * 10**7),
    "tar of 4 GiB.tar": lambda path: tar(path, tarfile.REGTYPE, 4 * 2**30),
    "tar with attributes of 4 GiB.tar": lambda path: tar(path, tarfile.XHDTYPE, 4 * 2**30),
    "tar with a name of 4 GiB.tar": lambda path: tar(path, tarfile.GNUTYPE_LONGNAME, 4 * 2**30),
    "tar of 400,000 members.tar": many_members,
    "10,000 blocks.pt": lambda path: keys(path, blocks(10_000)),
    "60 blocks.pt": lambda path: keys(path, blocks(60)),
    "20,000 keys.pt": lambda path: keys(path, (f"a{index}.weight" for index in range(20_000))),
    "5,000 heads.pt": lambda path: keys(path, (f"h{index}.head.fc.w" for index in range(5000))),
}


def written(folder) -> list:
    """All bombs, each in a file."""
    for name, content in {**PICKLES, **SENT_AGAIN}.items():
        zipped(folder / f"{name}.pt", b"\x80\x02" + content + b".")
        if name not in EVERYWHERE:
            continue  # the machine is the same
        (folder / f"{name}.pth").write_bytes(HEADS + b"\x80\x02" + content + b"." + b"\x80\x02].")
        with tarfile.open(folder / f"{name}.tar", "w:") as archive:
            parts = [pickle.dumps(0, 2) + pickle.dumps([], 2), pickle.dumps(0, 2), content + b"."]
            for part, data in zip(("storages", "tensors", "pickle"), parts, strict=True):
                info = tarfile.TarInfo(part)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for name, write in FILES.items():
        write(folder / name)
    return sorted(folder.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_no_file_takes_more_memory_or_time_than_its_size_allows(tmp_path):
    files = written(tmp_path)
    program = READ.replace("ROOM", str(ROOM))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(files)
    bad = [
        (file.name, answer)
        for file, answer in zip(files, answers, strict=True)
        if not answer[0].endswith(("CheckpointError", "ArchitectureError"))
        or file.name not in answer[1]
        or "\n" in answer[1]
        or not answer[2]
        or answer[3] > SECONDS
    ]
    assert bad == []
    assert len(list(itertools.chain(PICKLES, FILES))) > 40
