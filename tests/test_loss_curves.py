"""What is learned, step for step, is what it was when the golden curves were made."""

from __future__ import annotations

import json

import pytest
from golden.make_curves import CURVES, FOLDER, conditions

# Where sums are rounded in another order. With the instructions of SSE 4.1 or AVX2 instead of those
# of AVX-512, with which the curves were made, their numbers are up to 2e-4 apart, as rounding grows
# from step to step: ten times as much is let through. A beta of Adam's that is 0.999 instead of
# 0.99 puts them apart by 3e-3 (gates from logits) and 9e-2 (from labels).
TOLERANCE = 2e-3


@pytest.mark.parametrize("name", CURVES)
def test_what_is_learned_is_what_was_learned_before(name):
    known = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    curve = CURVES[name]()
    if conditions() == known["conditions"]:
        assert curve == known["curve"]
    assert curve.keys() == known["curve"].keys()
    for field, values in known["curve"].items():
        if isinstance(values[0], str):
            assert curve[field] == values, field
        else:
            assert curve[field] == pytest.approx(values, rel=TOLERANCE), field


def test_every_golden_curve_is_compared():
    assert {file.stem for file in FOLDER.iterdir()} == CURVES.keys()
