"""Agreement with the whole network, against plain torch."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from conftest import bright_images, drawn, load_into, removable
from torch import Tensor

from gatepruner.errors import DataError, PlanError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.accuracy import Accuracy
from gatepruner.measuring.agreement import Agreement, agreement
from gatepruner.models.resnet import ResNet
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import remove

SHAPE = (3, 8, 8)
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}


def made(name: str = "resnet8", seed: int = 0, classes: int = 4, shape=SHAPE) -> Checkpoint:
    network = Network.named(name, num_classes=classes, input_shape=shape)
    notes = {"normalize": {key: one[: shape[0]] for key, one in NOTES["normalize"].items()}}
    weights = drawn(network.initial_weights(seed), seed)
    return Checkpoint(network, MappingProxyType(weights), notes)


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    return made()


@pytest.fixture(scope="module")
def images() -> Images:
    return bright_images(50, SHAPE)


def unlabelled(images: Images) -> Images:
    return replace(images, labels=torch.full((len(images),), -1), classes=())


def by_hand(checkpoint: Checkpoint, images: Images) -> tuple[Tensor, Tensor]:
    """Logits and the map of the author's module, in double precision."""
    module = load_into(ResNet(1, num_classes=4), checkpoint.weights).double()
    seen = []
    module.layer3.register_forward_hook(lambda layer, given, result: seen.append(result))
    with torch.no_grad():
        result = module((images.pixels.double() / 255 - 0.5) / 0.25)
    return result, seen[0]


@pytest.mark.parametrize("batch", [7, 50, 128])
def test_agreement_is_what_plain_torch_counts(whole, images, batch):
    other = made(seed=5)
    (said, given), (told, target) = by_hand(other, images), by_hand(whole, images)
    p, q = told.softmax(1), said.softmax(1)
    measured = agreement(other, whole, images, device="cpu", batch_size=batch)
    agreeing = int((said.argmax(1) == told.argmax(1)).sum())
    assert 0 < agreeing < 50
    assert (measured.agreeing, measured.images) == (agreeing, 50)
    assert measured.agreement == agreeing / 50
    assert measured.accuracy == (said.argmax(1) == images.labels).double().mean()
    divergence = float((p * (p.log() - q.log())).sum(1).mean())
    assert measured.divergence == pytest.approx(divergence, rel=1e-4)
    expected = float((given - target).pow(2).mean() / target.pow(2).mean())
    assert measured.distance == pytest.approx(expected, rel=1e-4)
    assert measured.interval == Accuracy(agreeing, 50, 0.0).interval
    assert measured.to_json() == {
        "agreement": agreeing / 50,
        "agreement_low": measured.interval[0],
        "agreement_high": measured.interval[1],
        "agreement_images": 50,
        "divergence": measured.divergence,
        "distance": measured.distance,
    }


@pytest.mark.parametrize("name", ["resnet8", "gated-preresnet14", "residual-fc6,width=8"])
def test_the_whole_network_agrees_with_itself(name):
    whole = made(name, shape=(1, 8, 8) if "-fc" in name else SHAPE)
    images = bright_images(20, whole.network.base.input_shape)
    measured = agreement(whole, whole, images, device="cpu")
    assert measured == Agreement(20, 20, 0.0, 0.0, measured.correct)


def test_the_distance_does_not_depend_on_the_scale_of_the_features(images):
    """The last batch norm before the map of a pre-activation network scales it."""

    def scaled(checkpoint: Checkpoint, factor: float) -> Checkpoint:
        keys = ("bn.weight", "bn.bias")
        weights = {
            key: one * factor if key in keys else one for key, one in checkpoint.weights.items()
        }
        return replace(checkpoint, weights=MappingProxyType(weights))

    pair = made("preresnet8", 1), made("preresnet8", 2)
    near = agreement(*pair, images, device="cpu").distance
    far = agreement(*(scaled(one, 64.0) for one in pair), images, device="cpu").distance
    assert near is not None
    assert near > 0.01
    assert far == pytest.approx(near, rel=1e-5)
    nothing = agreement(scaled(pair[0], 0.0), pair[1], images, device="cpu")
    assert nothing.distance == pytest.approx(1, rel=1e-6)
    assert agreement(pair[0], scaled(pair[1], 0.0), images, device="cpu").distance > 1


def test_labels_are_not_needed(whole, images):
    small = remove(whole, removable(whole.network)[:1])
    known = agreement(small, whole, images, device="cpu")
    measured = agreement(small, whole, unlabelled(images), device="cpu")
    assert known.correct is not None
    assert measured == replace(known, correct=None)
    assert measured.accuracy is None


def test_features_of_other_shapes_have_no_distance(whole, images):
    wide = made("wrn-10-2")
    measured = agreement(wide, whole, images, device="cpu")
    assert measured.distance is None
    assert 0 <= measured.agreeing <= 50


def test_networks_that_cannot_be_compared_are_refused(whole, images):
    with pytest.raises(PlanError, match="resnet8 with resnet8: they have 5 and 4 classes"):
        agreement(made(classes=5), whole, images, device="cpu")
    with pytest.raises(DataError, match="made up has images of"):
        agreement(whole, whole, bright_images(4, (3, 9, 9)), device="cpu")
    with pytest.raises(DataError, match="made up has images of"):
        agreement(whole, made(shape=(3, 9, 9)), images, device="cpu")


def test_a_single_logit_tells_two_classes_apart(images):
    """As the sigmoid of a network with one logit does."""
    one, other = made(classes=1), made(seed=5, classes=1)
    mean = images.pixels.float().mean() / 255  # so that both classes occur
    notes = {"normalize": {"mean": [mean.item()] * 3, "std": [0.25] * 3}}
    one, other = (replace(network, notes=notes) for network in (one, other))
    found = agreement(one, other, images, device="cpu")
    with torch.no_grad():
        pixels = ((images.pixels / 255 - mean) / 0.25).float()
        p, q = (network.build()(pixels)[:, 0].sigmoid().double() for network in (one, other))
    assert found.agreeing == ((p > 0.5) == (q > 0.5)).sum()
    divergence = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    assert found.divergence == pytest.approx(divergence.mean().item(), rel=1e-3)
    assert found.divergence > 0


def halved(whole: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """A network that takes images twice as bright as others do, as its notes or weights say."""
    said = {"normalize": {"mean": [0.0] * 3, "std": [0.5] * 3}}
    stem = {"conv1.weight": 2 * whole.weights["conv1.weight"]}
    noted = replace(whole, notes=said)
    return noted, replace(whole, weights={**whole.weights, **stem}, notes={})


PLAIN = {"normalize": {"mean": [0.0] * 3, "std": [1.0] * 3}}


def test_each_network_has_its_own_normalisation(whole, images):
    other = replace(made(seed=5), notes=PLAIN)
    noted, weighted = halved(whole)
    found = agreement(other, noted, images, device="cpu")
    assert found == agreement(other, weighted, images, device="cpu")
    assert found != agreement(other, replace(noted, notes={}), images, device="cpu")
    chosen = Normalization((0.0,) * 3, (1.0,) * 3, "")
    given = agreement(other, noted, images, device="cpu", normalization=chosen)
    assert given == agreement(other, replace(noted, notes=PLAIN), images, device="cpu")


def test_what_is_compared_is_left_as_it_was(whole, images):
    before = {key: one.clone() for key, one in whole.weights.items()}
    agreement(whole, whole, images, device="cpu")
    assert all(torch.equal(one, before[key]) for key, one in whole.weights.items())
