"""Recalibration is exact: what brute force over all images at once finds, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from conftest import Callers, draw, drawn, fingerprint, random_images
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, RandomResizedCrop

from gatepruner.errors import DataError
from gatepruner.images.images import Images
from gatepruner.measuring import recalibration
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.inputs import normalization_of
from gatepruner.measuring.recalibration import moments, recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import prune, remove

COLOUR = (3, 8, 8)
NOTES = {"normalize": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}}
GREY_NOTES = {"normalize": {"mean": [0.5], "std": [0.25]}}


def network(name: str) -> Checkpoint:
    grey = "-fc" in name
    it = Network.named(name, num_classes=4, input_shape=(1, 8, 8) if grey else COLOUR)
    weights = MappingProxyType(drawn(it.initial_weights()))
    return Checkpoint(it, weights, GREY_NOTES if grey else NOTES)


def images_of(checkpoint: Checkpoint, count: int = 23) -> Images:
    return random_images(count, checkpoint.network.base.input_shape, 4)


class Functional(nn.Module):
    """A block whose batch norm is a function with buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mean, variance = self.mean, self.variance
        f = F.batch_norm(self.conv(x), mean, variance, training=self.training, eps=1e-3)
        return self.head(F.relu(x + f).mean((2, 3)))


class Alone(nn.Module):
    """A batch norm without statistics between two that have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(5), nn.BatchNorm1d(5)
        self.free = nn.BatchNorm2d(5, affine=False, track_running_stats=False)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.free(self.conv2(x))
        return self.head(self.bn2(x.mean((2, 3))))


def of_caller(module: nn.Module) -> Checkpoint:
    return Checkpoint.of(module, COLOUR, NOTES)


def by_brute_force(checkpoint: Checkpoint, data: Images) -> dict[str, Tensor]:
    """One pass over all images for every batch norm, in order; a hook sees what comes to it."""
    module = checkpoint.build().double()
    pixels = normalization_of(checkpoint, data)(data.pixels).double()
    order: list[str] = []
    layers = {
        key: it
        for key, it in module.named_modules()
        if isinstance(it, nn.modules.batchnorm._BatchNorm) and it.running_mean is not None
    }
    for key, layer in layers.items():
        layer.register_forward_hook(lambda layer, args, out, key=key: order.append(key))
    with torch.no_grad():
        module(pixels)
        found: dict[str, Tensor] = {}
        for key in list(order):
            seen: list[Tensor] = []
            hook = layers[key].register_forward_pre_hook(
                lambda layer, args, seen=seen: seen.append(args[0])
            )
            module(pixels)
            hook.remove()
            values = seen[0].transpose(0, 1).flatten(1)
            layers[key].running_mean.copy_(values.mean(1))
            layers[key].running_var.copy_(values.var(1, unbiased=True))
            found[f"{key}.running_mean"] = layers[key].running_mean.float()
            found[f"{key}.running_var"] = layers[key].running_var.float()
    return found


MAKE = {
    "resnet14": lambda: network("resnet14"),
    "resnet8-b": lambda: network("resnet8-b"),
    "preresnet8": lambda: network("preresnet8"),
    "residual-fc6": lambda: network("residual-fc6"),
    "gated": lambda: network("gated-wrn-10-1,dropout=0.5"),
    "pruned": lambda: remove(network("gated-resnet14"), ["layer1.1", "layer2.0"]),
    "callers": lambda: of_caller(Callers()),
    "no statistics": lambda: of_caller(Alone()),
    "torchvision": lambda: replace(
        draw("torchvision:mobilenet_v2,width_mult=0.25", input_shape=(3, 32, 32)), notes=NOTES
    ),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_every_statistic_is_that_of_all_images_at_once(make):
    whole = make()
    data = images_of(whole)
    expected = by_brute_force(whole, data)
    assert expected
    before, pixels = fingerprint(whole), data.pixels.clone()
    alone = whole.network.base.name == "Alone"  # what has no statistics depends on the batch
    done = recalibrate(whole, data, device="cpu", batch_size=23 if alone else 5, augment=False)
    for key, tensor in whole.weights.items():
        if key in expected:
            torch.testing.assert_close(done.weights[key], expected[key], rtol=1e-5, atol=1e-5)
            assert not torch.equal(done.weights[key], tensor)
        else:
            assert torch.equal(done.weights[key], tensor), key
    assert done.network == whole.network
    assert list(done.weights) == list(whole.weights)
    assert fingerprint(whole) == before
    assert torch.equal(data.pixels, pixels)
    assert done.notes["history"][-1] == {
        "recalibrated": "made up",
        "images": 23,
        "augmented": False,
    }


def test_a_functional_batch_norm_gets_its_statistics_too():
    torch.manual_seed(3)
    whole = of_caller(Functional())
    data = images_of(whole)
    done = recalibrate(whole, data, device="cpu", batch_size=7, augment=False)
    module, pixels = Functional(), normalization_of(whole, data)(data.pixels)
    module.load_state_dict(dict(whole.weights))
    with torch.no_grad():
        values = module.conv(module.stem(pixels)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(done.weights["mean"], values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.weights["variance"], values.var(1), rtol=1e-4, atol=1e-5)
    changed = [key for key, it in whole.weights.items() if not torch.equal(it, done.weights[key])]
    assert sorted(changed) == ["mean", "variance"]


class Repeated(nn.Module):
    """A block whose batch norm is used twice, with what differs much, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.bn, self.last = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.bn(3 * self.conv(x) + 1)
        x = x + self.last(self.conv(x))
        return self.head(x.mean((2, 3)))


