"""Models of transformers from a local folder compute what transformers itself computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import drawn, files_in, same
from PIL import Image
from torch import Tensor

import gatepruner
from gatepruner.errors import ArchitectureError, CheckpointError
from gatepruner.files.huggingface import prepared
from gatepruner.images.preprocessing import preprocessing_of
from gatepruner.images.readers import load_images

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of what transformers itself calls

SIDE, CLASSES = 32, ("ant", "bee", "cat", "dog", "eel")
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [16, 32], "depths": [2, 2]}
WINDOWS = {
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "image_size": SIDE,
    "patch_size": 2,
    "window_size": 4,
}
# A tiny configuration for each type, and how many residual additions its author wrote.
TYPES = {
    "vit": (VIT, 6),
    "deit": (VIT, 6),
    "beit": ({**VIT, "use_relative_position_bias": True}, 6),
    "dinov2": (VIT, 6),
    "swin": (WINDOWS, 8),
    "convnext": ({**STAGES, "num_stages": 2, "image_size": SIDE}, 4),
    "resnet": ({**STAGES, "embedding_size": 16, "layer_type": "basic"}, 4),
    "regnet": ({**STAGES, "embedding_size": 16, "groups_width": 8}, 4),
    "siglip": ({"vision_config": VIT}, 6),
}


def author(kind: str, options: dict, architecture: str | None = None):
    """A model of transformers with weights that are all different from each other."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    name = architecture or (NAMES[kind] if isinstance(NAMES[kind], str) else NAMES[kind][0])
    labels = {"id2label": dict(enumerate(CLASSES)), "architectures": [name]}
    config = transformers.AutoConfig.for_model(kind, **labels, **options)
    module = getattr(transformers, name)(config).eval()
    module.load_state_dict(drawn(module.state_dict()))
    return module


def written(module, folder: Path, **how) -> Path:
    module.save_pretrained(folder, **how)
    return folder


def edited(folder: Path, **changes) -> Path:
    """The folder with other values in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def outputs(module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result = module(images)
    return result if isinstance(result, Tensor) else result.logits


@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_the_authors_bit_for_bit(kind, tmp_path):
    options, blocks = TYPES[kind]
    module = author(kind, options)
    found = gatepruner.load(written(module, tmp_path / "model"), input_shape=(3, SIDE, SIDE))
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(outputs(found.build(), images), outputs(module, images))
    assert len(found.network.blocks) == blocks
    assert found.notes["classes"] == list(CLASSES)
    assert "remarks" not in found.notes or kind == "dinov2"
    again = gatepruner.load(gatepruner.save(found, tmp_path / "own.pt"))
    assert same(again, found)


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return author("vit", VIT)


@pytest.fixture
def folder(vit, tmp_path) -> Path:
    return written(vit, tmp_path / "model")


def test_pruned_network_is_the_authors_with_the_branch_masked(vit, folder, tmp_path):
    """Of the second block's attention; the oracle is a hook that multiplies what it adds by 0."""
    target, images = "vit.layers.1", torch.randn(2, 3, SIDE, SIDE)
    small = gatepruner.remove(gatepruner.load(folder), f"{target}:1")
    layer = vit.get_submodule(f"{target}.attention")
    hook = layer.register_forward_hook(lambda module, args, result: (result[0] * 0, *result[1:]))
    try:
        expected = outputs(vit, images)
    finally:
        hook.remove()
    assert torch.equal(outputs(small.build(), images), expected)
    path = gatepruner.save(small, tmp_path / "small.safetensors")
    assert torch.equal(outputs(gatepruner.load(path).build(), images), expected)


@pytest.mark.parametrize("how", [{"max_shard_size": "20KB"}, {}], ids=["shards", "one file"])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_folder_is_inspected_by_either_name(how, prefix, vit, run, tmp_path):
    folder = written(vit, tmp_path / "model", **how)
    assert len(list(folder.glob("*.safetensors"))) > 1 or not how
    document = run("inspect", f"{prefix}{folder}", "--json").document
    assert document["name"] == "transformers:vit"
    assert document["params"] == sum(each.numel() for each in vit.parameters())
    assert len(document["blocks"]) == 6


def test_weights_of_a_folder_may_lie_elsewhere(vit, folder, run, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "later.pth")
    found = gatepruner.load(tmp_path / "later.pth", arch=f"hf:{folder}")
    assert same(found, gatepruner.load(folder))
    done = run("prune", f"hf:{folder}", "--drop", 1, "--by", "magnitude")
    assert done.code == 0, done.err
    assert (tmp_path / "model-drop1-magnitude.pt").exists()


def test_one_of_several_classes_of_a_type(tmp_path):
    name = "DeiTForImageClassificationWithTeacher"
    module = author("deit", VIT, name)
    found = gatepruner.load(written(module, tmp_path))
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(outputs(found.build(), images), outputs(module, images))
    assert dict(found.network.base.arguments)["architecture"] == name


