"""Fine-tuning that matches the features of a teacher: its gradient, its labels, its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Callers, bright_images, load_into, same
from test_agreement import PLAIN, SHAPE, halved, made, unlabelled
from torch import Tensor, nn

from gatepruner.errors import TrainingError
from gatepruner.images.images import Images
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.learner import FEATURES
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe
from gatepruner.learning.training import finetune
from gatepruner.models.resnet import ResNet
from gatepruner.networks.checkpoint import Checkpoint

TUNE = replace(FINE_TUNING, epochs=1, batch_size=16, match="features")
STILL = replace(TUNE, augment=False, weight_decay=0.0)


@pytest.fixture(scope="module")
def images() -> Images:
    return bright_images(16, SHAPE)


def gradients(match: str, images: Images) -> tuple[dict[str, Tensor], float]:
    """The gradients of the first step, of the parameters that have one, and its loss."""
    seen: list[list[Tensor | None]] = []
    step = torch.optim.SGD.step

    def spy(self, *rest):
        given = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        seen.append([None if one is None else one.clone() for one in given])
        return step(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        recipe = replace(STILL, match=match)
        tuned = finetune(made(seed=5), images, recipe, teacher=made(), device="cpu")
    names = [name for name, _ in made().build().named_parameters()]
    assert len(seen) == 1
    known = {name: one for name, one in zip(names, seen[0], strict=True) if one is not None}
    return known, tuned.notes["epochs"][0]["loss"]


def test_a_step_follows_the_gradient_of_the_relative_squared_distance(images):
    """By autograd on the module of the network's author, in double precision."""
    pixels, maps = (images.pixels.double() / 255 - 0.5) / 0.25, []
    modules = [load_into(ResNet(1, num_classes=4), made(seed=seed).weights) for seed in (5, 0)]
    for module in modules:
        module.layer3.register_forward_hook(lambda layer, given, result: maps.append(result))
    student, teacher = (module.double() for module in modules)
    student.train()(pixels)
    with torch.no_grad():
        teacher.eval()(pixels)
    loss = 10 * (maps[0] - maps[1]).square().mean() / maps[1].square().mean()
    loss.backward()
    assert FEATURES == 10
    found, told = gradients("features", images)
    assert told == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in student.named_parameters():
        if name.startswith("linear"):
            assert parameter.grad is None  # features say nothing about the head
            assert name not in found
            continue
        largest = float(parameter.grad.abs().max())
        error = (found[name] - parameter.grad).abs().max()
        assert error < 1e-3 * largest, name


def test_both_is_the_mean_of_the_two(images):
    """The head, too, gets half of what logits alone give it."""
    (one, first), (other, second) = gradients("features", images), gradients("logits", images)
    both, loss = gradients("both", images)
    assert loss == pytest.approx((first + second) / 2, rel=1e-5)
    assert set(other) - set(one) == {"linear.weight", "linear.bias"}
    for name, gradient in both.items():
        expected = (one.get(name, torch.zeros(())) + other[name]) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert set(both) == set(other)


def test_labels_do_not_matter(images):
    tuned = finetune(made(seed=5), images, TUNE, teacher=made(), device="cpu")
    mixed = replace(images, labels=images.labels.flip(0))
    for other in (mixed, unlabelled(images)):
        assert same(finetune(made(seed=5), other, TUNE, teacher=made(), device="cpu"), tuned)
    assert tuned.notes["epochs"][0]["accuracy"] is not None
    with_logits = replace(TUNE, match="both")
    known = finetune(made(seed=5), images, with_logits, teacher=made(), device="cpu")
    assert not same(finetune(made(seed=5), mixed, with_logits, teacher=made(), device="cpu"), known)


@pytest.mark.parametrize("match", ["features", "logits", "both"])
def test_what_images_without_labels_teach_is_what_the_teacher_says(images, match):
    """The whole loss then comes from the teacher, whatever its share is."""
    recipe, bare = replace(TUNE, match=match), unlabelled(images)
    tuned = finetune(made(seed=5), bare, recipe, teacher=made(), device="cpu")
    alone = replace(recipe, distillation=1.0)
    assert same(finetune(made(seed=5), images, alone, teacher=made(), device="cpu"), tuned)
    assert tuned.notes["epochs"][0]["accuracy"] is None
    assert "classes" not in tuned.notes


