"""Whatever is loaded computes what its author's module computes."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from torchvision.models.video import swin3d_t
from torchvision.models.video.mvit import MSBlockConfig, MViT

from gatepruner import Checkpoint, load, remove, save
from gatepruner.errors import ArchitectureError

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
        result = (
            result.get("logits", result.get("prediction"))
            if isinstance(result, dict)
            else result[0]
        )
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


def chunked(self, x):
    first, _ = x.chunk(2, 1)
    first += 1
    return x


def turned(self, x):
    x.transpose(1, 2).mul_(1.5)
    return x


@pytest.mark.parametrize("written", [chunked, turned])
def test_a_block_whose_shortcut_a_view_overwrites_is_a_block(written):
    class Block(WrittenBlock):
        def forward(self, x):
            x = written(self, x)
            return x + self.conv2(self.conv1(x))

    module = Written(lambda self, x: x)
    module.blocks = nn.ModuleList(Block(None) for _ in range(2))
    assert_same(module)


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


def tensors_made_inside(self, x):
    kept = torch.arange(8).flip(0)
    scaled = x[:, kept] * torch.tensor([0.5]) + torch.tensor(2.0)
    return scaled * torch.linspace(0, 1, 8).view(8, 1, 1) + torch.from_numpy(np.ones(1, np.float32))


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


def noise_or_nothing(self, x):
    return x + (torch.randn_like(x) if self.training else 0)


def other_activation_in_training(self, x):
    return x.relu() if self.training else x.clamp(0, 6)


def other_sums_in_training(self, x):
    return torch.stack([x, x * 2 if self.training else x]).sum(0)


def dropout_by_a_function(self, x):
    return F.dropout(x, self.rate if self.training else 0.0, self.training)


def where_the_weights_are(self, x):
    device = next(self.parameters()).device
    x = x.to(device, next(self.parameters()).dtype)
    scale = torch.tensor([2.0, 3.0], device=device).repeat(4).view(8, 1, 1)
    noise = torch.zeros(x.shape[0], 8, 1, 1, device=device)
    return x * scale + noise + torch.ones(8, 1, 1).to(device) * torch.arange(6, device=device)


@torch.compile(backend="eager")
def compiled(x):
    return F.silu(x)


def function_that_is_compiled(self, x):
    return compiled(x) * 2


AS_WRITTEN = (
    *(where_the_weights_are, function_that_is_compiled),
    noise_or_nothing,
    *(activations_made_inside, flags, asserts_on_shapes, factories, loops_over_sizes),
    tensors_made_inside,
    *(integers_of_sizes, data_types, drop_path_by_a_function, noise_in_training),
    *(other_activation_in_training, other_sums_in_training, dropout_by_a_function),
)


@pytest.mark.parametrize("written", AS_WRITTEN, ids=lambda written: written.__name__)
def test_forward_may_be_written_as_people_write_it(written):
    assert_same(Written(written))


def layers():
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))


def test_a_part_of_a_sequential_is_followed_into_its_layers():
    assert_same(Written(lambda self, x: self.layers[2:](self.layers[:2](x) + x), layers=layers), 4)


class InAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float()


def test_what_enters_autocast_is_kept_whole():
    module = Written(lambda self, x: self.inner(x), inner=InAutocast)
    assert_same(module)
    kept = Checkpoint.of(module, SHAPE).network.kept
    assert kept.keys() == {"blocks.0.inner", "blocks.1.inner"}
    assert all("it enters autocast" in why for why in kept.values())


class Asking(nn.Module):
    """Asks for the values of its input, which no graph can follow."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    """Asks for the number of images."""

    def forward(self, x):
        return torch.cat([image[None] * 2 for image in x])


class Scaling(nn.Module):
    """Takes a number out of its input, where no answer is asked for."""

    def forward(self, x):
        return x * x.abs().max().item()


@pytest.mark.parametrize("inner", [Asking, Counting, Scaling])
def test_the_innermost_module_that_cannot_be_followed_is_kept_whole(inner):
    checkpoint = assert_same(Written(lambda self, x: self.act(x), act=inner))
    assert {block.layers for block in checkpoint.network.blocks} == {
        ("Conv2d", inner.__name__, "Conv2d")
    }


def test_what_is_kept_whole_is_said():
    checkpoint = assert_same(Written(lambda self, x: self.act(x), act=Asking))
    why = checkpoint.network.kept["blocks.0.act"]
    assert why.startswith("its control flow depends on the values of a tensor (test_tracing.py:")
    remark = f"kept blocks.0.act, blocks.1.act whole, with any blocks inside: {why}"
    assert checkpoint.notes["remarks"] == [remark]
    plain = assert_same(Written(lambda self, x: x.relu()))
    assert "remarks" not in plain.notes


class Hiding(nn.Module):
    """A block, beside what no graph can follow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = x + self.conv(x)
        return x if x.sum() > 0 else -x


