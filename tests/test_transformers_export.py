"""Pruned models of transformers as folders that its own classes load without gatepruner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import drawn, images_for, logits

from gatepruner.errors import CheckpointError, PlanError
from gatepruner.files.formats import check_whole_blocks, export, format_of
from gatepruner.files.huggingface import prepared
from gatepruner.files.transformers import check, processor_of
from gatepruner.images.normalization import Normalization
from gatepruner.images.preprocessing import Preprocessing
from gatepruner.images.scaling import Scaling
from gatepruner.networks.base import Base
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import remove

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of what transformers itself calls

SIDE, CLASSES = 32, ("ant", "bee", "cat", "dog", "eel")
NOTES = {
    "normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    "scaling": {"side": 36, "interpolation": "bicubic", "squash": False},
    "classes": list(CLASSES),
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": (16, 32), "depths": (2, 3)}
WINDOWS = {
    "embed_dim": 16,
    "depths": (2, 4),
    "num_heads": (2, 4),
    "image_size": SIDE,
    "patch_size": 2,
    "window_size": 4,
}
# A tiny configuration of each type, the layers that are removed, and what is left of them.
TYPES: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "vit": (VIT, ["vit.layers.1", "vit.layers.2"], {"num_hidden_layers": 2}),
    "deit": (VIT, ["deit.layers.0"], {"num_hidden_layers": 3}),
    "beit": (
        {**VIT, "use_relative_position_bias": True},
        ["beit.layers.2"],
        {"num_hidden_layers": 3},
    ),
    "dinov2": (
        {key: value for key, value in VIT.items() if key != "intermediate_size"},
        ["dinov2.encoder.layer.1"],
        {"num_hidden_layers": 3},
    ),
    "swin": (
        WINDOWS,
        ["swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.blocks.1"],
        {"depths": [2, 2]},
    ),
    "convnext": (
        {**STAGES, "num_stages": 2},
        ["convnext.encoder.stages.0.layers.0", "convnext.encoder.stages.1.layers.1"],
        {"depths": [1, 2]},
    ),
    "resnet": (
        {**STAGES, "embedding_size": 16, "layer_type": "basic"},
        ["resnet.encoder.stages.0.layers.1", "resnet.encoder.stages.1.layers.1"],
        {"depths": [1, 2]},
    ),
    "regnet": (
        {**STAGES, "embedding_size": 16, "groups_width": 8},
        ["regnet.encoder.stages.1.layers.1"],
        {"depths": [2, 2]},
    ),
}
ALONE = """
import sys
sys.modules["gatepruner"] = None  # importing it fails
import numpy, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
for folder in sys.argv[1:]:
    images = numpy.load(folder + ".images.npy")
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        numpy.save(folder + ".logits.npy", model(torch.from_numpy(images)).logits.numpy())
        alone = model(torch.from_numpy(images[:1])).logits.numpy()
        numpy.save(folder + ".alone.npy", alone)
    assert model.config.id2label[2] == "cat"
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(numpy.full((40, 50, 3), 51, numpy.uint8), return_tensors="np")
    expected = [(0.2 - 0.1) / 0.4, 0, (0.2 - 0.3) / 0.6]
    assert pixels["pixel_values"].shape == (1, 3, 32, 32)
    assert numpy.allclose(pixels["pixel_values"].mean((0, 2, 3)), expected, atol=1e-5)
