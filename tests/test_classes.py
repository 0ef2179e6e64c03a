"""Folders of some classes, or of other names, get the labels of the network's own classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm.data
import torch
from conftest import draw, random_images
from PIL import Image
from torchvision.datasets import ImageFolder

from gatepruner.errors import DataError
from gatepruner.files.checkpoints import save
from gatepruner.images.classes import _by_name, _by_number, class_names, map_classes, read_classes
from gatepruner.images.images import Images
from gatepruner.images.readers import has_split, load_images
from gatepruner.measuring.accuracy import accuracy
from gatepruner.networks.checkpoint import Checkpoint

COLOUR = (3, 8, 8)
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write(root: Path, names: Sequence[str], empty: Sequence[str] = ()) -> Path:
    """A folder with a picture in each folder or file of these names, and empty folders."""
    made = random_images(len(names), COLOUR).pixels
    for name, pixels in zip(names, made, strict=True):
        path = root / name if name.endswith(".png") else root / name / "it.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    for name in empty:
        (root / name).mkdir(parents=True)
    return root


def ten(*classes: str) -> Checkpoint:
    whole = draw("resnet8", input_shape=COLOUR)
    return replace(whole, notes={"classes": list(classes)}) if classes else whole


def folder(*names: str) -> Images:
    """Images of these classes, one of each in their order."""
    images = random_images(len(names), COLOUR, len(names))
    return replace(images, classes=names, source="imagefolder:some")


# -------------------------------------------------------------------------------- what is read


def test_a_folder_with_empty_classes_is_read_as_torchvision_reads_it(tmp_path):
    write(tmp_path / "test", ("b", "d"), empty=("a", "c", "e"))
    images = load_images(f"imagefolder:{tmp_path}", COLOUR)
    known = ImageFolder(str(tmp_path / "test"), allow_empty=True)
    assert list(images.classes) == known.classes == list("abcde")
    assert images.labels.tolist() == known.targets == [1, 3]


def test_hidden_folders_are_no_classes(tmp_path):
    write(tmp_path / "test", ("b", "d", ".ipynb_checkpoints"))
    assert load_images(f"imagefolder:{tmp_path}", COLOUR).classes == ("b", "d")


@pytest.mark.parametrize("split", [None, "train"])
def test_a_folder_of_classes_without_splits_is_read_whole(tmp_path, split):
    write(tmp_path, ("cat", "dog"))
    images = load_images(f"imagefolder:{tmp_path}", COLOUR, split=split)
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert images.source == f"imagefolder:{tmp_path}"
    assert has_split(f"imagefolder:{tmp_path}", "train")
    with pytest.raises(DataError, match=r"no split 'val': found none, expected .*/val with a f"):
        load_images(f"imagefolder:{tmp_path}", COLOUR, split="val")


@pytest.mark.parametrize("kind", ["imagefolder", "pictures"])
def test_any_folder_can_be_the_split(tmp_path, kind):
    write(tmp_path / "learn", ("cat", "dog"))
    write(tmp_path / "test", ("cat", "dog"))
    images = load_images(f"{kind}:{tmp_path}", COLOUR, split="learn")
    assert (len(images), images.source) == (2, f"{kind}:{tmp_path} learn")


def test_a_number_before_the_name_of_a_file_is_its_class(tmp_path):
    write(tmp_path, ("207-n02099601.png", "7_cock.png", "207-n02099601-2.png", "10.png"))
    images = load_images(f"imagefolder:{tmp_path}", COLOUR, split="train")
    assert images.classes == ("7", "10", "207")
    assert [images.classes[label] for label in images.labels] == ["10", "207", "207", "7"]


def test_files_without_a_number_are_no_classes(tmp_path):
    write(tmp_path, ("207-n02099601.png", "cock.png"))
    with pytest.raises(DataError, match=r"has no folders of classes.*pictures:"):
        load_images(f"imagefolder:{tmp_path}", COLOUR)


# ---------------------------------------------------------------------------------------- mapping

# names of folders, of the network's classes, the index of each folder, and how it is told
MAPPED = {
    "equal": (TEN, TEN, range(10), "by name"),
    "some": (("dog", "cat"), TEN, (5, 3), "by name"),
    "another order": (TEN[::-1], TEN, range(9, -1, -1), "by name"),
    "case and joints": (("Dog", "AIR_PLANE"), ("air plane", *TEN[1:]), (5, 0), "by name"),
    "a number, then the name": (("001.airplane", "004.cat"), TEN, (0, 3), "by name"),
    "numbers": (("3", "007-x", "0_y"), (), (3, 7, 0), "by the number before their names"),
    "numbers that are no names": (("3", "7"), TEN, (3, 7), "by the number before their names"),
    "numbers that are names": (("1", "0"), tuple("9876543210"), (8, 9), "by name"),
    "numbers from 1": (
        tuple(f"{at:02d}.bird" for at in range(1, 11)),
        (),
        range(10),
        "by mere order: the network's classes have no names",
    ),
    "no names": (TEN, (), range(10), "by mere order: the network's classes have no names"),
    "other names": (
        tuple("abcdefghij"),
        TEN,
        range(10),
        "by mere order, a as airplane, b as automobile, c as bird and 7 more",
    ),
}


@pytest.mark.parametrize("case", MAPPED)
def test_classes_are_found_by_name_by_number_or_by_order(case):
    own, names, indices, told = MAPPED[case]
    images, how = map_classes(folder(*own), ten(*names))
    assert images.labels.tolist() == list(indices)
    assert how == told
    assert len(images.classes) == 10
    shown = [names[index] if names else name for name, index in zip(own, indices, strict=True)]
    assert [images.classes[index] for index in indices] == shown


def test_given_names_replace_those_of_the_checkpoint(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(("zero", *TEN[1:])) + "\n\n")
    for classes in (file, read_classes(file)):
        images, how = map_classes(folder("dog", "zero"), ten(*TEN[::-1]), classes)
        assert (images.labels.tolist(), how) == ([5, 0], "by name")


@pytest.fixture(scope="module")
def imagenet() -> Checkpoint:
    whole = draw("resnet8", input_shape=COLOUR)
    network = type(whole.network).named("resnet8", num_classes=1000, input_shape=COLOUR)
    return Checkpoint(network, network.initial_weights())


def test_imagenets_classes_have_the_names_that_timm_and_torchvision_give_them(imagenet):
    info = timm.data.ImageNetInfo()
    names = class_names(imagenet)
    assert [name.split()[0] for name in names] == info.label_names()
    for index in range(0, 1000, 37):
        own = folder(info.index_to_label_name(index), names[(index + 1) % 1000].split(" ", 1)[1])
        images, how = map_classes(own, imagenet)
        assert images.labels.tolist() == [index, (index + 1) % 1000]
        assert how == "by name"


def test_a_number_that_contradicts_the_wordnet_id_does_not_count(imagenet):
    images, how = map_classes(folder("208-n02099601", "1-n01440764"), imagenet)
    assert (images.labels.tolist(), how) == ([207, 0], "by name")


REFUSED = {
    "fewer without names": (
        ("a", "b"),
        (),
        "has 2 classes: resnet8 has 10, whose names are not known; use",
    ),
    "a name that is none": (("cat", "dgo"), TEN, r"does not know dgo \(did you mean dog\?\)"),
    "ten, of which some are moved": (
        ("bird", "cat", *(f"x{at}" for at in range(8))),
        TEN,
        "10 classes, of which resnet8 does not know x0, x1, .* x7: rename",
    ),
    "a number too many": (("3", "10"), (), "has 2 classes"),
    "one class twice": (("cat", "CAT"), TEN, "does not know which is which"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_classes_that_are_none_of_the_networks_are_refused(case):
    own, names, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        map_classes(folder(*own), ten(*names))


# ------------------------------------------------------------------------- classes of equal names

SHARED = {
    "a crane": (("crane", "goldfish"), r"crane \(134, 517\)"),
    "a swimsuit": (("maillot", "cock"), r"maillot \(638, 639\)"),
    "of another case": (("CARDIGAN",), r"CARDIGAN \(264, 474\)"),
    "two": (("crane", "maillot"), r"crane \(134, 517\), maillot \(638, 639\)"),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_name_that_two_classes_share_is_refused(case, imagenet):
    own, said = SHARED[case]
    with pytest.raises(DataError, match=f"several classes of resnet8 share: {said}; put the n"):
        map_classes(folder(*own), imagenet)


def test_a_name_that_two_classes_share_is_told_by_what_else_is_there(imagenet):
    own = ("crane", "crane bird", "maillot tank suit", "maillot", "Cardigan", "cardigan")
    images, how = map_classes(folder(*own), imagenet)
    assert (images.labels.tolist(), how) == ([517, 134, 639, 638, 264, 474], "by name")
    for names, indices in (
        (("n02012849", "n03126707-crane"), [134, 517]),
        (("134-crane", "517-crane", "638-maillot"), [134, 517, 638]),
    ):
        assert map_classes(folder(*names), imagenet)[0].labels.tolist() == indices


def test_all_names_of_torchvision_are_found_in_any_order(imagenet):
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    assert len(set(names)) == 1000
    order = torch.randperm(1000).tolist()
    images, how = map_classes(folder(*(names[index] for index in order)), imagenet)
    assert (images.labels.tolist(), how) == (order, "by name")


def test_equal_names_of_the_network_are_found_where_they_are_or_refused():
    known = ("crane", *TEN[1:9], "crane")
    images, how = map_classes(folder(*known), ten(*known))
    assert (images.labels.tolist(), how) == (list(range(10)), "by name")
    with pytest.raises(DataError, match=r"crane \(0, 9\)"):
        map_classes(folder("crane", "dog"), ten(*known))
    with pytest.raises(DataError, match=r"crane \(0, 9\)"):
        map_classes(folder("bird", "crane", *TEN[3:9], "automobile", "x"), ten(*known))


def test_numbers_whose_alphabetical_order_is_another_are_refused(imagenet):
    own = sorted(map(str, range(1000)))
    with pytest.raises(DataError, match=r"cannot tell which class is which: .* of 0, 1, 10, 100 a"):
        map_classes(folder(*own), imagenet)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no names of classes: expected one a line"),
        (b"one\ntwo\n", "expected 10 names for the classes of resnet8, got 2"),
        (b"\xff\xfe\xfa", "is no text in UTF-8: byte 0 is damaged"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_does_not_name_the_classes_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        map_classes(folder("cat"), ten(), tmp_path / "classes.txt")


def test_images_with_the_networks_classes_in_another_order_are_refused():
    whole, images = ten(*TEN), folder("dog", "cat", *(f"x{at}" for at in range(8)))
    with pytest.raises(DataError, match=r"in another order: dog, cat; use map_classes"):
        accuracy(whole, images, device="cpu")
    assert accuracy(whole, replace(images, classes=TEN), device="cpu").images == 10


def test_no_message_lists_a_thousand_names(imagenet):
    own = [f"foreign{at}" for at in range(998)]
    with pytest.raises(DataError) as refused:
        map_classes(folder(*own), imagenet)
    assert "and 990 more" in str(refused.value)
    assert len(str(refused.value)) < 500


# ------------------------------------------------------------------------------- the command line


@pytest.fixture
def whole(tmp_path) -> Path:
    return save(ten(*TEN), tmp_path / "whole.pt")


def test_evaluate_takes_a_folder_of_some_classes(run, tmp_path, whole):
    write(tmp_path / "few", ("dog", "cat", "truck"), empty=("ship",))
    done = run("evaluate", whole, "--data", f"imagefolder:{tmp_path}/few", "--device", "cpu")
    assert "4 of the 10 classes, found by name" in done.out + done.err
    found = run("evaluate", whole, "--data", f"imagefolder:{tmp_path}/few", "--json").document
    images = load_images(f"imagefolder:{tmp_path}/few", COLOUR)
    module, right = ten(*TEN).build(), 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        prepared = (pixels[None] / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / (
            torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        )
        right += TEN[int(module(prepared).argmax())] == images.classes[label]
    assert found["correct"] == right


def test_a_file_of_classes_is_read(run, tmp_path, whole):
    write(tmp_path / "few", ("Hund", "Katze"))
    names = ("Flugzeug", "Auto", "Vogel", "Katze", "Hirsch", "Hund", *TEN[6:])
    (tmp_path / "classes.txt").write_text("\n".join(names))
    asked = ("evaluate", whole, "--data", f"imagefolder:{tmp_path}/few")
    file = ("--classes", tmp_path / "classes.txt")
    refused = run(*asked)
    assert "of which resnet8 does not know Hund, Katze" in refused.err
    assert refused.err.endswith("; pass --classes FILE\n")
    without = run("recalibrate", whole, "--data", f"pictures:{tmp_path}/few", *file)
    assert f"error: --classes names classes of images: pictures:{tmp_path}/few" in without.err
    done = run(*asked, *file)
    assert "2 of the 10 classes, found by name" in done.out + done.err


def test_what_needs_no_labels_takes_folders_of_any_classes(run, tmp_path, whole):
    write(tmp_path / "any", [f"foreign{at}" for at in range(4)])
    options = ("--data", f"imagefolder:{tmp_path}/any", "--json")
    gate = ("gate", whole, *options, "--blocks", 1, "--warmup", 1, "--steps", 1)
    assert run(*gate, "--hold-out", 0, "--batch-size", 2).document["path"]
    assert run("recalibrate", whole, *options, "-o", tmp_path / "r.pt").document["images"] == 4
    assert run("rank", whole, "--by", "cosine", *options).document["blocks"]
    refused = run("rank", whole, "--by", "taylor", *options[:-1])
    assert "of which resnet8 does not know foreign0" in refused.err


def test_composed_and_decomposed_letters_are_the_same_name(tmp_path):
    # As macOS spells folders; in their alphabetical order, the classes would be exchanged.
    known = ["cafes", "café"]
    own = [unicodedata.normalize("NFD", name) for name in reversed(known)]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(known), encoding="utf-8-sig")  # as Notepad saves it
    assert read_classes(names) == tuple(known)
    assert _by_name(own, known) == ([1, 0], "by name")


def test_a_number_of_5000_digits_is_no_index():
    assert _by_number(["9" * 5000], 10) is None
