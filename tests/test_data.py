"""Every layout is read as it was written by hand, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from conftest import draw, random_images, same, write_folder
from PIL import Image

from gatepruner.cli.completion import data_words
from gatepruner.errors import DataError
from gatepruner.files.checkpoints import save
from gatepruner.images import memory
from gatepruner.images.decoding import decode
from gatepruner.images.images import Images
from gatepruner.images.normalization import (
    IMAGENET,
    NORMALIZATIONS,
    Normalization,
    parse_normalization,
)
from gatepruner.images.readers import has_split, load_images
from gatepruner.images.scaling import Scaling
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.inputs import normalization_of
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

COLOUR, GREY = (3, 6, 5), (1, 28, 28)

# ------------------------------------------------------------------------------ torchvision's sets


def idx(array: np.ndarray) -> bytes:
    """http://yann.lecun.com/exdb/mnist: type and axes, sizes in big endian, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, name: str = "MNIST") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A set with 23 training and 11 test images; what is in it."""
    raw, draws, content = root / name / "raw", np.random.default_rng(0), {}
    raw.mkdir(parents=True)
    for split, start, count in (("train", "train", 23), ("test", "t10k", 11)):
        pixels = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = draws.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{start}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{start}-labels-idx1-ubyte").write_bytes(idx(labels))
        content[split] = pixels, labels
    return content


@pytest.mark.parametrize(
    ("kind", "name", "last"),
    [("mnist", "MNIST", "9 - nine"), ("fashion-mnist", "FashionMNIST", "Ankle boot")],
)
@pytest.mark.parametrize("split", ["train", "test", None])
def test_mnist_is_read_as_it_was_written(tmp_path, kind, name, last, split):
    pixels, labels = write_mnist(tmp_path, name)[split or "test"]
    images = load_images(f"{kind}:{tmp_path}", GREY, split=split)
    assert images.pixels.dtype == torch.uint8
    assert np.array_equal(images.pixels.squeeze(1).numpy(), pixels)
    assert images.labels.tolist() == labels.tolist()
    assert len(images.classes) == 10
    assert images.classes[-1] == last
    assert images.shape == GREY
    assert images.source == f"{kind}:{tmp_path} {split or 'test'}"


CIFAR = {
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py",
        [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"],
        "batches.meta",
    ),
    "cifar100": ("CIFAR100", "cifar-100-python", ["train", "test"], "meta"),
}


