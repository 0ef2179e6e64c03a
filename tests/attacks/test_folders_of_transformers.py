"""Nothing in a folder of transformers makes it run code, open a file or ask the network."""

from __future__ import annotations

import builtins
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gatepruner
from gatepruner.errors import GatePrunerError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of what transformers itself calls

CODE = "open({path!r}, 'w').close()\n"
USUAL = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def weights():
    config = transformers.AutoConfig.for_model(**USUAL)
    return transformers.ViTForImageClassification(config).state_dict()


@pytest.fixture
def sealed(monkeypatch):
    """A process in which sockets and programs are noticed."""

    def refused(*args, **options):
        raise AssertionError("something was asked for")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refused)
    monkeypatch.setattr(os, "system", refused)


def folder_with(tmp_path, weights, settings=None, **changes):
    """A folder of a model with code beside it, which leaves a trace when it runs."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("modeling_own", "configuration_own", "processing_own", "hubconf", "__init__"):
        (folder / f"{name}.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    (folder / "config.json").write_text(json.dumps({**USUAL, **changes}))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings or {}))
    save_file(dict(weights), folder / "model.safetensors")
    return folder


HARMLESS = {
    "code of its own": {
        "auto_map": {
            "AutoConfig": "configuration_own.Config",
            "AutoModelForImageClassification": "modeling_own.Model",
        },
        "trust_remote_code": True,
    },
    "code of a hub": {
        "auto_map": {"AutoModelForImageClassification": "someone/something--modeling_own.Model"}
    },
    "kernels of a hub": {"attn_implementation": "someone/attention"},
    "private kernels": {"_attn_implementation": "someone/attention:f"},
    "internal kernels": {"_attn_implementation_internal": "someone/attention"},
    "a hub's name": {"_name_or_path": "someone/something", "name_or_path": "/etc/passwd"},
    "other weights": {"transformers_weights": "../../other.safetensors"},
    "an adapter": {"peft_config": {"base_model_name_or_path": "someone/something"}},
    "pretrained parts": {"backbone": "resnet50", "use_pretrained_backbone": True},
    "fusions": {"fusion_config": {"layer": "someone/something"}},
    "a type of numbers": {"dtype": "os.system", "torch_dtype": "os.system"},
    "a pipeline": {"custom_pipelines": {"x": {"impl": "modeling_own.P"}}},
}


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_names_code_or_places_is_left_out(sealed, weights, changes, tmp_path):
    found = gatepruner.load(folder_with(tmp_path, weights, **changes))
    assert len(found.network.blocks) == 2
    assert not found.network.base.arguments or not (
        dict(found.network.base.arguments).keys() & changes.keys()
    )
    assert not (tmp_path / "ran").exists()


REFUSED = {
    "timm from a hub": {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/something"},
    "timm from a folder": {"model_type": "timm_wrapper", "architecture": "local-dir:/etc"},
    "a type that is a path": {"model_type": "../../modeling_own"},
    "a type that is none": {"model_type": ["vit"]},
    "a class that is a path": {"architectures": ["someone/something"]},
    "a class that is none": {"architectures": [{"x": 1}]},
    "an address": {"hidden_act": "https://example.org/x"},
    "a path": {"hidden_act": "/etc/passwd"},
    "an import": {"hidden_act": "os.system"},
    "a mapping": {"hidden_act": {"a": 1}},
    "many layers": {"num_hidden_layers": 10**9},
    "many units": {"hidden_size": 10**9},
    "all memory": {"hidden_size": 65536, "intermediate_size": 65536, "num_hidden_layers": 256},
    "large images": {"image_size": 10**6},
    "many classes": {"id2label": None, "num_labels": 10**9},
    "not a number": {"layer_norm_eps": float("nan")},
    "long lists": {"image_size": [16] * 10_000},
    "deep lists": {"image_size": [[[[[[[[16]]]]]]]]},
    "a number in words": {"hidden_size": "16"},
    "no patches": {"patch_size": 0},
    "fewer than none": {"num_hidden_layers": -5},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_model_is_refused(sealed, weights, changes, tmp_path):
    folder, started = folder_with(tmp_path, weights, **changes), time.monotonic()
    with pytest.raises(GatePrunerError) as caught:
        gatepruner.load(folder)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {"AutoImageProcessor": "processing_own.P"}, "image_processor_type": "P"},
        {"image_processor_type": "someone/something"},
        {"image_processor_type": ["x"], "size": 10**30},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": -1, "width": 1}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 1e300}},
    ],
)
def test_no_processor_is_constructed(sealed, weights, settings, tmp_path):
    usual = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    found = gatepruner.load(folder_with(tmp_path, weights, {**usual, **settings}))
    assert any("preprocessing is not known" in remark for remark in found.notes["remarks"])
    assert not (tmp_path / "ran").exists()


OPTIONS = [
    {"auto_map": "x"},
    {"attn_implementation": "someone_attention"},
    {"_attn_implementation": "eager"},
    {"backbone": "resnet50"},
    {"vision_config.hidden_size": 8},
    {"hidden_act": "someone/something"},
    {"architecture": "Trainer"},
    {"num_hidden_layers": 10**6},
    {"quantization_config": "x"},
    {"HIDDEN": 1},
    {"a b": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_a_file_of_our_own_format(sealed, weights, options, tmp_path, run):
    path = gatepruner.save(gatepruner.load(folder_with(tmp_path, weights)), tmp_path / "a.pt")
    file = torch.load(path, weights_only=True)
    header = json.loads(file["gatepruner"])
    header["network"]["base"]["arguments"].update(options)
    torch.save({**file, "gatepruner": json.dumps(header)}, path)
    done = run("inspect", path)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_only_files_of_the_folder_are_opened(sealed, weights, tmp_path, monkeypatch):
    folder = folder_with(tmp_path, weights, auto_map={"AutoConfig": "configuration_own.Config"})
    gatepruner.load(folder)  # imports what it needs
    opened, plain = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *a, **o: opened.append(file) or plain(file, *a, **o)
    )
    gatepruner.load(folder)
    own = str(Path(transformers.__file__).parent)  # whose source an older torch reads
    code = [name for name in map(str, opened) if name.endswith(".py")]
    assert [name for name in code if not name.startswith(own)] == []
