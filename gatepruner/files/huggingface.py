"""Folders of transformers, as `save_pretrained` writes them: what their two JSON files say.

`config.json` describes the network, `preprocessor_config.json` how its pictures are prepared; see
https://huggingface.co/docs/transformers. Whatever names code, an address or a path is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gatepruner.errors import CheckpointError, listed
from gatepruner.files.folders import is_usual
from gatepruner.files.recognition import Wanted
from gatepruner.images.normalization import Normalization
from gatepruner.images.preprocessing import Preprocessing
from gatepruner.images.scaling import Scaling
from gatepruner.models import Shape
from gatepruner.networks.arguments import MOST_CHANNELS, MOST_PIXELS
from gatepruner.networks.base import Base
from gatepruner.networks.huggingface import Restored, class_of, options_of, restored
from gatepruner.networks.network import Network
from gatepruner.networks.verification import verify
from gatepruner.networks.weights import cast, refuse_unusable

QUANTIZED = "quantization_config"
GENERIC = re.compile(r"LABEL_\d+")  # what transformers calls classes without names
# Image processors of transformers, and whether their size without names is of both sides.
PROCESSORS = {
    **dict.fromkeys(("ViT", "DeiT", "Beit", "Segformer", "Pvt", "Siglip"), True),
    **dict.fromkeys(("CLIP", "Bit", "MobileNetV1", "MobileNetV2", "ConvNext", "Levit"), False),
}
PROCESSOR = re.compile(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
# Whatever else a processor may do to pixels, and what it is set to where it does nothing.
ELSE = {"do_flip_channel_order": False, "do_pad": False, "do_rescale": True}
# By Pillow's numbers.
RESAMPLING = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
UNCROPPED = 384  # pixels from which ConvNeXT's processor squashes instead of cropping


@dataclass(frozen=True)
class Prepared:
    """How pictures are prepared.

    Attributes:
        preprocessing: scaling and normalisation; `None` if they are not known.
        size: height and width afterwards, if they are known.
        remark: what is not understood.
    """

    preprocessing: Preprocessing | None = None
    size: tuple[int, int] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Model:
    """An image classifier of transformers.

    Attributes:
        base: what constructs it.
        weights: tensors by its keys.
        notes: on its classes and pictures, and what was left out or cast.
    """

    base: Base
    weights: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def read_model(
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    content: Mapping[str, Tensor],
    wanted: Wanted,
) -> Model:
    """The model that a folder of transformers describes, with the weights of a file.

    It is compared with the module that transformers makes of the same weights.

    Args:
        config: the content of `config.json`.
        processor: the content of `preprocessor_config.json`; empty if there is none.
        content: tensors by the keys of the file.
        wanted: what the caller says about them.

    Raises:
        ArchitectureError: transformers is missing, has no such classifier, or the network computes
            something else.
        CheckpointError: the weights cannot be used, or do not fit.
    """
    channels = config.get("num_channels", 3)
    counted = type(channels) is int and 0 < channels <= MOST_CHANNELS  # or else it is refused
    how = prepared(processor, channels) if processor and counted else Prepared()
    base = base_of(config, how.size, wanted.num_classes, wanted.input_shape)
    refuse_unusable(content)
    real = {key: tensor for key, tensor in content.items() if tensor.is_floating_point()}
    _, casts = cast(real, {key: tensor.float() for key, tensor in real.items()})
    module = _fitting(base, content)
    network = Network(base)
    state = module.module.state_dict()
    weights = {key: state[key] for key in network.state()}
    verify(
        module.module,
        base.input_shape,
        lambda tensors: network.build({key: tensors[key] for key in weights}),
    )
    remarks = [*casts, *([how.remark] if how.remark else [])]
    if module.unused:
        remarks.append(f"left out what the network does not use: {listed(module.unused)}")
    notes = _notes(config, how, base)
    return Model(base, weights, {**notes, "remarks": remarks} if remarks else notes)


def _fitting(base: Base, content: Mapping[str, Tensor]) -> Restored:
    """The author's module with these weights; raises a `CheckpointError` if some do not fit."""
    made = restored(base.name, dict(base.arguments), content)
    problems = {"missing": made.missing, "wrong shape": made.misshapen}
    if any(problems.values()):
        text = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
        unused = f"; not used: {listed(made.unused)}" if made.unused else ""
        raise CheckpointError(
            f"its weights do not fit {type(made.module).__name__} as config.json describes it: "
            f"{text}{unused}; take the weights and the configuration of one classifier"
        )
    return made


def _notes(config: Mapping[str, Any], how: Prepared, base: Base) -> dict[str, Any]:
    """The notes on classes and pictures."""
    names = class_names(config)
    notes = {"classes": names} if len(names) == dict(base.arguments).get("num_classes") else {}
    if how.preprocessing is None:
        return notes
    fits = how.size is None or how.size == base.input_shape[1:]
    kept = how.preprocessing if fits else replace(how.preprocessing, scaling=None)
    return {**notes, **kept.to_json()}