def test_a_batch_norm_that_is_used_twice_gets_what_training_finds():
    module = Repeated()
    checkpoint = of_caller(module)
    data = images_of(checkpoint)
    recalibrated = recalibrate(checkpoint, data, augment=False)
    pixels = normalization_of(checkpoint, data)(data.pixels)
    update_bn([pixels], module)  # all images in one batch
    for key, tensor in module.state_dict().items():
        if "running" in key:  # training normalises by the variance of n, not of n - 1
            torch.testing.assert_close(recalibrated.weights[key], tensor, rtol=2e-3, atol=2e-3)


def test_a_curve_recalibrates_such_a_network_as_recalibration_does():
    checkpoint = of_caller(Repeated())
    data = images_of(checkpoint)
    ranking = rank(checkpoint, "depth")
    points = list(sweep(checkpoint, data, ranking, statistics=data))
    assert len(points) == 3
    for point in points[1:]:
        small = recalibrate(prune(checkpoint, ranking, point.removed), data, whole=checkpoint)
        assert point.accuracy == accuracy(small, data)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_neither_batch_size_nor_order_changes_the_result(batch_size):
    whole = network("resnet14")
    data = images_of(whole)
    one = recalibrate(whole, data, device="cpu", batch_size=23, augment=False)
    shuffled = data.take(torch.randperm(23))
    for other in (data, shuffled):
        found = recalibrate(whole, other, device="cpu", batch_size=batch_size, augment=False)
        for key, tensor in one.weights.items():
            torch.testing.assert_close(found.weights[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_does_not_change_what_images_are_shifted_by(batch_size):
    whole = network("resnet14")
    data = images_of(whole)
    one = recalibrate(whole, data, device="cpu", batch_size=23, augment=True)
    before = torch.get_rng_state()
    found = recalibrate(whole, data, device="cpu", batch_size=batch_size, augment=True)
    assert torch.equal(torch.get_rng_state(), before)
    for key, tensor in one.weights.items():
        torch.testing.assert_close(found.weights[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "preresnet8", "residual-fc6", "functional"])
@pytest.mark.parametrize("augment", [False, True])
def test_images_are_shifted_if_those_that_the_statistics_are_of_were(name, augment):
    """Whichever images the network's statistics are of, other ones are taken in the same way."""
    whole = of_caller(Functional()) if name == "functional" else network(name)
    shape = whole.network.base.input_shape
    pixels = torch.randint(150, 256, (400, *shape), dtype=torch.uint8)  # bright: a border shows
    data = replace(random_images(400, shape, 4), pixels=pixels)
    first, others = data.take(torch.arange(200)), data.take(torch.arange(200, 400))
    known = recalibrate(whole, first, device="cpu", augment=augment)
    found = recalibrate(known, others, device="cpu")
    assert found.notes["history"][-1]["augmented"] is augment
    asked = recalibrate(known, others, device="cpu", augment=augment)
    assert all(torch.equal(it, asked.weights[key]) for key, it in found.weights.items())
    other = recalibrate(known, others, device="cpu", augment=not augment)
    assert not all(torch.equal(it, other.weights[key]) for key, it in found.weights.items())


@pytest.mark.parametrize("cropped", [False, True])
def test_large_images_are_cropped_if_training_cropped_them(cropped):
    """The statistics of training come from torchvision's transforms and torch's batch norm."""
    side, drawn_from = 96, torch.Generator().manual_seed(1)
    coarse = torch.rand(24, 3, side // 4, side // 4, generator=drawn_from)
    pixels = (255 * F.interpolate(coarse, scale_factor=4)).to(torch.uint8)
    data = replace(random_images(24, (3, side, side), 4), pixels=pixels)
    crop = Compose([RandomResizedCrop(side), RandomHorizontalFlip()])
    shown = torch.stack([crop(image) for image in pixels]) if cropped else pixels
    base = Network.named("resnet8", num_classes=4, input_shape=(3, side, side))
    whole = Checkpoint(base, drawn(base.initial_weights()), NOTES)
    module = whole.build()
    update_bn([normalization_of(whole, data)(shown)], module)
    trained = replace(whole, weights=module.state_dict())
    done = recalibrate(trained, data.spread(12), device="cpu")
    assert done.notes["history"][-1]["augmented"] is cropped


def test_labels_are_not_looked_at():
    whole, data = network("resnet8"), random_images(12, COLOUR, 10)
    one = recalibrate(whole, data, device="cpu")
    other = replace(data, labels=data.labels.flip(0), classes=tuple("abcdefghij"))
    again = recalibrate(whole, other, device="cpu")
    assert all(torch.equal(it, again.weights[key]) for key, it in one.weights.items())


def test_once_done_there_is_nothing_left_to_do():
    whole = network("resnet14")
    data = images_of(whole)
    once = recalibrate(whole, data, device="cpu", augment=False)
    again = recalibrate(once, data, device="cpu")
    for key, tensor in once.weights.items():
        torch.testing.assert_close(again.weights[key], tensor, rtol=1e-5, atol=1e-6)


def test_the_normalisation_of_the_checkpoint_or_the_given_one_is_used():
    whole, data = network("resnet8"), random_images(12, COLOUR, 4)
    given = normalization_of(whole, data)
    bare = replace(whole, notes={})
    one = recalibrate(whole, data, device="cpu")
    chosen = recalibrate(bare, data, device="cpu", normalization=given)
    usual = recalibrate(bare, data, device="cpu")
    assert all(torch.equal(it, chosen.weights[key]) for key, it in one.weights.items())
    assert not torch.equal(one.weights["bn1.running_mean"], usual.weights["bn1.running_mean"])


def test_a_network_without_batch_norm_comes_back_as_it_is():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            return self.head(x + self.first(x))

    whole = of_caller(Bare())
    assert recalibrate(whole, images_of(whole), device="cpu") is whole


def test_of_more_images_than_fit_some_are_taken_from_all_over_the_set():
    whole, data = network("resnet8"), random_images(40, COLOUR, 4)
    one = recalibration.peak(whole.build(), COLOUR)
    assert one >= 4 * (3 + 16) * 64  # an image, and what its first layer makes of it
    done = recalibrate(whole, data, device="cpu", memory=10 * one + 1, augment=False)
    assert done.notes["history"][-1]["images"] == 10
    expected = recalibrate(whole, data.take(torch.arange(0, 40, 4)), device="cpu", augment=False)
    assert all(torch.equal(it, expected.weights[key]) for key, it in done.weights.items())
    assert recalibrate(whole, data, device="cpu", memory=1).notes["history"][-1]["images"] == 2


def test_no_more_is_held_than_was_reckoned(monkeypatch):
    """The largest sum of what is alive at a time, noted as the nodes of the network are run."""
    whole, data = network("resnet14"), random_images(9, COLOUR, 4)
    result, alive = recalibration._result, []

    def noting(run, node, env, at):
        made = result(run, node, env, at)
        parts = {id(it): it for values in env.values() for it in values if it.ndim == 4}
        size = sum(it.numel() * it.element_size() for it in parts.values())
        alive.append(size + made.numel() * made.element_size() * (made.ndim == 4))
        return made

    monkeypatch.setattr(recalibration, "_result", noting)
    recalibrate(whole, data, device="cpu", batch_size=9)
    assert max(alive) <= 9 * recalibration.peak(whole.build(), COLOUR)


def test_the_nodes_of_the_network_are_tracked():
    seen: list[int] = []

    def track(items):
        seen.append(len(items))
        return items

    recalibrate(network("resnet8"), random_images(4, COLOUR, 4), device="cpu", track=track)
    assert seen[0] > 10


def test_accuracy_comes_back_when_statistics_were_lost():
    whole = network("resnet8")
    data = random_images(40, COLOUR, 4)
    right = recalibrate(whole, data, device="cpu", augment=False)
    lost = {key: it * 0 if "running" in key else it for key, it in right.weights.items()}
    again = recalibrate(replace(right, weights=lost), data, device="cpu", augment=False)
    assert (
        accuracy(again, data, device="cpu").correct == accuracy(right, data, device="cpu").correct
    )


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3), (4, 3, 7)])
def test_moments_of_parts_are_those_of_the_whole(shape):
    torch.manual_seed(2)
    whole = 1000 + torch.randn(9, *shape[1:])
    mean, variance = moments([whole[:2], whole[2:3], whole[3:]])
    flat = whole.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, flat.var(1), rtol=1e-3, atol=0)


def test_what_does_not_fit_is_refused():
    whole = network("resnet8")
    with pytest.raises(DataError, match=r"has images of \(3, 9, 9\)"):
        recalibrate(whole, random_images(8, (3, 9, 9), 4))
    with pytest.raises(DataError, match="expected at least 2 images, made up has 1"):
        recalibrate(whole, random_images(1, COLOUR, 4))
    grey = replace(whole, notes=GREY_NOTES)
    with pytest.raises(DataError, match="has 1 channels, the images have 3"):
        recalibrate(grey, random_images(8, COLOUR, 4))
