"""Documents and pictures are read from regular files of limited size, or refused in one line."""

from __future__ import annotations

import ast
import json
import os
import signal
from pathlib import Path

import pytest
from conftest import draw
from safetensors.torch import save_file

import gatepruner
from gatepruner import load, load_images, save
from gatepruner.cli.keeping import recording
from gatepruner.compression.folder import Folder
from gatepruner.errors import CheckpointError, GatePrunerError
from gatepruner.images.classes import read_classes

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
PATIENCE = 20  # seconds after which something waits for ever


def steps(folder):
    Folder(folder, {}).begin(["whole"], resume=True, force=False)


def index(folder):
    load(folder / "model.safetensors.index.json")


def epochs(folder):
    recording(folder / "a.history.jsonl", print, anew=False)


def saved_by_datasets(folder):
    load_images(f"hf:{folder}", (3, 8, 8))


def parquet(folder):
    load_images(f"parquet:{folder}", (3, 8, 8))


def picture(folder):
    (folder / "a").mkdir()
    (folder / "1.png").rename(folder / "a" / "1.png")
    load_images(f"imagefolder:{folder}", (3, 8, 8))


def numbers(folder):
    load_images(f"mnist:{folder.parent.parent}", (1, 28, 28))


DOCUMENTS = {
    "steps.json": steps,
    "model.safetensors.index.json": index,
    "config.json": load,
    "preprocessor_config.json": load,
    "state.json": saved_by_datasets,
    "names.txt": lambda folder: read_classes(folder / "names.txt"),
    "a.history.jsonl": epochs,
    "test.parquet": parquet,
    "1.png": picture,
    "t10k-images-idx3-ubyte": numbers,
}
LARGE = [name for name in DOCUMENTS if not name.endswith(("parquet", "png", "ubyte"))]


@pytest.fixture
def folder(tmp_path):
    """A folder in which only one file is not as it should be."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    save_file(dict(draw("resnet8").weights), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"\0\0\x08\x01\0\0\0\0")
    return folder


@pytest.fixture
def impatient():
    """A test that takes too long is one that hangs."""

    def hangs(*_):
        pytest.fail("it waits for ever")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(act, folder) -> str:
    with pytest.raises(GatePrunerError) as caught:
        act(folder)
    said = str(caught.value)
    assert "\n" not in said
    return said


def names_it(name, said) -> bool:
    """Whether a refusal names the file, or for torchvision's sets the folder."""
    return name in said or (name == "t10k-images-idx3-ubyte" and "mnist:" in said)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_pipe_is_refused(name, folder, impatient):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert names_it(name, refusal(DOCUMENTS[name], folder))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_device_without_an_end_is_refused(name, folder, impatient):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    assert names_it(name, refusal(DOCUMENTS[name], folder))


@pytest.mark.parametrize("name", LARGE)
def test_a_document_of_gigabytes_is_refused_before_it_is_read(name, folder, impatient):
    with (folder / name).open("wb") as file:
        file.truncate(2**36)  # on the disk it takes no place
    assert "is too large: 68,719,476,736 bytes, expected at most" in refusal(
        DOCUMENTS[name], folder
    )


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_a_file_of_options(kind, tmp_path, run, impatient):
    path = tmp_path / "a.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(f"seed: {'0' * 2**16}")
    done = run("inspect", "a.pt", "--config", path, "--json")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert str(path) in done.err


def test_lines_of_a_history_that_are_no_epochs_are_left_out(tmp_path):
    history = tmp_path / "a.history.jsonl"
    lines = ['{"epoch": 1}', "[1]", "3", '{"epoch": "2"}', "[" * 10**5, '{"epoch": 2, "x": [1']
    history.write_text("\n".join(lines))

    class Moment:
        ends_epoch, epoch = True, 2

        def record(self):
            return {"epoch": 2}

    recording(history, lambda moment: None, anew=False)(Moment())
    assert history.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_deferred_weights_whose_file_becomes_a_pipe(tmp_path, suffix):
    file = tmp_path / f"net{suffix}"
    save(draw("resnet8"), file)
    weights = load(file, deferred=True).weights
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        next(iter(weights.values())).clone()


# What reads files, and of which kind; every other module gets its text from `documents`.
READERS = {
    "documents.py",
    "files/archives.py",  # weights: only after os.path.isfile
    "files/places.py",  # only of the version that was found
    "files/safetensors.py",
    "files/storage.py",
    "files/onnx_files.py",  # only after is_file
    "files/formats.py",  # its own exports
    "files/loader.py",
    "files/programs.py",
    "files/quantization.py",
    "files/locks.py",
    "files/writing.py",
    "images/caching.py",  # only after os.path.isfile
    "images/decoding.py",
    "images/classes.py",  # what the package brings
    "demo/__init__.py",
    "report/html/document.py",
    "measuring/device.py",  # of Linux
    "measuring/engines.py",  # programs in memory
}


def reads(source: str) -> bool:
    """Whether a source opens a file itself."""
    return any(
        isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "open")
            or (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in {"open", "read_text", "read_bytes", "fromfile"}
            )
        )
        for node in ast.walk(ast.parse(source))
    )


def test_documents_are_read_in_one_place():
    root = Path(gatepruner.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if reads(path.read_text())}
    assert found <= READERS
