"""A report is whole, says what the points say, and replaces nothing it was not asked to."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import draw, random_images, removable
from PIL import Image

import gatepruner
from gatepruner.errors import CheckpointError
from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.latency import Latency
from gatepruner.pruning.orders import compare
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates
from gatepruner.report.figures import gates_figure
from gatepruner.report.files import FILES, Report, write_report
from gatepruner.report.tables import accuracy_text


def made(name: str = "gated-residual-fc12,width=8", by: str = "gate", orders: int = 2) -> Report:
    checkpoint = draw(name, input_shape=(1, 8, 8) if "fc" in name else None)
    shape = checkpoint.network.base.input_shape
    images = random_images(20, shape)
    notes = {"normalize": {"mean": [0.5] * shape[0], "std": [0.5] * shape[0]}}
    checkpoint = type(checkpoint)(checkpoint.network, checkpoint.weights, notes)
    criteria = (by, "random") if orders else (by,)
    compared = list(compare(checkpoint, images, criteria, seeds=range(orders or 1)))
    ranking = compared[0].rankings[0]
    times = {"whole": asdict(Latency(0.002, 0.001, 0.003, 30, 1, "cpu"))}
    configuration = {"data": images.source, "seed": 0, "device": "cpu"}
    return Report(checkpoint, compared, ranking.first(2), times, configuration)


@pytest.fixture(scope="module")
def report() -> Report:
    return made()


@pytest.fixture(scope="module")
def written(report, tmp_path_factory) -> Path:
    return write_report(report, tmp_path_factory.mktemp("reports") / "new" / "report")


def test_a_report_is_all_of_its_files_and_nothing_else(written):
    assert sorted(file.name for file in written.iterdir()) == sorted(FILES)
    assert all(file.stat().st_size for file in written.iterdir())


def test_the_table_is_the_points(report, written):
    with (written / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        {"criterion": order.criterion, "run": str(run)}
        | {key: str(value) for key, value in point.to_json().items()}
        for order in report.orders
        for run, points in enumerate(order.runs)
        for point in points
    ]
    assert rows == expected
    assert len(rows) == 3 * 7


def test_the_document_is_the_whole_report(report, written):
    document = json.loads((written / "report.json").read_text())
    assert document == json.loads(json.dumps(report.to_json(), allow_nan=False))
    gate, random = document["orders"]
    assert gate["runs"] == [[point.to_json() for point in report.orders[0].points]]
    assert len(random["runs"]) == 2
    assert [name for name, _ in gate["rankings"][0]] == list(report.orders[0].rankings[0].names)
    assert document["gates"] == report.checkpoint.gates
    assert document["removed"] == list(report.removed)
    assert document["network"]["base"] == report.checkpoint.network.to_json()["base"]
    assert tuple(document["network"]["edits"]["gated"]) == report.checkpoint.network.edits.gated
    assert document["configuration"] == {"data": "made up", "seed": 0, "device": "cpu"}
    assert document["versions"]["gatepruner"] == gatepruner.__version__
    assert document["latency"]["whole"]["median"] == 0.002


def test_the_text_shows_the_pictures_and_every_point(report, written):
    text = (written / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == ["curve.png", "gates.png"]
    assert all((written / picture).is_file() for picture in pictures)
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    points = report.orders[0].points
    assert len(rows) == len(points)
    for index, (row, point) in enumerate(zip(rows, points, strict=True)):
        assert int(row[0]) == point.removed
        assert float(row[2].split()[0]) == round(100 * point.accuracy.accuracy, 2)
        assert int(row[5].replace(",", "")) == point.cost.params
        accuracies = report.orders[1].accuracies(index)
        assert f"{100 * sum(accuracies) / 2:.2f}" in row[3]
        assert ("≈" in row[3]) == report.orders[1].within_noise(report.orders[0], index)
    assert ", ".join(report.removed) in text
    assert "median 2.00 ms" in text


@pytest.mark.parametrize("name", ["curve", "gates"])
def test_the_pictures_are_large_enough_for_print_and_well_formed(written, name):
    with Image.open(written / f"{name}.png") as image:
        assert image.format == "PNG"
        assert 1000 <= image.width <= 2400
        assert 500 <= image.height <= 1600
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    root = ET.parse(written / f"{name}.svg").getroot()
    assert root.tag.endswith("}svg")
    said = " ".join("".join(root.itertext()).split())
    expected = {
        "curve": ("blocks removed", "accuracy (%)", "(MACs) kept (%)", "2 removed", "n = 20"),
        "gates": ("block, in order of depth", "kept (4)", "removed (2)"),
    }
    assert all(text in said for text in expected[name]), said


def test_a_picture_is_also_a_pdf_in_which_text_can_be_selected(written):
    for name in ("curve", "gates"):
        content = (written / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF-")
        assert b"/FontFile2" in content  # TrueType
        assert b"CreationDate" not in content


@pytest.mark.parametrize("blocks", [6, 50])
def test_a_number_above_each_bar_says_when_the_block_goes(blocks):
    network = draw(f"gated-residual-fc{2 * blocks},width=8", input_shape=(1, 8, 8)).network
    names = [block.name for block in network.blocks]
    gates = dict.fromkeys(names, 0.5)  # so that numbers stand side by side
    order = names[::-1]
    figure = gates_figure(network.blocks, gates, order[:2], order)
    figure.canvas.draw()
    (axes,) = figure.axes
    numbers = {one.xy[0]: one for one in axes.texts if one.get_text().isdigit()}
    assert {x: int(one.get_text()) for x, one in numbers.items()} == {
        x: order.index(name) + 1 for x, name in enumerate(names, start=1)
    }
    boxes = [one.get_window_extent() for _, one in sorted(numbers.items())]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))
    assert all(axes.bbox.y1 >= box.y1 for box in boxes)
    assert min(one.get_fontsize() for one in numbers.values()) > 5
    unnumbered = gates_figure(network.blocks, gates, order[:2]).axes[0]
    assert not [one for one in unnumbered.texts if one.get_text().isdigit()]


def test_the_same_report_is_the_same_files(report, written, tmp_path):
    again = write_report(report, tmp_path)
    for name in FILES:
        assert (again / name).read_bytes() == (written / name).read_bytes(), name


@pytest.mark.parametrize("name", FILES)
def test_a_report_that_is_there_is_replaced_only_by_force(report, tmp_path, name):
    (tmp_path / name).write_text("older")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=f"already has a report .{name}.*force=True"):
        write_report(report, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "notes.txt"])
    assert (tmp_path / name).read_text() == "older"
    write_report(report, tmp_path, force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])
    assert (tmp_path / name).read_bytes() != b"older"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(report, tmp_path):
    (tmp_path / "it").write_text("mine")
    for force in (False, True):
        with pytest.raises(CheckpointError, match="is a file: expected a folder"):
            write_report(report, tmp_path / "it", force=force)
    assert (tmp_path / "it").read_text() == "mine"


def test_a_network_without_gates_has_a_report_without_their_picture(tmp_path):
    write_report(made("resnet14", "depth"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {it for it in FILES if "gates" not in it}
    assert "gates.png" not in (tmp_path / "report.md").read_text()


def test_a_replaced_report_leaves_no_picture_of_the_one_before(report, tmp_path):
    write_report(report, tmp_path)
    write_report(made("resnet14", "depth"), tmp_path, force=True)
    assert not (tmp_path / "gates.png").exists()
    assert not (tmp_path / "gates.svg").exists()
    assert not (tmp_path / "gates.pdf").exists()


def test_gates_that_were_folded_are_shown(tmp_path):
    whole = made("gated-resnet14", orders=0)
    folded = fold_gates(whole.checkpoint)
    order = whole.orders[0]
    report = Report(folded, [replace(order, rankings=(rank(folded),))])
    write_report(report, tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["gates"] == whole.checkpoint.gates
    names = [name for name, _ in document["orders"][0]["rankings"][0]]
    assert names == list(order.rankings[0].names)
    assert len(names) == len(removable(folded.network))
    root = ET.parse(tmp_path / "gates.svg").getroot()
    said = "".join(root.itertext())
    assert all(stage in said for stage in ("layer1", "layer2", "layer3"))


def test_an_accuracy_is_told_with_its_interval_and_count():
    assert accuracy_text(Accuracy(915, 1000, 0.38421)) == (
        "91.50 % (95 % interval 89.61 to 93.07, 915 of 1,000 images), loss 0.3842"
    )
