"""An evaluation that shares work equals the one that rebuilds every network."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import CallersBlock, draw, fingerprint, images_for, logits, random_images, removable

from gatepruner.errors import DataError, PlanError
from gatepruner.images.normalization import NORMALIZATIONS
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.cost import count
from gatepruner.measuring.inputs import normalization_of
from gatepruner.measuring.merging import merged
from gatepruner.measuring.recalibration import peak, recalibrate, seen_augmented
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning import curve
from gatepruner.pruning.curve import accuracies, sweep
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, prune, remove, remove_shortcuts

OWN = (
    *("gated-resnet14", "resnet14-b", "gated-preresnet14", "gated-wrn-10-2,dropout=0.3"),
    *("gated-residual-fc6", "gated-highway-fc6", "gated-plain-fc6"),
)


def made(name: str) -> Checkpoint:
    """A network with a normalisation for its own images."""
    shape = (3, 32, 32) if name.startswith("torchvision") else None
    checkpoint = draw(name, input_shape=shape)
    channels = checkpoint.network.base.input_shape[0]
    notes = {"normalize": {"mean": [0.4] * channels, "std": [0.3] * channels}}
    return Checkpoint(checkpoint.network, checkpoint.weights, notes)


def images_of(checkpoint: Checkpoint, number: int = 24):
    return random_images(number, checkpoint.network.base.input_shape)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("by", ["depth", "random"])
def test_a_sweep_counts_what_every_rebuilt_network_counts(name, by):
    whole = made(name)
    images, ranking = images_of(whole), rank(whole, by, seed=2)
    points = list(sweep(whole, images, ranking, batch_size=10))
    assert [point.removed for point in points] == list(range(len(removable(whole.network)) + 1))
    for point in points:
        small = remove(whole, ranking.first(point.removed))
        assert point.accuracy == accuracy(small, images, batch_size=10)
        assert point.cost == count(small.network)
        assert point.blocks == sum(block.branch for block in small.network.blocks)
    assert len({point.accuracy.loss for point in points}) > 1


@pytest.mark.parametrize(
    "name",
    [*OWN, "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small"],
)
def test_networks_that_share_their_parts_have_bitwise_the_logits_of_each_alone(name):
    whole = made(name)
    images = images_for(whole.network)
    ranking = rank(whole, "random", seed=1)
    steps = range(0, len(ranking.names) + 1, 1 if len(ranking.names) < 9 else 3)
    networks = [whole.network.without(ranking.first(step)) for step in steps]
    found = logits(merged(whole, networks), images)
    assert len(found) == len(networks)
    for network, head in zip(networks, found, strict=True):
        weights = {key: whole.weights[key].clone() for key in network.state()}
        assert torch.equal(head, logits(network.build(weights), images))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_activations_in_place_do_not_reach_what_other_networks_use(name):
    """Where one removal leaves an activation alone with its input and another one does not."""
    whole = made(name)
    modules = dict(whole.network.base.construct().named_modules())
    assert any(getattr(module, "inplace", False) for module in modules.values())
    images, blocks = images_for(whole.network), removable(whole.network)
    networks = [whole.network.without([block]) for block in blocks]
    networks += [whole.network.without_shortcuts([block]) for block in blocks]
    networks += [whole.network]
    for order in (networks, networks[::-1]):
        heads = logits(merged(whole, order), images)
        for network, head in zip(order, heads, strict=True):
            weights = {key: whole.weights[key].clone() for key in network.state()}
            assert torch.equal(head, logits(network.build(weights), images))


def test_what_networks_have_in_common_is_in_the_merged_one_once():
    whole = made("gated-resnet14")
    names = rank(whole, "depth").names  # the last block goes first
    networks = [whole.network.without(names[:step]) for step in range(4)]
    nodes = merged(whole, networks).graph.nodes
    targets = [node.target for node in nodes if node.op == "call_module"]
    assert targets.count("conv1") == targets.count("layer2.1.conv1") == 1
    assert targets.count("linear") == 4
    assert len(nodes) < sum(len(network.graph().nodes) for network in networks)


@pytest.mark.parametrize("together", [32, 3])
def test_accuracies_of_several_networks_are_those_of_each_alone(monkeypatch, together):
    monkeypatch.setattr(curve, "TOGETHER", together)
    whole = made("gated-wrn-10-1,stem=8")
    images, blocks = images_of(whole), removable(whole.network)
    alone = [whole, *(remove(whole, [it]) for it in blocks)]
    alone += [remove_shortcuts(whole, [it]) for it in blocks]
    found = accuracies(whole, [it.network for it in alone], images, batch_size=10)
    assert found == [accuracy(it, images, batch_size=10) for it in alone]
    assert len({it.loss for it in found}) == len(found) == 7


def test_images_that_do_not_fit_have_no_accuracies():
    whole = made("gated-residual-fc4")
    with pytest.raises(DataError, match="images of"):
        accuracies(whole, [whole.network], random_images(4, (3, 32, 32)))


@pytest.mark.parametrize("counts", [[0], [3], [5, 0, 2], [2, 2], []])
def test_a_sweep_has_the_points_it_is_asked_for(counts):
    whole = made("gated-residual-fc12,width=8")
    images, ranking = images_of(whole), rank(whole)
    points = list(sweep(whole, images, ranking, counts=counts))
    assert [point.removed for point in points] == counts
    every = {point.removed: point for point in sweep(whole, images, ranking)}
    assert points == [every[removed] for removed in counts]


def test_more_points_than_share_a_pass_are_the_same_points(monkeypatch):
    whole = made("gated-residual-fc16,width=8")
    images, ranking = images_of(whole), rank(whole)
    once = list(sweep(whole, images, ranking, batch_size=7))
    passes = []

    def track(steps):
        passes.append(len(steps))
        return iter(steps)

    monkeypatch.setattr(curve, "TOGETHER", 4)
    assert list(sweep(whole, images, ranking, batch_size=7, track=track)) == once
    assert passes == [4, 4, 4]  # 9 points, 24 images


def test_there_are_more_points_than_share_a_pass():
    whole = made(f"gated-residual-fc{2 * curve.TOGETHER + 6},width=4")
    points = list(sweep(whole, images_of(whole, 3), rank(whole, "depth")))
    assert [point.removed for point in points] == list(range(curve.TOGETHER + 4))
    last = remove(whole, rank(whole, "depth").names)
    assert points[-1].accuracy == accuracy(last, images_of(whole, 3))


def test_a_sweep_begins_before_it_is_at_its_end(monkeypatch):
    whole = made("gated-residual-fc16,width=8")
    monkeypatch.setattr(curve, "TOGETHER", 2)
    passes = []

    def track(steps):
        passes.append(len(steps))
        return iter(steps)

    points = sweep(whole, images_of(whole), rank(whole), track=track)
    assert [point.removed for point in itertools.islice(points, 2)] == [0, 1]
    assert len(passes) == 1


def test_a_sweep_goes_on_from_a_pruned_and_folded_network():
    whole = made("gated-plain-fc8,width=8")
    names = removable(whole.network)
    small = fold_gates(remove_shortcuts(remove(whole, names[:1]), names[-1:]))
    images, ranking = images_of(whole), rank(small)
    points = list(sweep(small, images, ranking, batch_size=10))
    assert len(points) == 3
    for point in points:
        again = remove(small, ranking.first(point.removed))
        assert point.accuracy == accuracy(again, images, batch_size=10)


def test_sweeping_leaves_the_checkpoint_as_it_was():
    whole = made("gated-resnet14")
    before, state = fingerprint(whole), torch.get_rng_state()
    list(sweep(whole, images_of(whole, 4), rank(whole)))
    assert fingerprint(whole) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_chosen_normalisation_takes_the_place_of_the_recorded_one():
    whole = made("gated-residual-fc4")
    images, chosen = images_of(whole), NORMALIZATIONS["mnist"]
    (point,) = sweep(whole, images, rank(whole), counts=[1], normalization=chosen)
    small = remove(whole, rank(whole).first(1))
    assert point.accuracy == accuracy(small, images, normalization=chosen)
    assert point.accuracy != accuracy(small, images)


def test_a_point_is_plain_json():
    whole = made("gated-residual-fc4")
    point = list(sweep(whole, images_of(whole), rank(whole)))[1]
    document = json.loads(json.dumps(point.to_json(), allow_nan=False))
    assert document == {
        "removed": 1,
        "blocks": 1,
        "accuracy": point.accuracy.correct / 24,
        "low": point.accuracy.interval[0],
        "high": point.accuracy.interval[1],
        "correct": point.accuracy.correct,
        "images": 24,
        "loss": point.accuracy.loss,
        "params": point.cost.params,
        "macs": point.cost.macs,
    }


@pytest.mark.parametrize("count", [3, -1])
def test_removing_more_blocks_than_there_are_is_refused(count):
    whole = made("gated-residual-fc4")
    with pytest.raises(PlanError, match=f"cannot remove {count} blocks: .* has only 2 removable"):
        list(sweep(whole, images_of(whole), rank(whole), counts=[0, count]))


def test_images_that_do_not_fit_are_refused():
    whole = made("gated-residual-fc4")
    for images in (random_images(3, (1, 8, 8)), random_images(3, (1, 28, 28), 9)):
        with pytest.raises(DataError, match="made up has"):
            list(sweep(whole, images, rank(whole)))


# -------------------------------------------------------------------------- with recalibration


@pytest.mark.parametrize("name", ["resnet14", "gated-preresnet14", "torchvision:mobilenet_v2"])
@pytest.mark.parametrize("together", [32, 2])
def test_a_recalibrated_sweep_measures_what_prune_and_recalibrate_make(monkeypatch, name, together):
    monkeypatch.setattr(curve, "TOGETHER", together)
    whole = made(name)
    images, training = images_of(whole), images_of(whole, 20)
    ranking = rank(whole, "random", seed=1)
    counts = [3, 0, 1, len(ranking.names)]
    points = list(sweep(whole, images, ranking, counts=counts, statistics=training, device="cpu"))
    augment = recalibrate(whole, training, device="cpu").notes["history"][-1]["augmented"]
    for removed, point in zip(counts, points, strict=True):
        small = prune(whole, ranking, removed)
        if removed:
            small = recalibrate(small, training, device="cpu", augment=augment)
        assert point.accuracy == accuracy(small, images, device="cpu")
    plain = sweep(whole, images, ranking, counts=counts, device="cpu")
    assert [it.accuracy.loss for it in plain] != [it.accuracy.loss for it in points]


def test_a_recalibrated_sweep_in_little_memory_is_the_same_sweep(monkeypatch):
    whole = made("resnet14")
    images, training = images_of(whole), images_of(whole, 20)
    ranking = rank(whole, "depth")
    once = list(sweep(whole, images, ranking, statistics=training, device="cpu"))
    one = peak(whole.build(), whole.network.base.input_shape) * len(training)
    monkeypatch.setattr(curve, "MEMORY", int(1.1 * one))
    passes = []

    def track(steps):
        passes.append(len(steps))
        return iter(steps)

    assert list(sweep(whole, images, ranking, statistics=training, device="cpu", track=track)) == (
        once
    )
    assert len(passes) > 3


def test_a_batch_norm_function_has_statistics_of_its_own_in_each_network(callers):
    class Block(CallersBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))

        def forward(self, x):
            f = F.batch_norm(self.conv(x), self.mean, self.variance, training=self.training)
            return F.relu(x + f)

    callers.blocks = torch.nn.Sequential(Block(8), Block(8), Block(8))
    whole = Checkpoint.of(callers, (3, 8, 8), {"normalize": {"mean": [0.4] * 3, "std": [0.3] * 3}})
    images, training = random_images(12, (3, 8, 8)), random_images(16, (3, 8, 8), seed=9)
    ranking = rank(whole, "depth")
    for point in sweep(whole, images, ranking, statistics=training, device="cpu"):
        small = prune(whole, ranking, point.removed)
        if point.removed:
            augment = seen_augmented(
                whole, training, normalization_of(whole, training), torch.device("cpu")
            )
            small = recalibrate(small, training, device="cpu", augment=augment)
        assert point.accuracy == accuracy(small, images, device="cpu")


def test_statistics_take_two_images_of_the_networks_size():
    whole = made("resnet8")
    for training, told in (
        (images_of(whole, 1), "at least 2"),
        (random_images(3, (1, 8, 8)), "images of"),
    ):
        with pytest.raises(DataError, match=told):
            list(sweep(whole, images_of(whole), rank(whole, "depth"), statistics=training))
