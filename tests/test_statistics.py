"""The statistics that batch norm recorded tell whether a network is the one that was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from conftest import drawn, random_images, write_folder
from torch import Tensor, fx, nn
from torch.distributions import Normal, kl_divergence
from torch.optim.swa_utils import update_bn

import gatepruner
from gatepruner.errors import DataError
from gatepruner.images.images import Images
from gatepruner.images.normalization import Normalization, parse_normalization
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.measuring.statistics import LEAST, LIMIT, StatisticsFit, compare_statistics
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE = (3, 16, 16)
NORMALIZE = {"normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}}


def trained(name: str, images: Images, shape=SHAPE, *, augment: bool = False) -> Checkpoint:
    """A network whose recorded statistics are those of the images, as training leaves them."""
    network = Network.named(name, num_classes=4, input_shape=shape)
    weights = MappingProxyType(drawn(network.initial_weights()))
    start = Checkpoint(network, weights, NORMALIZE)
    return replace(recalibrate(start, images, augment=augment), notes={**NORMALIZE, "source": "a"})


def images_of(count: int = 48, seed: int = 3) -> Images:
    return random_images(count, SHAPE, 4, seed)


def misread(checkpoint: Checkpoint, change: Callable[[nn.Module], object]) -> Checkpoint:
    """The checkpoint of a network that computes something else with the same weights."""

    class Misread(Checkpoint):
        def build(self) -> fx.GraphModule:
            module = super().build()
            change(module)
            return module

    return Misread(checkpoint.network, checkpoint.weights, checkpoint.notes)


def pad_behind(module: nn.Module) -> None:
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") == "pad":
            *sides, before, after = node.args[1]
            node.args = (node.args[0], (*sides, 0, before + after))
    module.recompile()


def test_the_divergence_is_that_of_normal_distributions():
    images, other = images_of(), images_of(32, seed=8)
    checkpoint = trained("resnet8", images)
    fit = compare_statistics(checkpoint, other)
    module, seen = checkpoint.build(), dict[str, Tensor]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda layer, args, name=name: seen.update({name: args[0]})
            )
    mean, std = (NORMALIZE["normalize"][key] for key in ("mean", "std"))
    with torch.no_grad():
        module(Normalization(tuple(mean), tuple(std))(other.pixels))
    assert list(fit.divergences) == list(seen)
    for name, x in seen.items():
        layer, x = module.get_submodule(name), x.transpose(0, 1).flatten(1)
        one = Normal(x.mean(1), x.std(1))
        recorded = Normal(layer.running_mean, layer.running_var.sqrt())
        expected = kl_divergence(one, recorded).median()
        assert fit.divergences[name] == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "resnet8-b", "preresnet8", "gated-wrn-10-1"])
@pytest.mark.parametrize("augment", [False, True])
def test_a_network_fits_the_images_that_its_statistics_are_of(name, augment):
    images = images_of()
    images = replace(images, pixels=images.pixels // 4 + 190)  # shifts bring in dark pixels
    checkpoint = trained(name, images, augment=augment)
    fit = compare_statistics(checkpoint, images)
    assert fit.first_misfit is None
    assert (fit.images, fit.augmented) == (len(images), augment)
    assert fit.worst < 1e-5


def with_elu(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is F.relu:
            node.target, node.kwargs = F.elu, {}
    module.recompile()


WRONG = {
    "padding": (pad_behind, "layer2.1.bn1"),
    "activation": (with_elu, "layer1.0.bn1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_first_layer_that_differs_is_named(case):
    change, layer = WRONG[case]
    images = images_of()
    fit = compare_statistics(misread(trained("resnet20", images), change), images)
    assert fit.first_misfit == layer
    assert fit.worst > 2 * LIMIT


def test_a_network_with_its_strides_elsewhere_is_told():
    images = images_of(16)
    checkpoint = trained("torchvision:resnet50,v1=true", images)
    assert compare_statistics(checkpoint, images).first_misfit is None
    other = Network.named("torchvision:resnet50", num_classes=4, input_shape=SHAPE)
    fit = compare_statistics(replace(checkpoint, network=other), images)
    assert fit.first_misfit == "layer2.0.bn2"


def test_a_network_without_the_max_pool_is_told():
    images = images_of(16)
    checkpoint = trained("torchvision:resnet18", images)
    unpooled = misread(checkpoint, lambda module: setattr(module, "maxpool", nn.Identity()))
    assert compare_statistics(unpooled, images).first_misfit == "layer1.0.bn1"


@pytest.mark.parametrize("text", ["0,0,0/1,1,1", "0.5,0.5,0.5/0.5,0.5,0.5"])
def test_another_normalisation_is_told(text):
    images = images_of()
    checkpoint = trained("resnet8", images)
    fit = compare_statistics(checkpoint, images, normalization=parse_normalization(text))
    assert fit.first_misfit == "bn1"


def test_a_few_layers_and_a_few_images_tell_nothing():
    far = dict.fromkeys("ab", 0.1) | dict.fromkeys("cdefgh", 0.0)
    assert StatisticsFit(far, 64, augmented=False).first_misfit is None
    assert StatisticsFit(far | {"d": 9.0}, 64, augmented=False).first_misfit == "a"
    assert StatisticsFit(far | {"d": float("nan")}, 64, augmented=False).first_misfit == "a"
    assert StatisticsFit(far | {"d": 9.0}, LEAST - 1, augmented=False).first_misfit is None
    assert StatisticsFit({"a": 0.1}, 64, augmented=False).first_misfit == "a"
    assert StatisticsFit({**far, "h": 9.0, "a": 0.0}, 64, augmented=False).first_misfit is None
    assert StatisticsFit({**far, "a": 0.3}, 64, augmented=False).first_misfit == "a"
    assert StatisticsFit({}, 64, augmented=False).first_misfit is None


class Unnormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.conv(x)).mean((2, 3)))


def test_a_network_without_batch_norm_fits_any_images():
    checkpoint = Checkpoint.of(Unnormalised(), SHAPE, NORMALIZE)
    fit = compare_statistics(checkpoint, images_of())
    assert fit == StatisticsFit({}, 0, augmented=False)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"has images of \(3, 8, 8\)"):
        compare_statistics(trained("resnet8", images_of()), random_images(16, (3, 8, 8), 4))


# --------------------------------------------------------------------- the commands


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`right.pth` and `wrong.pth`, which fit resnet8 by their keys, and images."""
    monkeypatch.chdir(tmp_path)
    images = images_of()
    for split in ("train", "test"):
        write_folder(tmp_path / "images", images, split)
    checkpoint = trained("resnet8", images)
    torch.save(dict(checkpoint.weights), "right.pth")
    module = checkpoint.build()
    with_elu(module)
    wrong = {**checkpoint.weights, **estimated(module, images)}
    torch.save(wrong, "wrong.pth")
    return tmp_path