"""


def classifier(kind: str, options: dict[str, Any]) -> Checkpoint:
    """A model of transformers with weights that are all different from each other."""
    arguments = tuple(sorted({**options, "num_classes": len(CLASSES)}.items()))
    network = Network(Base("transformers", kind, (3, SIDE, SIDE), arguments))
    return Checkpoint(network, drawn(network.initial_weights(0)), NOTES)


def without_layers(checkpoint: Checkpoint, paths: list[str]) -> Checkpoint:
    names = [name for name in checkpoint.network.removable if name.partition(":")[0] in paths]
    assert len(names) >= len(paths)
    return remove(checkpoint, names)


def test_transformers_loads_what_is_left_in_a_process_without_gatepruner(tmp_path):
    networks = {}
    for kind, (options, layers, left) in TYPES.items():
        small, folder = without_layers(classifier(kind, options), layers), tmp_path / kind
        networks[kind] = small
        written = export(small, folder)
        assert written.format == "transformers"
        assert written.difference <= 1e-5
        config = json.loads((folder / "config.json").read_text())
        assert {key: config[key] for key in left} == left
        np.save(f"{folder}.images.npy", images_for(small.network, 3).numpy())
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / kind) for kind in networks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kind, small in networks.items():
        expected = logits(small.build(), images_for(small.network, 3)).numpy()
        assert np.std(expected) > 1e-3
        for name, rows in (("logits", expected), ("alone", expected[:1])):
            found = np.load(tmp_path / f"{kind}.{name}.npy")
            np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-4)


def test_a_card_says_what_was_removed(tmp_path):
    small = without_layers(classifier("vit", VIT), ["vit.layers.1"])
    export(small, tmp_path / "small")
    text = (tmp_path / "small" / "README.md").read_text()
    assert "ViTForImageClassification with 3 of 4 layers" in text
    assert "- `vit.layers.1`\n" in text
    assert "vit.layers.2" not in text


@pytest.mark.parametrize(
    "scaling", [None, Scaling(36, "bicubic"), Scaling(40, "lanczos", squash=True)]
)
def test_the_preprocessing_that_is_written_is_read_again(scaling):
    how = Preprocessing(Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), scaling)
    again = prepared(processor_of(how, (3, SIDE, SIDE)), 3)
    assert again.preprocessing is not None
    assert again.preprocessing.to_json() == how.to_json()
    assert again.size == (None if scaling is None else (SIDE, SIDE))


# ----------------------------------------------------------------------------- what is not allowed


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("vit", ["vit.layers.1:1"], r"vit\.layers\.1 lacks a part"),
        ("resnet", ["resnet.encoder.stages.1.layers.0"], r"layers\.0 lacks a part"),
        (
            "convnext",
            [f"convnext.encoder.stages.0.layers.{at}" for at in (0, 1)],
            "has no block left",
        ),
        (
            "swin",
            [f"swin.encoder.layers.1.blocks.1:{part}" for part in (1, 2)],
            r"blocks\.2, .*blocks\.3.* remove neighbouring layers in pairs",
        ),
    ],
)
def test_what_its_class_cannot_hold_is_refused(tmp_path, kind, names, message):
    checkpoint = remove(classifier(kind, TYPES[kind][0]), names)
    with pytest.raises(PlanError, match=f"cannot export .* to transformers: .*{message}"):
        export(checkpoint, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_of_a_single_window_may_go_alone(tmp_path):
    options = {**WINDOWS, "window_size": 8}
    small = without_layers(classifier("swin", options), ["swin.encoder.layers.1.blocks.1"])
    assert export(small, tmp_path / "small").details == {"arguments": {"depths": (2, 3)}}


def test_what_no_class_could_hold_is_refused_before_the_work(tmp_path):
    other = Network.named("resnet8")
    with pytest.raises(PlanError, match="to transformers: it is not transformers'; choose"):
        check(other)
    with pytest.raises(CheckpointError, match="expected a name ending in"):
        format_of(Path("small"), other)
    with pytest.raises(PlanError, match="cannot promise a transformers export"):
        check_whole_blocks("transformers", classifier("vit", VIT).network)
    other = Network(Base("transformers", "mobilenet_v2", (3, SIDE, SIDE), (("num_classes", 5),)))
    with pytest.raises(PlanError, match="expected a type of model of which the number of layers"):
        check(other)


def test_a_folder_with_something_in_it_is_not_replaced_unasked(tmp_path):
    small = classifier("resnet", TYPES["resnet"][0])
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="small already exists"):
        export(small, tmp_path / "small")
    export(small, tmp_path / "small", force=True)
    assert (tmp_path / "small" / "mine.txt").read_text() == "mine"