def test_the_modules_inside_of_one_that_is_kept_whole_are_not_named():
    module = Written(lambda self, x: self.act(x), act=Hiding)
    module.blocks[1] = Hiding()
    module.blocks[1].add_module("asking", Asking())
    kept = Checkpoint.of(module, SHAPE, leaves=("Asking",)).network.kept
    assert set(kept) == {"blocks.0.act", "blocks.1"}


class CountingNorm(nn.BatchNorm2d):
    """A layer that cannot be followed."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        return super().forward(x)


def test_layers_hide_no_blocks():
    checkpoint = assert_same(Written(lambda self, x: self.act(x), act=lambda: CountingNorm(8)))
    assert checkpoint.network.kept == {}


class Averaging(nn.Module):
    """Assigns to its buffer in training, and computes with it; the other counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(8, 1, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))[:, None, None]
        return x - self.mean


def test_a_buffer_that_forward_assigns_to_is_trained():
    module = Written(lambda self, x: self.act(x), act=Averaging)
    checkpoint = Checkpoint.of(module, SHAPE)
    kept = checkpoint.network.kept
    assert set(kept) == {"blocks.0.act", "blocks.1.act"}
    assert all("buffer" in why for why in kept.values())  # torch 2.6 says it in its own words
    built, images = checkpoint.build().train(), torch.randn(4, *SHAPE)
    module.train()
    for _ in range(2):
        assert torch.equal(built(images), module(images))
    assert torch.equal(built.state_dict()["blocks.0.act.mean"], module.blocks[0].act.mean)
    assert isinstance(module.blocks[0].act.mean, torch.Tensor)


def test_a_network_that_overwrites_its_own_buffer_is_refused():
    class Stepping(Written):
        def __init__(self):
            super().__init__(lambda self, x: x.relu())
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    with pytest.raises(ArchitectureError, match=r"buffer '?calls'? .*; move"):
        Checkpoint.of(Stepping(), SHAPE)


