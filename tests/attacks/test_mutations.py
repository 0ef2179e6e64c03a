"""Mutated files of every format, and pickles by every route: the shorter half of the benchmark."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = 60  # mutations of each format; `benchmarks/trust.py` makes many more

if not (ROOT / "benchmarks").is_dir():  # as in the source distribution
    pytest.skip("the benchmarks are not there", allow_module_level=True)


@pytest.fixture(scope="module")
def trust():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("trust", ROOT / "benchmarks" / "trust.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.fixture(scope="module")
def kinds(trust, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    steps = {"steps.json": trust.steps_kind(folder)}
    return {**trust.checkpoint_kinds(folder), **steps, **trust.image_kinds()}


@pytest.mark.filterwarnings("ignore")
def test_a_mutation_is_read_as_before_or_as_another_sound_file_or_refused(trust, kinds, tmp_path):
    failures = {}
    for label, kind in kinds.items():
        outcomes, failed = trust.counted(kind, 10**6, COUNT, tmp_path)
        assert outcomes.total() == COUNT
        assert outcomes["refused"], f"no mutation of {label} is refused"
        assert outcomes["as before"] + outcomes["another sound one"], f"none of {label} is read"
        failures |= {label: failed} if failed else {}
    assert failures == {}


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_runs_anything(trust, tmp_path):
    outcomes, failures = trust.executed(300, tmp_path)
    assert (outcomes.total(), failures) == (300, [])


def test_a_crash_a_traceback_and_a_message_of_several_lines_are_failures(trust, tmp_path):
    def read(path):
        number = int(path.read_bytes())
        if number == 0:
            raise trust.GatePrunerError("refused")
        if number == 1:
            raise KeyError("a")
        if number == 2:
            trust.os._exit(3)
        return "as before"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, said in enumerate(["refused", "failure", "failure", "as before"]):
            kind = trust.Kind(".x", lambda dice, number=number: str(number).encode(), read)
            outcomes, failures = trust.counted(kind, 0, 1, tmp_path)
            assert (dict(outcomes), bool(failures)) == ({said: 1}, said == "failure")


def test_mutations_tried_in_rounds_are_counted_as_in_one_go(trust, kinds, tmp_path, monkeypatch):
    def after(rounds, rows):
        for _ in trust.in_rounds({"steps.json": kinds["steps.json"]}, rows, 30, tmp_path):
            rounds -= 1
            if not rounds:
                break
        return rows

    at_once = after(9, {"steps.json": trust.empty("steps.json")})
    monkeypatch.setattr(trust, "ROUND", 7)
    stopped = after(2, {"steps.json": trust.empty("steps.json")})
    assert stopped["steps.json"]["n"] == 14
    assert after(9, stopped) == at_once
    assert at_once["steps.json"]["n"] == 30
