"""A value of an odd type or size, where a file has a plain one, is refused in one line."""

from __future__ import annotations

import collections
import json
import struct
from dataclasses import replace

import pytest
import torch
from conftest import draw

from gatepruner.errors import GatePrunerError
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.path import Path as LearnedPath
from gatepruner.networks.path import Removal

WHOLE = draw("gated-resnet8")
KEY = "conv1.weight"
KEYS = [1, None, b"conv1.weight", ("a",), 1.5]
WEIGHT = WHOLE.weights[KEY]
WEIGHTS = {
    "without values": torch.empty(WEIGHT.shape, device="meta"),
    "complex": WEIGHT.to(torch.complex64),
    "whole numbers": WEIGHT.int(),
    "truth values": WEIGHT.bool(),
    "of 8 bits": WEIGHT.to(torch.float8_e5m2),
    "not a number": WEIGHT * float("nan"),
}


def refused(path) -> str:
    with pytest.raises(GatePrunerError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own(path, whole=WHOLE, **changes):
    """A file of our own format with other weights."""
    save(whole, path)
    content = torch.load(path, weights_only=True)
    content["weights"].update(changes.get("weights", {}))
    torch.save(content, path)
    return path


@pytest.mark.parametrize("value", [torch.zeros(1), 3], ids=["tensor", "number"])
@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_a_key_in_a_file_of_our_own(key, value, tmp_path):
    assert "expected only tensors" in refused(own(tmp_path / "a.pt", weights={key: value}))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_in_a_file_of_our_own(name, tmp_path):
    assert KEY in refused(own(tmp_path / "a.pt", weights={KEY: WEIGHTS[name]}))


ODD = [
    torch.empty((), device="meta"),
    torch.zeros((), dtype=torch.complex64),
    torch.zeros((), dtype=torch.float8_e5m2),
    torch.tensor(True),
    torch.tensor(float("nan")),
    torch.nn.parameter.UninitializedParameter(),
]


@pytest.mark.parametrize("value", ODD, ids=lambda it: f"{it.dtype} {it.layout} {it.device}")
def test_a_gate_and_what_a_path_has_learned_of_it(value, tmp_path):
    gate = WHOLE.network.gate_key(WHOLE.network.edits.gated[0])
    removal = Removal(WHOLE.network.edits.gated[1], 0.5, 0.1, 1.5, 3, {gate: torch.tensor(0.5)})
    pathed = replace(WHOLE, path=LearnedPath((removal,)))
    named = refused(own(tmp_path / "a.pt", weights={gate: value}))
    assert gate in named or "layer1.0 (k = nan)" in named
    said = refused(own(tmp_path / "b.pt", pathed, weights={f"path/0/{gate}": value}))
    assert f"path/0/{gate}" in said


def test_a_name_that_two_weights_have(tmp_path):
    weights = dict(draw("resnet8").weights)
    torch.save({"a.b": weights, "a": {"b": {KEY: weights[KEY] + 1}}}, tmp_path / "b.pt")
    assert "given twice: conv1.weight" in refused(tmp_path / "b.pt")


SHARDS = [[1, 2], None, torch.zeros(3), {"gatepruner": "{}", "weights": 3}]


def index(folder, names, **shards):
    for name, content in shards.items():
        torch.save(content, folder / f"{name}.bin")
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": names}))
    return path


@pytest.mark.parametrize("content", SHARDS)
def test_a_file_that_an_index_names(content, tmp_path):
    with pytest.raises(GatePrunerError, match=r"a\.bin is damaged"):
        load(index(tmp_path, {"a": "a.bin"}, a=content))


def test_a_weight_in_two_files_of_an_index(tmp_path):
    weights = dict(draw("resnet8").weights)
    names = {key: "ab"[number % 2] + ".bin" for number, key in enumerate(weights)}
    assert "no other file" in refused(index(tmp_path, names, a=weights, b=weights))


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "\ud800", "", "..", 3])
def test_a_name_in_an_index(name, tmp_path):
    assert "names" in refused(index(tmp_path, {"a": name}))


def test_a_path_longer_than_a_name_may_be(tmp_path):
    refused(tmp_path / ("a" * 300 + ".pt"))


@pytest.mark.parametrize("shape", [[0, 2**63], [2**64 - 1, 0], [0, 2**62, 2**62]])
def test_a_side_in_safetensors(shape, tmp_path):
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refused(tmp_path / "a.safetensors")


PROCESSOR = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
NUMBERS = {**PROCESSOR, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def transformers(folder, processor, weights, **config):
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", **config}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("channels", ["x", 10**9, 10**30, -1, [3], 3.0, None])
@pytest.mark.parametrize("processor", [{**PROCESSOR, "do_normalize": False}, NUMBERS])
def test_a_number_of_channels(channels, processor, tmp_path):
    pytest.importorskip("transformers")
    refused(transformers(tmp_path, processor, {}, num_channels=channels))


@pytest.mark.parametrize("key", ["rescale_factor", "image_mean", "image_std"])
def test_a_number_with_which_pixels_are_prepared(key, tmp_path):
    pytest.importorskip("transformers")
    value = 10**400 if key == "rescale_factor" else [10**400] * 3
    refused(transformers(tmp_path, {**NUMBERS, key: value}, {}))


def test_a_weight_that_is_not_finite_in_an_ordered_dictionary(tmp_path):
    found = pytest.importorskip("transformers")
    config = found.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    state = collections.OrderedDict(found.ResNetForImageClassification(config).state_dict())
    config.architectures = ["ResNetForImageClassification"]
    config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    load(tmp_path)
    next(iter(state.values())).fill_(float("nan"))
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "weights are nan" in refused(tmp_path)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0), (0.5, -1), (float("nan"), 1), (10**400, 1)])
def test_a_normalisation_in_a_folder_of_timm(mean, std, tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    about = {"mean": [mean] * 3, "std": [std] * 3}
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "normalize" not in load(tmp_path).notes
