"""The figure that compares shows what it was given."""

from __future__ import annotations

import numpy as np
import pytest

from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.style import COLORS, LINES, MARKERS

RUNS = [[1.0, 2.0, 4.0], [3.0, 2.0, 8.0]]
KINDS = [Curves("with", [2, 10, 100], RUNS), Curves("without", [2, 10, 100], [[5.0, 6.0, 7.0]])]


def axes_of(**options):
    (axes,) = comparison_figure(KINDS, "depth", "error (%)", **options).axes
    return axes


def test_a_line_is_the_mean_of_its_runs_and_a_band_their_range():
    axes = axes_of()
    several, single = axes.get_lines()
    assert several.get_xydata().tolist() == [[2, 2], [10, 2], [100, 6]]
    assert single.get_ydata().tolist() == [5, 6, 7]
    (band,) = axes.collections  # one run has no range
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(2, 1), (2, 3), (10, 2), (100, 4), (100, 8)} <= corners


def test_labels_tell_how_many_runs_there_were():
    axes = axes_of()
    assert [line.get_label() for line in axes.get_lines()] == ["with (n = 2)", "without"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("depth", "error (%)")


@pytest.mark.parametrize(("said", "scales"), [("", ("linear",) * 2), ("y", ("linear", "log"))])
def test_axes_are_logarithmic_where_they_are_asked_to_be(said, scales):
    axes = axes_of(logarithmic=said)
    assert (axes.get_xscale(), axes.get_yscale()) == scales


def test_a_logarithmic_lower_axis_has_its_ticks_where_something_was_measured():
    axes = axes_of(logarithmic="xy")
    assert axes.get_xticks().tolist() == [2, 10, 100]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_a_run_that_has_no_number_leaves_a_gap_and_not_an_error():
    kinds = [Curves("diverged", [1, 2], [[np.nan, 1.0], [2.0, 1.0]])]
    (axes,) = comparison_figure(kinds, "x", "y").axes
    assert np.isnan(axes.get_lines()[0].get_ydata()).tolist() == [True, False]


def test_every_kind_has_a_colour_and_a_line_of_its_own():
    assert len(set(COLORS)) == len(set(map(str, LINES))) == len(set(MARKERS)) == len(COLORS)
    assert [line.get_marker() for line in axes_of().get_lines()] == list(MARKERS[:2])
    assert {line.get_marker() for line in axes_of(marked=False).get_lines()} == {"None"}
    too_many = KINDS * len(COLORS)
    with pytest.raises(ValueError, match="cannot draw 20 kinds: there are 10 colours"):
        comparison_figure(too_many, "x", "y")
