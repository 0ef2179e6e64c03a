"""Exports are loaded by other software in a process without gatepruner: the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import Callers, draw, fingerprint, images_for, logits, with_gates_at

from gatepruner.cli.changing import Target
from gatepruner.errors import CheckpointError, EngineError, PlanError
from gatepruner.files import formats
from gatepruner.files.formats import FORMATS, check_whole_blocks, export, format_of, rehearse
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import remove, remove_shortcuts

NOTES = {
    "normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    "classes": list("abcdefghij"),
}
# How the other software loads each file; `load(path)` maps images to logits.
ALONE = """
import sys
sys.modules["gatepruner"] = None  # importing it fails
import json, numpy, torch
from pathlib import Path

def onnx(path):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["mean"]) == [0.1, 0.2, 0.3], meta
    return lambda images: session.run(None, {"images": images})[0]

def pt2(path):
    extra = {"config.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["config.json"])["std"] == [0.4, 0.5, 0.6]
    return lambda images: module(torch.from_numpy(images)).detach().numpy()

def xml(path):
    import openvino
    model = openvino.Core().read_model(path)
    assert json.loads(model.get_rt_info("config").value)["classes"][0] == "a"
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]

def state(path):
    scope = {}
    exec(Path(path + ".recipe").read_text(), scope)
    model = scope["model"].eval()
    return lambda images: model(torch.from_numpy(images)).detach().numpy()

def safetensors(path):
    if not Path(path + ".load.py").exists():
        return state(path)  # of a stock class
    scope = {}
    exec(Path(path + ".load.py").read_text(), scope)
    model = scope["load"](path)
    return lambda images: model(torch.from_numpy(images)).detach().numpy()

KINDS = {"onnx": onnx, "pt2": pt2, "xml": xml, "pth": state, "safetensors": safetensors}
for path in sys.argv[1:]:
    run = KINDS[path.rpartition(".")[2]](path)
    images = numpy.load(path + ".images.npz")
    results = {name: run(images[name]) for name in images.files}
    numpy.savez(path + ".logits.npz", **results)
