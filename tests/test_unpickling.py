"""Pickles of others: the tensors come out, and nothing that the file names is imported or run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import os
import pathlib
import pickle
import random
import struct
import sys
import tarfile
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import draw, drawn
from torch import nn
from torchvision.models import resnet18

from gatepruner.errors import CheckpointError
from gatepruner.files.archives import read_archive
from gatepruner.files.checkpoints import load
from gatepruner.files.stand_ins import StandIn
from gatepruner.pruning.surgery import remove

CANARY = """
import pathlib

MARKER = pathlib.Path({marker!r})
MARKER.write_text("imported")


def run(*_, **__):
    MARKER.write_text("run")
    return Thing()


class Meta(type):
    def __setattr__(self, name, value):
        run()


class Thing(metaclass=Meta):
    def __new__(cls, *_, **__):
        MARKER.write_text("made")
        return object.__new__(cls)

    def __init__(self, *_, **__):
        MARKER.write_text("initialised")

    def method(self=None):
        MARKER.write_text("method")

    __setstate__ = __setitem__ = append = extend = __call__ = __hash__ = run
"""
STRING = b"X\x06\x00\x00\x00"  # of six letters
TOUCH = b"X%sA"  # the place of a shell command


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """The opcodes of a call."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


THING = b"ccanary\nThing\n"
MADE = THING + b")\x81"
ATTACKS = {
    "import": THING,
    "call": called("canary", "run"),
    "call with arguments": called("canary", "run", text("a"), b"K\x01"),
    "new object": MADE,
    "state": MADE + b"}b",
    "state of slots": MADE + b"N}" + text("run") + b"K\x01s\x86b",
    "item": MADE + b"K\x01K\x02s",
    "items": MADE + b"(K\x01K\x02u",
    "append": MADE + b"K\x01a",
    "appends": MADE + b"(K\x01K\x02e",
    "class attribute": THING + b"N}" + text("run") + b"K\x01s\x86b",
    "dotted name": called("canary", "Thing.method"),
    "dotted module": called("canary.Thing", "method"),
    "inst": b"(icanary\nrun\n",
    "obj": b"(ccanary\nrun\no",
    "stack global": b"\x8c\x06canary\x8c\x03run\x93)R",
    "new object with keywords": THING + b")}\x92",
    "getattr": called("builtins", "getattr", THING, text("method")) + b")R",
    "getattr of Python 2": called("__builtin__", "getattr", THING, text("method")) + b")R",
    "method caller": called("operator", "methodcaller", text("method")) + b"(" + MADE + b"tR",
    "reduce": called("functools", "reduce", b"ccanary\nrun\n", b"](K\x01K\x02e"),
    "partial": called("functools", "partial", b"ccanary\nrun\n") + b")R",
    "map": called("builtins", "list", called("builtins", "map", b"ccanary\nrun\n", b"(K\x01t")),
    "key of a dictionary": b"}" + MADE + b"K\x01s",
    "rebuild from a type": called(
        "torch._tensor", "_rebuild_from_type_v2", b"ccanary\nrun\n", THING, b")", b"}"
    ),
    "rebuild a parameter": called("torch._utils", "_rebuild_parameter", MADE, b"\x88", b"}"),
    "nested torch.load": called(
        "torch.storage",
        "_load_from_bytes",
        called("_codecs", "encode", text("\x80\x02ccanary\nrun\n)R."), text("latin1")),
    ),
    "system": called("os", "system", b"TOUCH"),
    "system of posix": called("posix", "system", b"TOUCH"),
    "popen": called("os", "popen", b"TOUCH"),
    "Popen": called("subprocess", "Popen", b"](" + text("touch") + b"MARKERe"),
    "getoutput of Python 2": called("commands", "getoutput", b"TOUCH"),
    "eval": called("builtins", "eval", text("__import__('canary').run()")),
    "eval of Python 2": called("__builtin__", "eval", text("__import__('canary').run()")),
    "exec": called("builtins", "exec", text("import canary")),
    "import function": called("builtins", "__import__", text("canary")),
    "importlib": called("importlib", "import_module", text("canary")),
    "runpy": called("runpy", "run_module", text("canary")),
    "timeit": called("timeit", "timeit", text("import canary")),
    "open": called("builtins", "open", b"MARKER", text("w")),
    "touch of a path": called(
        "builtins", "getattr", called("pathlib", "Path", b"MARKER"), text("touch")
    )
    + b")R",
}
# Refused by name, though nothing would run: what has no place in a checkpoint.
NAMED = [
    *("system", "system of posix", "popen", "Popen", "getoutput of Python 2", "eval"),
    *("eval of Python 2", "exec", "import function", "importlib", "runpy", "timeit", "open"),
]


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that appears when the module `canary` is imported or any of it runs."""
    marker = tmp_path / "marker"
    (tmp_path / "canary.py").write_text(CANARY.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    yield marker
    sys.modules.pop("canary", None)


@pytest.fixture(scope="module")
def resnet8():
    return draw("resnet8")


def planted(data: bytes, attack: bytes, marker: pathlib.Path) -> bytes:
    """A pickle in which an attack takes the place of a word."""
    attack = attack.replace(b"TOUCH", text(f"touch {marker}")).replace(b"MARKER", text(str(marker)))
    assert data.count(STRING + b"ATTACK") == 1
    return data.replace(STRING + b"ATTACK", attack)


def write_zip(content, path, attack, marker):
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            data = planted(data, attack, marker) if name.endswith("data.pkl") else data
            archive.writestr(name, data)


def write_legacy(content, path, attack, marker):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(planted(path.read_bytes(), attack, marker))


def write_tar(content, path, attack, marker):
    """As torch before 0.1.10 wrote it; see `torch.serialization._legacy_load`."""
    tensors, storages, listed, classes = {}, io.BytesIO(), io.BytesIO(), set()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, torch.Tensor):
                return str(tensors.setdefault(id(value), (len(tensors), value))[0])
            new = isinstance(value, type) and value not in classes
            if new and issubclass(value, nn.Module):
                classes.add(value)
                return value, "source.py", "class Source"
            return None

    pickled = io.BytesIO()
    Pickler(pickled, 2).dump(content)
    pickle.dump(len(tensors), storages, 2)
    pickle.dump(len(tensors), listed, 2)
    for key, tensor in tensors.values():
        kind = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}[tensor.dtype]
        storages.write(pickle.dumps((key + 1000, "cpu", kind), 2))
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        listed.write(pickle.dumps((key, key + 1000, torch.FloatTensor), 2))
        numbers = (*tensor.shape, *tensor.stride(), 0)
        listed.write(struct.pack(f"<ii{len(numbers)}q", tensor.ndim, 0, *numbers))
    pickle.dump([], storages, 2)
    parts = {
        "storages": storages.getvalue(),
        "tensors": listed.getvalue(),
        "pickle": planted(pickled.getvalue(), attack, marker) if attack else pickled.getvalue(),
    }
    with tarfile.open(path, "w:") as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def appears(marker, seconds=5.0):
    """Whether a file is there soon; another process may write it."""
    end = time.monotonic() + seconds
    while not marker.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return marker.exists()


def outcome(path):
    """The checkpoint in a file, or what is said of it."""
    try:
        return load(path), ""
    except CheckpointError as error:
        return None, str(error)


WRITERS = {"zip": write_zip, "legacy": write_legacy, "tar": write_tar}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_that_a_pickle_names_is_imported_or_run(name, writer, marker, tmp_path, resnet8):
    path = tmp_path / "net.pt"
    content = {"state_dict": dict(resnet8.weights), "attack": "ATTACK"}
    writer(content, path, ATTACKS[name], marker)
    if writer is write_zip:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            torch.load(path, weights_only=False)
        assert name == "nested torch.load" or appears(marker), "the attack is none"
        marker.unlink(missing_ok=True)
        sys.modules.pop("canary", None)
    found, said = outcome(path)
    assert (found is None) == bool(said)
    if name in NAMED:
        assert "which would run code" in said
    if found is None:
        assert str(path) in said
        assert "\n" not in said
    else:
        assert all(torch.equal(found.weights[key], it) for key, it in resnet8.weights.items())
    assert not marker.exists()
    assert "canary" not in sys.modules


class Odd(nn.Module):
    """A class that only the writer of a file has."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet18(num_classes=10)
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.options = argparse.Namespace(lr=0.1)