def write_cifar(root: Path, kind: str, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """A set of four images in each file, for the md5 sums of which torchvision is told to ask."""
    name, folder, files, meta = CIFAR[kind]
    classes, draws = int(kind.removeprefix("cifar")), np.random.default_rng(1)
    (root / folder).mkdir()
    sums, content = {}, {"train": [], "test": []}
    keys = ("labels", "label_names") if kind == "cifar10" else ("fine_labels", "fine_label_names")
    for file in files:
        pixels = draws.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        labels = draws.integers(0, classes, 4).tolist()
        sums[file] = pickled(root / folder / file, {"data": pixels.reshape(4, -1), keys[0]: labels})
        content["test" if file.startswith("test") else "train"].append((pixels, labels))
    names = [f"name{index}" for index in range(classes)]
    sums[meta] = pickled(root / folder / meta, {keys[1]: names})
    stock = getattr(torchvision.datasets, name)
    for split in ("train", "test"):
        listed = [(it, sums[it]) for it in files if it.startswith("test") == (split == "test")]
        monkeypatch.setattr(stock, f"{split}_list", listed)
    monkeypatch.setattr(stock, "meta", {**stock.meta, "md5": sums[meta]})
    return {
        split: (
            np.concatenate([it for it, _ in parts]),
            [label for _, labels in parts for label in labels],
        )
        for split, parts in content.items()
    }


def pickled(path: Path, content: dict) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", CIFAR)
@pytest.mark.parametrize("split", ["train", "test", None])
def test_cifar_is_read_as_it_was_written(tmp_path, monkeypatch, kind, split):
    pixels, labels = write_cifar(tmp_path, kind, monkeypatch)[split or "test"]
    images = load_images(f"{kind}:{tmp_path}", (3, 32, 32), split=split)
    assert np.array_equal(images.pixels.numpy(), pixels)
    assert images.labels.tolist() == labels
    assert images.classes == tuple(f"name{index}" for index in range(len(images.classes)))
    assert len(images.classes) == int(kind.removeprefix("cifar"))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def test_a_cifar_file_that_is_cut_short_is_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    shortened(tmp_path / "cifar-10-batches-py" / "test_batch")
    with pytest.raises(DataError, match=r"cannot read cifar10:.*expected DIR/cifar-10-batches-py"):
        load_images(f"cifar10:{tmp_path}", (3, 32, 32))


@pytest.mark.parametrize(
    "content",
    {
        "cut short": lambda whole: whole[:-5],
        "cut in the header": lambda whole: whole[:6],
        "empty": lambda whole: b"",
        "of another type of number": lambda whole: b"\0\0\x0a" + whole[3:],
        "text": lambda whole: b"not an idx file at all, " * 9,
        "of other sizes than it says": lambda whole: whole[:7] + b"\x63" + whole[8:],
    }.items(),
    ids=lambda case: case[0].replace(" ", "-"),
)
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_mnist_file_is_refused(tmp_path, file, content):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(content[1](path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read mnist:.*expected DIR/MNIST/raw"):
        load_images(f"mnist:{tmp_path}", GREY)


@pytest.mark.parametrize("count", [7, 12])
def test_another_number_of_labels_than_images_is_refused(tmp_path, count):
    write_mnist(tmp_path)
    labels = np.zeros(count, dtype=np.uint8)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=rf"{count} labels"):
        load_images(f"mnist:{tmp_path}", GREY)


# -------------------------------------------------------------------------------- image folders


def test_a_folder_is_read_in_the_order_of_its_classes(tmp_path):
    made = random_images(12, COLOUR, classes=3)
    images = load_images(f"imagefolder:{write_folder(tmp_path, made)}", COLOUR)
    order = made.labels.argsort(stable=True)
    assert torch.equal(images.pixels, made.pixels[order])
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.classes == made.classes
    assert len(images) == 12
    assert images.source == f"imagefolder:{tmp_path} test"


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        (("train", "val", "test"), None, "test"),
        (("train", "val"), None, "val"),
        (("train", "val", "test"), "val", "val"),
        (("train",), "train", "train"),
    ],
)
def test_the_split_is_test_or_else_val_or_what_is_asked_for(tmp_path, there, asked, found):
    for seed, split in enumerate(there):
        write_folder(tmp_path, random_images(3, COLOUR, 3, seed), split)
    images = load_images(f"imagefolder:{tmp_path}", COLOUR, split=asked)
    assert torch.equal(images.pixels, random_images(3, COLOUR, 3, there.index(found)).pixels)
    assert images.source.endswith(f" {found}")


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 11, 12, 99])
def test_a_limit_takes_images_from_all_over_the_set(tmp_path, limit):
    made = random_images(12, COLOUR, classes=3)
    write_folder(tmp_path, made)
    whole = load_images(f"imagefolder:{tmp_path}", COLOUR)
    images = load_images(f"imagefolder:{tmp_path}", COLOUR, limit=limit)
    taken = [index * 12 // limit for index in range(limit)] if limit < 12 else list(range(12))
    assert torch.equal(images.pixels, whole.pixels[taken])
    assert torch.equal(images.labels, whole.labels[taken])
    counts = torch.bincount(images.labels, minlength=3)
    assert counts.max() - counts.min() <= 1


def test_a_limit_holds_for_mnist_too(tmp_path):
    pixels, labels = write_mnist(tmp_path)["test"]
    images = load_images(f"mnist:{tmp_path}", GREY, limit=4)
    assert images.labels.tolist() == [labels[index] for index in (0, 2, 5, 8)]
    assert np.array_equal(images.pixels[3, 0].numpy(), pixels[8])


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (31, 30)])
def test_resizing_scales_the_shorter_side_and_takes_the_middle(tmp_path, width, height):
    folder = tmp_path / "test" / "one"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(2)
    image = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.save(folder / "it.png")
    images = load_images(f"imagefolder:{tmp_path}", (3, 8, 8), resize=10)
    factor = 10 / min(width, height)
    scaled = image.resize(
        (round(width * factor), round(height * factor)), Image.Resampling.BILINEAR
    )
    left, top = (scaled.width - 8) // 2, (scaled.height - 8) // 2
    expected = np.array(scaled)[top : top + 8, left : left + 8]
    assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), expected)


