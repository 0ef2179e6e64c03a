"""The features of a network are what its author's module pools, whatever has been removed."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import (
    GATED,
    LIBRARY,
    Callers,
    bright_images,
    draw,
    drawn,
    images_for,
    load_into,
    logits,
    removable,
    with_gates_at,
)
from torch import Tensor, nn

from gatepruner.errors import ArchitectureError
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.measuring.agreement import agreement, answering
from gatepruner.networks.base import traced
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.features import features_of
from gatepruner.networks.network import Network
from gatepruner.pruning.surgery import add_gates, remove

# The layer that pools, whose input is the map; where pooling is a function, the last layer before
# it, whose output is the map. Of a transformer the map is all tokens that its encoder returns.
POOLING = dict.fromkeys(LIBRARY, "avgpool") | {"maxvit_t": "classifier.0"}
LAST = {"mobilenet_v2": "features.18.2", "mnasnet0_5": "layers.16", "vit_b_32": "encoder.ln"}


def map_in(module: nn.Module, name: str, images: Tensor) -> Tensor:
    """The map as a hook on a layer of a torchvision module sees it."""
    seen: list[Tensor] = []
    if name in LAST:
        layer = module.get_submodule(LAST[name])
        hook = layer.register_forward_hook(lambda layer, given, result: seen.append(result.clone()))
    else:
        layer = module.get_submodule(POOLING[name])
        hook = layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0].clone()))
    logits(module, images)
    hook.remove()
    (result,) = seen
    return result


def authors(checkpoint: Checkpoint) -> nn.Module:
    """Torchvision's own module with the weights."""
    name = checkpoint.network.base.name
    sized = {"vit_b_32": {"image_size": 64}, "maxvit_t": {"input_size": (224, 224)}}
    module = getattr(torchvision.models, name)(num_classes=10, **sized.get(name, {}))
    return load_into(module, checkpoint.weights)


def answered(checkpoint: Checkpoint, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features."""
    return logits(answering(checkpoint.build(), checkpoint.network, True), images)


def test_features_are_the_map_that_torchvisions_module_pools(library):
    images, name = images_for(library.network), library.network.base.name
    module = authors(library)
    given, found = answered(library, images)
    torch.testing.assert_close(given, logits(module, images))
    expected = map_in(module, name, images)
    torch.testing.assert_close(found, expected)
    features = features_of(library.network)
    assert features is not None
    assert features.shape == expected.shape[1:]
    assert len(features.shape) == (2 if name == "vit_b_32" else 3)


def test_features_stay_where_they_are_whatever_is_removed(library):
    """Against the whole network with the gates of these blocks at 0, the last block among them."""
    names, images = removable(library.network), images_for(library.network)
    for gone in (names[-1:], names[1::2], names):
        closed = with_gates_at(add_gates(library), 0.0, gone)
        expected = map_in(closed.build(), library.network.base.name, images)
        small = remove(library, gone)
        given, found = answered(small, images)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert torch.equal(given, logits(small.build(), images))


@pytest.mark.parametrize("name", [name for name in GATED if "-fc" not in name])
def test_features_of_our_own_networks_are_what_is_averaged(name):
    """The head takes the mean of the map over height and width, and nothing else comes between."""
    whole = draw(name)
    names, images = removable(whole.network), images_for(whole.network)
    for gone in ([], names[-1:], names):
        small = remove(whole, gone)
        given, found = answered(small, images)
        head = nn.Linear(found.shape[1], 10)
        head.load_state_dict(
            {key: small.weights[f"linear.{key}"] for key in ("weight", "bias")}, assign=True
        )
        assert found.ndim == 4
        assert found.shape[2] > 1
        assert torch.equal(head(found.mean((2, 3))), given)


@pytest.mark.parametrize("name", [name for name in GATED if "-fc" in name])
@pytest.mark.parametrize("removed", ["none", "last", "all"])
def test_without_a_map_features_are_what_the_head_takes(name, removed):
    whole = draw(name, input_shape=(1, 8, 8))
    names = removable(whole.network)
    gone = {"none": [], "last": names[-1:], "all": names}[removed]
    small, images = remove(whole, gone), images_for(whole.network)
    given, found = answered(small, images)
    module, seen = small.build(), []
    module.get_submodule("head").register_forward_pre_hook(lambda layer, got: seen.append(got[0]))
    assert torch.equal(logits(module, images), given)
    assert torch.equal(found, seen[0])


class Pooled(Callers):
    """The last layer with parameters lies within a branch, and the stem leaves one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).flatten(1)


