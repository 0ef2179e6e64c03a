"""Orders side by side: each is what ranking and sweeping find one after the other."""

from __future__ import annotations

import pytest
import torch
from conftest import draw, random_images

from gatepruner.errors import DataError, PlanError
from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.cost import Cost
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.curve import Point, sweep
from gatepruner.pruning.orders import Order, compare
from gatepruner.pruning.ranking import Ranking, rank

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    drawn = draw("gated-resnet14", input_shape=SHAPE)
    notes = {"normalize": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    return Checkpoint(drawn.network, drawn.weights, notes)


def test_every_criterion_is_ranked_and_swept_as_alone(whole):
    images, training = random_images(24, SHAPE), random_images(20, SHAPE, seed=8)
    orders = list(
        compare(
            whole,
            images,
            ["gate", "taylor", "random"],
            training=training,
            statistics=training,
            counts=[0, 2, 6],
            seeds=[3, 4],
            device="cpu",
        )
    )
    assert [order.criterion for order in orders] == ["gate", "taylor", "random"]
    assert [len(order.runs) for order in orders] == [1, 1, 2]
    for order in orders:
        for seed, ranking, points in zip([3, 4], order.rankings, order.runs, strict=False):
            alone = rank(whole, order.criterion, training, seed=seed, device="cpu")
            assert ranking == alone
            measured = sweep(
                whole, images, alone, counts=[0, 2, 6], statistics=training, device="cpu"
            )
            assert list(points) == list(measured)
        assert order.statistics == 20
        assert order.seconds >= 0
    assert "recalibrated on 20 images" in orders[0].label
    assert "mean and range of 2 orders" in orders[2].label


def test_what_cannot_be_ranked_is_refused(whole):
    images = random_images(8, SHAPE)
    with pytest.raises(PlanError, match="unknown criterion 'height'"):
        list(compare(whole, images, ["height"]))
    with pytest.raises(PlanError, match="no seed"):
        list(compare(whole, images, "gate", seeds=()))
    (order,) = compare(whole, images, "gate", counts=[1])
    assert order.criterion == "gate"
    with pytest.raises(DataError, match="cannot rank by taylor without images"):
        list(compare(whole, images, ["taylor"]))


def order_of(*runs: list[int]) -> Order:
    """An order with one point, at which these images are right in each run."""
    points = []
    for right in runs:
        flags = torch.tensor(right, dtype=torch.bool)
        accuracy = Accuracy(int(flags.sum()), len(flags), 0.0, flags)
        points.append((Point(1, 1, accuracy, Cost(1, 1)),))
    return Order(tuple(Ranking("made up", ()) for _ in runs), tuple(points))


def test_an_order_is_within_noise_only_if_every_run_is():
    first = order_of([1] * 20)
    worse, alike = [0] * 10 + [1] * 10, [0, 0] + [1] * 18
    assert not order_of(worse).within_noise(first, 0)
    assert order_of(alike).within_noise(first, 0)
    assert order_of(alike, alike).within_noise(first, 0)
    assert not order_of(worse, alike).within_noise(first, 0)