def estimated(module: nn.Module, images: Images) -> dict[str, Tensor]:
    """The statistics that training would leave in the author's own module."""
    mean, std = (tuple(NORMALIZE["normalize"][key]) for key in ("mean", "std"))
    update_bn([Normalization(mean, std)(images.pixels)] * 1, module)
    return {key: value for key, value in module.state_dict().items() if "running" in key}


NORMAL = "0.5,0.4,0.3/0.2,0.25,0.3"
COMMANDS = {
    "recalibrate": (),
    "gate": ("--steps", 1, "--warmup", 1, "--batch-size", 8, "--hold-out", 0),
    "prune": ("--drop", 1, "--by", "depth"),
    "sweep": ("--by", "depth"),
    "finetune": ("--epochs", 1, "--batch-size", 8),
    "compress": ("--drop", 1, "-o", "small.pt", "--epochs", 0, "--gate-steps", 1),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_learns_warns_of_a_misread_file(run, folder, command):
    sized = ("--input-size", 16, "--data", "imagefolder:images", "--normalize", NORMAL)
    told = run(command, "wrong.pth", *sized, *COMMANDS[command], "--json")
    assert told.code == 0, told.err
    (warning,) = (line for line in told.err.splitlines() if "warning" in line)
    assert warning.startswith("wrong.pth: warning: from layer1.0.bn1 on, ")
    assert all(word in warning for word in ("v1=true", "stem=small", "--normalize", "--arch"))


def test_nothing_is_said_of_a_right_file_nor_of_a_network_changed_since(run, folder):
    sized = ("--data", "imagefolder:images", "--normalize", NORMAL)
    first = run("recalibrate", "right.pth", "--input-size", 16, *sized, "-o", "a.pt", "--json")
    assert (first.code, "warning" in first.err) == (0, False)
    wrong = gatepruner.load("wrong.pth", input_shape=SHAPE)
    gatepruner.save(gatepruner.remove(wrong, ["layer3.0"]), "b.pt")
    second = run("recalibrate", "b.pt", *sized, "-o", "c.pt", "--json")
    assert (second.code, "warning" in second.err) == (0, False)
