"""Folders of transformers that its own classes load: see https://huggingface.co/docs/transformers.

Such a class takes the number of its layers, or of the layers of every stage, as an option.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import PlanError, listed
from gatepruner.files.huggingface import RESAMPLING
from gatepruner.files.stages import OTHERWISE, moved_up, stages_left, state_of
from gatepruner.files.writing import write_text
from gatepruner.images.preprocessing import Preprocessing, preprocessing_of
from gatepruner.models import Shape
from gatepruner.networks.base import Base
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.huggingface import configuration, construct_classifier, quietly
from gatepruner.networks.network import Network

# The option that says how many layers a type of model has, and whether it does so for every stage.
DEPTHS: dict[str, tuple[str, bool]] = {
    "vit": ("num_hidden_layers", False),
    "deit": ("num_hidden_layers", False),
    "beit": ("num_hidden_layers", False),
    "dinov2": ("num_hidden_layers", False),
    "swin": ("depths", True),
    "swinv2": ("depths", True),
    "convnext": ("depths", True),
    "resnet": ("depths", True),
    "regnet": ("depths", True),
}
SHIFTING = ("swin", "swinv2")  # every second layer of a stage shifts its windows
CARD = """---
library_name: transformers
pipeline_tag: image-classification
tags:
- image-classification
- pruned
---

# {architecture} with {left} of {whole} layers

Layers that the network can do without were removed from a trained `{type}` classifier with
gatepruner, and the others moved up. The removed ones were:

{removed}

It has {classes} classes and takes images of {channels} x {height} x {width} pixels.

```python
from transformers import AutoImageProcessor, AutoModelForImageClassification
processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER")
```
"""


def check(network: Network) -> None:
    """Refuse a network of which transformers' class cannot hold any smaller one.

    Raises:
        PlanError: it is not transformers', or its class has no option for the number of its layers.
    """
    base = network.base
    if base.source != "transformers":
        raise PlanError(
            f"cannot export {network} to transformers: it is not transformers'; {OTHERWISE}"
        )
    if base.name not in DEPTHS:
        raise PlanError(
            f"cannot export {network} to transformers: expected a type of model of which the "
            f"number of layers is an option, {listed(DEPTHS, len(DEPTHS))}; {OTHERWISE}"
        )


def write(
    checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]
) -> tuple[Callable[[str], str], Mapping[str, Any]]:
    """Write the folder that `from_pretrained` loads, with its preprocessing and a card.

    Raises:
        PlanError: a layer lacks a part, a stage has no layer left, or shifted windows would be at
            the wrong layers.
    """
    module, options = _stock(checkpoint)
    with quietly():
        module.save_pretrained(path)  # type: ignore[operator]
    processor = processor_of(preprocessing_of(checkpoint), checkpoint.network.base.input_shape)
    write_text(path / "preprocessor_config.json", json.dumps(processor, indent=1) + "\n")
    write_text(path / "README.md", card(checkpoint.network))
    return (
        lambda folder: (
            "from transformers import AutoModelForImageClassification\n"
            f"model = AutoModelForImageClassification.from_pretrained({folder!r})\n"
            "logits = model(images).logits"
        )
    ), {"arguments": options}


def read(checkpoint: Checkpoint, path: Path) -> Callable[[Tensor], Tensor]:
    """The folder as transformers loads it."""
    from transformers import AutoModelForImageClassification

    with quietly():
        module = AutoModelForImageClassification.from_pretrained(path, local_files_only=True)

    def run(images: Tensor) -> Tensor:
        logits: Tensor = module(images).logits
        return logits

    return run


def _stock(checkpoint: Checkpoint) -> tuple[nn.Module, dict[str, Any]]:
    """The author's module that holds a pruned network, and the option that says so."""
    network = checkpoint.network
    base, stages = network.base, stages_left(network, "transformers")
    _refuse_shifted(network, stages)
    option, staged = DEPTHS[base.name]
    counts = tuple(len(paths) for paths in stages.values())
    options = {option: counts if staged else sum(counts)}
    with torch.random.fork_rng(devices=[]):  # of what the network does not compute with
        torch.manual_seed(0)
        module = construct_classifier(base.name, {**dict(base.arguments), **options})
    module.load_state_dict(state_of(checkpoint, moved_up(stages)), strict=False)
    names = [str(name) for name in checkpoint.notes.get("classes", ())]
    if names:
        config: Any = module.config
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    return module.eval(), options


def _refuse_shifted(network: Network, stages: Mapping[str, list[str]]) -> None:
    """Raise a `PlanError` if a layer with shifted windows would get the place of another one."""
    if network.base.name not in SHIFTING:
        return
    sides = _window_sides(network.base, len(stages))
    for paths, (side, window) in zip(stages.values(), sides, strict=True):
        moved = [path for at, path in enumerate(paths) if (int(path.rpartition(".")[2]) - at) % 2]
        if moved and side > window:  # a single window is never shifted
            raise PlanError(
                f"cannot export {network} to transformers: every second layer of a stage shifts "
                f"its windows, and {listed(moved, 2)} would get the place of another kind; remove "
                f"neighbouring layers in pairs, or {OTHERWISE}"
            )


def _window_sides(base: Base, stages: int) -> list[tuple[int, int]]:
    """The shorter side of the tokens of each stage, and the side of a window."""
    config = configuration(base.name, dict(base.arguments))
    side = min(base.input_shape[1:]) // config.patch_size
    return [(side >> stage, config.window_size) for stage in range(stages)]


def processor_of(prepared: Preprocessing, shape: Shape) -> dict[str, Any]:
    """The content of `preprocessor_config.json`.

    Args:
        prepared: how pictures are scaled and normalised.
        shape: `(C, H, W)` of one image afterwards.
    """
    _, height, width = shape
    scaling = prepared.scaling
    settings = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.normalization.mean),
        "image_std": list(prepared.normalization.std),
    }
    if scaling is None:
        return {"image_processor_type": "ViTImageProcessor", "do_resize": False, **settings}
    side = scaling.side
    return {
        "image_processor_type": f"{'DeiT' if scaling.squash else 'Bit'}ImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if scaling.squash else {"shortest_edge": side},
        "resample": {name: code for code, name in RESAMPLING.items()}[scaling.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        **settings,
    }


def card(network: Network) -> str:
    """The model card of a pruned network."""
    base, whole = network.base, stages_left(Network(network.base), "transformers")
    left = {path for paths in stages_left(network, "transformers").values() for path in paths}
    paths = [path for of in whole.values() for path in of]
    removed = [path for path in paths if path not in left]
    channels, height, width = base.input_shape
    config = configuration(base.name, dict(base.arguments))
    return CARD.format(
        architecture=config.architectures[0],
        type=base.name,
        left=len(left),
        whole=len(paths),
        removed="\n".join(f"- `{path}`" for path in removed) or "none.",
        classes=network.num_classes,
        channels=channels,
        height=height,
        width=width,
    )
