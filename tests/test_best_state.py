"""Fine-tuning with a teacher and held-out images hands over the best state that it has seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import KilledError, bright_images, removable, same, stopping
from test_agreement import SHAPE, made, unlabelled

from gatepruner.errors import TrainingError
from gatepruner.files.storage import load_state
from gatepruner.images.images import Images
from gatepruner.learning import learner, training
from gatepruner.learning.recipes import FINE_TUNING, Recipe
from gatepruner.learning.training import finetune
from gatepruner.measuring.agreement import agreement
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import remove

RECIPE = replace(FINE_TUNING, epochs=4, batch_size=16)
STEEP = replace(RECIPE, learning_rate=30.0)


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    """A network that has learned something, so that its answers differ."""
    recipe = Recipe(epochs=8, batch_size=16, learning_rate=0.05)
    return finetune(made(), bright_images(50, SHAPE), recipe, device="cpu")


@pytest.fixture(scope="module")
def small(whole) -> Checkpoint:
    return remove(whole, removable(whole.network)[:1])


@pytest.fixture(scope="module")
def held_out() -> Images:
    return bright_images(24, SHAPE, seed=6)


@pytest.fixture(autouse=True)
def _every_epoch(monkeypatch) -> None:
    """Networks are compared after every epoch of three steps."""
    monkeypatch.setattr(training, "ROUND", 3)


def tuned(small: Checkpoint, whole: Checkpoint, held_out, recipe: Recipe = RECIPE, **options):
    images = bright_images(50, SHAPE)
    return finetune(
        small, images, recipe, teacher=whole, validation=held_out, device="cpu", **options
    )


def compared(checkpoint: Checkpoint, whole: Checkpoint, held_out: Images):
    return agreement(checkpoint, whole, held_out, device="cpu")


@pytest.mark.parametrize("match", ["features", "logits", "both"])
def test_a_run_that_gets_worse_hands_over_what_it_began_with(small, whole, held_out, match):
    result = tuned(small, whole, held_out, replace(STEEP, match=match))
    assert same(result, small)
    assert result.weights.keys() == small.weights.keys()
    before = compared(small, whole, held_out)
    kept, gap = result.notes["kept"], "divergence" if match == "logits" else "distance"
    assert (kept["step"], kept["agreement"]) == (0, before.agreement)
    assert kept["divergence"] == pytest.approx(before.divergence, rel=1e-5)
    distance = pytest.approx(before.distance, rel=1e-5)  # learning has another memory format
    assert kept["distance"] == (None if match == "logits" else distance)
    assert all(
        kept[gap] < one[gap] < math.inf or one["agreement"] < kept["agreement"]
        for one in result.notes["epochs"]
    )


def test_a_good_run_agrees_better_and_says_when(small, whole, held_out):
    result = tuned(small, whole, held_out)
    before, after = (compared(one, whole, held_out) for one in (small, result))
    kept = result.notes["kept"]
    assert after.distance < before.distance
    assert after.agreeing >= before.agreeing
    assert after.distance == pytest.approx(kept["distance"], rel=1e-5)
    assert after.agreement == kept["agreement"]
    distances = [record["distance"] for record in result.notes["epochs"]]
    assert kept["distance"] == min(distances)
    assert kept["step"] == 3 * (1 + distances.index(min(distances)))


def test_a_state_that_agrees_on_fewer_images_is_not_kept(small, whole, held_out, monkeypatch):
    """Even if its features are nearer to the teacher's."""
    real = training.compared
    rows = iter([(20, 1.0), (19, 0.1), (20, 0.5), (21, 0.6), (19, 0.2)])

    def compare(*args, **options):
        agreeing, distance = next(rows)
        return replace(real(*args, **options), agreeing=agreeing, divergence=1.0, distance=distance)

    monkeypatch.setattr(training, "compared", compare)
    kept = tuned(small, whole, held_out).notes["kept"]
    assert kept == {"step": 6, "agreement": 20 / 24, "divergence": 1.0, "distance": 0.5}


def test_any_number_is_nearer_than_none(small, whole, held_out, monkeypatch):
    """Statistics that removal has made useless may give no finite features to begin with."""
    real = training.compared
    rows = iter([math.nan, 0.5, math.nan, 0.4, 0.6])

    def compare(*args, **options):
        return replace(real(*args, **options), agreeing=20, distance=next(rows))

    monkeypatch.setattr(training, "compared", compare)
    kept = tuned(small, whole, held_out).notes["kept"]
    assert (kept["step"], kept["distance"]) == (9, 0.4)


def test_labels_of_held_out_images_are_not_needed(small, whole, held_out):
    one, other = (tuned(small, whole, some) for some in (held_out, unlabelled(held_out)))
    assert same(one, other)
    assert one.notes["kept"] == other.notes["kept"]
    assert [one["validation"] for one in other.notes["epochs"]] == [None] * 4


def test_a_run_ends_when_no_better_state_comes(whole, held_out):
    """Nothing is closer to the teacher than the teacher."""
    result = tuned(whole, whole, held_out, replace(RECIPE, epochs=50))
    assert same(result, whole)
    assert len(result.notes["epochs"]) == training.PATIENCE
    assert result.notes["kept"]["divergence"] == 0


