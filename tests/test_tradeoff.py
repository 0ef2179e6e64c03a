"""The trade-off figure of a compression: its axis and line are those of the goal."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gatepruner.compression.record import StepRecord
from gatepruner.pruning.goals import Goal
from gatepruner.report.compression import tradeoff_figure

COMMON = {"distance": 0.1, "images": 1000, "params": 300_000, "seconds": 1.0}


def step(name: str, accuracy: float, latency: float, macs: int, shown: bool = True) -> StepRecord:
    spread = {"low": accuracy - 0.02, "high": accuracy + 0.02}
    measured = {"accuracy": accuracy, "agreement": accuracy, **spread}
    times = {"latency": latency, "latency_low": latency, "latency_high": latency}
    return StepRecord(name, **measured, **COMMON, blocks=9, macs=macs, **times, shown=shown)


STEPS = [
    step("whole", 0.932, 0.0231, 126_000_000),
    step("removed", 0.5, 0.0119, 60_000_000, shown=False),
    step("folded", 0.71, 0.0117, 60_000_000),
    step("chosen", 0.712, 0.0117, 60_000_000),
    step("fine-tuned", 0.918, 0.0117, 60_000_000),
]


def axes_of(goal: Goal | None = None) -> Axes:
    (axes,) = tradeoff_figure(STEPS, goal).axes
    return axes


def goal_lines(axes: Axes) -> dict[str, float]:
    """The vertical lines, by their labels."""
    labelled = [line for line in axes.get_lines() if str(line.get_label()).startswith("goal")]
    return {str(line.get_label()): line.get_xdata()[0] for line in labelled}


@pytest.mark.parametrize(
    ("goal", "label", "x"),
    [
        (Goal("latency", 0.5, relative=True), "goal: at most 11.55 ms", 11.55),
        (Goal("latency", 0.012), "goal: at most 12.00 ms", 12.0),
        (Goal("macs", 0.5, relative=True), "goal: at most 63 M MACs", 63.0),
        (Goal("params", 200_000), "goal: at most 200 K parameters", 0.2),
    ],
)
def test_a_line_marks_the_goal_on_its_own_axis(goal, label, x):
    axes = axes_of(goal)
    assert goal_lines(axes) == {label: pytest.approx(x)}
    words = {"latency": "latency of one pass (ms)", "macs": "millions", "params": "parameters"}
    assert words[goal.kind] in axes.get_xlabel()


@pytest.mark.parametrize("goal", [None, Goal("blocks", 3), Goal("loss", 1.0)])
def test_a_goal_that_is_no_cost_has_no_line(goal):
    axes = axes_of(goal)
    assert goal_lines(axes) == {}
    assert axes.get_xlabel().startswith("latency of one pass (ms)\n(steps of the same cost")


def test_intervals_of_steps_that_cost_the_same_stand_side_by_side():
    axes = axes_of()
    names = [one.get_text() for one in axes.texts]
    assert names == ["whole", "folded", "chosen", "fine-tuned"]
    (x, _) = axes.containers[0].lines[0].get_data()
    assert [x[0], sum(x[1:]) / 3] == pytest.approx([23.1, 11.7])  # their middle is at their cost
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    assert all(later - earlier > 0.03 * width for earlier, later in pairwise(x[1:]))
    assert [one.xy[0] for one in axes.texts] == pytest.approx(list(x))
    assert x[-1] - x[1] < 0.1 * width


def test_one_step_stands_at_its_cost():
    (axes,) = tradeoff_figure(STEPS[:1]).axes
    assert list(axes.containers[0].lines[0].get_data()[0]) == pytest.approx([23.1])
    assert axes.get_xlabel() == "latency of one pass (ms)"


def test_nothing_of_a_figure_is_cut_off():
    figure = tradeoff_figure(STEPS, Goal("macs", 50_000_000))
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    inside = figure.bbox
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
