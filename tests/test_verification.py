"""A module that is not traced as it computes is refused, and any other one is left as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import Callers, CallersBlock, drawn, images_for, logits
from torch import Tensor, nn
from torch.nn.utils import prune

from gatepruner.errors import ArchitectureError, CheckpointError
from gatepruner.files.checkpoints import load, save
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE = (3, 16, 16)


class Sly(CallersBlock):
    """Computes something else than what a tracer sees, if it is told to."""

    sly = True

    def forward(self, x: Tensor) -> Tensor:
        f = self.bn(self.conv(x))
        if self.sly and isinstance(x, Tensor):
            f = 2 * f
        return F.relu(x + f)


class SlyInTraining(Sly):
    def forward(self, x: Tensor) -> Tensor:
        self.sly = self.training
        return super().forward(x)


class SlyAfterwards(Callers):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return 2 * x if isinstance(x, Tensor) else x


class SlyBetween(Callers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.abs() if isinstance(x, Tensor) else x
        return self.head(self.blocks(x).mean((2, 3)))


def with_block(block: nn.Module) -> Callers:
    module = Callers()
    module.blocks[1] = block
    return module


REFUSED = {
    "block": (
        lambda: with_block(Sly(8)),
        r"in evaluation.*first in blocks\.1, .*leaves=\('Sly',\)",
    ),
    "in training": (
        lambda: with_block(SlyInTraining(8)),
        r"in training.*first in blocks\.1, .*leaves=\('SlyInTraining',\)",
    ),
    "at the end": (SlyAfterwards, r"first in SlyAfterwards\.forward, after its last layer"),
    "between": (SlyBetween, r"first in SlyBetween\.forward, before blocks\.0\.conv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_is_not_traced_as_it_computes_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ArchitectureError, match=message) as refused:
        Checkpoint.of(make(), SHAPE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("leaf", [Sly, "Sly"])
def test_the_advice_of_the_refusal_works(leaf):
    module = with_block(Sly(8)).eval()
    checkpoint = Checkpoint.of(module, SHAPE, leaves=(leaf,))
    assert set(checkpoint.network.kept) == {"blocks.1"}
    images = images_for(checkpoint.network)
    assert torch.equal(logits(checkpoint.build(), images), logits(module, images))


def test_a_difference_behind_a_scale_of_zero_is_seen():
    module = with_block(Sly(8))
    nn.init.zeros_(module.blocks[1].bn.weight)
    nn.init.zeros_(module.blocks[1].bn.bias)
    with pytest.raises(ArchitectureError, match=r"first in blocks\.1"):
        Checkpoint.of(module, SHAPE)


def test_weights_with_two_names_have_one_value():
    module = Callers()
    module.blocks[2].bn.weight = module.blocks[0].bn.weight
    nn.init.zeros_(module.blocks[0].bn.weight)
    assert len(Checkpoint.of(module, SHAPE).network.blocks) == 3


def test_a_file_for_a_callers_module_is_refused_just_so(tmp_path):
    honest = with_block(Sly(8))
    honest.blocks[1].sly = False
    own = save(Checkpoint.of(honest, SHAPE), tmp_path / "own.pt")
    torch.save(honest.state_dict(), tmp_path / "foreign.pt")
    sly = with_block(Sly(8))
    for path in (own, tmp_path / "foreign.pt"):
        with pytest.raises(ArchitectureError, match=r"first in blocks\.1"):
            load(path, module=sly, input_shape=None if path == own else SHAPE)
        assert load(path, module=honest, input_shape=None if path == own else SHAPE)


def test_random_numbers_in_another_order_are_no_difference():
    class Drawing(CallersBlock):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and isinstance(x, Tensor):
                torch.rand(3)
            return super().forward(x)

    assert len(Checkpoint.of(with_block(Drawing(8)), SHAPE).network.blocks) == 3


def test_a_module_keeps_its_modes_weights_and_buffers():
    module = Callers()
    module.load_state_dict(drawn(module.state_dict()))
    module.train().blocks[1].eval()
    module.blocks[1].bn.register_buffer("passing", torch.ones(3), persistent=False)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    modes = {path: part.training for path, part in module.named_modules()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Checkpoint.of(module, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path: part.training for path, part in module.named_modules()} == modes
    assert all(torch.equal(module.state_dict()[key], tensor) for key, tensor in before.items())
    with pytest.raises(ArchitectureError, match="not traced as it computes"):
        Checkpoint.of(with_block(sly := Sly(8)).train(), SHAPE)
    assert sly.training
    assert not sly._forward_hooks


def test_buffers_without_a_key_keep_their_values():
    class Constant(CallersBlock):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.register_buffer("by", torch.rand(8, 1, 1), persistent=False)
            self.w = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.w * self.by)

    module = with_block(Constant(8)).eval()
    checkpoint = Checkpoint.of(module, SHAPE)
    images = images_for(checkpoint.network)
    assert torch.equal(logits(checkpoint.build(), images), logits(module, images))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(
    "reparametrise",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    ],
    ids=["weight_norm, old", "spectral_norm, old", "weight_norm", "spectral_norm", "a mask"],
)
def test_weights_that_are_computed_from_others_are_kept(reparametrise):
    module = Callers()
    reparametrise(module.blocks[1].conv)
    checkpoint = Checkpoint.of(module, SHAPE)
    images = images_for(checkpoint.network)
    assert torch.equal(logits(checkpoint.build(), images), logits(module.eval(), images))


def test_images_that_a_module_cannot_take_are_refused():
    with pytest.raises(ArchitectureError, match=r"cannot compute images of 4x16x16: .*input_shape"):
        Checkpoint.of(Callers(), (4, 16, 16))


# ------------------------------------------------------------------------------------- weights


def spoilt(tensor) -> Callers:
    module = Callers()
    module.blocks[1].register_buffer("odd", tensor)
    return module


def poisoned(value: float) -> Callers:
    module = Callers()
    module.blocks[1].conv.weight.data[3, 2] = value
    return module


UNUSABLE = {
    "NaN": (lambda: poisoned(float("nan")), r"nan: blocks\.1\.conv\.weight;"),
    "infinite": (lambda: poisoned(float("-inf")), r"infinite: blocks\.1\.conv\.weight;"),
    "meta": (lambda: Callers().to("meta"), r"meta \(without values\): stem\.weight, .* more;"),
    "sparse": (lambda: spoilt(torch.eye(3).to_sparse()), r"sparse: blocks\.1\.odd;"),
    "complex": (lambda: spoilt(torch.ones(3, dtype=torch.cfloat)), r"complex: blocks\.1\.odd;"),
    "of 8 bits": (lambda: spoilt(torch.ones(3).to(torch.float8_e5m2)), r"8 bits: blocks\.1\.odd;"),
    "lazy": (
        lambda: nn.Sequential(Callers(), nn.LazyLinear(3)),
        r"without a shape yet: 1\.weight, 1\.bias;",
    ),
    "quantised": (
        lambda: spoilt(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        r"quantised: blocks\.1\.odd;",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*", "ignore:.*[Ll]azy.*")
def test_weights_that_cannot_be_used_are_named(kind):
    make, message = UNUSABLE[kind]
    with pytest.raises(CheckpointError, match=f"weights are .*{message}"):
        Checkpoint.of(make(), SHAPE)


def mixed(module: Callers) -> Callers:
    module.blocks.half()
    module.blocks[0].bn.float()
    return module


PRECISIONS = {
    "float16": (lambda module: module.half(), ["22 weights were cast from float16 to float32"]),
    "bfloat16": (
        lambda module: module.bfloat16(),
        ["22 weights were cast from bfloat16 to float32"],
    ),
    "float64": (lambda module: module.double(), ["22 weights were cast from float64 to float32"]),
    "mixed": (mixed, ["14 weights were cast from float16 to float32"]),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_precision_is_cast_and_said(precision, callers):
    convert, remarks = PRECISIONS[precision]
    module = convert(copy.deepcopy(callers))
    checkpoint = Checkpoint.of(module, SHAPE, {"classes": ["a"], "remarks": ["one more"]})
    assert checkpoint.notes == {"classes": ["a"], "remarks": ["one more", *remarks]}
    images = images_for(Network.of(callers, SHAPE))
    assert torch.equal(logits(checkpoint.build(), images), logits(module.float(), images))
