"""The benchmarks: documents say what the results say, and experiments keep what they trained."""

from __future__ import annotations

import functools
import importlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import draw, random_images

from gatepruner import Recipe, accuracy, load, rank, remove
from gatepruner.errors import TrainingError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not in this distribution")
RECIPE = Recipe(epochs=1, batch_size=16, optimizer="adam", augment=False)


@pytest.fixture
def paper(monkeypatch):
    """Imports a module of the paper's experiments."""
    for folder in (BENCHMARKS, BENCHMARKS / "paper", BENCHMARKS / "cases"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


@pytest.fixture
def experiment(paper, monkeypatch):
    """`experiment` with a few made-up images in the place of MNIST."""
    found = paper("experiment")
    images = {
        split: replace(random_images(number, (1, 28, 28), 10), source=f"mnist:here {split}")
        for split, number in (("train", 64), ("test", 20))
    }
    monkeypatch.setattr(found, "loaded", lambda spec, split, limit=None: images[split])
    return found


def test_tables_in_the_documents_are_those_of_the_results():
    script = [sys.executable, str(BENCHMARKS / "tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_takes_from_the_library(paper, path):
    assert paper(path.stem).__file__ == str(path)


def test_a_table_is_its_columns_over_records_and_a_missing_cell_is_empty(paper):
    columns = paper("columns")
    table = columns.table(
        columns.Column("error at depth, {unit}", "{kind}!"),
        columns.Column("{}", lambda row: row.get("error"), columns.means(".1f"), over="depth"),
        columns.Column("n", "runs"),
    )
    rows = [
        {"kind": "plain", "unit": "%", "depth": 10, "error": 1.0, "runs": 2},
        {"kind": "plain", "unit": "%", "depth": 10, "error": 2.0, "runs": 2},
        {"kind": "plain", "unit": "%", "depth": 20, "error": math.nan, "runs": 2},
        {"kind": "gated", "unit": "%", "depth": 20, "error": 3.0, "runs": 1},
    ]
    assert table.render({"rows": rows}) == (
        "| error at depth, % | 10 | 20 | n |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| plain! | 1.5 (1.0 to 2.0) | 1 diverged | 2 |\n"
        "| gated! |  | 3.0 | 1 |\n"
    )


def test_what_is_kept_is_not_worked_out_again(paper, tmp_path):
    once, calls = paper("record").once, []
    for _ in range(2):
        assert once(tmp_path / "a.json", lambda: calls.append(0) or {"n": 1}) == {"n": 1}
    assert len(calls) == 1


def test_calls_are_timed_in_turns_and_the_first_rounds_are_not_counted(paper):
    order = []
    work = {name: functools.partial(order.append, name) for name in "ab"}
    times = paper("record").in_turns(work, 2, uncounted=1)
    assert order == list("ababab")
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("curve", [lambda x: 1 - x, lambda x: (1 - x) ** 3, lambda x: 1 - x**3])
@pytest.mark.parametrize("limit", [0.8, 0.5, 0.3])
def test_the_network_for_a_target_is_the_first_or_a_little_smaller(paper, curve, limit):
    peers, steps, asked = paper("against_torch_pruning"), 100, []
    shares = [curve(0.9 * number / steps) for number in range(steps + 1)]

    def kept(number):
        asked.append(number)
        return shares[number]

    found = peers.crossing(kept, steps, shares[-1], limit)
    first = next(number for number in range(steps + 1) if shares[number] <= limit)
    assert found == first or limit - peers.TOLERANCE <= shares[found] <= limit
    assert len(asked) <= 12


def test_a_network_is_trained_measured_and_kept_and_not_trained_again(
    experiment, tmp_path, monkeypatch
):
    job = experiment.Job("gated-residual-fc4,width=8", RECIPE, "mnist:somewhere")
    row = experiment.done(job, tmp_path, "cpu")
    kept = load(job.file(tmp_path))
    assert row["accuracy"] == accuracy(kept, experiment.loaded("", "test")).accuracy
    assert row["gates"] == [round(gate, 5) for gate in kept.known_gates.values()]
    assert row["images"] == 20
    assert not job.file(tmp_path).with_suffix(".state").exists()
    monkeypatch.setattr(experiment, "learned", None)  # would fail if it were called
    assert experiment.done(job, tmp_path, "cpu") == row


def test_another_recipe_is_another_network_and_another_folder_of_images_is_not(
    experiment, tmp_path
):
    one = experiment.Job("residual-fc4", RECIPE, "mnist:here")
    same = experiment.Job("residual-fc4", RECIPE, "mnist:there")
    other = experiment.Job("residual-fc4", Recipe(epochs=2), "mnist:here")
    files = [job.file(tmp_path) for job in (one, same, other)]
    assert files[0] == files[1] != files[2]


def test_a_network_whose_training_diverges_has_a_row_that_says_so(
    experiment, tmp_path, monkeypatch
):
    def diverged(*args):
        raise TrainingError("the loss is nan in epoch 1")

    monkeypatch.setattr(experiment, "learned", diverged)
    job = experiment.Job("residual-fc4", RECIPE, "mnist:here")
    assert experiment.done(job, tmp_path, "cpu")["error"] == "the loss is nan in epoch 1"


def test_curves_are_those_of_removing_in_every_order(paper):
    removal = paper("removal")
    whole = draw("gated-residual-fc6,width=8")
    images = random_images(16, (1, 28, 28), 10)
    notes = {"normalize": {"mean": [0.1], "std": [0.3]}}
    whole = type(whole)(whole.network, whole.weights, notes)
    rows = list(removal.measured(whole, images, [0, 2], 1, "cpu"))
    rankings = [rank(whole), rank(whole).reversed(), rank(whole, "random", seed=0)]
    assert [row["order"] for row in rows] == [removal.LOWEST, removal.HIGHEST, removal.RANDOM]
    for row, ranking in zip(rows, rankings, strict=True):
        small = remove(whole, ranking.first(2))
        assert row["accuracy"] == [accuracy(it, images).accuracy for it in (whole, small)]


@pytest.mark.parametrize("name", ["plain", "gated-plain", "highway", "residual", "gated-residual"])
def test_a_stack_is_what_its_name_says_and_learns(paper, name):
    identity = paper("identity")
    kind = identity.KINDS[name]
    network = identity.stack(kind, 2).network
    assert all(block.shortcut for block in network.blocks) == (name != "plain")
    assert len(network.edits.gated) == (2 if name.startswith("gated") else 0)
    losses = identity.losses(kind, 1, 0, 40, 0.01)
    assert losses == identity.losses(kind, 1, 0, 40, 0.01)
    assert losses[-1] < 0.8 * losses[0]


def test_gates_of_a_stack_start_and_are_learned_as_its_kind_says(paper):
    identity = paper("identity")
    name = "gated-residual, k 0.05 alone"
    assert identity.KINDS[name].alone
    low = identity.stack(identity.KINDS["gated-residual, from 0.1"], 3)
    assert list(low.known_gates.values()) == pytest.approx([0.1] * 3)
    same = identity.losses(identity.KINDS[name], 3, 0, 30, 0.01)
    assert same == identity.losses(identity.KINDS[name], 3, 0, 30, 0.001)  # weights are left alone
    assert same[-1] < 0.1 * same[0]
    whole = identity.losses(identity.KINDS["gated-residual, k 0.05"], 3, 0, 30, 0.01)
    assert whole != identity.losses(identity.KINDS["gated-residual"], 3, 0, 30, 0.01)


def test_with_its_gates_closed_a_stack_is_the_identity(paper):
    identity = paper("identity")
    start = identity.stack(identity.KINDS["gated-residual"], 3)
    closed = {key: it * 0 if key.endswith(".k") else it for key, it in start.weights.items()}
    module = start.network.build(closed)
    x = torch.rand(4, *identity.SHAPE)
    assert torch.equal(module(x), x.flatten(1))


def test_a_survey_tries_each_case_once(paper, tmp_path, monkeypatch):
    survey = paper("survey")
    cases = [case for case in survey.CASES if case.name in survey.QUICK]
    assert len(cases) == len(survey.QUICK)
    survey.survey(cases, tmp_path)
    rows = survey.kept(tmp_path)
    assert {rows[case.key]["outcome"] for case in cases} == {"right"}
    monkeypatch.setattr(survey, "apart", None)  # would fail if it were called
    survey.survey(cases, tmp_path)


def test_the_oracle_of_a_survey_finds_and_cuts_the_additions_that_run(paper):
    oracle, modules = paper("cases.oracle"), paper("cases.modules")
    net, images = modules.Net(modules.plain).eval(), torch.randn(2, 3, 16, 16)
    result, ran = oracle.run(net, images)
    assert torch.equal(result, net(images))
    assert [(it.path, it.branch) for it in ran] == [(f"blocks.{i}", 1) for i in range(3)]
    cut, _ = oracle.run(net, images, lambda it: 1 if it.index == 1 else None)
    net.blocks[1].norm = torch.nn.Identity()
    torch.nn.init.zeros_(net.blocks[1].conv.weight)
    torch.nn.init.zeros_(net.blocks[1].conv.bias)
    assert torch.equal(cut, net(images))
