"""Tables of encoded images are read as `datasets` itself reads them."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

import gatepruner
from gatepruner.errors import DataError
from gatepruner.images import arrow, memory, tables
from gatepruner.images.decoding import Encoded, decode
from gatepruner.images.readers import has_split, load_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ENCODED = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SHAPE, CLASSES = (3, 6, 5), ["ant", "bee", "cat"]
COUNTS = {"train": 7, "test": 4}


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def features(**columns) -> dict[bytes, bytes]:
    """What `datasets` writes into the schema."""
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


NAMED = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": CLASSES})


def table(count: int = 4, seed: int = 0, labels=None, metadata=NAMED, **columns):
    """Pictures as the Hub has them, under a name that leads nowhere."""
    held = [{"bytes": png(one), "path": "/etc/passwd"} for one in pixels(count, seed)]
    given = {"image": held, "label": [at % 3 for at in range(count)] if labels is None else labels}
    made = pa.table({**given, **columns})
    return made.replace_schema_metadata(metadata)


def expected(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pixels(count, seed)).permute(0, 3, 1, 2)


@pytest.fixture
def hub(tmp_path) -> Path:
    """A folder as the Hub lays it out, with a split in two files, and several groups of rows."""
    (tmp_path / "data").mkdir()
    whole = table(COUNTS["train"])
    for index, part in enumerate((whole.slice(0, 3), whole.slice(3))):
        name = f"train-0000{index}-of-00002.parquet"
        pq.write_table(part, tmp_path / "data" / name, row_group_size=2)
    pq.write_table(table(COUNTS["test"], 1), tmp_path / "data" / "validation-00000.parquet")
    (tmp_path / "README.md").write_text("# A set")
    return tmp_path


def test_a_folder_of_the_hub(hub):
    images = load_images(f"parquet:{hub}", SHAPE, split="train")
    assert torch.equal(images.pixels, expected(7))
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.classes == tuple(CLASSES)
    for split in (None, "val", "validation"):
        other = load_images(f"parquet:{hub}", SHAPE, split=split)
        assert torch.equal(other.pixels, expected(4, 1))
        assert other.source == f"parquet:{hub} val"
    assert has_split(f"parquet:{hub}", "train")
    assert has_split(f"parquet:{hub}", "val")
    assert not has_split(f"parquet:{hub}", "test")
    assert torch.equal(load_images(f"hf:{hub}", SHAPE).pixels, other.pixels)  # a clone of a set


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 100])
def test_a_limit_takes_the_rows_that_it_takes_of_any_images(hub, limit):
    every = load_images(f"parquet:{hub}", SHAPE, split="train")
    some = load_images(f"parquet:{hub}", SHAPE, split="train", limit=limit)
    assert torch.equal(some.pixels, every.spread(limit).pixels)
    assert torch.equal(some.labels, every.spread(limit).labels)
    assert some.classes == every.classes


def test_a_file_is_a_set_without_splits(hub):
    file = hub / "data" / "train-00001-of-00002.parquet"
    images = load_images(f"parquet:{file}", SHAPE)
    assert torch.equal(images.pixels, expected(7)[3:])
    assert has_split(f"parquet:{file}", "train")
    with pytest.raises(DataError, match="no split 'test': found none"):
        load_images(f"parquet:{file}", SHAPE, split="test")


def test_images_are_decoded_when_they_are_used(hub, monkeypatch):
    every = load_images(f"parquet:{hub}", SHAPE, split="train")
    monkeypatch.setattr(memory, "IN_MEMORY", 10)
    late = load_images(f"parquet:{hub}", SHAPE, split="train")
    assert late.pixels is None
    order = torch.tensor([5, 0, 3])
    ((found, labels),) = late.batches(order, 3)
    assert torch.equal(found, every.pixels[order])
    assert torch.equal(labels, every.labels[order])
    assert late.fingerprint != late.take(order).fingerprint


COLUMNS = {
    "raw bytes": ({"image": [png(one) for one in pixels(3)], "label": [2, 0, 1]}, [2, 0, 1]),
    "large bytes": (
        {"img": pa.array([png(one) for one in pixels(3)], pa.large_binary()), "labels": [0, 1, 2]},
        [0, 1, 2],
    ),
    "other columns": (
        {
            "id": [7, 8, 9],
            "image": [png(one) for one in pixels(3)],
            "caption": ["x", "y", "z"],
            "fine_label": [0, 1, 2],
            "coarse_label": [5, 5, 5],
        },
        [0, 1, 2],
    ),
    "names as labels": (
        {"picture": [png(one) for one in pixels(3)], "label": ["dog", "ant", "dog"]},
        [1, 0, 1],
    ),
    "numbers with gaps": (
        {"image": [png(one) for one in pixels(3)], "label": [7, 3, 900]},
        [1, 0, 2],
    ),
    "no labels": ({"scan": [png(one) for one in pixels(3)]}, [-1] * 3),
    "hidden labels": ({"image": [png(one) for one in pixels(3)], "label": [-1] * 3}, [-1] * 3),
}


@pytest.mark.parametrize(("columns", "labels"), COLUMNS.values(), ids=COLUMNS.keys())
def test_columns_are_found(columns, labels, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    images = load_images(f"parquet:{tmp_path}", SHAPE)
    assert torch.equal(images.pixels, expected(3))
    assert images.labels.tolist() == labels
    assert images.labelled == (max(labels) >= 0)
    known = {"names as labels": ("ant", "dog"), "numbers with gaps": ("3", "7", "900")}
    if columns in [COLUMNS[name][0] for name in known]:
        name = next(name for name in known if COLUMNS[name][0] is columns)
        assert images.classes == known[name]


@pytest.mark.filterwarnings("ignore")  # of what datasets itself calls
@pytest.mark.parametrize("parted", [True, False])
def test_what_datasets_saves_is_what_datasets_reads(parted, tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=CLASSES),
        extra=datasets.Value("int8"),
    )
    pictures = list(map(Image.fromarray, pixels(7)))
    given = {"image": pictures, "label": [0, 1, 2, 0, 1, 2, 0], "extra": [0] * 7}
    train = datasets.Dataset.from_dict(given, features=kinds).select([6, 0, 3, 4])
    whole = datasets.DatasetDict(train=train, validation=train.select([1, 2]))
    (whole if parted else train).save_to_disk(
        tmp_path / "set", **({} if parted else {"num_shards": 3})
    )
    read = datasets.load_from_disk(tmp_path / "set")
    for split in ("train", "validation") if parted else ("train",):
        rows = read[split] if parted else read
        images = load_images(f"hf:{tmp_path / 'set'}", SHAPE, split=split)
        known = torch.stack([torch.from_numpy(np.array(row["image"])) for row in rows])
        assert torch.equal(images.pixels, known.permute(0, 3, 1, 2))
        assert images.labels.tolist() == rows["label"][:]
        assert list(images.classes) == rows.features["label"].names
    assert has_split(f"hf:{tmp_path / 'set'}", "train")
    assert has_split(f"hf:{tmp_path / 'set'}", "val") == parted


def saved(folder: Path, made, **state) -> Path:
    """A set as `datasets` saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = str(folder / "data-00000-of-00001.arrow")
    with pa.ipc.new_stream(file, made.schema) as stream:
        stream.write_table(made, 2)
    files = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps({**files, **state}))
    return folder