"""


def alone(*paths: Path) -> None:
    """Loads and runs files in a process that cannot import gatepruner."""
    command = [sys.executable, "-c", ALONE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def assert_same(written: Sequence[tuple[formats.Export, Checkpoint]]) -> None:
    """Against the networks themselves, for several sizes of batches, in another process."""
    for one, checkpoint in written:
        images = {f"n{count}": images_for(checkpoint.network, count) for count in (1, 3, 5)}
        np.savez(f"{one.path}.images.npz", **{name: it.numpy() for name, it in images.items()})
        Path(f"{one.path}.recipe").write_text(one.recipe)
    alone(*(one.path for one, _ in written))
    for one, checkpoint in written:
        found, module = np.load(f"{one.path}.logits.npz"), checkpoint.build()
        for count in (1, 3, 5):
            expected = logits(module, images_for(checkpoint.network, count)).numpy()
            assert np.std(expected) > 1e-3
            np.testing.assert_allclose(found[f"n{count}"], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def own() -> Checkpoint:
    """A gated network with a shape-changing branch and a shortcut removed."""
    checkpoint = draw("gated-resnet8-b", input_shape=(3, 8, 8))
    checkpoint = with_gates_at(checkpoint, 0.7, ["layer1.0", "layer2.0"])
    checkpoint = remove_shortcuts(remove(checkpoint, ["layer2.0"]), ["layer3.0"])
    return Checkpoint(checkpoint.network, checkpoint.weights, NOTES)


PROGRAMS = ("onnx", "pt2", "xml")


@pytest.fixture(scope="module")
def programs(own, tmp_path_factory) -> dict[str, formats.Export]:
    """The network as a program of every format."""
    for suffix in PROGRAMS:
        for package in FORMATS[format_of(Path(f"it.{suffix}"), own.network)].packages:
            pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("programs")
    return {suffix: export(own, folder / f"it.{suffix}") for suffix in PROGRAMS}


def test_programs_run_without_gatepruner(own, programs):
    assert all(written.difference <= 1e-5 for written in programs.values())
    assert_same([(written, own) for written in programs.values()])


def test_programs_of_a_transformer_take_batches_of_any_size(tmp_path):
    for package in ("timm", "onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    whole = draw("timm:vit_tiny_patch16_224", input_shape=(3, 32, 32))
    small = remove(whole, [f"blocks.{at}:{part}" for at in range(2, 12) for part in (1, 2)])
    small = Checkpoint(small.network, small.weights, {**NOTES, "classes": list("abcdefghij")})
    assert_same([(export(small, tmp_path / f"it.{suffix}"), small) for suffix in PROGRAMS])


def test_an_export_changes_nothing_and_is_never_replaced_unasked(own, programs, tmp_path):
    before = fingerprint(own)
    with pytest.raises(CheckpointError, match="already exists"):
        export(own, programs["pt2"].path)
    export(own, programs["pt2"].path, force=True)
    assert fingerprint(own) == before
    (tmp_path / "it.bin").write_text("mine")
    with pytest.raises(CheckpointError, match=r"it\.bin already exists"):
        export(own, tmp_path / "it.xml")


@pytest.mark.parametrize("suffix", PROGRAMS)
def test_the_preparation_of_images_is_told_beside_the_file(programs, suffix):
    about = json.loads(programs[suffix].sidecar.read_text())
    assert about["mean"] == NOTES["normalize"]["mean"]
    assert about["std"] == NOTES["normalize"]["std"]
    assert about["classes"] == NOTES["classes"]
    assert about["removed"] == ["layer2.0"]
    assert about["input"]["shape"] == ["batch", 3, 8, 8]


def test_stock_classes_and_a_few_lines_load_files_without_gatepruner(tmp_path):
    pytest.importorskip("timm")
    blocks = ["blocks.3:1", "blocks.3:2", "blocks.7:1", "blocks.7:2"]
    cases = {
        "a.pth": ("timm:resnet18", ["layer1.0", "layer3.1"], "timm"),
        "b.pth": ("timm:vit_tiny_patch16_224", blocks, "timm"),
        "c.pth": ("torchvision:resnet18", ["layer1.0"], "torchvision"),
        "d.safetensors": ("torchvision:resnet18", ["layer1.0", "layer2.0"], "safetensors"),
        "e.safetensors": ("timm:vit_tiny_patch16_224", ["blocks.3:1", "blocks.5:2"], "safetensors"),
        "f.safetensors": ("torchvision:resnet18", ["layer2.1"], "torchvision"),
        "g.safetensors": ("timm:resnet18", ["layer1.1"], "timm"),
    }
    written = []
    for file, (name, plan, to) in cases.items():
        checkpoint = remove(draw(name, input_shape=(3, 32, 32)), plan)
        one = export(checkpoint, tmp_path / file, None if to == "safetensors" else to)
        assert one.format == to
        assert "gatepruner." not in one.recipe
        written.append((one, checkpoint))
    loader = Path(f"{tmp_path / 'd.safetensors'}.load.py").read_text()
    assert len(loader.partition("def load")[2].splitlines()) <= 20
    assert_same(written)


def test_safetensors_of_an_own_network_need_gatepruner(own, tmp_path):
    written = export(own, tmp_path / "it.safetensors")
    assert "gatepruner.load(" in written.recipe
    assert not Path(f"{written.path}.load.py").exists()


# ----------------------------------------------------------------------------- what is not allowed


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("timm:vit_tiny_patch16_224", ["blocks.3:1"], r"blocks\.3 lacks a part"),
        ("timm:efficientnet_b0", [], "EfficientNet has no argument for the number of its blocks"),
        ("timm:resnet18", ["layer2.0"], r"layer2\.0 lacks a part.*gate --identity-only"),
        ("timm:resnet18", ["layer1.0", "layer1.1"], "layer1 has no block left.*gate --identity"),
    ],
)
def test_what_timm_cannot_hold_is_refused(tmp_path, name, plan, message):
    pytest.importorskip("timm")
    checkpoint = remove(draw(name, input_shape=(3, 32, 32)), plan)
    with pytest.raises(PlanError, match=f"cannot export {name} to timm: .*{message}"):
        export(checkpoint, tmp_path / "it.pth", "timm")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_refused_with_the_size(own, tmp_path, monkeypatch):
    module = own.build()

    def wrongly(images):
        result = module(images)
        return result + 0.01 * result.abs().max() * torch.eye(*result.shape)

    wrong = formats.Format((".pt2",), _write_something, lambda *rest: wrongly)
    monkeypatch.setitem(FORMATS, "torch", wrong)
    with pytest.raises(EngineError, match=r"computes something else: a logit differs by 0\.01 of"):
        export(own, tmp_path / "it.pt2")
    assert list(tmp_path.iterdir()) == []


def _write_something(checkpoint, path, about):
    path.write_text("it")
    return str, {}


@pytest.mark.parametrize("suffix", ["tflite", "bin", ""])
def test_a_name_that_no_format_has_is_refused(own, tmp_path, suffix):
    with pytest.raises(CheckpointError, match=r"expected a name ending in \.onnx, \.pt, \.pt2"):
        export(own, tmp_path / f"it.{suffix}")


def test_a_name_of_another_format_and_a_missing_folder_are_refused(own, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a name ending in \.pt2"):
        export(own, tmp_path / "it.onnx", "torch")
    with pytest.raises(CheckpointError, match="there is no folder"):
        export(own, tmp_path / "nowhere" / "it.pt2")
    with pytest.raises(CheckpointError, match="unknown format 'tf': expected onnx, torch"):
        export(own, tmp_path / "it.tf", "tf")


def test_a_format_that_is_not_installed_is_refused(own, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"onnx needs onnx.*: pip install 'gatepruner\[onnx\]'"):
        export(own, tmp_path / "it.onnx")


def test_an_operation_that_onnx_does_not_have_is_named(tmp_path):
    pytest.importorskip("onnxscript")

    class Bessel(Callers):
        def forward(self, x):
            return torch.special.i1(super().forward(x))

    checkpoint = Checkpoint.of(Bessel().eval(), (3, 8, 8))
    with pytest.raises(EngineError, match=r"Bessel to ONNX: .*operation prims\.bessel_i1"):
        export(checkpoint, tmp_path / "it.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError, match=r"Bessel to ONNX: .*operation prims\.bessel_i1"):
        rehearse("onnx", checkpoint.network)
    rehearse("torch", checkpoint.network)


def test_a_transformer_is_not_promised_as_a_stock_class():
    network = Network.named("timm:vit_tiny_patch16_224", input_shape=(3, 32, 32))
    with pytest.raises(PlanError, match=r"several parts, such as blocks\.0:1, blocks\.0:2"):
        check_whole_blocks("timm", network)
    check_whole_blocks("onnx", network)


def test_a_block_stays_in_every_stage_for_a_stock_class():
    network = Network.named("torchvision:resnet18", input_shape=(3, 64, 64))
    assert network.stock_removable == ("layer1.1", "layer2.1", "layer3.1", "layer4.1")
    checkpoint = remove(
        draw("torchvision:resnet18", input_shape=(3, 64, 64)), network.stock_removable
    )
    assert formats.to_torchvision(checkpoint).layers == (1, 1, 1, 1)


def test_the_command_line_offers_every_format():
    hint = get_type_hints(Target, include_extras=True)["to"]
    literal = get_args(get_args(hint)[0])[0]
    assert get_args(literal) == tuple(FORMATS)