class Options(dict):
    """A dictionary with attributes, as many programs have their own."""


class Row(list):
    """A list of a class of its own."""


def everything(state):
    options = Options(lr=0.1)
    options.extra = [1]
    return {
        "state_dict": state,
        "args": argparse.Namespace(out=pathlib.Path("runs/1"), lr=0.1),
        "best": np.float64(0.9),
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
        "time": datetime.datetime(2020, 1, 1),
        "history": collections.defaultdict(list, loss=[1.0]),
        "queue": collections.deque([1, 2], maxlen=3),
        "counts": collections.Counter("abca"),
        "options": options,
        "row": Row([1, 2]),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "hyper_parameters": Options(criterion=nn.CrossEntropyLoss(weight=torch.ones(10))),
    }


PLAIN = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("save", PLAIN.values(), ids=PLAIN.keys())
def test_weights_come_out_beside_whatever_a_training_loop_pickles(save, tmp_path, resnet8):
    content = everything(dict(resnet8.weights))
    save(content, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    found = load(tmp_path / "last.ckpt")
    assert str(found.network) == "resnet8"
    assert all(torch.equal(found.weights[key], it) for key, it in resnet8.weights.items())
    read = read_archive(tmp_path / "last.ckpt").value
    assert read["args"].state["lr"] == 0.1
    assert isinstance(read["args"].state["out"], StandIn)
    assert [read[key].entries for key in ("history", "options")] == [{"loss": [1.0]}, {"lr": 0.1}]
    assert [read[key].elements for key in ("row", "queue")] == [[1, 2], [1, 2]]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("save", [*PLAIN.values(), write_tar], ids=[*PLAIN.keys(), "tar"])
@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"model": it}, nn.DataParallel])
def test_weights_come_out_of_pickled_modules(wrap, save, tmp_path):
    module = Odd()
    module.load_state_dict(drawn(module.state_dict()))
    with torch.no_grad():
        detached = {key: it.detach() for key, it in module.state_dict().items()}
    if save is write_tar:  # its writer knows tensors alone
        for parent in module.modules():
            for name, parameter in list(parent.named_parameters(recurse=False)):
                del parent._parameters[name]
                parent._parameters[name] = parameter.detach()
        save(wrap(module), tmp_path / "net.pth", None, None)
    else:
        save(wrap(module), tmp_path / "net.pth")
    found = load(tmp_path / "net.pth")
    assert str(found.network) == "torchvision:resnet18"
    for key, tensor in found.weights.items():
        assert torch.equal(tensor, detached[f"backbone.{key}"]), key
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.build()(images), module.backbone.eval()(images))


