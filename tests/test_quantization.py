"""ONNX files in 8 bits: what they change is measured, recorded, and refused if it is too much."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw, random_images, write_folder

from gatepruner.errors import DataError, EngineError, PlanError
from gatepruner.files.checkpoints import save
from gatepruner.files.formats import export
from gatepruner.files.quantization import Calibration
from gatepruner.images.normalization import Normalization
from gatepruner.networks.checkpoint import Checkpoint

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
ALONE = """
import sys
sys.modules["gatepruner"] = None  # importing it fails
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
meta = session.get_modelmeta().custom_metadata_map
print(meta["int8"])
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {"images": images})[0])
"""


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    """A network whose logits differ between images, so that its classes can change."""
    checkpoint = draw("resnet8", input_shape=(3, 8, 8))
    notes = {"normalize": {"mean": list(MEAN), "std": list(STD)}}
    return Checkpoint(checkpoint.network, checkpoint.weights, notes)


@pytest.fixture(scope="module")
def images():
    return random_images(60, (3, 8, 8), 10)


def prepared(pixels: torch.Tensor) -> torch.Tensor:
    """The pixels as the network takes them, written out."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def test_a_file_in_8_bits_runs_alone_and_changes_what_it_says(whole, images, tmp_path):
    path, pixels = tmp_path / "small.onnx", prepared(images.pixels)
    written = export(whole, path, calibration=Calibration(images, least_agreement=0))
    np.save(tmp_path / "images.npy", pixels.numpy())
    files = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == written.details["int8"] == json.loads(written.sidecar.read_text())["int8"]
    with torch.no_grad():
        expected = whole.build()(pixels).numpy()
    found = np.load(tmp_path / "logits.npy")
    same = np.mean(found.argmax(1) == expected.argmax(1))
    assert told["agreement"] == pytest.approx(same)
    assert told["images"] == 60
    off = np.abs(found - expected).max() / np.abs(expected).max()
    assert told["difference"] == pytest.approx(off, rel=1e-3)
    assert 1e-4 < off < 0.2  # it is not the network itself, and close to it
    assert written.difference == told["difference"]


def test_every_convolution_has_8_bit_weights_for_each_channel(whole, images, tmp_path):
    path = tmp_path / "small.onnx"
    export(whole, path, calibration=Calibration(images, least_agreement=0))
    graph = onnx.load(path).graph
    kinds = {one.name: one for one in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        weight, scale = made[node.input[1]].input[:2]
        assert kinds[weight].data_type == onnx.TensorProto.INT8
        assert list(kinds[scale].dims) == [kinds[weight].dims[0]]


def test_the_normalisation_that_is_chosen_is_calibrated_with(whole, images, tmp_path):
    own = Calibration(images, Normalization(MEAN, STD), 0)
    plain = Checkpoint(whole.network, whole.weights)
    export(whole, tmp_path / "a.onnx", calibration=replace(own, normalization=None))
    export(plain, tmp_path / "b.onnx", calibration=own)
    one, other = (onnx.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert [it.raw_data for it in one.initializer] == [it.raw_data for it in other.initializer]


# ----------------------------------------------------------------------------- what is not allowed


def test_a_class_that_changes_too_often_is_refused_with_the_share(whole, images, tmp_path):
    with pytest.raises(EngineError, match=r"assigns \d.*% of the 60 calibration images") as caught:
        export(whole, tmp_path / "it.onnx", calibration=Calibration(images, least_agreement=1.01))
    assert list(tmp_path.iterdir()) == []
    least = caught.value.arguments["least_agreement"]
    export(whole, tmp_path / "it.onnx", calibration=Calibration(images, least_agreement=least))


def test_images_that_do_not_fit_and_formats_without_8_bits_are_refused(whole, images, tmp_path):
    wrong = Calibration(random_images(2, (3, 9, 9), 10))
    with pytest.raises(DataError, match=r"images of \(3, 9, 9\)"):
        export(whole, tmp_path / "it.onnx", calibration=wrong)
    none = Calibration(images.take(torch.arange(0)))
    with pytest.raises(DataError, match="there are no calibration images"):
        export(whole, tmp_path / "it.onnx", calibration=none)
    with pytest.raises(PlanError, match="cannot quantise a torch export to 8 bits: expected onnx"):
        export(whole, tmp_path / "it.pt2", calibration=Calibration(images))


def test_the_command_quantises_with_training_images(whole, images, tmp_path, run):
    write_folder(tmp_path / "images", images, "train")
    save(whole, tmp_path / "net.pt")
    data = ("--data", f"imagefolder:{tmp_path / 'images'}", "--limit", 40)
    command = ("export", tmp_path / "net.pt", "-o", tmp_path / "small.onnx", "--int8")
    told = run(*command, *data, "--least-agreement", 0, "--json").document
    assert told["int8"]["images"] == 40
    assert "train" in told["int8"]["source"]
    missing = run(*command, "--force")
    assert missing.code == 2
    assert "give --data, too" in missing.err
    other = run("export", tmp_path / "net.pt", "-o", tmp_path / "it.pt2", "--int8", *data)
    assert other.code == 1
    assert "cannot quantise a torch export" in other.err