def test_only_files_beside_it_are_read_of_a_saved_set(tmp_path):
    folder = saved(tmp_path / "set", table())
    assert torch.equal(load_images(f"hf:{folder}", SHAPE).pixels, expected(4))
    outside = saved(tmp_path / "other", table())
    for name in ("../other/data-00000-of-00001.arrow", str(outside / "x.arrow"), "none.arrow", 5):
        saved(folder, table(), _data_files=[{"filename": name}])
        with pytest.raises(DataError, match=r"state\.json names .*: expected files beside it"):
            load_images(f"hf:{folder}", SHAPE)


def broken_state(folder, **state):
    return saved(folder, table(), **state)


def torn(folder):
    saved(folder, table())
    file = next(folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])


REFUSED = {
    "no picture": (
        "parquet",
        lambda it: pq.write_table(
            table(image=pa.array([{"bytes": None, "path": "/etc/passwd"}] * 4, ENCODED)),
            it / "a.parquet",
        ),
        "a.parquet, row 0 has no picture, at most its name",
    ),
    "addresses": (
        "parquet",
        lambda it: pq.write_table(pa.table({"image": ["https://example.org"]}), it / "a.parquet"),
        "has 0 columns of encoded pictures among image",
    ),
    "two pictures": (
        "parquet",
        lambda it: pq.write_table(pa.table({"left": [b"x"], "right": [b"x"]}), it / "a.parquet"),
        "has 2 columns of encoded pictures among left, right",
    ),
    "two labels": (
        "parquet",
        lambda it: pq.write_table(
            table(metadata=features(a={"_type": "ClassLabel"}, b={"_type": "ClassLabel"}))
            .drop_columns(["label"])
            .append_column("a", [[0] * 4])
            .append_column("b", [[0] * 4]),
            it / "a.parquet",
        ),
        "has several columns of labels: a, b",
    ),
    "some labels": (
        "parquet",
        lambda it: pq.write_table(table(labels=[0, None, 1, -1]), it / "a.parquet"),
        "2 of 4 rows have no label",
    ),
    "labels that are parts": (
        "parquet",
        lambda it: pq.write_table(table(labels=[0.5, 1.0, 2.0, 0.0]), it / "a.parquet"),
        "has labels of the type double: expected whole numbers, or names",
    ),
    "labels beyond the names": (
        "parquet",
        lambda it: pq.write_table(table(labels=[0, 1, 2, 3]), it / "a.parquet"),
        "labels reach from 0 to 3, expected 0 to 2",
    ),
    "no image": (
        "parquet",
        lambda it: pq.write_table(pa.table({"image": [b"%!PS-Adobe"]}), it / "a.parquet"),
        "cannot read the image a.parquet, row 0: expected BMP, .*PNG",
    ),
    "another size": (
        "parquet",
        lambda it: pq.write_table(
            pa.table({"image": [png(np.zeros((9, 9, 3), np.uint8))]}), it / "a.parquet"
        ),
        "a.parquet, row 0 has 9x9 pixels, the network takes 6x5",
    ),
    "no table": ("parquet", lambda it: (it / "a.parquet").write_bytes(b"PAR1xx"), "is no table"),
    "nothing": ("parquet", lambda it: None, "has no split 'test': found none"),
    "other columns": (
        "parquet",
        lambda it: (
            pq.write_table(table(), it / "a.parquet"),
            pq.write_table(pa.table({"x": [1]}), it / "b.parquet"),
        ),
        "b.parquet has other columns than a.parquet",
    ),
    "several sets": (
        "parquet",
        lambda it: [
            ((it / name).mkdir(), pq.write_table(table(), it / name / "train-0.parquet"))
            for name in ("one", "two")
        ],
        "files of the split 'train' in several folders .*: choose one of the sets, parquet:.*one",
    ),
    "no rows": (
        "parquet",
        lambda it: pq.write_table(table().slice(0, 0), it / "a.parquet"),
        "has no images",
    ),
    "a torn file": ("hf", torn, "is no table, or is truncated"),
    "a torn state": ("hf", lambda it: (it / "state.json").write_text("{"), "is damaged"),
    "a deep state": ("hf", lambda it: (it / "state.json").write_text("[" * 10**5), "is damaged"),
    "a state that is none": ("hf", lambda it: (it / "state.json").write_text("[1]"), "is damaged"),
    "another order": (
        "hf",
        lambda it: broken_state(it, _indices_data_files=[{"filename": "indices.arrow"}]),
        r"call flatten_indices\(\)",
    ),
}