NOISE = {
    "of the same form": lambda x: 0.1 * torch.randn_like(x),
    "of a size": lambda x: torch.randn(x.size()) * 0.1,
    "as it was written once": lambda x: x.data.new(x.size()).normal_(0, 0.1),
    "in proportion": lambda x: x * torch.rand_like(x),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("flag", [False, True])
def test_noise_in_training_is_no_block(noise, flag):
    def written(self, x):
        if flag:
            return x + NOISE[noise](x) * (1.0 if self.training else 0.0)
        return x + NOISE[noise](x) if self.training else x

    assert_same(Written(written))


def test_an_operand_with_weights_is_a_branch_though_it_is_random():
    def written(self, x):
        return x + self.inner(x) * torch.rand_like(x[:, :1]).round().add(1).clamp(1, 1)

    module = Written(written, inner=lambda: nn.Conv2d(8, 8, 1))
    assert len(Checkpoint.of(module, SHAPE).network.blocks) == 4


LENGTHS = {
    "divides": lambda self, x: x / len(x),
    "reshapes": lambda self, x: x.reshape(len(x), -1).reshape(len(x), 8, 6, 6),
    "makes a tensor": lambda self, x: x + torch.ones(len(x), 1, 1, 1),
    "is tested": lambda self, x: x if len(x) > 0 and len(x.shape) == 4 else -x,
    "of a list": lambda self, x: torch.stack([x, x])[len([x])],
}


@pytest.mark.parametrize("how", LENGTHS)
def test_the_length_of_a_batch_is_traced(how):
    assert_same(Written(LENGTHS[how]))
    assert "len" not in globals()


class Transformer(nn.Module):
    """Has torch's own transformer layers, without dropout."""

    def __init__(self, first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.encoder(x.flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("first", [False, True])
@torch.no_grad()
def test_blocks_of_torchs_own_transformer_layers_are_blocks(first):
    module, images = Transformer(first).eval(), torch.randn(2, *SHAPE)
    checkpoint = Checkpoint.of(module, SHAPE)
    blocks = [f"encoder.layers.{layer}:{number}" for layer in (0, 1) for number in (1, 2)]
    assert [block.name for block in checkpoint.network.blocks] == blocks
    torch.testing.assert_close(checkpoint.build()(images), module(images))
    small = remove(checkpoint, blocks[1::2]).build()(images)
    for layer in module.encoder.layers:  # without its second linear layer, nothing is added
        layer.linear2.weight.zero_()
        layer.linear2.bias.zero_()
    torch.testing.assert_close(small, module(images))


class Assigning(Written):
    """Remembers sizes in its attributes."""

    def forward(self, x):
        self.size = x.shape[2] * x.shape[3]
        return super().forward(x / self.size)


def test_what_forward_assigns_to_a_module_is_its_own():
    assert_same(Assigning(lambda self, x: x.relu()))


class Tabled(nn.Module):
    """A buffer that no file contains, beside a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("table", torch.arange(8.0).view(1, 8, 1, 1), persistent=False)

    def forward(self, x):
        return x * self.scale + self.table


def test_buffers_that_no_file_contains_keep_their_values():
    assert_same(Written(lambda self, x: self.act(x), act=Tabled))


class Returning(Written):
    """Returns its logits in some form."""

    def __init__(self, form):
        super().__init__(lambda self, x: x.relu())
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    features: tuple = ()


Result = namedtuple("Result", ["features", "logits"])
FORMS = {
    "a tuple": lambda x: (x,),
    "a dict": lambda x: {"prediction": x},
    "logits and more": lambda x: {"features": x * 2, "logits": x},
    "an ordered dict": lambda x: OrderedDict(logits=x, aux=x * 2),
    "a named tuple": lambda x: Result(x * 2, x),
    "logits and no loss": lambda x: (x, None),
    "a dataclass": lambda x: Output(x, features=(x * 2, x)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_taken_out_of_what_a_module_returns(form):
    module = Returning(FORMS[form]).eval()
    images = torch.randn(2, *SHAPE)
    result = module(images)
    by_name = form in ("a named tuple", "a dataclass")
    expected = result.logits if by_name else logits(result)
    assert torch.equal(Checkpoint.of(module, SHAPE).build()(images), expected)


REFUSED_FORMS = {
    "2 tensors": lambda x: (x, x * 2),
    "NoneType": lambda x: None,
}


@pytest.mark.parametrize("found", REFUSED_FORMS)
def test_a_result_without_the_one_tensor_of_logits_is_refused(found):
    with pytest.raises(ArchitectureError, match=f"^Returning returns {found}: expected the logits"):
        Checkpoint.of(Returning(REFUSED_FORMS[found]), SHAPE)


def test_a_result_of_another_form_in_training_is_refused_as_such():
    class Auxiliary(Returning):
        def forward(self, x):
            x = super().forward(x)
            return (x, x * 2) if self.training else x

    with pytest.raises(ArchitectureError, match="Auxiliary in training returns 2 tensors"):
        Checkpoint.of(Auxiliary(lambda x: x), SHAPE)


def test_layers_that_stay_in_evaluation_are_named():
    class Frozen(Written):
        def train(self, mode=True):
            super().train(mode)
            self.blocks[1].norm.eval()
            return self

    module = Frozen(lambda self, x: self.norm(x), norm=lambda: nn.BatchNorm2d(8))
    with pytest.raises(ArchitectureError, match=r"Frozen.train\(\) leaves blocks.1.norm in eval"):
        Checkpoint.of(module, SHAPE)


def test_what_may_be_meant_as_a_block_is_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(torch.lerp(x, self.conv(x), 0.5).mean((2, 3)))

    with pytest.raises(ArchitectureError, match="it has lerp: write a block as x \\+ f"):
        Checkpoint.of(Mixed(), SHAPE)


def test_a_module_that_needs_several_inputs_is_refused_by_their_names():
    class Pair(nn.Module):
        def forward(self, image, mask, scale=1):
            return image * mask * scale

    with pytest.raises(ArchitectureError, match=r"Pair.forward needs 2 inputs \(image, mask\)"):
        Checkpoint.of(Pair(), SHAPE)


def test_the_images_may_be_a_keyword_and_have_a_default():
    class Keyword(Written):
        def forward(self, *, pixel_values=None, labels=None):
            x = super().forward(pixel_values)
            return x if labels is None else (x, F.cross_entropy(x, labels))

    module = Keyword(lambda self, x: x.relu()).eval()
    images = torch.randn(2, *SHAPE)
    built = Checkpoint.of(module, SHAPE).build()
    assert torch.equal(built(images), module(pixel_values=images))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "both": lambda module: nn.DataParallel(torch.compile(module)),
    "an average": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(wrapper):
    module = Written(lambda self, x: x.relu()).eval()
    checkpoint = Checkpoint.of(WRAPPERS[wrapper](module), SHAPE)
    assert checkpoint.weights.keys() == module.state_dict().keys()
    images = torch.randn(2, *SHAPE)
    assert torch.equal(checkpoint.build()(images), module(images))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_modules_are_refused():
    module = nn.Sequential(torch.jit.script(nn.ReLU()))
    with pytest.raises(ArchitectureError, match="0 is a TorchScript module"):
        Checkpoint.of(module, SHAPE)


class Reserved(nn.Module):
    """Has submodules named as attributes of every graph module."""

    def __init__(self):
        super().__init__()
        self.graph, self.meta = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.code, self.recompile = nn.Linear(4, 5), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = x + self.meta(self.graph(x))
        x = x + self.recompile(x)
        return self.code(x.mean((2, 3)))


def test_reserved_names_get_an_underscore_and_the_authors_files_still_fit(tmp_path):
    module, images = Reserved().eval(), torch.randn(2, *SHAPE)
    expected, keys = module(images), set(module.state_dict())
    checkpoint = Checkpoint.of(module, SHAPE)
    assert set(module.state_dict()) == keys
    save(checkpoint, tmp_path / "own.pt")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "author.pth")
    for read in (
        checkpoint,
        load(tmp_path / "own.pt", module=module),
        load(tmp_path / "author.pth", module=module, input_shape=SHAPE),
    ):
        assert torch.equal(read.build()(images), expected)
        assert {"graph_.weight", "meta_.bias", "code_.bias"} < read.weights.keys()


REPARAMETRIZED = {
    "old weight_norm": nn.utils.weight_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "pruning": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_layers_whose_weights_are_computed_are_kept(kind):
    module = Written(lambda self, x: x.relu())
    REPARAMETRIZED[kind](module.blocks[0].conv1)
    module(torch.randn(2, *SHAPE))
    assert_same(module)


def test_shifted_windows_and_pooled_residuals_of_videos_are_exact():
    """Their functions overwrite arguments: lists in the one, tensors in the other."""
    assert_same(swin3d_t(num_classes=5), blocks=24, shape=(3, 2, 32, 32))
    small = {"spatial_size": (32, 32), "temporal_size": 4, "num_classes": 5}
    kernels = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "stride_kv": [1, 2, 2]}
    setting = [
        MSBlockConfig(1, 16, 16, stride_q=[1, 1, 1], **kernels),
        MSBlockConfig(2, 16, 32, stride_q=[1, 2, 2], **kernels),
    ]
    pooled = MViT(
        **small,
        block_setting=setting,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
    )
    assert_same(pooled, blocks=4, shape=(3, 4, 32, 32))