def base_of(
    config: Mapping[str, Any],
    size: tuple[int, int] | None,
    num_classes: int | None,
    shape: Shape | None,
) -> Base:
    """The network that a `config.json` describes.

    Args:
        config: its content.
        size: height and width of the images, if the preprocessing tells.
        num_classes: number of logits; by default as the configuration says.
        shape: `(C, H, W)` of one image; by default as preprocessing or configuration say.

    Raises:
        ArchitectureError: transformers is missing, or has no such image classifier, or a value is
            none that an option may have.
        CheckpointError: the weights are quantised.
    """
    name = str(config.get("model_type"))
    if config.get(QUANTIZED):
        raise CheckpointError(
            "its weights are quantised (quantization_config): expected a folder in 16 or 32 bits"
        )
    classes = config.get("architectures")
    architecture = classes[0] if isinstance(classes, list) and classes else None
    usual = class_of(name)
    known, flat = options_of(name), _flat(config)
    arguments = {key: _tuples(value) for key, value in flat.items() if key in known}
    if architecture not in (None, usual):
        arguments["architecture"] = class_of(name, str(architecture))
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    if num_classes or count is not None:
        arguments["num_classes"] = num_classes or count
    return Base(
        "transformers", name, shape or _shape(arguments, size), tuple(sorted(arguments.items()))
    )


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes in the order of the logits, if a configuration has any."""
    labels = config.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    names = [labels.get(str(index)) for index in range(len(labels))]
    known = [name for name in names if isinstance(name, str)]
    if len(known) < len(names) or all(map(GENERIC.fullmatch, known)):
        return []
    return known


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those of the part that sees as `vision_config.KEY`."""
    vision = config.get("vision_config")
    inner = vision if isinstance(vision, dict) else {}
    return {**config, **{f"vision_config.{key}": value for key, value in inner.items()}}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _shape(arguments: Mapping[str, Any], size: tuple[int, int] | None) -> Shape:
    """`(C, H, W)` of one image, as the configuration says."""

    def of(key: str, default: Any) -> Any:
        return arguments.get(key, arguments.get(f"vision_config.{key}", default))

    sides = of("image_size", 224)
    sides = sides if isinstance(sides, tuple) and len(sides) == 2 else (sides, sides)
    height, width = size or sides
    return of("num_channels", 3), height, width


def prepared(settings: Mapping[str, Any], channels: int) -> Prepared:
    """How pictures are prepared, from a `preprocessor_config.json`.

    Args:
        settings: its content.
        channels: of the network's images.
    """
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type"))
    match = PROCESSOR.fullmatch(kind)
    name = match[1] if match else ""
    if name not in PROCESSORS:
        return _not_understood(f"{kind} is none of {', '.join(PROCESSORS)}")
    strange = [key for key, usual in ELSE.items() if settings.get(key, usual) not in (usual, None)]
    if strange:
        return _not_understood(f"{strange[0]} is {settings[strange[0]]}")
    normalization = _normalization(settings, channels)
    if normalization is None:
        return _not_understood("its mean, deviation or factor is missing")
    try:
        scaling, size = _scaling(name, settings)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return _not_understood("its sizes")
    return Prepared(Preprocessing(normalization, scaling, "the checkpoint's"), size)


def _not_understood(why: str) -> Prepared:
    remark = f"its preprocessing is not known ({why}): pass the normalisation and scaling"
    return Prepared(remark=remark)


def _normalization(settings: Mapping[str, Any], channels: int) -> Normalization | None:
    """Mean and deviation of pixels scaled to [0, 1]."""
    if settings.get("do_normalize", True) is False:
        return Normalization((0.0,) * channels, (1.0,) * channels)
    factor = settings.get("rescale_factor", 1 / 255)
    mean, std = settings.get("image_mean"), settings.get("image_std")
    for numbers in (mean, std, [factor] * channels):
        if not isinstance(numbers, list) or len(numbers) != channels:
            return None
        if not all(map(is_usual, numbers)):
            return None
    share = round(factor * 255, 9)  # 1 as a rule
    if share <= 0:
        return None
    means, deviations = ([one / share for one in numbers or ()] for numbers in (mean, std))
    return Normalization(tuple(means), tuple(deviations)) if min(deviations) > 0 else None


def _scaling(
    name: str, settings: Mapping[str, Any]
) -> tuple[Scaling | None, tuple[int, int] | None]:
    """How pictures are scaled, and the height and width that is cropped."""
    if not settings.get("do_resize", True):
        return None, None
    size = settings["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if PROCESSORS[name] else {"shortest_edge": size}
    how = RESAMPLING[settings.get("resample", 2)]
    cropped = _sides(settings["crop_size"]) if settings.get("do_center_crop") else None
    if "shortest_edge" not in size:
        height, width = _sides(size)
        scaling = Scaling(height, how, squash=True) if height == width else None
        return scaling, cropped or (height, width)
    side = _side(size["shortest_edge"])
    if name == "ConvNext":
        share = settings.get("crop_pct") or 224 / 256
        larger = _side(int(side / share)) if side < UNCROPPED else side
        return Scaling(larger, how, squash=side >= UNCROPPED), (side, side)
    return Scaling(side * 256 // 224 if name == "Levit" else side, how), cropped


def _sides(size: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return _side(size), _side(size)
    return _side(size["height"]), _side(size["width"])


def _side(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_PIXELS:
        raise ValueError(value)
    return value
