"""Whatever is loaded computes what its author's module computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gatepruner import Checkpoint

SHAPE = (4, 6, 6)


class Written(nn.Module):
    """A network of two blocks whose branch, between two convolutions, is written by a test."""

    def __init__(self, written, **modules):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.blocks = nn.ModuleList(WrittenBlock(written, **modules) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class WrittenBlock(nn.Module):
    def __init__(self, written, **modules):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.written = written
        self.rate = 0.5
        for name, module in modules.items():
            self.add_module(name, module())

    def forward(self, x):
        return x + self.conv2(self.written(self, self.conv1(x)))


@torch.no_grad()
def assert_same(module, blocks=2, shape=SHAPE):
    """The built network computes what the module computes, in evaluation and in training."""
    torch.manual_seed(0)
    images = torch.randn(3, *shape)
    checkpoint = Checkpoint.of(module, shape)
    assert len(checkpoint.network.blocks) == blocks
    built = checkpoint.build()
    for training in (False, True):
        for batch in (images, images[:1]):
            results = []
            for each in (module, built):
                torch.manual_seed(1)
                results.append(each.train(training)(batch.clone()))
            assert torch.equal(logits(results[0]), results[1])
    assert {name for name, _ in built.named_parameters()} <= set(module.state_dict())
    return checkpoint


def logits(result):
    while not isinstance(result, torch.Tensor):
        result = result["logits"] if isinstance(result, dict) else result[0]
    return result


def on_a_slice(self, x):
    x[:, :4].mul_(2)
    return x


def on_a_view(self, x):
    x.view(x.size(0), -1).relu_()
    return x


def on_a_chunk(self, x):
    first, second = x.chunk(2, 1)
    first.add_(second)
    return torch.cat([x, second], 1)[:, :8]


def on_a_transposed_view_of_a_view(self, x):
    x.transpose(1, 2)[:, 1:].clamp_(0, 0.1)
    return x


def detached(self, x):
    x.detach().sigmoid_()
    return x


def under_two_names(self, x):
    y = x
    y += 1
    return x * y


def before_a_view_is_used(self, x):
    flat = x.flatten(1)
    x.mul_(3)
    return flat.reshape(x.shape) - x


def twice(self, x):
    y = x[:, 2:]
    y.mul_(2)
    y += 1
    return x * y.sum()


def into_an_output(self, x):
    y = torch.zeros_like(x)
    torch.mul(x, 2, out=y)
    return y - x


def assigned(self, x):
    x[:, 0] = 1.0
    x[:, 1:3] += x[:, 5:7]
    return x


def copied(self, x):
    y = torch.empty_like(x)
    y.copy_(x * 2)
    y.view(-1)[:3].zero_()
    return y


def masked(self, x):
    mask = (x > 0) & (x < 1) | (x > 2)
    return x.masked_fill_(mask, 0.5) * mask


def with_random_numbers(self, x):
    noise = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5)
    return x * noise * torch.empty_like(x).uniform_()


def by_position(self, x):
    F.relu(x, True)
    return x


def in_a_helper(self, x):
    double(x)
    return x


def double(x):
    x.mul_(2)


def by_a_layer(self, x):
    self.act(x[:, :4])
    return x


def by_a_layer_before(self, x):
    y = self.act(x)
    return x * y


MUTATIONS = (
    *(on_a_slice, on_a_view, on_a_chunk, on_a_transposed_view_of_a_view, detached),
    *(under_two_names, before_a_view_is_used, twice, into_an_output, assigned, copied, masked),
    *(with_random_numbers, by_position, in_a_helper, by_a_layer, by_a_layer_before),
)


@pytest.mark.parametrize("written", MUTATIONS, ids=lambda written: written.__name__)
def test_what_is_overwritten_is_what_the_author_overwrites(written):
    assert_same(Written(written, act=lambda: nn.ReLU(inplace=True)))


def test_an_overwritten_value_stays_as_it_was_for_others():
    def reads_both(self, x):
        before = x + 0
        x[:, :4].mul_(2)
        return before - x

    checkpoint = assert_same(Written(reads_both))
    images = torch.randn(2, *SHAPE)
    kept = images.clone()
    checkpoint.build()(images)
    assert torch.equal(images, kept)


def test_the_addition_of_a_block_may_be_in_place():
    class InPlace(WrittenBlock):
        def forward(self, x):
            y = self.conv1(x)
            y += x
            return y

    module = Written(None)
    module.blocks = nn.ModuleList(InPlace(None) for _ in range(3))
    assert_same(module, blocks=3)


def activations_made_inside(self, x):
    return nn.Sequential(nn.ReLU(), nn.Hardtanh(0, 1))(x)


def flags(self, x, double=True, scale=2.0, mask=None):
    x = x * scale if double else x
    return x if mask is None else x * mask


def asserts_on_shapes(self, x):
    _n, c, h, w = x.shape
    assert c == 8
    assert h == w, f"expected a square, got {h} x {w}"
    torch._assert(h == w, "square")
    if h % 2 == 0 and x.dim() == 4 and len(x.shape) == 4:
        x = x + h
    return x


def factories(self, x):
    n, _, h, w = x.shape
    grid = torch.arange(h).view(1, 1, h, 1) * torch.ones(n, 1, 1, w)
    return x * torch.ones(x.size(0), 8, h, w) * grid - torch.full((n, 1, 1, 1), 2.0)


def loops_over_sizes(self, x):
    for index in range(x.shape[2] // 3):
        x = x + index
    for part in x.shape[1:]:
        x = x * part
    rows = list(x.unbind(2))
    return torch.stack(rows[::-1], 2)


def integers_of_sizes(self, x):
    size = math.ceil(x.shape[2] / 2), max(x.shape[3], 2)
    x = F.interpolate(F.adaptive_avg_pool2d(x, size), x.shape[2:])
    return F.pad(x, [0, (4 - x.shape[3] % 4) % 4, 0, 0])[..., : x.shape[3]]


def data_types(self, x):
    if x.dtype == torch.float16:
        x = x.float()
    return x.clamp(min=torch.finfo(x.dtype).min / 2)


def drop_path(x, rate, training):
    if rate == 0.0 or not training:
        return x
    keep = 1 - rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    if keep > 0:
        mask.div_(keep)
    return x * mask


def drop_path_by_a_function(self, x):
    return drop_path(x, self.rate, self.training)


def noise_in_training(self, x):
    if self.training:
        x = x - 0.1 * torch.randn_like(x)
    return x


def other_activation_in_training(self, x):
    return x.relu() if self.training else x.clamp(0, 6)


def other_sums_in_training(self, x):
    return torch.stack([x, x * 2 if self.training else x]).sum(0)


def dropout_by_a_function(self, x):
    return F.dropout(x, self.rate if self.training else 0.0, self.training)


AS_WRITTEN = (
    *(activations_made_inside, flags, asserts_on_shapes, factories, loops_over_sizes),
    *(integers_of_sizes, data_types, drop_path_by_a_function, noise_in_training),
    *(other_activation_in_training, other_sums_in_training, dropout_by_a_function),
)


@pytest.mark.parametrize("written", AS_WRITTEN, ids=lambda written: written.__name__)
def test_forward_may_be_written_as_people_write_it(written):
    assert_same(Written(written))
