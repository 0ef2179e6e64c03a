"""Sharded weights and folders of hubs."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import draw
from safetensors.torch import save_file

from gatepruner.errors import CheckpointError
from gatepruner.files.checkpoints import load


@pytest.fixture(scope="module")
def resnet8():
    return draw("resnet8")


def sharded(folder, weights, count=3, suffix=".safetensors"):
    """Weights spread over files, as transformers and timm write them, and their index."""
    keys, places = list(weights), {}
    for index in range(count):
        name = f"model-{index + 1:05d}-of-{count:05d}{suffix}"
        shard = {key: weights[key] for key in keys[index::count]}
        places |= dict.fromkeys(shard, name)
        write = save_file if suffix == ".safetensors" else torch.save
        write(shard, folder / name)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_of_several_files_are_one_checkpoint(suffix, resnet8, tmp_path):
    found = load(sharded(tmp_path, resnet8.weights, suffix=suffix))
    assert str(found.network) == "resnet8"
    assert all(torch.equal(found.weights[key], it) for key, it in resnet8.weights.items())


def changed_index(index, change):
    content = json.loads(index.read_text())
    index.write_text(json.dumps(change(content)))


BROKEN = {
    "no file": (
        lambda index: (index.parent / "model-00002-of-00003.safetensors").unlink(),
        r"names files that are not there: model-00002",
    ),
    "a file elsewhere": (
        lambda index: changed_index(index, lambda it: {"weight_map": {"a": "../a.safetensors"}}),
        r"names \.\./a\.safetensors: expected files beside it",
    ),
    "no list": (lambda index: changed_index(index, lambda it: {}), "weight_map"),
    "no object": (lambda index: changed_index(index, lambda it: [1]), "expected an object"),
    "a weight that no file has": (
        lambda index: changed_index(
            index,
            lambda it: {
                "weight_map": {**it["weight_map"], "x": "model-00001-of-00003.safetensors"}
            },
        ),
        "lack x",
    ),
    "no JSON": (lambda index: index.write_text("{"), "not valid JSON"),
    "deep JSON": (lambda index: index.write_text("[" * 100_000), "not valid JSON"),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_index_is_refused(damage, said, resnet8, tmp_path):
    index = sharded(tmp_path, resnet8.weights)
    damage(index)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(index)
    assert str(index) in str(caught.value)
    assert "\n" not in str(caught.value)


CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 5,
    "pretrained_cfg": {"input_size": [3, 64, 48], "mean": [0.5] * 3, "std": [0.4, 0.5, 0.6]},
}


def timm_folder(folder, config):
    timm = pytest.importorskip("timm")
    module = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return module


def test_folder_of_timm_says_what_it_is(tmp_path):
    module = timm_folder(tmp_path, CONFIG)
    found = load(tmp_path)
    assert found.network.base.input_shape == (3, 64, 48)
    assert found.notes["normalize"] == {"mean": [0.5] * 3, "std": [0.4, 0.5, 0.6]}
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(found.build()(images), module(images))


REFUSED = {
    "no configuration": ("", "expected a file, or a folder with config.json"),
    "an architecture of timm in a hub": (
        '{"model_type": "timm_wrapper", "architecture": "hf-hub:someone/something"}',
        "hf-hub:.*expected timm's",
    ),
    "an address": ('{"architecture": "hf-hub:someone/something"}', "hf-hub:.*expected timm's"),
    "a path": ('{"architecture": "local-dir:/etc"}', "local-dir:.*expected timm's"),
    "another type": ('{"architecture": ["resnet18"]}', "neither model_type nor architecture"),
}


@pytest.mark.parametrize(("config", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_folder_of_another_kind_is_refused(config, said, resnet8, tmp_path):
    save_file(dict(resnet8.weights), tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"has no weights: expected one of"):
        load(tmp_path)