def test_where_there_is_neither_a_map_nor_a_head_there_are_no_features():
    module = Pooled()
    module.load_state_dict(drawn(module.state_dict()))
    checkpoint = Checkpoint.of(module.eval(), (3, 8, 8))
    images = images_for(checkpoint.network)
    assert features_of(checkpoint.network) is None
    result = logits(answering(checkpoint.build(), checkpoint.network, True), images)
    assert torch.equal(result, logits(module, images))


class Around(Callers):
    """A path from the first block to the logits goes around the second, which pools."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        return self.head(self.blocks[1](x).mean((2, 3)) + x.mean((2, 3)))


class After(Callers):
    """A block follows on pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(x + F.relu(self.last(x)))


@pytest.mark.parametrize("kind", [Around, After])
def test_no_block_lies_behind_the_features(kind):
    """A removal would not change them, so recovery could not make up for it."""
    module = kind()
    module.load_state_dict(drawn(module.state_dict()))
    checkpoint = Checkpoint.of(module.eval(), (3, 8, 8))
    images, seen = images_for(checkpoint.network), []
    whole = answered(checkpoint, images)[1]
    module.head.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    logits(module, images)
    assert torch.equal(whole, seen[0])
    for name in checkpoint.network.removable:
        assert not torch.equal(answered(remove(checkpoint, name), images)[1], whole), name


class TwoHeads(Callers):
    """The mean of two heads counts as a block: either can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return (self.head(x) + self.other(x)) / 2


def test_where_the_last_block_is_in_the_head_there_are_no_features():
    assert features_of(Checkpoint.of(TwoHeads(), (3, 8, 8)).network) is None


class Largest(Callers):
    """Pools by `max`, which returns a tuple, and asks for the map's size before."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).flatten(2)
        return self.head(x.reshape(x.shape).max(2)[0])


class Chunks(Callers):
    """Splits the map before it pools; a number of tensors is no feature map."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.blocks(self.stem(x)).chunk(2, 1)
        return self.head(torch.cat([one.amax((2, 3)), other.mean((2, 3))], 1))


@pytest.mark.parametrize(("kind", "reader"), [(Largest, "max_1"), (Chunks, "chunk")])
def test_a_map_that_is_read_into_several_tensors_is_found(kind, reader):
    module, seen = kind(), []
    module.load_state_dict(drawn(module.state_dict()))
    checkpoint = Checkpoint.of(module.eval(), (3, 8, 8))
    images = images_for(checkpoint.network)
    module.blocks.register_forward_hook(lambda layer, given, result: seen.append(result))
    given, found = answered(checkpoint, images)
    assert torch.equal(given, logits(module, images))
    assert torch.equal(found.flatten(1), seen[0].flatten(1))
    assert features_of(checkpoint.network).reader == reader


class Scalar(Callers):
    """Returns one number for an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


def test_what_returns_no_logits_is_refused():
    checkpoint = Checkpoint.of(Scalar(), (3, 8, 8))
    images = bright_images(32, (3, 8, 8))
    told = "Scalar returns shape .2,. for two images: expected one tensor of logits"
    for judge in (
        lambda: agreement(checkpoint, checkpoint, images),
        lambda: learn_gates(checkpoint, images, GateRecipe(batch_size=16), device="cpu"),
    ):
        with pytest.raises(ArchitectureError, match=told):
            judge()


def test_features_are_named_by_who_takes_them(callers):
    network = Checkpoint.of(callers, (3, 8, 8)).network
    features = features_of(network)
    assert str(features) == "what mean takes (8x3x3)"
    nodes = {node.name: node for node in traced(network.base).module.graph.nodes}
    assert nodes[features.reader].all_input_nodes == [nodes[features.node]]


@pytest.mark.parametrize("name", ["resnet8", "residual-fc6,width=8"])
def test_asking_for_features_changes_no_logits_and_no_gradient(name):
    """In training mode, too."""
    shape = (1, 8, 8) if "-fc" in name else (3, 8, 8)
    network = Network.named(name, num_classes=4, input_shape=shape)
    weights = MappingProxyType(drawn(network.initial_weights(0)))
    images, gradients = images_for(network, 4), []
    for features in (False, True):
        root = Checkpoint(network, weights).build()
        module = answering(root, network, features).train()
        result = module(images)
        (result[0] if features else result).square().sum().backward()
        gradients.append({key: one.grad for key, one in root.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(one, gradients[1][key]) for key, one in gradients[0].items())