@pytest.mark.parametrize(("kind", "make", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused(kind, make, said, tmp_path, monkeypatch):
    def refused(*args, **options):
        raise AssertionError("something else was opened")

    monkeypatch.setattr(socket, "socket", refused)
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match=said) as caught:
        load_images(f"{kind}:{folder}", SHAPE)
    assert "\n" not in str(caught.value)


def test_more_pictures_than_memory_should_hold_are_refused(hub, monkeypatch):
    monkeypatch.setattr(tables, "MOST_BYTES", 300)
    monkeypatch.setattr(memory, "IN_MEMORY", 10)
    with pytest.raises(DataError, match=r"kept in memory: read fewer.*limit="):
        load_images(f"parquet:{hub}", SHAPE, split="train")


def test_without_pyarrow_its_install_line_is_said(hub, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'gatepruner\[parquet\]'"):
        load_images(f"parquet:{hub}", SHAPE)


@pytest.mark.parametrize("name", ["EPS", "PDF"])
def test_no_program_is_started_for_a_picture(name, tmp_path):
    """Pillow would have Ghostscript run an EPS, whatever its file is called."""
    stream = io.BytesIO()
    Image.new("RGB", (5, 6)).save(stream, name)
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    for place in (str(tmp_path / "a.png"), Encoded("a.png", stream.getvalue())):
        with pytest.raises(DataError, match=r"cannot read the image .*a\.png: expected BMP"):
            decode(place, SHAPE, None)


def test_commands_read_tables(run, tmp_path):
    """With the classes found by name, and pictures scaled as the checkpoint records."""
    from dataclasses import replace

    whole = draw("resnet8", input_shape=(3, 8, 8))
    names = [f"class{index}" for index in range(7)] + ["cat", "bee", "ant"]
    noted = replace(whole, notes={"classes": names, "scaling": {"side": 9}})
    path = gatepruner.save(noted, tmp_path / "whole.pt")
    pq.write_table(table(30), tmp_path / "train.parquet")
    pq.write_table(table(6, 1), tmp_path / "test.parquet")
    for prefix, place in (("parquet", tmp_path), ("hf", tmp_path)):
        done = run("evaluate", path, "--data", f"{prefix}:{place}", "--device", "cpu", "--json")
        images = load_images(f"parquet:{place}", (3, 8, 8), resize=gatepruner.Scaling(9))
        mapped, how = gatepruner.map_classes(images, noted)
        assert (how, mapped.labels.tolist()) == ("by name", [9, 8, 7, 9, 8, 7])
        known = gatepruner.accuracy(noted, mapped, device="cpu")
        assert done.document["accuracy"] == known.correct / known.images
    done = run("recalibrate", path, "--data", f"parquet:{tmp_path}", "-o", tmp_path / "out.pt")
    assert done.code == 0, done.err


def test_a_row_that_is_repeated_takes_no_memory(tmp_path):
    count = 300_000
    labels = pa.array(np.zeros(count, dtype=np.int64))
    rows = pa.table({"image": pa.nulls(count, ENCODED), "label": labels})
    pq.write_table(rows, tmp_path / "test.parquet")
    assert (tmp_path / "test.parquet").stat().st_size < count
    with pytest.raises(DataError, match=r"has 300,000 rows, more than bytes"):
        load_images(f"parquet:{tmp_path}", SHAPE)


# -------------------------------------------------------------------------- what a table repeats


def repeated(folder: Path, nested: bool, rows: int = 5000, groups: int = 1) -> Path:
    """A file of a large picture, which each of its rows has."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    picture = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array([png(noise)])
    )
    name = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 9**6]))
    column = pa.StructArray.from_arrays([picture, name], ["bytes", "path"]) if nested else picture
    file = folder / "test.parquet"
    pq.write_table(
        pa.table({"image": column, "label": name}),
        file,
        store_schema=False,
        dictionary_pagesize_limit=2**30,
        row_group_size=rows // groups,
    )
    return file


@pytest.mark.parametrize("nested", [False, True])
def test_a_picture_and_a_label_that_are_repeated_take_the_memory_of_one(nested, tmp_path):
    made = tables.read_table([repeated(tmp_path, nested)], "it", None)
    assert len(made.pictures) == len(made.labels) == 5000
    assert len({id(one.content) for one in tables.encoded(made.pictures, "it")}) == 1
    assert made.classes == ("x" * 9**6,)
    assert pa.default_memory_pool().max_memory() < 2**27  # all of them would take 4 GB


def test_equal_pictures_of_several_groups_are_one(tmp_path):
    file = repeated(tmp_path, False, rows=40, groups=4)
    pictures = tables.encoded(tables.read_table([file], "it", None).pictures, "it")
    assert len(pictures) == 40
    assert len({id(one.content) for one in tables.encoded(pictures, "it")}) == 1


def test_pictures_that_unpack_to_much_more_than_their_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "UNPACKED", 1000)
    made = pa.table({"image": [bytes(2**20)]})
    pq.write_table(made, tmp_path / "test.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"unpacks to 1,\d+,\d+ bytes: expected at most 16 times"):
        load_images(f"parquet:{tmp_path}", SHAPE)


KINDS = ["values", *(["views"] if hasattr(pa, "string_view") else [])]  # pyarrow 16 has them


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_types_that_repeat_are_refused(kind, tmp_path):
    if kind == "values":
        labels = pa.RunEndEncodedArray.from_arrays([4], pa.array(["x" * 1000]))
    else:
        labels = pa.array(["x" * 1000] * 4).cast(pa.string_view())
    made = table(labels=labels, metadata=None)
    with pytest.raises(DataError, match=r"has labels of the type .*: expected whole numbers"):
        load_images(f"hf:{saved(tmp_path, made)}", SHAPE)


def test_a_label_beyond_all_numbers_is_refused(tmp_path):
    made = table(labels=pa.array([0, 1, 2**64 - 1, 2], pa.uint64()))
    pq.write_table(made, tmp_path / "test.parquet")
    with pytest.raises(DataError, match="labels reach from 0 to 18446744073709551615, expected"):
        load_images(f"parquet:{tmp_path}", SHAPE)


@pytest.mark.parametrize("kind", ["batch", "dictionary"])
def test_a_compressed_stream_is_refused_before_it_is_unpacked(kind, tmp_path):
    folder, zeros = saved(tmp_path, table(2)), pa.array([bytes(2**26)])
    if kind == "dictionary":
        zeros = zeros.dictionary_encode()
    (file,) = folder.glob("*.arrow")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    made = pa.table({"image": zeros})
    with pa.ipc.new_stream(str(file), made.schema, options=options) as stream:
        stream.write_table(made)
    del made, zeros
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"arrow is compressed: expected a set as save_to_disk"):
        load_images(f"hf:{folder}", SHAPE)
    assert pa.total_allocated_bytes() - before < 2**20


def test_places_outside_a_batch_are_refused(tmp_path):
    """Nothing else looks at where a stream says that its values begin: it would end the process."""
    made = saved(tmp_path, table(2))
    (file,) = made.glob("*.arrow")
    content = bytearray(file.read_bytes())
    begins = np.cumsum([0, *(len(png(one)) for one in pixels(2))]).astype("<i4").tobytes()
    at = content.find(begins)
    assert at > 0
    content[at + 4 : at + 8] = (2**30).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(DataError, match="is no table, or is truncated"):
        load_images(f"hf:{made}", SHAPE)
