"""Pictures reach a network as its author's own transforms would have prepared them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import draw, random_images
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from gatepruner.errors import DataError
from gatepruner.files.checkpoints import load, save
from gatepruner.images.normalization import IMAGENET, Normalization
from gatepruner.images.preprocessing import Preprocessing, preprocessing_of
from gatepruner.images.readers import load_images
from gatepruner.images.scaling import INTERPOLATIONS, Scaling
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe, Recipe
from gatepruner.learning.training import finetune
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.names import parse
from gatepruner.networks.network import Network


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    draws = np.random.default_rng(seed)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def written(image: Image.Image, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / "it.png")
    return folder


def prepared(folder: Path, how: Preprocessing, shape: tuple[int, int, int]) -> Tensor:
    images = load_images(f"pictures:{folder}", shape, resize=how.scaling)
    return how.normalization(images.pixels)[0]


@pytest.mark.parametrize("seed", range(60))
def test_scaling_is_torchvisions_to_the_bit(tmp_path, seed):
    draws = np.random.default_rng(seed)
    height, width = map(int, draws.integers(5, 13, 2))
    side = int(draws.integers(max(height, width), 30))
    image = picture(*map(int, draws.integers(4, 90, 2)), seed)
    known = Compose([Resize(side), CenterCrop((height, width)), PILToTensor()])(image)
    folder = written(image, tmp_path)
    images = load_images(f"pictures:{folder}", (3, height, width), resize=side)
    assert torch.equal(images.pixels[0], known)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("squash", [False, True])
def test_every_interpolation_is_torchvisions(interpolation, squash):
    image, mode = picture(23, 41), InterpolationMode(interpolation)
    known = CenterCrop((9, 11))(Resize((16, 16) if squash else 16, mode)(image))
    found = Scaling(16, interpolation, squash)(image, 9, 11)
    assert np.array_equal(np.array(found), np.array(known))


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(DataError, match="unknown interpolation 'cubic': expected bilinear, bicub"):
        Scaling(8, "cubic")


def published(name: str, **options: object) -> Checkpoint:
    """A network by name, neither constructed nor with weights."""
    return Checkpoint(Network(parse(name, **options)[0]), {})


@pytest.mark.parametrize(
    ("name", "size", "file", "weights"),
    [
        ("resnet18", 224, "resnet18-f37072fd.pth", "IMAGENET1K_V1"),
        ("resnet50", 224, "resnet50-0676ba61.pth", "IMAGENET1K_V1"),
        ("resnet50", 224, "resnet50-11ad3fa6.pth", "IMAGENET1K_V2"),
        ("resnet50", 224, "mine.pth", "IMAGENET1K_V2, assumed"),
        ("mobilenet_v3_small", 224, "", "IMAGENET1K_V1, assumed"),
        ("efficientnet_b0", 224, "", "IMAGENET1K_V1, assumed"),
    ],
)
def test_pictures_are_prepared_as_torchvision_does(tmp_path, name, size, file, weights):
    checkpoint = published(f"torchvision:{name}", input_shape=(3, size, size))
    how = preprocessing_of(replace(checkpoint, notes={"source": file}))
    assert how.source == f"torchvision's {weights}"
    stock = torchvision.models.get_model_weights(name)[weights.split(",")[0]].transforms()
    for seed, (width, height) in enumerate(((301, 257), (180, 400))):
        image = picture(width, height, seed)
        folder = written(image, tmp_path / str(seed))
        assert torch.equal(prepared(folder, how, (3, size, size)), stock(image))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet26", "resnet26.bt_in1k, assumed"),
        ("resnet18.tv_in1k", "resnet18.tv_in1k"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k, assumed"),
    ],
)
def test_pictures_are_prepared_as_timm_does(tmp_path, name, source):
    cfg = timm.get_pretrained_cfg(name)
    size = cfg.input_size[-1]
    how = preprocessing_of(published(f"timm:{name}", input_shape=cfg.input_size))
    assert how.source == f"timm's {source}"
    stock = create_transform(**resolve_data_config(pretrained_cfg=cfg.to_dict()))
    image = picture(size + 77, size + 21)
    found = prepared(written(image, tmp_path), how, (3, size, size))
    torch.testing.assert_close(found, stock(image), rtol=0, atol=2e-7)  # timm's constants


def squashes(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(name)
    return cfg is not None and cfg.crop_mode == "squash" and cfg.num_classes == 1000


def test_squashing_is_known_from_timm(tmp_path):
    name = next(one for one in timm.list_models() if squashes(one))
    cfg = timm.get_pretrained_cfg(name)
    how = preprocessing_of(published(f"timm:{name}", input_shape=cfg.input_size))
    stock = create_transform(**resolve_data_config(pretrained_cfg=cfg.to_dict()))
    image = picture(cfg.input_size[1] + 77, cfg.input_size[1] + 21)
    found = prepared(written(image, tmp_path), how, cfg.input_size)
    torch.testing.assert_close(found, stock(image), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:resnet18", {"num_classes": 10}),
        ("torchvision:resnet18", {"input_shape": (3, 64, 64)}),
        ("timm:resnet18", {"num_classes": 10}),
        ("timm:resnet18", {"input_shape": (3, 64, 64)}),
        ("resnet8", {}),
    ],
)
def test_a_scaling_is_not_assumed_of_other_networks(name, options):
    how = preprocessing_of(published(name, **options))
    assert how.scaling is None
    assert how.normalization == IMAGENET


def test_what_a_checkpoint_records_wins_over_its_author():
    notes = {
        "normalize": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
        "scaling": {"side": 230, "interpolation": "lanczos", "squash": True},
    }
    how = preprocessing_of(replace(published("torchvision:resnet18"), notes=notes))
    assert how.scaling == Scaling(230, "lanczos", squash=True)
    assert how.normalization == Normalization((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "the checkpoint's")
    assert how.to_json() == notes


VERBS = {
    "learn_gates": lambda whole, data: learn_gates(
        whole, data, GateRecipe(blocks=1, warmup=1, steps=1, batch_size=4), device="cpu"
    ),
    "finetune": lambda whole, data: finetune(
        whole, data, Recipe(epochs=1, batch_size=4), device="cpu"
    ),
    "recalibrate": lambda whole, data: recalibrate(whole, data, device="cpu"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_learns_from_scaled_images_records_how(tmp_path, verb):
    whole = draw("resnet8", input_shape=(3, 8, 8))
    scaled = replace(random_images(8, (3, 8, 8)), resize=Scaling(10, "bicubic"))
    done = VERBS[verb](whole, scaled)
    again = load(save(done, tmp_path / "done.pt"))
    assert preprocessing_of(again).scaling == Scaling(10, "bicubic")
    assert preprocessing_of(again).normalization.mean == IMAGENET.mean
    plain = VERBS[verb](again, random_images(8, (3, 8, 8)))
    assert "scaling" in plain.notes  # what was known stays


# ----------------------------------------------------------------------------- the command line


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed in range(6):
        written(picture(20 + seed, 31, seed), tmp_path / "photos" / str(seed % 2) / str(seed))
    return tmp_path / "photos"


def test_the_scaling_of_a_checkpoint_is_used_told_and_overruled(run, tmp_path, folder):
    whole = draw("resnet8", input_shape=(3, 8, 8))
    noted = replace(whole, notes={"scaling": Scaling(12, "bicubic").to_json()})
    path = save(noted, tmp_path / "whole.pt")
    asked = ("recalibrate", path, "--data", f"pictures:{folder}", "--device", "cpu", "--force")
    for options, scaling in (
        ((), Scaling(12, "bicubic")),
        (("--resize", 9), Scaling(9)),
        (("--interpolation", "lanczos"), Scaling(12, "lanczos")),
        (("--resize", 9, "--interpolation", "box"), Scaling(9, "box")),
    ):
        done = run(*asked, *options, "-o", tmp_path / "done.pt")
        assert done.code == 0, done.err
        assert str(scaling) in " ".join((done.out + done.err).split())
        images = load_images(f"pictures:{folder}", (3, 8, 8), resize=scaling)
        known, found = recalibrate(noted, images, device="cpu"), load(tmp_path / "done.pt")
        assert all(torch.equal(known.weights[key], found.weights[key]) for key in known.weights)
        assert found.notes["scaling"] == scaling.to_json()
    refused = run(*asked, "--resize", 0)
    assert "has 31x20 pixels, the network takes 8x8" in refused.err


def test_an_interpolation_without_a_scaling_is_refused(run, tmp_path, folder):
    path = save(draw("resnet8", input_shape=(3, 8, 8)), tmp_path / "whole.pt")
    refused = run("recalibrate", path, "--data", f"pictures:{folder}", "--interpolation", "box")
    assert refused.err == "error: --interpolation says how to scale: give --resize, too\n"