class Nested(nn.Module):
    """Its layers have a class within its own, which pickles name by `getattr`."""

    class Layer(nn.Conv2d):
        pass

    def __init__(self):
        super().__init__()
        self.backbone = resnet18(num_classes=10)
        self.backbone.conv1 = self.Layer(3, 64, 7, 2, 3, bias=False)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("save", PLAIN.values(), ids=PLAIN.keys())
def test_classes_within_classes_have_stand_ins_that_do_not_stay(save, tmp_path):
    module, before = Nested().eval(), set(torch.serialization.get_safe_globals())
    save({"model": module}, tmp_path / "net.pth")
    found, images = load(tmp_path / "net.pth"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.build()(images), module.backbone(images))
    assert set(torch.serialization.get_safe_globals()) == before


def in_fortrans_order(tensor):
    return np.asfortranarray(tensor.numpy()) if tensor.ndim > 1 else tensor.numpy()


@pytest.mark.parametrize("save", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("array", [torch.Tensor.numpy, in_fortrans_order])
def test_weights_may_be_arrays_of_numpy(array, save, tmp_path, resnet8):
    weights = {key: array(tensor) for key, tensor in resnet8.weights.items()}
    save({"net": weights, "best": np.float64(0.9)}, tmp_path / "net.pth")
    found = load(tmp_path / "net.pth").weights
    assert all(torch.equal(found[key], tensor) for key, tensor in resnet8.weights.items())


@pytest.mark.parametrize("dtype", [">f4", "O", "U3", "c8"])
def test_other_arrays_of_numpy_are_no_weights(dtype, tmp_path):
    torch.save({"conv1.weight": np.ones(3).astype(dtype)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="a dictionary without tensors"):
        load(tmp_path / "net.pth")


def test_a_built_network_is_read_if_nothing_is_removed_from_it(tmp_path, resnet8):
    torch.save({"model": resnet8.build()}, tmp_path / "net.pt")
    found = load(tmp_path / "net.pt")
    assert str(found.network) == "resnet8"
    assert all(torch.equal(found.weights[key], it) for key, it in resnet8.weights.items())
    torch.save(remove(resnet8, resnet8.network.removable[0]).build(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="which does not tell what was removed from it"):
        load(tmp_path / "net.pt")


def other_stride(module):
    module.layer2[0].conv1.stride = (1, 1)


def other_epsilon(module):
    module.layer3[1].bn2.eps = 1e-3


def other_activation(module):
    module.layer1[0].relu = nn.GELU()


def no_pool(module):
    module.maxpool = nn.Identity()


DIFFERENT = {
    "layer2.0.conv1.stride is (1, 1), not (2, 2)": other_stride,
    "layer3.1.bn2.eps is 0.001, not 1e-05": other_epsilon,
    "layer1.0.relu is GELU, not ReLU": other_activation,
    "maxpool is Identity, not MaxPool2d": no_pool,
}


@pytest.mark.parametrize(("said", "change"), DIFFERENT.items(), ids=DIFFERENT.keys())
def test_pickled_module_with_other_layers_than_the_known_network_is_refused(said, change, tmp_path):
    module = resnet18(num_classes=3)
    change(module)
    torch.save({"net": nn.DataParallel(module)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "net.pth")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_stand_in_stays_behind(tmp_path, resnet8):
    before = set(torch.serialization.get_safe_globals())
    torch.save(everything(dict(resnet8.weights)), tmp_path / "last.ckpt")
    load(tmp_path / "last.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)


def test_attributes_that_a_file_gives_to_tensors_and_dictionaries_are_not_used(tmp_path, resnet8):
    path, key = tmp_path / "net.pt", "conv1.weight"
    state = collections.OrderedDict(resnet8.weights)
    state[key] = nn.Parameter(state[key])
    state.itemz = state.valuez = state.keyz = 3
    state[key].detacz = state[key].isfinitz = state[key].tz = 3
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for name in ("items", "values", "keys", "detach", "isfinite", "to"):
        assert text(name[:-1] + "z") in data
        data = data.replace(text(name[:-1] + "z"), text(name))
    path.write_bytes(data)
    found = load(path)
    assert all(torch.equal(found.weights[key], it) for key, it in resnet8.weights.items())
    assert all(type(tensor) is torch.Tensor for tensor in found.weights.values())
    assert not any(vars(tensor) for tensor in found.weights.values())


def nested(depth):
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def repeated():
    return [[[1] * 1000] * 1000] * 1000


def circular():
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    return module


@pytest.mark.parametrize("content", [nested(99), repeated(), circular()])
def test_values_without_an_end_are_refused(content, tmp_path):
    torch.save({"x": content}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"net\.pt (holds|is nested) more than"):
        load(tmp_path / "net.pt")


PROGRAMS = {
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path),
        r"a TorchScript program, .*torch\.jit\.load\(",
    ),
    ".pt2": (
        lambda path: torch.export.save(
            torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path
        ),
        r"an exported program \(\.pt2\), .*torch\.export\.load\(",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "said"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_program_of_torch_is_named_with_the_way_out(make, said, tmp_path):
    make(tmp_path / ("net.pt2" if "pt2" in said else "net.pt"))
    with pytest.raises(CheckpointError, match=said) as caught:
        load(next(tmp_path.iterdir()))
    assert "\n" not in str(caught.value)


def test_own_format_allows_no_stand_in(tmp_path, resnet8):
    content = {"gatepruner": "{}", "weights": {}, "more": argparse.Namespace()}
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        load(tmp_path / "net.pt")


if os.name == "nt":
    pytest.skip("the attacks call programs of Unix", allow_module_level=True)
