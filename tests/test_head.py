"""The features of a network are what the last layer of its author's module takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import LIBRARY, Callers, drawn, images_for, load_into, logits, removable
from torch import Tensor, fx, nn

from gatepruner.measuring.merging import merged
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.head import features_graph, head_of
from gatepruner.networks.network import Network


def features(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    module = fx.GraphModule(checkpoint.build(), features_graph(checkpoint.network))
    return logits(module, images)


def taken(module: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """What a layer of a module takes."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    logits(module, images)
    hook.remove()
    return seen[0]


def test_features_are_what_the_classifier_of_torchvisions_module_takes(library):
    name, shape = library.network.base.name, library.network.base.input_shape
    sized = {"vit_b_32": {"image_size": 64}, "maxvit_t": {"input_size": (224, 224)}}
    module = getattr(torchvision.models, name)(num_classes=10, **sized.get(name, {}))
    load_into(module, library.weights)
    classifier = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    assert classifier.out_features == 10
    images = images_for(library.network, 1)
    assert LIBRARY[name] == shape
    torch.testing.assert_close(features(library, images), taken(module, classifier, images))


def test_features_of_several_networks_are_computed_together(callers):
    checkpoint = Checkpoint.of(callers, (3, 8, 8))
    images, network = images_for(checkpoint.network, 4), checkpoint.network
    networks = [network, *(network.without([name]) for name in removable(network))]
    together = logits(merged(checkpoint, networks, features=True), images)
    assert torch.equal(together[0], taken(callers, callers.head, images))
    for small, found in zip(networks, together, strict=True):
        weights = {key: checkpoint.weights[key] for key in small.state()}
        assert torch.equal(found, features(Checkpoint(small, weights), images))
    assert len({float(found.sum()) for found in together}) == len(networks)


class Functional(Callers):
    """The head is a function of a parameter; nothing learned comes after it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return F.softplus(F.linear(x, self.head.weight, self.head.bias))


def test_a_head_may_be_a_function_and_something_may_follow_it():
    module = Functional()
    module.load_state_dict(drawn(module.state_dict()))
    checkpoint = Checkpoint.of(module.eval(), (3, 8, 8))
    images = images_for(checkpoint.network, 4)
    expected = logits(nn.Sequential(module.stem, module.blocks), images).mean((2, 3))
    assert torch.equal(features(checkpoint, images), expected)


class Headless(Callers):
    """The last layer with parameters is within a branch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize("gone", [[], ["blocks.2"], ["blocks.0", "blocks.2"]])
def test_without_a_head_the_features_are_the_logits(gone):
    module = Headless()
    module.load_state_dict(drawn(module.state_dict()))
    whole = Checkpoint.of(module.eval(), (3, 8, 8))
    assert head_of(whole.network.base) is None
    network: Network = whole.network.without(gone)
    small = Checkpoint(network, {key: whole.weights[key] for key in network.state()})
    images = images_for(network, 4)
    assert torch.equal(features(small, images), logits(small.build(), images))