def test_resizing_to_less_than_the_network_takes_is_refused(tmp_path):
    write_folder(tmp_path, random_images(2, (3, 9, 7), classes=2))
    message = "cannot crop 6x8 pixels from images scaled to 7: .*; pass resize=8$"
    with pytest.raises(DataError, match=message):
        load_images(f"imagefolder:{tmp_path}", (3, 6, 8), resize=7)
    assert len(load_images(f"imagefolder:{tmp_path}", (3, 6, 8), resize=8)) == 2


def test_colour_is_read_as_grey_and_grey_as_colour_as_the_network_takes_them(tmp_path):
    colour, grey = random_images(4, COLOUR, 2), random_images(4, (1, 6, 5), 2)
    write_folder(tmp_path / "colour", colour)
    write_folder(tmp_path / "grey", grey)
    found = load_images(f"imagefolder:{tmp_path / 'colour'}", (1, 6, 5)).pixels.squeeze(1).float()
    order = colour.labels.argsort(stable=True)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601-2
    assert ((colour.pixels[order] * luma).sum(1) - found).abs().max() <= 1
    found = load_images(f"imagefolder:{tmp_path / 'grey'}", COLOUR).pixels
    assert torch.equal(found, grey.pixels[order].expand(4, *COLOUR))


def test_images_decoded_as_they_are_used_give_the_same_batches(tmp_path, monkeypatch):
    write_folder(tmp_path, random_images(13, COLOUR, classes=3))
    kept = load_images(f"imagefolder:{tmp_path}", COLOUR, limit=11)
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    streamed = load_images(f"imagefolder:{tmp_path}", COLOUR, limit=11)
    assert streamed.pixels is None
    assert len(streamed) == len(kept) == 11
    indices = torch.tensor([10, 3, 3, 0, 7, 1, 9])
    for size in (1, 3, 7, 20):
        expected, found = list(kept.batches(indices, size)), list(streamed.batches(indices, size))
        assert [len(labels) for _, labels in found] == [len(labels) for _, labels in expected]
        for (pixels, labels), (others, known) in zip(expected, found, strict=True):
            assert torch.equal(pixels, others)
            assert torch.equal(labels, known)
    network = Network.named("residual-fc4,width=8", num_classes=3, input_shape=COLOUR)
    checkpoint = Checkpoint(network, network.initial_weights())
    assert accuracy(checkpoint, streamed) == accuracy(checkpoint, kept)


def test_no_image_is_no_batch(tmp_path, monkeypatch):
    write_folder(tmp_path, random_images(3, COLOUR, classes=3))
    none = torch.arange(0)
    assert list(load_images(f"imagefolder:{tmp_path}", COLOUR).batches(none, 3)) == []
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    assert list(load_images(f"imagefolder:{tmp_path}", COLOUR).batches(none, 3)) == []


def test_batches_have_the_images_of_their_indices_in_their_order():
    images = random_images(9, COLOUR, 3)
    indices = torch.tensor([8, 0, 4, 4, 1])
    batches = list(images.batches(indices, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), images.pixels[indices])
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels[indices])


def test_reading_shows_its_progress_by_the_callers_own_means(tmp_path):
    write_folder(tmp_path, random_images(6, COLOUR, 3))
    seen = []

    def track(items):
        assert len(items) == 6
        for item in items:
            seen.append(item)
            yield item

    load_images(f"imagefolder:{tmp_path}", COLOUR, track=track)
    assert len(seen) == 6


# ------------------------------------------------------------------------------------- pictures


def write_pictures(root: Path, names: str, shape=COLOUR, seed: int = 3) -> dict[str, torch.Tensor]:
    """Images in files of these names, and their pixels."""
    names = names.split()
    pixels = dict(zip(names, random_images(len(names), shape, seed=seed).pixels, strict=True))
    for name, image in pixels.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / name)
    return pixels


