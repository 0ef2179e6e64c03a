"""ONNX files are measured beside checkpoints, on the engines that read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import draw, images_for, logits, random_images, write_folder

from gatepruner.errors import CheckpointError, EngineError
from gatepruner.files.checkpoints import load, save
from gatepruner.files.formats import export
from gatepruner.files.onnx_files import load_onnx
from gatepruner.files.quantization import Calibration
from gatepruner.images.preprocessing import preprocessing_of
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.bench import bench
from gatepruner.measuring.onnx_program import running
from gatepruner.networks.checkpoint import Checkpoint

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
SHAPE = (3, 8, 8)
FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    checkpoint = draw("resnet8", input_shape=SHAPE)
    classes = [f"class {at}" for at in range(10)]
    normalize = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    notes = {"normalize": normalize, "classes": classes, "scaling": {"side": 9}}
    return Checkpoint(checkpoint.network, checkpoint.weights, notes)


@pytest.fixture(scope="module")
def images():
    return random_images(40, SHAPE, 10)


@pytest.fixture(scope="module")
def files(whole, images, tmp_path_factory) -> Path:
    """`whole.pt`, and exported `whole.onnx` in float32 and `int8.onnx`."""
    folder = tmp_path_factory.mktemp("files")
    save(whole, folder / "whole.pt")
    export(whole, folder / "whole.onnx")
    export(whole, folder / "int8.onnx", calibration=Calibration(images, least_agreement=0))
    return folder


def test_a_file_holds_what_it_was_exported_with(whole, files):
    file = load_onnx(files / "whole.onnx")
    assert (str(file.network), file.network.num_classes) == ("whole.onnx", 10)
    assert file.network.base.input_shape == SHAPE
    assert preprocessing_of(file) == preprocessing_of(whole)
    assert file.notes["classes"] == whole.notes["classes"]
    assert file.rounding == 0
    shown = images_for(whole.network, 5)
    torch.testing.assert_close(logits(running(file), shown), logits(whole.build(), shown))


def test_the_accuracy_of_a_file_is_that_of_its_network(whole, files, images):
    expected, found = accuracy(whole, images), accuracy(load_onnx(files / "whole.onnx"), images)
    assert found.loss == pytest.approx(expected.loss)
    assert found.correct == expected.correct
    small = load_onnx(files / "int8.onnx")
    assert accuracy(small, images).loss != pytest.approx(expected.loss, rel=1e-4)


def test_files_are_measured_beside_checkpoints_where_an_engine_reads_them(whole, files):
    subjects = {"whole": whole, "int8": load_onnx(files / "int8.onnx")}
    measured = bench(subjects, ("eager", "onnxruntime"), (1, 2), threads=1, seconds=0)
    assert [(one.latency.engine, one.latency.batch, one.name) for one in measured] == [
        *(("eager", 1, "whole"), ("eager", 2, "whole")),
        *(("onnxruntime", 1, "whole"), ("onnxruntime", 1, "int8")),
        *(("onnxruntime", 2, "whole"), ("onnxruntime", 2, "int8")),
    ]
    assert measured[-1].difference == 0


def test_engines_may_round_integers_differently_but_not_floats(files):
    pytest.importorskip("openvino")
    file = load_onnx(files / "int8.onnx")
    assert 1e-3 < file.rounding < 0.2
    (one,) = bench({"int8": file}, ("openvino",), threads=1, seconds=0)
    assert one.difference <= file.rounding


def test_engines_that_read_no_onnx_are_refused(files):
    message = r"^eager, compile cannot run whole\.onnx as an ONNX file: expected one of onnxruntime"
    file = load_onnx(files / "whole.onnx")
    with pytest.raises(EngineError, match=message):
        bench({"whole.onnx": file}, ("eager", "compile"), seconds=0)


# ------------------------------------------------------------------------- what is not such a file


def model(inputs, outputs, initializers=(), metadata=()):
    """A model that passes its first input on; sizes of 0 are of any size."""
    described = [
        [
            onnx.helper.make_tensor_value_info(name, kind, [side or "n" for side in sides])
            for name, kind, sides in values
        ]
        for values in (inputs, outputs)
    ]
    node = onnx.helper.make_node("Identity", [inputs[0][0]], [outputs[0][0]])
    graph = onnx.helper.make_graph([node], "it", *described, initializers)
    made = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(made, dict(metadata))
    return made.SerializeToString()


def outside():
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=bytes(4))
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


IMAGES, LOGITS = [("x", FLOAT, (0, 3, 8, 8))], [("y", FLOAT, (0, 10))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "no ONNX file, or is damaged|has no operations"),
        (b"", "has no operations"),
        (model([("x", INT, (0, 3, 8, 8))], LOGITS), r"has x \[0, 3, 8, 8\] .*one float32 input"),
        (model([("x", FLOAT, (0, 3, 0, 8))], LOGITS), r"x \[0, 3, 0, 8\]"),
        (model([("x", FLOAT, (0, 8))], LOGITS), r"x \[0, 8\]"),
        (model([*IMAGES, ("z", FLOAT, (1,))], LOGITS), r"x \[0, 3, 8, 8\], z \[1\]"),
        (model(IMAGES, [("y", FLOAT, (0, 10, 4))]), r"y \[0, 10, 4\]"),
        (model([("x", FLOAT, (0, 3, 8, 5000))], LOGITS), "cannot take images of"),
        (model(IMAGES, LOGITS, [outside()]), "keeps its weights in other files"),
        (model(IMAGES, LOGITS, metadata={"classes": "[1"}), "not valid JSON"),
        (model(IMAGES, LOGITS, metadata={"classes": "[1]"}), "metadata of .* damaged: classes"),
        (model(IMAGES, LOGITS, metadata={"mean": "[0]", "std": "[-1]"}), "damaged: normalize.std"),
        (model(IMAGES, LOGITS, metadata={"int8": '{"difference": 99}'}), "damaged: difference"),
    ],
)
def test_other_files_are_refused_with_what_they_have(tmp_path, content, message):
    (tmp_path / "it.onnx").write_bytes(content)
    with pytest.raises(Exception, match=message) as told:
        load_onnx(tmp_path / "it.onnx")
    assert "gatepruner.errors" in str(type(told.value))
    assert "\n" not in str(told.value)


def test_a_file_that_onnx_runtime_cannot_run_is_refused_in_one_line(tmp_path, images):
    content = model(IMAGES, LOGITS).replace(b"Identity", b"Frobnify")
    (tmp_path / "it.onnx").write_bytes(content)
    file = load_onnx(tmp_path / "it.onnx")
    message = r"^onnxruntime cannot run it\.onnx: it does not have the operation Frobnify"
    with pytest.raises(EngineError, match=message):
        accuracy(file, images)


def test_a_file_that_computes_no_logits_is_refused(tmp_path, images):
    (tmp_path / "it.onnx").write_bytes(model(IMAGES, LOGITS))
    message = r"it gives \(40, 3, 8, 8\) for 40 images, expected logits \(40, 10\)"
    with pytest.raises(EngineError, match=message):
        accuracy(load_onnx(tmp_path / "it.onnx"), images)


def test_verbs_that_change_networks_name_what_they_take(files):
    with pytest.raises(CheckpointError, match="is an ONNX file, which bench and evaluate measure"):
        load(files / "whole.onnx")


# ------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def data(images, tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images, "test")
    return "--data", f"imagefolder:{folder}"


def test_bench_has_accuracy_and_latency_of_all_in_one_table(run, files, data, tmp_path):
    networks = [files / name for name in ("whole.pt", "int8.onnx")]
    how = ("--engine", "onnxruntime", "--seconds", 0, "--threads", 1, "--device", "cpu")
    document = run("bench", *networks, *data, *how, "-o", tmp_path / "out", "--json").document
    assert [one["network"] for one in document["measured"]] == ["whole", "int8"]
    for one, name in zip(document["measured"], ("whole.pt", "int8.onnx"), strict=True):
        alone = run("evaluate", files / name, *data, "--resize", 0, "--json").document
        assert one["accuracy"] == pytest.approx(alone["accuracy"], abs=0.2)


def test_evaluate_measures_a_file(run, files, data):
    told = run("evaluate", files / "int8.onnx", *data, "--latency", "--engine", "onnxruntime")
    assert "onnxruntime, batch size 1, cpu" in told.out
    assert "the checkpoint's normalisation" in told.out
    wrong = run("evaluate", files / "int8.onnx", *data, "--latency")
    assert wrong.code == 1
    assert "eager cannot run" in wrong.err
    assert "--engine onnxruntime" in wrong.err
    other = run("evaluate", files / "int8.onnx", *data, "--arch", "resnet20")
    assert other.code == 1
    assert "leave out --arch" in other.err
    assert json.loads(run("evaluate", files / "whole.onnx", *data, "--json").out)["images"] == 40
