"""`amp` says in which precision a network learns, in every verb and command that learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import bright_images, data_in, drawn, files_in, same, stopping, write_folder
from torch import nn

from gatepruner.compression.compress import compress
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import DeviceError
from gatepruner.files.checkpoints import load, save
from gatepruner.files.storage import load_state
from gatepruner.learning import learner
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe
from gatepruner.learning.training import finetune, train
from gatepruner.measuring.accuracy import accuracy
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.device import check_amp, learns_fast
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.goals import Goal
from gatepruner.pruning.ranking import rank

SHAPE = (3, 8, 8)
DATA = bright_images(32, SHAPE)
HELD = bright_images(16, SHAPE, seed=9)
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
GATING = GateRecipe(warmup=1, steps=1, batch_size=16, blocks=1)
TUNING = replace(FINE_TUNING, epochs=1, batch_size=16)
TRAINING = Recipe(epochs=1, batch_size=16)
NAMED = {torch.bfloat16: "bf16", torch.float32: "float32"}


def whole(name: str = "resnet8") -> Checkpoint:
    network = Network.named(name, num_classes=4, input_shape=SHAPE)
    return Checkpoint(network, drawn(network.initial_weights(0)), NOTES)


VERBS: dict[str, Callable[[str], Checkpoint]] = {
    "gate": lambda amp: learn_gates(whole(), DATA, replace(GATING, amp=amp), device="cpu"),
    "train": lambda amp: train(
        whole().network, DATA, replace(TRAINING, amp=amp), validation=HELD, device="cpu"
    ),
    "tune": lambda amp: finetune(
        whole(), DATA, replace(TUNING, amp=amp), teacher=whole(), device="cpu"
    ),
}


@pytest.fixture
def seen(monkeypatch) -> set[tuple[bool, str]]:
    """In what convolutions compute, each with whether they are learned from."""
    seen: set[tuple[bool, str]] = set()
    forward = nn.Conv2d.forward

    def watched(self, images):
        result = forward(self, images)
        if result.device.type != "meta":  # on which shapes are found out
            seen.add((torch.is_grad_enabled(), NAMED[result.dtype]))
        return result

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    return seen


@pytest.mark.parametrize(("amp", "computed"), [("off", "float32"), ("bf16", "bf16")])
@pytest.mark.parametrize("verb", VERBS)
def test_a_network_learns_in_what_the_recipe_says(seen, verb, amp, computed):
    """So does its teacher answer; accuracy is measured in float32."""
    learned = VERBS[verb](amp)
    assert seen == {(True, computed), (False, "float32" if verb == "train" else computed)}
    assert {tensor.dtype for tensor in learned.weights.values()} <= {torch.float32, torch.int64}
    (*_, last) = learned.notes.get("history", [learned.notes])
    assert learned.notes.get("precision", last.get("precision")) == computed
    assert learned.notes.get("recipe", last.get("recipe"))["amp"] == amp


@pytest.mark.parametrize(("gains", "amp"), [(False, "off"), (True, "bf16")])
def test_auto_is_one_of_the_two(monkeypatch, gains, amp):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: gains, raising=False)
    monkeypatch.setattr(
        learner, "learns_fast", lambda device, _, amp: learns_fast(device, 2e7, amp)
    )
    for learn in VERBS.values():
        assert same(learn("auto"), learn(amp))


@pytest.mark.parametrize("name", ["meta", "cuda"])
def test_bf16_is_refused_where_pytorch_raises_an_error_or_computes_in_float32(name):
    device = torch.device(name)
    if torch.cuda.is_available() and name == "cuda":
        pytest.skip("this machine has CUDA")
    for amp in ("auto", "off"):
        check_amp(device, amp)
    told = f"cannot learn in bf16 on {name}: .*; pass amp='off'$"
    with pytest.raises(DeviceError, match=told):
        check_amp(device, "bf16")


@pytest.mark.parametrize("verb", ["gate", "tune"])
def test_a_run_goes_on_in_another_precision(every_step, verb):
    state = every_step

    def learn(amp: str, **options) -> Checkpoint:
        how = {"device": "cpu", "state": state, **options}
        if verb == "gate":
            return learn_gates(whole(), DATA, replace(GATING, warmup=3, amp=amp), **how)
        return finetune(whole(), DATA, replace(TUNING, epochs=2, amp=amp), **how)

    with pytest.raises(KeyboardInterrupt):
        learn("off", watch=stopping("interrupted", 2))
    assert "amp" not in load_state(state)["identity"]["recipe"]  # as in states without the field
    kept = state.read_bytes()
    resumed = learn("bf16", resume=True)
    state.write_bytes(kept)
    other = learn("off", resume=True)
    ended = [one.path.removals[0].weights if one.path else one.weights for one in (resumed, other)]
    assert any(not torch.equal(tensor, ended[1][key]) for key, tensor in ended[0].items())


# ---------------------------------------------------------------------------------------- compress


def test_every_step_of_a_compression_learns_in_it(seen, tmp_path):
    """Gates, both recipes that are tried, and fine-tuning; resumed, it may be another one."""
    gating, tuning = replace(GATING, blocks=None, amp="bf16"), replace(TUNING, amp="bf16")
    recipe = CompressionRecipe(gating, tuning, recalibrate=0, trial=1)

    def compressed(recipe: CompressionRecipe, **options):
        how = {"test": HELD, "held_out": HELD, "device": "cpu", "folder": tmp_path / "kept"}
        return compress(whole(), DATA, Goal("blocks", 1), recipe, **{**how, **options})

    done = compressed(recipe)
    assert {computed for learning, computed in seen if learning} == {"bf16"}
    assert done.configuration["gates, amp"] == done.configuration["fine-tuning, amp"] == "bf16"
    with pytest.raises(DeviceError, match="cannot learn in bf16 on meta"):
        compressed(replace(recipe, gating=GATING), device=torch.device("meta"))
    off = replace(recipe, gating=replace(gating, amp="off"), tuning=replace(tuning, amp="off"))
    assert same(compressed(off, resume=True).checkpoint, done.checkpoint)


# ------------------------------------------------------------------------------------ command line


@pytest.fixture
def folder(tmp_path) -> Path:
    save(whole(), tmp_path / "whole.pt")
    write_folder(tmp_path / "images", HELD)
    write_folder(tmp_path / "images", bright_images(40, SHAPE, seed=8), "train")
    return tmp_path


def commands(folder: Path) -> dict[str, tuple]:
    data, batch = ("--data", data_in(folder)), ("--batch-size", 16)
    tuned = ("--epochs", 1, *batch, *data, "-o", folder / "done.pt")
    steps = ("--warmup", 1, "--steps", 1, "--blocks", 1)
    gate_steps = ("--gate-warmup", 1, "--gate-steps", 1, "--recalibrate", 0)
    return {
        "gate": ("gate", folder / "whole.pt", *steps, *batch, *data, "-o", folder / "done.pt"),
        "train": ("train", "resnet8", "--input-size", 8, *tuned),
        "finetune": ("finetune", folder / "whole.pt", *tuned),
        "compress": ("compress", folder / "whole.pt", "--drop", 1, *gate_steps, *tuned),
    }


@pytest.mark.parametrize("name", ["gate", "train", "finetune", "compress"])
def test_a_command_learns_in_what_it_is_told(run, folder, seen, name):
    assert run(*commands(folder)[name], "--device", "cpu", "--amp", "bf16").code == 0
    assert {computed for learning, computed in seen if learning} == {"bf16"}
    notes = load(folder / "done.pt").notes
    recipes = [notes.get("recipe"), *(one.get("recipe") for one in notes.get("history", ()))]
    assert {recipe["amp"] for recipe in recipes if recipe} == {"bf16"}


@pytest.mark.parametrize("name", ["gate", "train", "finetune", "compress"])
def test_bf16_on_a_device_without_it_is_refused_in_a_line(run, folder, monkeypatch, name):
    def refusing(kind, dtype):
        raise RuntimeError("Current Device does not support bfloat16.")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "autocast", refusing)
    before = files_in(folder)
    refused = run(*commands(folder)[name], "--device", "mps", "--amp", "bf16")
    assert (refused.code, refused.out, files_in(folder)) == (1, "", before)
    (line,) = refused.err.splitlines()
    assert line.startswith("error: cannot learn in bf16 on mps: ")
    assert line.endswith("; pass --amp off")


def told(one: Checkpoint, dtype: torch.dtype) -> list[str]:
    """What every way of computing with a network tells."""
    found = [
        accuracy(one, HELD, device="cpu"),
        agreement(one, whole(), HELD, device="cpu"),
        recalibrate(one, DATA, device="cpu").weights["bn1.running_mean"].to(dtype),
        *(rank(one, name, images=DATA, device="cpu").scores for name in ("taylor", "cosine")),
        learn_gates(one, DATA, replace(GATING, amp="off"), device="cpu").path.records,
        finetune(one, DATA, replace(TUNING, amp="off"), device="cpu").weights["conv1.weight"],
        list(sweep(one, HELD, rank(one, "depth"), device="cpu")),
    ]
    return [str(each) for each in found]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_compute_in_single_precision_whatever_that_of_their_weights(dtype):
    single = whole()
    other = {k: v.to(dtype) if v.is_floating_point() else v for k, v in single.weights.items()}
    rounded = {key: tensor.to(single.weights[key].dtype) for key, tensor in other.items()}
    kept = replace(single, weights=other)
    assert told(kept, dtype) == told(replace(single, weights=rounded), dtype)
    assert kept.weights["conv1.weight"].dtype == dtype