def test_pictures_are_all_image_files_at_any_depth_in_the_order_of_their_paths(tmp_path):
    shown = "C.BMP a/b.PNG a/b/c/d.tif b.png z/a.png"
    made = write_pictures(tmp_path, f"{shown} .hidden.png a/.hidden/a.png .cache/b/c.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "folder.png").mkdir()
    images = load_images(f"pictures:{tmp_path}", COLOUR)
    assert torch.equal(images.pixels, torch.stack([made[name] for name in shown.split()]))
    assert (images.labels.tolist(), images.classes) == ([-1] * 5, ())
    assert not images.labelled
    assert images.source == f"pictures:{tmp_path}"


def test_what_has_classes_has_labels():
    assert random_images(3).labelled
    assert not replace(random_images(3), classes=()).labelled


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        ((), None, ""),
        ((), "train", ""),
        (("train",), None, ""),
        (("train",), "train", " train"),
        (("train", "val"), None, " val"),
        (("train", "val", "test"), None, " test"),
        (("train", "val", "test"), "val", " val"),
        (("test",), "test", " test"),
    ],
)
def test_a_split_of_pictures_is_a_folder_or_all_of_them(tmp_path, there, asked, found):
    write_pictures(tmp_path, " ".join(["a.png", *(f"{split}/deep/b.png" for split in there)]))
    images = load_images(f"pictures:{tmp_path}", COLOUR, split=asked)
    assert images.source == f"pictures:{tmp_path}{found}"
    assert len(images) == (1 if found else 1 + len(there))
    assert has_split(f"pictures:{tmp_path}", asked or "train")


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [((), "val", "none"), ((), "test", "none"), (("test",), "train", "test")],
)
def test_a_split_of_pictures_that_is_not_there_is_refused(tmp_path, there, asked, told):
    write_pictures(tmp_path, " ".join(["a.png", *(f"{split}/b.png" for split in there)]))
    message = f"has no split '{asked}': found {told}, expected {tmp_path}/{asked} with images"
    with pytest.raises(DataError, match=message):
        load_images(f"pictures:{tmp_path}", COLOUR, split=asked)
    assert not has_split(f"pictures:{tmp_path}", asked)