def test_a_round_has_so_many_steps_at_least(small, whole, held_out, monkeypatch):
    monkeypatch.setattr(training, "ROUND", 7)
    records = tuned(small, whole, held_out, replace(RECIPE, epochs=8)).notes["epochs"]
    compared = [one["epoch"] for one in records if one["divergence"] is not None]
    assert compared == [3, 6, 8]  # nine steps apart, and at the end


def test_without_a_teacher_or_held_out_images_the_last_state_is_handed_over(small, whole, held_out):
    images = bright_images(50, SHAPE)
    for options in ({"validation": held_out}, {"teacher": whole}):
        result = finetune(small, images, STEEP, device="cpu", **options)
        assert "kept" not in result.notes
        assert not same(result, small)


# ------------------------------------------------------------------------------- interrupted runs


def plain(result: Checkpoint) -> dict:
    """The notes without times."""
    epochs = [{**one, "seconds": 0} for one in result.notes["epochs"]]
    return {**result.notes, "epochs": epochs}


def test_a_run_that_stopped_is_not_resumed_with_other_held_out_images(
    small, whole, held_out, every_step
):
    with pytest.raises(KilledError):
        tuned(small, whole, held_out, state=every_step, watch=stopping("killed", 4))
    other = bright_images(24, SHAPE, seed=7)
    with pytest.raises(TrainingError, match=r"another run \(held-out images was"):
        tuned(small, whole, other, state=every_step, resume=True)


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("kind", ["interrupted", "killed"])
@pytest.mark.parametrize("recipe", [RECIPE, STEEP], ids=["better", "worse"])
def test_a_run_that_stopped_is_resumed_to_the_same_best_state(
    small, whole, held_out, every_step, stop, kind, recipe
):
    expected = tuned(small, whole, held_out, recipe)
    with pytest.raises((KeyboardInterrupt, KilledError)):
        tuned(small, whole, held_out, recipe, state=every_step, watch=stopping(kind, stop))
    steps = []
    again = tuned(
        *(small, whole, held_out, recipe),
        state=every_step,
        resume=True,
        watch=lambda moment: steps.append(moment.step),
    )
    assert same(again, expected)
    assert plain(again) == plain(expected)
    assert steps[:1] in ([], [stop], [stop + 1])


# ----------------------------------------------------------------------------- a loss that is NaN


def breaking(patch: pytest.MonkeyPatch, at: int) -> None:
    """From this step on the loss is NaN, and so are the weights after it."""
    real, calls = learner.feature_distance, []

    def distance(*maps):
        calls.append(1)
        return real(*maps) * (math.nan if len(calls) >= at else 1.0)

    patch.setattr(learner, "feature_distance", distance)


@pytest.mark.parametrize("at", [1, 2, 5, 12])
def test_a_loss_that_becomes_nan_ends_with_the_best_state(small, whole, held_out, every_step, at):
    """It is the same as that of a run that ends before, and all that is kept is finite."""
    moments: list = []
    with pytest.MonkeyPatch.context() as patch:
        breaking(patch, at)
        result = tuned(small, whole, held_out, state=every_step, watch=moments.append)
    done = (at - 1) // 3
    assert all(bool(one.isfinite().all()) for one in result.weights.values())
    assert len(result.notes["epochs"]) == done
    json.dumps(dict(result.notes), allow_nan=False)
    assert moments[-1].step <= 3 * (done + 1)  # no step is taken after the epoch
    assert [one.epoch for one in moments if one.ends_epoch] == list(range(1, done + 1))
    if done == 0:
        assert same(result, small)
        assert result.notes["kept"]["step"] == 0
    expected = tuned(small, whole, held_out).notes["epochs"][:done]
    assert plain(result)["epochs"] == [{**one, "seconds": 0} for one in expected]
    snapshot = load_state(every_step)
    assert all(bool(one.isfinite().all()) for one in snapshot["tensors"].values())
    again = tuned(small, whole, held_out, state=every_step, resume=True)
    assert same(again, tuned(small, whole, held_out))


def test_a_rate_that_ends_in_nan_keeps_what_it_began_with(small, whole, held_out):
    result = tuned(small, whole, held_out, replace(RECIPE, learning_rate=1e30))
    assert same(result, small)


def test_a_network_whose_answers_are_nan_is_refused(small, whole, held_out):
    """There is no better state then, and nothing can come of it."""
    weights = {**small.weights, "conv1.weight": small.weights["conv1.weight"] * math.inf}
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1: lower the learning rate"):
        tuned(replace(small, weights=weights), whole, held_out)


def test_a_loss_that_is_nan_without_held_out_images_is_refused(small, whole):
    with pytest.MonkeyPatch.context() as patch:
        breaking(patch, 5)
        with pytest.raises(TrainingError, match="the loss is nan in epoch 2"):
            tuned(small, whole, None)


def test_the_best_state_is_a_copy(small, whole, held_out):
    before = {key: one.clone() for key, one in small.weights.items()}
    tuned(small, whole, held_out, STEEP)
    assert all(torch.equal(one, before[key]) for key, one in small.weights.items())
