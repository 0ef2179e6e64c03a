"""Random views: a crop is a scaled rectangle of the image, and the seed decides on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_images
from PIL import Image

from gatepruner.images.views import augmented, cropped, varied

SIDE = 96


def positions(channels: int, side: int = SIDE) -> torch.Tensor:
    """An image `(C, H, W)` that shows where a pixel is: twice its column, twice its row, and 7.

    In grey, where there is no room for both, only its column.
    """
    column = (2 * torch.arange(side)).expand(side, side)
    return torch.stack([column, column.T, torch.full((side, side), 7)])[:channels].byte()


def line(values: torch.Tensor) -> tuple[float, float]:
    """Start and length of the stretch that pixels `(W,)` of a crop were scaled from.

    The pixels in the middle, as those at the edges have no neighbour to be interpolated with.
    """
    at = np.arange(len(values)) + 0.5
    inner = slice(8, -8)
    slope, offset = np.polyfit(at[inner], values[inner].double() / 2 + 0.5, 1)
    assert np.abs(slope * at + offset - 0.5 - values.numpy() / 2)[inner].max() < 0.5
    first, last = (offset, offset + slope * len(values))
    return first, last - first


def boxes(crops: torch.Tensor) -> list[tuple[int, int, int, int, bool]]:
    """Left, top, width and height of the rectangle that each crop shows, and whether mirrored."""
    found = []
    for columns, rows, _ in crops:
        assert (columns == columns[:1]).all()
        assert (rows == rows[:, :1]).all()
        left, width = line(columns[0])
        top, height = line(rows[:, 0])
        mirrored = width < 0
        left, width = (left + width, -width) if mirrored else (left, width)
        found.append((*map(round, (left, top, width, height)), mirrored))
    return found


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Many crops of the picture that shows positions."""
    torch.manual_seed(3)
    return cropped(positions(3).expand(200, -1, -1, -1))


def test_a_crop_shows_a_rectangle_in_the_image_of_the_size_and_ratio_asked_for(crops):
    assert crops.dtype == torch.uint8
    assert crops.shape == (200, 3, SIDE, SIDE)
    assert (crops[:, 2] == 7).all()
    found = boxes(crops)
    for left, top, width, height, _ in found:
        assert 0 <= left <= left + width <= SIDE
        assert 0 <= top <= top + height <= SIDE
        assert 0.34 < width * height / SIDE**2 <= 1
        assert 0.73 < width / height < 1.36
    shares = [width * height / SIDE**2 for _, _, width, height, _ in found]
    ratios = [width / height for _, _, width, height, _ in found]
    assert min(shares) < 0.4
    assert max(shares) > 0.8
    assert min(ratios) < 0.8
    assert max(ratios) > 1.25
    assert len(set(found)) > 190
    assert 70 < sum(mirrored for *_, mirrored in found) < 130


def test_a_crop_is_the_one_that_pillow_cuts_out_and_scales(crops):
    draws = random_images(40, (3, SIDE, SIDE)).pixels
    torch.manual_seed(3)
    known = boxes(cropped(positions(3).expand(40, -1, -1, -1)))
    torch.manual_seed(3)
    found = cropped(draws)
    for pixels, crop, (left, top, width, height, mirrored) in zip(draws, found, known, strict=True):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        image = image.crop((left, top, left + width, top + height))
        expected = torch.from_numpy(np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
        shown = (crop.flip(2) if mirrored else crop).permute(1, 2, 0)
        assert (shown.int() - expected.int()).abs().max() <= 1


def test_grey_images_are_cropped_and_not_mirrored():
    found = cropped(positions(1).expand(50, -1, -1, -1))
    for crop in found:
        left, width = line(crop[0, 0])
        assert 0 <= round(left) <= round(left + width) <= SIDE
    assert len({crop.numpy().tobytes() for crop in found}) > 45


def test_an_image_of_one_colour_keeps_it():
    colours = torch.arange(0, 256, 17, dtype=torch.uint8).repeat_interleave(3).view(-1, 3, 1, 1)
    images = colours.expand(-1, 3, 100, 120)
    assert torch.equal(cropped(images), images)


def test_the_least_share_of_the_area_is_kept():
    images = random_images(20, (3, SIDE, SIDE)).pixels
    whole = cropped(images, least=1.0)
    for image, found in zip(images, whole, strict=True):
        assert torch.equal(found, image) or torch.equal(found, image.flip(2))
    found = boxes(cropped(positions(3).expand(60, -1, -1, -1), least=0.8))
    assert min(width * height for _, _, width, height, _ in found) > 0.79 * SIDE**2


@pytest.mark.parametrize("view", [cropped, varied])
def test_the_seed_decides_on_the_crops_and_every_call_draws_anew(view):
    images = random_images(6, (3, SIDE, SIDE)).pixels
    before = images.clone()
    torch.manual_seed(1)
    first, second = view(images), view(images)
    torch.manual_seed(1)
    assert torch.equal(view(images), first)
    assert not torch.equal(first, second)
    assert torch.equal(images, before)


SMALL, LARGE = [(32, 32), (95, 200), (200, 95)], [(96, 96), (96, 200), (120, 96)]


@pytest.mark.parametrize(
    ("size", "view"),
    [*((size, augmented) for size in SMALL), *((size, cropped) for size in LARGE)],
)
def test_small_images_are_shifted_and_large_ones_cropped(size, view):
    images = random_images(6, (3, *size)).pixels
    torch.manual_seed(1)
    found = varied(images)
    torch.manual_seed(1)
    assert torch.equal(found, view(images))


def test_no_image_has_no_view():
    none = torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)
    assert cropped(none).shape == none.shape
