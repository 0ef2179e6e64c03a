"""Images that are damaged, turned, transparent, deep or no images are shown right or refused."""

from __future__ import annotations

import io
import os
import random
import subprocess
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gatepruner.errors import DataError
from gatepruner.images import decoding
from gatepruner.images.decoding import decode

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)


def encoded(kind: str, image: Image.Image, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def outcome(path) -> str:
    """Whether an image is read, or what is said in a typed error; anything else is raised."""
    try:
        pixels = decode(str(path), (3, 8, 8), None)
    except DataError as error:
        return str(error)
    assert (pixels.shape, pixels.dtype) == ((3, 8, 8), torch.uint8)
    return ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_a_damaged_image_is_read_or_refused_in_one_line(kind, tmp_path):
    whole, path = encoded(kind, Image.fromarray(COLOURS)), tmp_path / "image.png"
    dice, refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: dice.randint(1, len(data))] if dice.random() < 0.2 else data)
        said = outcome(path)
        assert "\n" not in said
        assert not said or str(path) in said
        refused += bool(said)
    assert refused


def test_postscript_is_not_interpreted_whatever_it_is_called(tmp_path, monkeypatch):
    def refused(*_, **__):
        pytest.fail("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refused)
    path = tmp_path / "image.png"
    path.write_bytes(encoded("EPS", Image.fromarray(COLOURS)))
    assert path.read_bytes().startswith(b"%!PS")
    assert "expected BMP" in outcome(path)


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_turned_photo_is_set_upright(turned, tmp_path):
    # What the writer stored so that undoing the orientation gives COLOURS; see EXIF 2.3, 4.6.4.
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[turned]
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    pixels = decode(str(tmp_path / "a.png"), (3, 8, 8), None)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), COLOURS)


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.png")
    pixels = decode(str(tmp_path / "a.png"), (3, 8, 8), None).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[:4], COLOURS[:4])
    assert (pixels[4:] == 255).all()
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 0]))
    assert decode(str(tmp_path / "p.png"), (3, 8, 8), None)[:, 0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_to_8(suffix, tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(decode(str(tmp_path / f"a.{suffix}"), (1, 8, 8), None)[0], RAMP)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bits_are_refused(dtype, tmp_path):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "a.tiff")
    assert "32 bits" in outcome(tmp_path / "a.tiff")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "MOST_PIXELS", 63)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    assert "8x8 pixels: expected at most 63" in outcome(tmp_path / "a.png")


@pytest.mark.parametrize("factor", [0.5, 0.9, 3])
def test_what_pillow_takes_for_a_bomb_gives_no_warning(factor, tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 / factor))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ("cannot read" in outcome(tmp_path / "a.png")) == (factor > 2)


def test_16_bits_are_set_upright_and_what_is_transparent_in_them_is_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.ascontiguousarray(np.rot90(RAMP.astype(np.uint16) * 257, 1))
    Image.fromarray(deep).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(str(tmp_path / "a.png"), (1, 8, 8), None)[0], RAMP)
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "b.png", transparency=4 * 257)
    expected = np.where(RAMP == 4, 255, RAMP)
    assert np.array_equal(decode(str(tmp_path / "b.png"), (1, 8, 8), None)[0], expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_and_a_device_among_pictures_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert "is no file" in outcome(tmp_path / "pipe.png")
    assert "is no file" in outcome(tmp_path / "zero.png")