@pytest.mark.parametrize("match", ["features", "both"])
def test_a_teacher_with_features_of_another_shape_is_refused_by_name(images, match):
    wide, recipe = made("wrn-10-2"), replace(TUNE, match=match)
    told = (
        r"cannot match the features of the teacher wrn-10-2, what mean takes \(128x2x2\): those of "
        r"resnet8 are what mean takes \(64x2x2\); match its logits instead"
    )
    with pytest.raises(TrainingError, match=told) as refused:
        finetune(made(), images, recipe, teacher=wide, device="cpu")
    assert "--match logits" in refused.value.told(lambda name, value: f"--{name} {value}")
    finetune(made(), images, replace(recipe, match="logits"), teacher=wide, device="cpu")


@pytest.mark.parametrize("match", ["features", "logits"])
def test_a_teacher_takes_images_by_its_own_normalisation(images, match):
    start, (noted, weighted) = replace(made(seed=5), notes=PLAIN), halved(made())
    ignored = replace(noted, notes={})
    recipe = replace(TUNE, match=match)
    one, other, third = (
        finetune(start, images, recipe, teacher=teacher, validation=images, device="cpu")
        for teacher in (noted, weighted, ignored)
    )
    assert same(one, other)
    assert one.notes["kept"] == other.notes["kept"]
    assert one.notes["normalize"] == PLAIN["normalize"]
    assert not same(one, third)


def test_a_teacher_without_numbers_is_refused_by_name(images):
    nothing = made()
    bad = {"linear.bias": torch.full_like(nothing.weights["linear.bias"], torch.nan)}
    nothing = replace(nothing, weights={**nothing.weights, **bad})
    told = "resnet8 has weights that are NaN, linear.bias: .* choose another checkpoint"
    for learn in (
        lambda: finetune(made(seed=5), images, TUNE, teacher=nothing, device="cpu"),
        lambda: finetune(nothing, images, TUNE, device="cpu"),
        lambda: learn_gates(nothing, images, GateRecipe(batch_size=16), device="cpu"),
    ):
        with pytest.raises(TrainingError, match=told):
            learn()


class Featureless(Callers):
    """Neither a map nor a head: the stem leaves one pixel, and the logits are a branch's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).flatten(1)


class Featured(Callers):
    """As many logits, of a head that pools a map."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)


@pytest.mark.parametrize(
    "kinds", [(Featureless, Featureless), (Featureless, Featured), (Featured, Featureless)]
)
def test_without_features_logits_are_matched(kinds):
    """If either of the two networks has none."""
    images, pair = replace(bright_images(32, SHAPE), classes=tuple("abcdefgh")), []
    for seed, kind in enumerate(kinds):
        module = kind()
        torch.manual_seed(seed)
        fresh = {
            key: torch.rand_like(one) if one.is_floating_point() else one
            for key, one in module.state_dict().items()
        }
        module.load_state_dict(fresh)
        pair.append(Checkpoint.of(module.eval(), SHAPE))
    one, other = (
        finetune(pair[0], images, replace(TUNE, match=match), teacher=pair[1], device="cpu")
        for match in ("features", "logits")
    )
    assert same(one, other)


def test_without_a_teacher_the_labels_alone_count(images):
    tuned = [
        finetune(made(), images, replace(STILL, match=match), device="cpu")
        for match in ("features", "logits")
    ]
    assert same(*tuned)
    with torch.no_grad():
        module = load_into(ResNet(1, num_classes=4), made().weights).train()
        logits = module((images.pixels.float() / 255 - 0.5) / 0.25)
    loss = float(F.cross_entropy(logits, images.labels))
    assert tuned[0].notes["epochs"][0]["loss"] == pytest.approx(loss, rel=1e-4)


def test_gates_can_be_learned_by_features():
    """Before any block is gone they are those of the teacher but for batch norm's statistics."""
    recipe = GateRecipe(warmup=2, steps=2, batch_size=16, match="features", blocks=1)
    images = bright_images(32, SHAPE)
    learned = learn_gates(made(), images, recipe, device="cpu")
    assert len(learned.path.removals) == 1
    bare = learn_gates(made(), unlabelled(images), recipe, device="cpu")
    assert learned.path.records == bare.path.records
    other = learn_gates(made(), images, replace(recipe, match="logits"), device="cpu")
    assert learned.path.records != other.path.records