def test_half_precision_is_cast_and_said(vit, tmp_path):
    import copy

    folder = written(copy.deepcopy(vit).half(), tmp_path)
    found = gatepruner.load(folder)
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = copy.deepcopy(vit).half().float()
    assert torch.equal(outputs(found.build(), images), outputs(expected, images))
    assert any("cast from float16 to float32" in remark for remark in found.notes["remarks"])


def test_dry_runs_leave_nothing_in_the_authors_caches(tmp_path):
    """Beit keeps tables of positions by window; the module of the caller computes with them."""
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    table = BeitRelativePositionBias.generate_relative_position_index
    module = author("beit", TYPES["beit"][0])
    folder, images = written(module, tmp_path), torch.randn(2, 3, SIDE, SIDE)
    before = outputs(module, images)
    _emptied(table)
    gatepruner.load(folder)
    assert table((4, 4)).device.type == "cpu"
    assert torch.equal(outputs(module, images), before)


def _emptied(function) -> None:
    for cell in function.__closure__:
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 4}, r"missing: vit\.layers\.3\..* and 8 more"),
        ({"hidden_size": 64}, r"wrong shape: .* is \(.*32.*\), not \(.*64.*\)"),
        ({"id2label": {"0": "a"}}, r"wrong shape: classifier\.bias is \(5,\), not \(1,\)"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, said, folder):
    with pytest.raises(CheckpointError, match=said) as caught:
        gatepruner.load(edited(folder, **changes))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, "no image classifier of type 'bert'"),
        ({"model_type": "vitt"}, r"no image classifier of type 'vitt' \(did you mean vit"),
        ({"model_type": "imagegpt", "architectures": None}, "takes input_ids"),
        ({"model_type": "siglip2"}, "no image classifier of type 'siglip2'"),
        ({"architectures": ["ViTModel"]}, "'ViTModel' is no image classifier"),
        ({"hidden_act": "no_such"}, "no_such"),
        ({"patch_size": 0}, "cannot be constructed"),
    ],
)
def test_another_kind_of_model_is_refused(changes, said, folder):
    with pytest.raises(ArchitectureError, match=said) as caught:
        gatepruner.load(edited(folder, **changes))
    assert "\n" not in str(caught.value)


def test_without_transformers_its_install_line_is_said(folder, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArchitectureError, match=r"pip install 'gatepruner\[transformers\]'"):
        gatepruner.load(folder)


def test_weights_that_are_not_used_are_named(vit, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = written(vit, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "vit.pooler.dense.bias": torch.ones(32)}, folder / "model.safetensors")
    remarks = gatepruner.load(folder).notes["remarks"]
    assert remarks == ["left out what the network does not use: vit.pooler.dense.bias"]


# ----------------------------------------------------------------------- how pictures are prepared


PROCESSORS = {
    "squashed": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "squashed and cropped": (
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "cropped": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
    ),
    "a share cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    "enlarged": ("LevitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
    "not scaled to 1": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    ),
    "not normalised": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 32}, "do_normalize": False, "resample": 1},
    ),
}


@pytest.mark.parametrize(("kind", "options"), PROCESSORS.values(), ids=PROCESSORS.keys())
@pytest.mark.parametrize("backend", ["Pil", ""])
def test_pictures_are_prepared_as_by_the_authors_processor(
    backend, kind, options, folder, tmp_path
):
    processor = getattr(transformers, f"{kind}{backend}")(**options)
    processor.save_pretrained(folder)
    draws = np.random.default_rng(0)
    smooth = Image.fromarray(draws.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((71, 57))
    (tmp_path / "pictures").mkdir()
    smooth.save(tmp_path / "pictures" / "it.png")
    how = preprocessing_of(gatepruner.load(folder))
    images = load_images(f"pictures:{tmp_path / 'pictures'}", (3, 32, 32), resize=how.scaling)
    found = how.normalization(images.pixels)
    expected = torch.as_tensor(np.asarray(processor(smooth)["pixel_values"]))
    off = (found - expected).abs() * torch.tensor(how.normalization.std).view(3, 1, 1) * 255
    assert off.max() < (1e-3 if backend else 2.5)  # torchvision rounds tensors otherwise


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_processor_type": "EfficientNetImageProcessor"}, "EfficientNetImageProcessor"),
        ({"image_processor_type": "x/../y"}, "x/../y"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True"),
        ({"image_mean": [0.5]}, "mean, deviation"),
        ({"image_std": [0.0, 1.0, 1.0]}, "mean, deviation"),
        ({"image_std": [float("nan"), 1.0, 1.0]}, "mean, deviation"),
        ({"size": {"longest_edge": 5}}, "sizes"),
        ({"size": None}, "sizes"),
        ({"resample": 17}, "sizes"),
        ({"size": {"shortest_edge": "../x"}}, "sizes"),
    ],
)
def test_a_preprocessing_that_is_not_understood_is_said(settings, said):
    usual = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 36},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    assert prepared(usual, 3).preprocessing is not None
    found = prepared({**usual, **settings}, 3)
    assert found.preprocessing is None
    assert said in found.remark


def test_a_folder_is_only_read(folder):
    before = files_in(folder)
    gatepruner.load(folder)
    assert files_in(folder) == before