@pytest.mark.parametrize("limit", [1, 5, 11, None])
@pytest.mark.parametrize("resize", [None, 7])
@pytest.mark.parametrize("streamed", [False, True])
def test_pictures_are_read_like_an_image_folder(tmp_path, monkeypatch, limit, resize, streamed):
    write_folder(tmp_path, random_images(11, COLOUR, classes=3))
    monkeypatch.setattr(memory, "IN_MEMORY", 0 if streamed else memory.IN_MEMORY)
    sets = [
        load_images(f"{kind}:{tmp_path}", COLOUR, resize=resize, limit=limit)
        for kind in ("imagefolder", "pictures")
    ]
    labelled, pictures = sets
    assert len(pictures) == (limit or 11)
    assert pictures.files == labelled.files
    assert (pictures.pixels is None, bool(pictures.files)) == (streamed, streamed)
    assert pictures.resize == (Scaling(resize) if resize else None)
    indices = torch.arange(len(pictures)).flip(0)
    expected, found = (
        torch.cat([pixels for pixels, _ in images.batches(indices, 4)]) for images in sets
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_of_pictures_have_no_labels_and_are_known_by_their_content(tmp_path, in_memory):
    write_pictures(tmp_path, " ".join(f"{index:02d}.png" for index in range(9)))
    images = load_images(f"pictures:{tmp_path}", COLOUR)
    if not in_memory:
        files = tuple(sorted(map(str, tmp_path.iterdir())))
        images = replace(images, pixels=None, files=files)
    rest, out = images.held_out(4, seed=1)
    for part, count in ((rest, 5), (out, 4), (images.spread(3), 3), (rest.joined(out), 9)):
        assert not part.labelled
        assert part.labels.tolist() == [-1] * count
    assert len({part.fingerprint for part in (images, rest, out, rest.joined(out))}) == 4
    assert rest.fingerprint == images.held_out(4, seed=1)[0].fingerprint
    with pytest.raises(DataError, match=r"cannot join .*: expected equal sizes and classes"):
        rest.joined(replace(out, labels=torch.zeros_like(out.labels), classes=("one",)))


@pytest.mark.parametrize(("where", "split"), [("", None), ("", "train"), ("train", "train")])
def test_an_image_folder_without_classes_is_refused_with_a_way_to_read_it(tmp_path, where, split):
    write_pictures(tmp_path / where, "a.png b.png")
    assert has_split(f"imagefolder:{tmp_path}", "train")
    message = f"; to read its images without labels: pictures:{tmp_path}$"
    with pytest.raises(DataError, match=message):
        load_images(f"imagefolder:{tmp_path}", COLOUR, split=split)
    assert len(load_images(f"pictures:{tmp_path}", COLOUR, split=split)) == 2


def test_a_folder_without_a_layout_is_refused_with_both_that_it_may_have(tmp_path):
    message = f"imagefolder:{tmp_path}, or without labels pictures:{tmp_path}$"
    with pytest.raises(DataError, match=message):
        load_images(str(tmp_path), COLOUR)


def test_gates_and_statistics_are_the_same_with_and_without_labels():
    whole = draw("resnet8", input_shape=(3, 8, 8))
    labelled = random_images(12, (3, 8, 8))
    unlabelled = replace(labelled, labels=torch.full((12,), -1), classes=())
    recipe = GateRecipe(blocks=1, warmup=2, steps=2, batch_size=4)
    one, other = (learn_gates(whole, it, recipe, device="cpu") for it in (labelled, unlabelled))
    assert one.path.blocks == other.path.blocks
    assert same(one, other)
    one, other = (recalibrate(whole, it, device="cpu") for it in (labelled, unlabelled))
    assert same(one, other)


def test_the_commands_that_need_no_labels_take_pictures(run, tmp_path):
    write_pictures(
        tmp_path / "photos", " ".join(f"{at % 2}/{at}.png" for at in range(8)), (3, 9, 8)
    )
    path = save(draw("resnet8", input_shape=(3, 8, 8)), tmp_path / "whole.pt")
    options = ("--data", f"pictures:{tmp_path}/photos", "--resize", 8, "--json")
    gate = ("gate", path, *options, "--blocks", 1, "--warmup", 1, "--steps", 1)
    assert len(run(*gate, "--hold-out", 4, "--batch-size", 4).document["path"]) == 1
    done = run("recalibrate", tmp_path / "whole-gated.pt", *options).document
    assert (done["recalibrated"], done["images"]) == (f"pictures:{tmp_path}/photos", 8)
    assert len(run("rank", path, "--by", "cosine", *options).document["blocks"]) == 3
    refused = run("gate", path, *options[:-1], "--split", "val", "-o", tmp_path / "no.pt")
    assert refused.code == 1
    assert f"photos has no split 'val': found none, expected {tmp_path}/photos/val" in refused.err


def test_the_shell_completes_pictures():
    assert data_words("pic") == ["pictures:"]


def test_what_needs_labels_refuses_images_without_any():
    whole = draw("resnet8", input_shape=(3, 8, 8))
    images = replace(random_images(8, (3, 8, 8)), classes=(), source="pictures:photos")
    message = "pictures:photos has no labels: accuracy and learning from labels need .*imagefolder:"
    with pytest.raises(DataError, match=message):
        accuracy(whole, images)
    with pytest.raises(DataError, match=message):
        learn_gates(whole, images, GateRecipe(labels=True, batch_size=4))


@pytest.mark.parametrize(
    ("source", "end"),
    [("imagefolder:a", "; to use the images without labels: pictures:DIR"), ("cifar10:a", "")],
)
def test_an_image_folder_of_other_classes_is_refused_with_a_way_to_use_it(source, end):
    images = replace(random_images(4, GREY, 7), source=source)
    with pytest.raises(DataError, match=f"{source} has 7 classes: residual-fc4 has 10{end}$"):
        accuracy(draw("residual-fc4,width=8"), images)


# -------------------------------------------------------------------------------------- joined


def test_joined_images_are_those_of_one_and_then_those_of_the_other():
    one = replace(random_images(5, (1, 2, 2), 3), files=tuple("abcde"))
    other = replace(random_images(3, (1, 2, 2), 3), files=tuple("fgh"), source="more")
    both = one.joined(other)
    assert len(both) == 8
    assert torch.equal(both.pixels, torch.cat([one.pixels, other.pixels]))
    assert torch.equal(both.labels, torch.cat([one.labels, other.labels]))
    assert both.files == tuple("abcdefgh")
    assert both.source == "made up and more"
    assert (both.classes, both.shape) == (one.classes, one.shape)
    on_disk = replace(one, pixels=None).joined(replace(other, pixels=None))
    assert on_disk.pixels is None
    assert on_disk.files == both.files


@pytest.mark.parametrize(
    "other",
    [
        random_images(3, (1, 4, 4), 3),
        random_images(3, (1, 2, 2), 4),
        replace(random_images(3, (1, 2, 2), 3), pixels=None, files=tuple("abc")),
        replace(random_images(3, (1, 2, 2), 3), resize=Scaling(5)),
    ],
    ids=["size", "classes", "memory", "resize"],
)
def test_images_of_different_kinds_are_not_joined(other):
    with pytest.raises(DataError, match="cannot join made up and made up: expected equal sizes"):
        random_images(3, (1, 2, 2), 3).joined(other)


# ---------------------------------------------------------------------------------- held-out images


def test_held_out_images_are_disjoint_from_the_rest_and_drawn_by_the_seed():
    images = replace(random_images(20, (1, 2, 2), 10), files=tuple(f"file{n}" for n in range(20)))
    kept, out = images.held_out(6, seed=5)
    assert (len(kept), len(out)) == (14, 6)
    assert sorted(kept.files + out.files) == sorted(images.files)
    for part in (kept, out):
        at = [int(file.removeprefix("file")) for file in part.files]
        assert at == sorted(at)
        assert torch.equal(part.pixels, images.pixels[at])
        assert torch.equal(part.labels, images.labels[at])
    assert images.held_out(6, seed=5)[1].files == out.files
    assert images.held_out(6, seed=6)[1].files != out.files


def test_holding_out_leaves_the_random_numbers_of_the_caller_alone():
    before = torch.get_rng_state()
    random_images(20).held_out(6, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_held_out_is_the_whole_set():
    images = random_images(5)
    assert images.held_out(0, seed=1) == (images, None)


@pytest.mark.parametrize("count", [5, 6])
def test_holding_out_all_images_is_refused(count):
    with pytest.raises(DataError, match=f"cannot hold out {count} images: made up has only 5"):
        random_images(5).held_out(count, seed=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_pictures_whose_names_are_not_unicode_have_a_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    file, prints = tmp_path / "one.png", set()
    Image.new("RGB", (5, 6)).save(file)
    for name in (b"caf\xe9", b"caf\xe8", "caf\u00e9".encode()):
        file = file.rename(tmp_path / os.fsdecode(name + b".png"))
        prints.add(load_images(f"pictures:{tmp_path}", COLOUR).fingerprint)
    assert len(prints) == 3


# ------------------------------------------------------------------------------------- refused data


def one_image(root: Path, size: tuple[int, int] = (5, 6), name: str = "one") -> Path:
    folder = root / "test" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}.png"
    Image.new("RGB", size).save(path)
    return path


def folder_with(content: bytes):
    def make(root: Path) -> None:
        path = one_image(root)
        path.write_bytes(content or path.read_bytes()[: path.stat().st_size // 2])

    return make


def two_sizes(root: Path) -> None:
    one_image(root, (5, 6), "a")
    one_image(root, (5, 7), "b")


def test_progress_stops_where_an_image_cannot_be_read(tmp_path, monkeypatch):
    two_sizes(tmp_path)
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    images = load_images(f"imagefolder:{tmp_path}", COLOUR)
    with pytest.raises(DataError, match="has 7x5 pixels, the network takes 6x5"):
        list(images.batches(torch.arange(2), 1))


REFUSED_FOLDERS = {
    "empty": (lambda root: None, "has no folders of classes: expected DIR, or DIR/train"),
    "empty split": (
        lambda root: (root / "test").mkdir(),
        "test has no folders of classes: ",
    ),
    "only train": (lambda root: (root / "train" / "a").mkdir(parents=True), "found train"),
    "no image": (
        lambda root: (root / "test" / "a").mkdir(parents=True),
        "test has no images: expected DIR",
    ),
    "another size": (
        lambda root: one_image(root, (9, 4)),
        "has 4x9 pixels, the network takes 6x5: .*; pass",
    ),
    "two sizes": (two_sizes, "has 7x5 pixels, the network takes 6x5: .*; pass resize=6"),
    "not an image": (folder_with(b"text"), "cannot read the image .*png"),
    "cut short": (folder_with(b""), "cannot read the image .*png"),
    "empty image": (lambda root: one_image(root).write_bytes(b""), "cannot read the image"),
}


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, case):
    make, message = REFUSED_FOLDERS[case]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load_images(f"imagefolder:{tmp_path}", COLOUR)


REFUSED_PICTURES = {
    "empty": (lambda root: None, "pictures:.* has no images: expected DIR, or DIR/train"),
    "empty split": (lambda root: (root / "test").mkdir(), " test has no images: expected DIR"),
    "another size": (lambda root: one_image(root, (9, 4)), "has 4x9 pixels.*; pass resize=6"),
    "not an image": (lambda root: (root / "a.png").write_text("text"), "cannot read the image .*a"),
    "cut short": (folder_with(b""), "cannot read the image .*png"),
    "broken link": (lambda root: (root / "a.png").symlink_to("b"), "cannot read the image .*a.png"),
}


@pytest.mark.parametrize("case", REFUSED_PICTURES)
def test_pictures_that_do_not_fit_are_refused(tmp_path, case):
    make, message = REFUSED_PICTURES[case]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load_images(f"pictures:{tmp_path}", COLOUR)


@pytest.mark.parametrize("at", range(0, 80, 3))
def test_an_image_with_a_wrong_byte_is_read_or_refused(tmp_path, at):
    path = one_image(tmp_path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0xFF
    path.write_bytes(content)
    try:
        shape = load_images(f"imagefolder:{tmp_path}", COLOUR).pixels.shape
    except DataError as error:
        told = str(error)
    else:
        told = f"{path} has {shape}"
        assert shape == (1, *COLOUR)
    assert str(path) in told


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenet:{}", "unknown data 'imagenet:.*expected mnist:DIR, fashion-mnist:DIR, cifar10"),
        ("{}", "unknown data .*expected mnist:DIR"),
        ("mnist", "unknown data 'mnist'"),
        ("mnist:", "unknown data 'mnist:'"),
        ("mnist:{}/nowhere", "there is no folder .*nowhere.*expected DIR/MNIST/raw"),
        ("imagefolder:{}/nowhere", "there is no folder .*nowhere"),
        ("mnist:{}", "cannot read mnist:.*not found.*expected DIR/MNIST/raw"),
        ("cifar10:{}", "cannot read cifar10:.*expected DIR/cifar-10-batches-py"),
    ],
)
def test_data_that_is_not_there_is_refused(tmp_path, spec, message):
    with pytest.raises(DataError, match=message):
        load_images(spec.format(tmp_path), GREY)


def test_data_of_another_split_size_or_channel_count_are_refused(tmp_path):
    write_mnist(tmp_path)
    spec = f"mnist:{tmp_path}"
    with pytest.raises(DataError, match="has no split 'val': expected train or test"):
        load_images(spec, GREY, split="val")
    with pytest.raises(DataError, match=r"has images of 1x28x28.*: the network takes 3x28x28"):
        load_images(spec, (3, 28, 28))
    with pytest.raises(DataError, match=r"has images of 1x28x28.*: the network takes 1x32x32"):
        load_images(spec, (1, 32, 32))
    with pytest.raises(DataError, match="only pictures of any size can be"):
        load_images(spec, GREY, resize=32)


def test_a_folder_for_a_network_of_neither_grey_nor_colour_is_refused(tmp_path):
    write_folder(tmp_path, random_images(2, COLOUR, 2))
    with pytest.raises(DataError, match="4x6x5"):
        load_images(f"imagefolder:{tmp_path}", (4, 6, 5))


def test_images_of_another_size_or_class_count_than_the_network_are_refused():
    checkpoint = draw("residual-fc4,width=8")
    with pytest.raises(DataError, match="has 7 classes: residual-fc4 has 10"):
        accuracy(checkpoint, random_images(4, GREY, 7))
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*takes \(1, 28, 28\)"):
        accuracy(checkpoint, random_images(4, (1, 8, 8)))


# ------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("mnist", (0.1307,), (0.3081,)),
        ("fashion-mnist", (0.286,), (0.353,)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.5/0.25", (0.5,), (0.25,)),
        ("0.1,0.2,0.3/1,2,3e-1", (0.1, 0.2, 0.3), (1.0, 2.0, 0.3)),
        ("-1/2", (-1.0,), (2.0,)),
    ],
)
def test_a_normalisation_is_read_from_its_name_or_numbers(text, mean, std):
    found = parse_normalization(text)
    assert (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize(
    "text",
    [
        *("", "mnlst", "0.5", "0.5/", "/0.5", "0.5/0.5/0.5", "0.5,0.5/0.5", "0.5/0", "0.5/-1"),
        *("a/b", "0.5,/0.5,", "nan/0.5", "0.5/nan", "inf/1", "0.5/inf"),
    ],
)
def test_a_normalisation_that_cannot_be_read_is_refused(text):
    with pytest.raises(DataError, match=r"unknown normalisation .*expected mnist, .*MEAN,"):
        parse_normalization(text)


def test_normalising_scales_to_one_and_then_by_channel():
    images = random_images(2, (3, 2, 2))
    found = Normalization((0.1, 0.2, 0.3), (0.5, 2.0, 4.0))(images.pixels)
    assert found.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 2.0), (0.3, 4.0))):
        expected = (images.pixels[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_normalisation_is_the_chosen_one_or_the_checkpoints_or_imagenets():
    whole, grey = draw("residual-fc4,width=8"), random_images(2, GREY)
    noted = replace(whole, notes={"normalize": {"mean": [0.25], "std": [0.5]}})
    recorded = normalization_of(noted, grey)
    assert (recorded.mean, recorded.std) == ((0.25,), (0.5,))
    assert recorded.source == "the checkpoint's"
    assert normalization_of(whole, random_images(2)) is IMAGENET
    chosen = NORMALIZATIONS["mnist"]
    assert normalization_of(noted, grey, chosen) is chosen


@pytest.mark.parametrize(
    ("notes", "channels", "chosen"),
    [
        ({}, 1, None),
        ({"normalize": {"mean": [0.5], "std": [0.5]}}, 3, None),
        ({}, 1, NORMALIZATIONS["cifar10"]),
        ({}, 3, Normalization((0.5, 0.5, 0.5), (0.5,))),
    ],
)
def test_a_normalisation_for_another_number_of_channels_is_refused(notes, channels, chosen):
    checkpoint = replace(draw("residual-fc4,width=8"), notes=notes)
    images = random_images(2, (channels, 4, 4))
    message = f"channels, the images have {channels}: choose a normalisation with"
    with pytest.raises(DataError, match=message):
        normalization_of(checkpoint, images, chosen)


def test_images_on_a_device_are_the_same():
    images = random_images(3, COLOUR, 3)
    moved = images.to(torch.device("cpu"))
    assert isinstance(moved, Images)
    assert torch.equal(moved.pixels, images.pixels)
    assert (moved.classes, moved.shape, moved.source) == (images.classes, COLOUR, images.source)


def test_pixels_of_16_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = decode(str(tmp_path / "deep.png"), (1, 8, 8), None)
    assert torch.equal(found[0], torch.from_numpy((deep // 256).astype(np.uint8)))
    for kind in (np.int32, np.float32):
        Image.fromarray(deep.astype(kind)).save(tmp_path / "wide.tiff")
        with pytest.raises(DataError, match=r"wide.tiff has pixels of 32 bits"):
            decode(str(tmp_path / "wide.tiff"), (1, 8, 8), None)


# ----------------------------------------------------------------- images that are not as they say

MADE = random_images(6, (3, 8, 8))
WRONG = {
    "float": ({"pixels": MADE.pixels / 255}, "pixels are torch.float32, expected uint8 from 0"),
    "normalised": ({"pixels": IMAGENET(MADE.pixels)}, "pixels are torch.float32, expected uint8"),
    "channels last": (
        {"pixels": MADE.pixels.permute(0, 2, 3, 1)},
        r"pixels are \(6, 8, 8, 3\), expected \(N, 3, 8, 8\); move .*permute\(0, 3, 1, 2\)",
    ),
    "grey": ({"pixels": MADE.pixels[:, :1]}, r"\(6, 1, 8, 8\), expected \(N, 3, 8, 8\)$"),
    "no axis of channels": ({"pixels": MADE.pixels[:, 0]}, r"pixels are \(6, 8, 8\), expected"),
    "fewer labels": ({"labels": torch.arange(5)}, "6 images and 5 labels, expected one for each"),
    "a label too high": ({"labels": torch.arange(5, 11)}, "labels reach from 5 to 10, expected 0"),
    "a label below 0": ({"labels": torch.arange(-1, 5)}, "labels reach from -1 to 4, expected 0"),
    "int32": ({"labels": torch.arange(6).int()}, "labels are torch.int32 of shape .* int64"),
    "one-hot": ({"labels": torch.eye(10)[:6].long()}, r"shape \(6, 10\), expected int64 of shape"),
    "fewer files": ({"pixels": None, "files": tuple("abc")}, "3 files and 6 labels, expected one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_images_that_hold_something_else_are_refused(case):
    changes, message = WRONG[case]
    with pytest.raises(DataError, match=f"made up: .*{message}"):
        replace(MADE, **changes)


def test_images_without_labels_keep_only_their_pixels():
    bare = MADE.unlabelled()
    assert (bare.labels.tolist(), bare.classes, bare.labelled) == ([-1] * 6, (), False)
    assert bare.pixels is MADE.pixels
