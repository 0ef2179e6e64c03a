"""Pictures as people have them: of every kind, turned, with odd metadata, or out of proportion."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from conftest import drawn
from PIL import Image

from gatepruner.errors import DataError
from gatepruner.files.checkpoints import save
from gatepruner.images.decoding import Encoded, decode
from gatepruner.images.scaling import Scaling
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

HEIGHT, WIDTH = 6, 10
COLOUR = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
GREY, DEEP = COLOUR[..., 0], COLOUR.astype(np.uint16) * 257
RED = Image.new("RGB", (WIDTH, HEIGHT), "red")  # what follows the first frame


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour: int, more: bytes = b"", passes=((0, 0, 1, 1),)) -> bytes:
    """A PNG file by its specification (ISO/IEC 15948); seven passes interlace it."""
    depth = pixels.dtype.itemsize * 8
    size = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, len(passes) > 1)
    parts = [pixels[top::down, left::right] for left, top, right, down in passes]
    lines = (line for part in parts if part.size for line in part)
    wide = ">u2" if depth == 16 else "u1"
    data = zlib.compress(b"".join(b"\0" + line.astype(wide).tobytes() for line in lines))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + more
    return head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def on_white(pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return pixels * share + 255 * (1 - share)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Metadata with a value of four bytes for each tag."""
    tags = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + bytes(4)


ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
SAME = np.zeros_like(GREY, bool)
SAME[0, 0] = True
FOUR = GREY >> 4
FRAMES = {"save_all": True, "append_images": [RED]}
RGBA = np.dstack([COLOUR, GREY])
PICTURES = {
    "interlaced": (png(COLOUR, 2, passes=ADAM7), COLOUR),
    "16 bits in colour": (png(DEEP, 2), COLOUR),
    "16 bits with opacity": (png(np.dstack([DEEP, DEEP[..., :1]]), 6), on_white(COLOUR, GREY)),
    "16 bits with a transparent colour": (
        png(DEEP, 2, chunk(b"tRNS", DEEP[0, 0].astype(">u2").tobytes())),
        np.where(SAME[..., None], 255, COLOUR),
    ),
    "animated PNG": (encoded(COLOUR, "PNG", **FRAMES), COLOUR),
    "animated WebP": (encoded(COLOUR, "WEBP", lossless=True, **FRAMES), COLOUR),
    "WebP with opacity": (
        encoded(RGBA, "WEBP", lossless=True, exact=True),
        on_white(COLOUR, GREY),
    ),
    "animated GIF": (encoded(GREY, "GIF", **FRAMES), GREY[..., None]),
    "TIFF of several pages": (encoded(COLOUR, "TIFF", **FRAMES), COLOUR),
    "TIFF of 16 bits": (encoded(DEEP[..., 0], "TIFF"), GREY[..., None]),
    "PGM of 16 bits": (
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + DEEP[..., 0].astype(">u2").tobytes(),
        GREY[..., None],
    ),
    "PGM of 12 bits in text": (
        f"P2 {WIDTH} {HEIGHT} 4095 {' '.join(map(str, (DEEP[..., 0] >> 4).flat))} ".encode(),
        GREY[..., None],
    ),
    "JPEG of four inks": (
        encoded(Image.new("CMYK", (WIDTH, HEIGHT), (60,) * 4), "JPEG", quality=100),
        np.full(COLOUR.shape, (255 - 60) ** 2 / 255),
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_the_pixels_that_its_file_means(name):
    content, expected = PICTURES[name]
    pixels = decode(Encoded(name, content), (3, HEIGHT, WIDTH), None).permute(1, 2, 0).numpy()
    assert np.abs(pixels - np.broadcast_to(expected, pixels.shape).astype(float)).max() <= 1


TURNED = (0x112, 3, 1, struct.pack("<H", 6))
ODD = {
    "nothing odd": (),
    "a resolution in letters": ((0x11A, 2, 3, b"ab\0"),),
    "a resolution that is no number": ((0x11A, 11, 1, struct.pack("<f", float("nan"))),),
}


@pytest.mark.parametrize("name", ODD)
def test_a_photo_with_odd_metadata_is_set_upright(name):
    metadata = chunk(b"eXIf", exif(TURNED, *ODD[name]).removeprefix(b"Exif\0\0"))
    photo = Encoded(name, png(COLOUR, 2, metadata))
    pixels = decode(photo, (3, WIDTH, HEIGHT), None).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.rot90(COLOUR, -1))


def test_a_photo_whose_metadata_cannot_be_read_is_taken_as_it_is():
    photo = Encoded("odd", png(COLOUR, 2, chunk(b"tEXt", b"Raw profile type exif\0\n\n\nno")))
    pixels = decode(photo, (3, HEIGHT, WIDTH), None).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, COLOUR)


@pytest.mark.parametrize("upright", [True, False])
def test_a_picture_that_would_become_too_large_is_refused_before_it_is_scaled(upright, monkeypatch):
    line = np.zeros((1, 9000, 3) if upright else (9000, 1, 3), np.uint8)
    monkeypatch.setattr(Scaling, "__call__", lambda *rest: pytest.fail("it was scaled"))
    with pytest.raises(DataError, match=r"line has .*9000.*scaled it would have .*927000.*crop it"):
        decode(Encoded("line", encoded(line, "PNG")), (3, 32, 32), Scaling(103))


def test_a_long_picture_is_scaled_as_ever():
    line = encoded(np.full((1, 9000, 3), 7, np.uint8), "PNG")
    assert (decode(Encoded("line", line), (3, 32, 32), Scaling(40)) == 7).all()
    assert (decode(Encoded("line", line), (3, 32, 32), Scaling(103, squash=True)) == 7).all()


def test_commands_pass_over_what_pillow_says_of_metadata(run, tmp_path):
    network = Network.named("resnet8", num_classes=3, input_shape=(3, 8, 8))
    save(Checkpoint(network, drawn(network.initial_weights())), tmp_path / "whole.pt")
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    photo.save(tmp_path / "photos" / "1.jpg", exif=exif(TURNED)[:20])
    command = ("evaluate", tmp_path / "whole.pt", "--device", "cpu", "--json")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        told = run(*command, "--data", f"imagefolder:{tmp_path / 'photos'}")
    assert (told.code, said) == (0, []), told.err
