"""A run repeats bit for bit, and is resumed as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import KilledError, bright_images, random_images, stopping, write_folder

from gatepruner.cli import main
from gatepruner.errors import DataError, TrainingError
from gatepruner.files import locks
from gatepruner.files.checkpoints import load, save
from gatepruner.files.storage import load_state
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import NORMALIZATIONS
from gatepruner.images.task import CLASSIFICATION, distance
from gatepruner.images.views import augmented
from gatepruner.learning import learner
from gatepruner.learning.training import FINE_TUNING, Recipe, finetune, train
from gatepruner.measuring.accuracy import accuracy
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import NO_PATH

GREY = (1, 8, 8)
FAST = Recipe(epochs=2, batch_size=16, gate_penalty=0.01)
DROPOUT = "gated-wrn-10-1,dropout=0.3,num_classes=4"


def network(name: str = "gated-residual-fc6,width=8,num_classes=4") -> Network:
    return Network.named(name, input_shape=GREY if "-fc" in name else (3, 8, 8))


def images_for(net: Network, count: int = 70):
    return bright_images(count, net.base.input_shape)


def run(recipe: Recipe = FAST, net: Network | None = None, **options) -> Checkpoint:
    net = net or network()
    grey = NORMALIZATIONS["mnist" if net.base.input_shape[0] == 1 else "cifar10"]
    options = {"normalization": grey, "device": "cpu", **options}
    return train(net, images_for(net), recipe, **options)


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    assert one.weights.keys() == other.weights.keys()
    return all(torch.equal(it, other.weights[key]) for key, it in one.weights.items())


def gates(checkpoint: Checkpoint) -> torch.Tensor:
    net = checkpoint.network
    return torch.stack([checkpoint.weights[net.gate_key(name)] for name in net.edits.gated])


# --------------------------------------------------------------------------------- repeated runs


@pytest.mark.parametrize("name", ["gated-residual-fc6,width=8,num_classes=4", DROPOUT])
def test_the_seed_alone_says_what_a_run_ends_with(name):
    first = run(net=network(name))
    torch.manual_seed(99)
    assert same_weights(run(net=network(name)), first)
    assert not same_weights(run(replace(FAST, seed=1), network(name)), first)


@pytest.mark.parametrize("name", [DROPOUT])
def test_dropout_and_augmentation_draw_from_the_seed(name):
    plain = network(name.replace("0.3", "0.0"))
    without = run(replace(FAST, augment=False), plain)
    assert not same_weights(run(FAST, plain), without)
    dropped = run(replace(FAST, augment=False), network(name))
    assert dropped.weights.keys() == without.weights.keys()
    assert not torch.equal(dropped.weights["conv1.weight"], without.weights["conv1.weight"])


def test_training_leaves_the_random_numbers_and_the_images_of_the_caller_alone():
    images = images_for(network())
    pixels, state = images.pixels.clone(), torch.get_rng_state()
    train(network(), images, FAST, normalization=NORMALIZATIONS["mnist"], device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images.pixels, pixels)


def test_a_learnable_set_is_learned():
    recipe = replace(FAST, epochs=12, gate_penalty=0.0, augment=False)
    learned = run(recipe)
    unseen = bright_images(60, GREY, seed=77)
    assert accuracy(learned, unseen).accuracy > 0.9
    losses = [record["loss"] for record in learned.notes["epochs"]]
    assert losses[-1] < losses[0] / 2


# ------------------------------------------------------------------------------ interrupted runs


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    """What a run ends with that nothing stops."""
    net = network(DROPOUT)
    return run(net=net, validation=images_for(net, 8))


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("kind", ["interrupted", "killed"])
def test_a_run_that_stopped_at_any_step_is_resumed_to_the_same_weights(
    whole, every_step, stop, kind
):
    net = network(DROPOUT)
    held_out = images_for(net, 8)
    with pytest.raises((KeyboardInterrupt, KilledError)):
        run(net=net, validation=held_out, state=every_step, watch=stopping(kind, stop))
    assert every_step.exists()
    steps: list[int] = []
    again = run(
        net=net,
        validation=held_out,
        state=every_step,
        resume=True,
        watch=lambda moment: steps.append(moment.step),
    )
    assert steps[0] == (stop + 1 if kind == "interrupted" else stop)
    assert same_weights(again, whole)
    finished = run(net=net, validation=held_out, state=every_step, resume=True)
    assert same_weights(finished, whole)  # the state holds the whole run until it is removed
    ours, theirs = (
        [{**record, "seconds": 0} for record in it.notes["epochs"]] for it in (again, whole)
    )
    assert ours == theirs


@pytest.mark.parametrize("at", ["loss", "optimizer"])
@pytest.mark.parametrize("stop", [1, 2, 4, 6])  # 4 is the last step of an epoch
def test_a_signal_in_the_middle_of_a_step_does_not_change_what_a_run_ends_with(
    tmp_path, monkeypatch, whole, at, stop
):
    """Ctrl-C comes when it comes, not between two steps."""
    net, state = network(DROPOUT), tmp_path / "run.state"
    calls = []

    def interrupting(function):
        def call(*args, **options):
            result = function(*args, **options)
            calls.append(at)
            if len(calls) == stop:
                signal.raise_signal(signal.SIGINT)
            return result

        return call

    with monkeypatch.context() as patch:
        if at == "loss":
            task = replace(CLASSIFICATION, loss=interrupting(CLASSIFICATION.loss))
            patch.setattr(Examples, "task", task)
        else:
            patch.setattr(torch.optim.SGD, "step", interrupting(torch.optim.SGD.step))
        with pytest.raises(KeyboardInterrupt):
            run(net=net, state=state)
    resumed = run(net=net, state=state, resume=True)
    assert same_weights(resumed, whole)
    assert [record["epoch"] for record in resumed.notes["epochs"]] == [1, 2]


# The command line with the state on the disk after every epoch of four steps. It stops where it is
# told to, says so, and waits.
DRIVER = """
import sys, time
from pathlib import Path
import torch
from gatepruner.learning import running
from gatepruner.cli import main

running.SAVE_EVERY = -1.0
place, here, on = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

def waiting(function, call):
    calls = []
    def wait(*args, **options):
        calls.append(call)
        if len(calls) == call:
            here.touch()
            while not on.exists():
                time.sleep(0.005)
        return function(*args, **options)
    return wait

if place == "in a step":
    torch.optim.SGD.step = waiting(torch.optim.SGD.step, 7)
else:
    torch.save = waiting(torch.save, 2)
sys.argv = ["gatepruner", *sys.argv[4:]]
main()
"""
PATIENCE = 300  # seconds; a machine may have much else to do


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, bright_images(48, (3, 8, 8)), "train")
    arch = "gated-wrn-10-1,dropout=0.3"
    rest = ("--epochs", "3", "--batch-size", "12", "--gate-penalty", "0.01", "--seed", "3")
    rest += ("--num-classes", "4", "--input-size", "8", "--device", "cpu")
    return ["train", arch, "--data", f"imagefolder:{folder}", *rest]


def here_and_now(*command: str) -> None:
    """The command line in this process, to a good end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gatepruner", *command])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code


def ended_by(sent: signal.Signals, place: str, folder: Path, command: list[str]) -> tuple[int, str]:
    """A process of its own that gets a signal at one place; its exit status, and what it said."""
    here, on = folder / "here", folder / "on"
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, place, str(here), str(on), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not here.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        assert here.exists(), process.poll()
        process.send_signal(sent)
        if sent != signal.SIGKILL:
            on.touch()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory) -> Checkpoint:
    output = tmp_path_factory.mktemp("whole") / "whole.pt"
    here_and_now(*command, "-o", str(output))
    return load(output)


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        (signal.SIGKILL, "in a step"),
        (signal.SIGKILL, "in a save"),
        (signal.SIGINT, "in a step"),
    ],
    ids=lambda it: getattr(it, "name", it),
)
def test_a_killed_command_is_resumed_to_the_same_weights(
    command, uninterrupted, tmp_path, sent, place
):
    output = tmp_path / "it.pt"
    state, history = tmp_path / "it.pt.state", tmp_path / "it.pt.history.jsonl"
    command = [*command, "-o", str(output)]
    code, errors = ended_by(sent, place, tmp_path, command)
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 130), errors
    assert state.exists()
    assert not output.exists()
    hidden = [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    left = [name for name in hidden if not name.endswith(locks.SUFFIX)]
    assert bool(left) == (place == "in a save")
    if sent == signal.SIGINT:
        assert load_state(state)["done"] == 7
        assert f"{state} is kept" in errors
        assert "--resume" in errors
        assert "Traceback" not in errors
    here_and_now(*command, "--resume")
    assert not state.exists()
    assert same_weights(load(output), uninterrupted)
    records = [json.loads(line) for line in history.read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


# ------------------------------------------------------------------------------- what is refused


def stopped(state: Path) -> None:
    """A run whose state is left behind."""

    def watch(moment) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(state=state, watch=watch)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"recipe": replace(FAST, epochs=3)}, "epochs was 2, is now 3"),
        ({"recipe": replace(FAST, seed=1)}, "seed was 0, is now 1"),
        ({"net": network("gated-residual-fc6,width=9,num_classes=4")}, "arguments|width was"),
        ({"normalization": NORMALIZATIONS["fashion-mnist"]}, "mean was .0.1307., is now"),
        (
            {"recipe": replace(FAST, seed=1), "normalization": NORMALIZATIONS["fashion-mnist"]},
            "seed was 0, is now 1; mean was",
        ),
    ],
)
def test_the_state_of_another_run_is_refused_and_kept(tmp_path, options, named):
    state = tmp_path / "run.state"
    stopped(state)
    content = state.read_bytes()
    with pytest.raises(TrainingError, match=named):
        run(**options, state=state, resume=True)
    assert state.read_bytes() == content


def test_the_state_of_a_run_on_other_images_is_refused(tmp_path):
    state = tmp_path / "run.state"
    stopped(state)
    images, grey = images_for(network(), 69), NORMALIZATIONS["mnist"]
    with pytest.raises(TrainingError, match=r"another run \(images was"):
        train(network(), images, FAST, normalization=grey, state=state, resume=True)


def test_the_state_of_a_run_on_as_many_other_images_is_refused(tmp_path):
    state = tmp_path / "run.state"
    stopped(state)
    images, grey = images_for(network(), 70), NORMALIZATIONS["mnist"]
    other = replace(images, pixels=images.pixels.flip(0))
    assert other.source == images.source
    with pytest.raises(TrainingError, match=r"another run \(images was"):
        train(network(), other, FAST, normalization=grey, state=state, resume=True)
    train(network(), images, FAST, normalization=grey, state=state, resume=True)


def test_a_run_without_a_state_cannot_be_resumed(tmp_path):
    with pytest.raises(TrainingError, match=r"no run to resume: .*run\.state does not exist"):
        run(state=tmp_path / "run.state", resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        run(resume=True)


@pytest.mark.parametrize(
    "rates", [{"learning_rate": 1e25}, {"learning_rate": 1e25, "optimizer": "adam"}]
)
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rates(rates):
    recipe = replace(FAST, **rates)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch") as told:
        run(recipe)
    assert str(recipe.learning_rate) in str(told.value)
    assert str(recipe.gate_learning_rate) in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion': expected sgd, adam, adamw"),
        ({"schedule": "linear"}, "unknown schedule 'linear': expected onecycle, step, cosine"),
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"match": "answers"}, "unknown match 'answers': expected features, logits, both"),
        ({"batch_size": 0}, "batch_size is 0: expected at least"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"distillation": -0.1}, "distillation is -0.1: expected a number from 0 to 1"),
        ({"distillation": 1.1}, "distillation is 1.1: expected a number from 0 to 1"),
        ({"initial_gate": 0.0}, "initial_gate is 0: expected a number above 0"),
        ({"initial_gate": -1.0}, "initial_gate is -1: expected a number above 0"),
        ({"temperature": 0.0}, "temperature is 0: expected a number above 0"),
        ({"gate_learning_rate": -0.1}, "gate_learning_rate is -0.1"),
        ({"gate_penalty": math.nan}, "gate_penalty is nan"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(TrainingError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [(50_000, 128, 10), (5120, 128, 10), (1280, 128, 40), (500, 64, 58), (40, 16, 200)],
)
def test_few_images_are_passed_over_until_400_steps_are_taken(images, batch, expected):
    recipe = Recipe(batch_size=batch)
    assert recipe.passes(images) == expected
    assert replace(recipe, epochs=3).passes(images) == 3


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="made up has images"):
        train(network(), bright_images(40, (1, 9, 9)), FAST)
    with pytest.raises(DataError, match="made up has 5 classes"):
        train(network(), random_images(40, GREY, 5), FAST)
    grey = NORMALIZATIONS["mnist"]
    held_out = random_images(40, GREY, 5)
    with pytest.raises(DataError, match="made up has 5 classes"):
        train(network(), images_for(network()), FAST, validation=held_out, normalization=grey)
    with pytest.raises(TrainingError, match="made up has 15 images, fewer than one batch of 16"):
        train(network(), bright_images(15, GREY), FAST)


def test_a_batch_of_one_image_is_refused_where_it_cannot_be_normalised():
    with pytest.raises(TrainingError, match="batch"):
        run(replace(FAST, batch_size=1))


# ----------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weight_decay_leaves_gates_alone(optimizer):
    """With a head of zeros no gradient comes to the gates: only decay could move them."""
    recipe = replace(
        FAST,
        optimizer=optimizer,
        weight_decay=0.9,
        learning_rate=1e-8,
        gate_learning_rate=10.0,
        gate_penalty=0.0,
    )
    net = network()

    class Frozen(Network):
        def initial_weights(self, seed: int = 0, gate: float = 1.0):
            weights = super().initial_weights(seed, gate)
            return {**weights, "head.weight": torch.zeros_like(weights["head.weight"])}

    still = run(replace(recipe, learning_rate=1e-30), Frozen(net.base, net.edits))
    assert gates(still).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    decayed = run(replace(recipe, learning_rate=0.01, gate_learning_rate=0.0))
    light = run(replace(recipe, learning_rate=0.01, gate_learning_rate=0.0, weight_decay=0.0))
    assert gates(decayed).tolist() == [1.0] * 3
    size = [float(it.weights["stem.weight"].norm()) for it in (decayed, light)]
    assert size[0] < 0.99 * size[1]


def test_gates_are_learned_from_where_they_start():
    trained = run(replace(FAST, gate_learning_rate=0.0, initial_gate=0.25))
    assert gates(trained).tolist() == [0.25] * 3
    assert trained.notes["recipe"]["initial_gate"] == 0.25


def test_gates_move_at_their_own_learning_rate():
    moved = []
    for rate in (0.0, 1e-4, 1e-1):
        trained = run(replace(FAST, gate_learning_rate=rate, gate_penalty=0.0))
        moved.append(float((gates(trained) - 1).abs().max()))
    assert moved[0] == 0
    assert 0 < moved[1] < 0.01 < moved[2]


def test_the_penalty_lowers_the_mean_gate():
    means = [
        run(replace(FAST, epochs=4, gate_penalty=penalty)).notes["epochs"][-1]["gate"]
        for penalty in (0.0, 0.05, 1.0)
    ]
    assert means[0] > means[1] > means[2]


def test_a_network_without_gates_has_no_mean_gate():
    notes = run(net=network("residual-fc6,width=8,num_classes=4")).notes
    assert [record["gate"] for record in notes["epochs"]] == [None, None]


# ------------------------------------------------------------------- recipes, notes and progress


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["onecycle", "step", "cosine"])
def test_every_optimizer_runs_with_every_schedule(optimizer, schedule):
    recipe = replace(FAST, epochs=8, optimizer=optimizer, schedule=schedule)
    rates: list[float] = []
    trained = run(recipe, watch=lambda moment: rates.append(moment.learning_rate))
    assert trained.notes["recipe"]["optimizer"] == optimizer
    assert trained.notes["epochs"][-1]["loss"] < trained.notes["epochs"][0]["loss"]
    peak = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}[optimizer]
    if schedule == "step":
        assert rates == pytest.approx([peak] * 3 + [peak / 10] * 2 + [peak / 100] * 3)
    elif schedule == "cosine":
        cosine = [peak * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(1, 9)]
        assert rates == pytest.approx(cosine, abs=1e-6 * peak)
    else:
        assert rates[-1] < peak / 1e3
        assert 0.9 * peak < max(rates) <= peak
        assert rates.index(max(rates)) not in (0, 7)


def test_the_history_has_a_record_for_every_epoch(tmp_path):
    net = network()
    held_out = bright_images(20, GREY, seed=6)
    ends = []
    trained = run(
        replace(FAST, epochs=3),
        validation=held_out,
        watch=lambda moment: ends.append(moment) if moment.ends_epoch else None,
    )
    records = trained.notes["epochs"]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records == [moment.record() for moment in ends]
    assert set(records[0]) == {
        *("epoch", "loss", "accuracy", "gate", "learning_rate", "seconds"),
        *("validation", "agreement", "divergence", "distance"),
    }
    assert records[-1]["validation"] == accuracy(trained, held_out).accuracy
    assert records[-1]["gate"] == pytest.approx(float(gates(trained).relu().mean()))
    assert [moment.step for moment in ends] == [4, 8, 12]
    assert {moment.steps for moment in ends} == {12}
    assert net.edits.gated == trained.network.edits.gated


def test_what_was_trained_says_how_and_can_be_saved(tmp_path):
    trained = run()
    again = load(save(trained, tmp_path / "it.safetensors"))
    assert same_weights(again, trained)
    notes = json.loads(json.dumps(dict(again.notes), allow_nan=False))
    assert notes["normalize"] == {"mean": [0.1307], "std": [0.3081]}
    assert notes["classes"] == [f"class{index}" for index in range(4)]
    assert Recipe(**notes["recipe"]) == replace(FAST, learning_rate=0.1)
    assert notes["device"] == "cpu"
    assert notes["torch"] == torch.__version__
    assert trained.network == network()


def test_the_training_sets_own_normalisation_is_the_default():
    images = replace(bright_images(40, (1, 8, 8)), source="fashion-mnist:somewhere train")
    trained = train(network(), images, FAST, device="cpu")
    assert trained.notes["normalize"] == {"mean": [0.286], "std": [0.353]}


def test_what_is_trained_on_is_what_is_evaluated():
    """The accuracy of an epoch at a learning rate of nothing is that of the first weights."""
    net = network("gated-residual-fc6,width=8,num_classes=4")
    images = images_for(net, 64)
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=1e-30, augment=False, weight_decay=0.0)
    trained = train(net, images, recipe, normalization=NORMALIZATIONS["mnist"], device="cpu")
    module = net.build(net.initial_weights(0)).train()
    logits = module(NORMALIZATIONS["mnist"](images.pixels)).detach()
    record = trained.notes["epochs"][0]
    assert record["accuracy"] == pytest.approx((logits.argmax(1) == images.labels).double().mean())
    assert record["loss"] == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-4)


# ----------------------------------------------------------------------------------- augmentation


def moved(image: torch.Tensor, down: int, right: int, mirror: bool) -> torch.Tensor:
    """One image, pixel by pixel: what it shows `down` lower and `right` further right."""
    channels, height, width = image.shape
    source, result = image.tolist(), torch.zeros_like(image).tolist()
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + down, (width - 1 - x if mirror else x) + right
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[channel][y][x] = source[channel][from_y][from_x]
    return torch.tensor(result, dtype=image.dtype)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 16), (3, 8, 16), (1, 6, 6)])
def test_augmentation_shifts_by_an_eighth_and_mirrors_colour_alone(shape):
    pixels = random_images(24, shape).pixels
    found = augmented(pixels)
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    reach, seen = shape[2] // 8, set()
    shifts = range(-reach, reach + 1)
    for image, result in zip(pixels, found, strict=True):
        fits = [
            (down, right, mirror)
            for down in shifts
            for right in shifts
            for mirror in (False, True)
            if torch.equal(moved(image, down, right, mirror), result)
        ]
        assert len(fits) == 1, "no shift, or not one alone, makes this image"
        seen.add(fits[0])
    assert {mirror for *_, mirror in seen} == ({False, True} if shape[0] == 3 else {False})
    assert {down for down, *_ in seen} == set(shifts)
    assert {right for _, right, _ in seen} == set(shifts)


def test_augmentation_is_drawn_anew_for_every_step_and_repeats_with_the_seed():
    pixels = random_images(20, (3, 16, 16)).pixels
    torch.manual_seed(1)
    first, second = augmented(pixels), augmented(pixels)
    torch.manual_seed(1)
    assert torch.equal(augmented(pixels), first)
    assert not torch.equal(first, second)


def test_a_state_file_is_replaced_whole(tmp_path, every_step):
    """Every state that was ever on the disk goes on to the same weights."""
    copies: list[Path] = []

    def watch(moment) -> None:
        if every_step.exists():
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copy(every_step, copies[-1])

    whole = run(state=every_step, watch=watch)
    assert len(copies) == 8
    for copy in copies[::3]:
        assert same_weights(run(state=copy, resume=True), whole)


# ------------------------------------------------------------------------------ training further

TUNE = replace(FINE_TUNING, epochs=2, batch_size=16)
LOW = 0.005  # its learning rate
LOGITS = replace(TUNE, match="logits")
GREY_NOTES = {"normalize": {"mean": [0.5], "std": [0.25]}}


def begun(seed: int = 5, name: str = "gated-residual-fc6,width=8,num_classes=4") -> Checkpoint:
    """A network that was trained before."""
    net = network(name)
    return Checkpoint(net, net.initial_weights(seed), GREY_NOTES)


def tuned(recipe: Recipe = TUNE, start: Checkpoint | None = None, images=None, **options):
    start = start or begun()
    images = images or images_for(start.network)
    return finetune(start, images, recipe, **{"device": "cpu", **options})


def test_further_training_starts_from_the_weights_that_are_there():
    start = begun()
    before = {key: it.clone() for key, it in start.weights.items()}
    still = replace(TUNE, epochs=1, learning_rate=1e-30, gate_learning_rate=0.0)
    same = tuned(still, start)
    for key, tensor in start.weights.items():
        assert torch.equal(tensor, before[key])
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(same.weights[key], tensor, rtol=0, atol=1e-20)
    assert not same_weights(tuned(start=start), start)
    assert not same_weights(tuned(start=begun(6)), tuned(start=start))
    assert same.network == start.network


def test_further_training_says_what_it_did_and_keeps_what_was_noted():
    start = begun()
    start = replace(start, notes={**start.notes, "mine": 1, "history": [{"removed": ["a"]}]})
    done = tuned(start=start)
    assert done.notes["mine"] == 1
    expected = [{"removed": ["a"]}, {"finetuned": "made up", "images": 70}]
    assert done.notes["history"] == expected
    assert done.notes["normalize"] == GREY_NOTES["normalize"]
    assert Recipe(**done.notes["recipe"]) == replace(TUNE, learning_rate=LOW)
    assert done.notes["classes"] == [f"class{index}" for index in range(4)]
    assert len(done.notes["epochs"]) == 2
    assert done.path == NO_PATH


def test_the_normalisation_of_the_checkpoint_is_used():
    images = replace(images_for(network()), source="mnist:somewhere train")
    assert tuned(images=images).notes["normalize"] == GREY_NOTES["normalize"]
    given = tuned(images=images, normalization=NORMALIZATIONS["mnist"])
    assert given.notes["normalize"] == {"mean": [0.1307], "std": [0.3081]}
    assert not same_weights(given, tuned(images=images))


@pytest.mark.parametrize(
    ("batch_size", "optimizer", "given", "expected"),
    [
        (64, "sgd", None, 0.02),
        (256, "sgd", None, 0.02),
        (32, "sgd", None, 0.01),
        (2, "sgd", None, 0.02 / 32),
        (8, "sgd", 0.02, 0.02),
        (8, "adam", None, 1e-4),
    ],
)
def test_rate_of_fine_tuning_falls_with_small_batches(batch_size, optimizer, given, expected):
    chosen = {"batch_size": batch_size, "optimizer": optimizer, "learning_rate": given}
    assert replace(TUNE, **chosen).peak(fresh=False) == pytest.approx(expected)
    fresh = {"sgd": 0.1, "adam": 1e-3}[optimizer]
    assert replace(TUNE, **chosen).peak(fresh=True) == pytest.approx(given or fresh)


def test_the_cosine_ends_at_nothing_for_weights_and_gates():
    steps: list[list[float]] = []
    step = torch.optim.SGD.step

    def spy(self, *rest):
        steps.append([group["lr"] for group in self.param_groups])
        return step(self, *rest)

    ends: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        tuned(watch=lambda moment: ends.append(moment.learning_rate))
    assert ends[-1] == pytest.approx(0, abs=1e-12)
    assert steps[0] == [LOW, 0.001]
    cosine = [(1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)]
    assert [rate for rate, _ in steps] == pytest.approx([LOW * it for it in cosine])
    assert [rate for _, rate in steps] == pytest.approx([0.001 * it for it in cosine])


def test_a_teacher_alone_is_learned_from_without_a_look_at_labels():
    images = images_for(network())
    other = replace(images, labels=images.labels.flip(0))
    alone = replace(LOGITS, distillation=1.0)
    one = tuned(alone, images=images, teacher=begun(9))
    assert same_weights(tuned(alone, images=other, teacher=begun(9)), one)
    assert not same_weights(tuned(alone, images=images, teacher=begun(8)), one)
    shared = tuned(LOGITS, teacher=begun(9))
    assert not same_weights(tuned(LOGITS, images=other, teacher=begun(9)), shared)


def test_without_a_share_a_teacher_changes_nothing():
    none, alone = replace(LOGITS, distillation=0.0), tuned()
    for key, tensor in tuned(none, teacher=begun(9)).weights.items():
        torch.testing.assert_close(tensor, alone.weights[key], rtol=1e-5, atol=1e-6)
    assert same_weights(tuned(replace(TUNE, distillation=0.3)), alone)  # no teacher, no share


def test_the_loss_is_shared_between_teacher_and_labels():
    """Against the two losses of the first step, computed apart."""
    start, teacher, images = begun(), begun(9), images_for(network(), 16)
    recipe = replace(LOGITS, epochs=1, augment=False, distillation=0.75, temperature=3.0)
    record = tuned(recipe, start, images, teacher=teacher).notes["epochs"][0]
    pixels = (images.pixels.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits, known = start.build().train()(pixels), teacher.build()(pixels)
    said, told = (logits / 3).log_softmax(1), (known / 3).log_softmax(1)
    soft = 9 * (told.exp() * (told - said)).sum(1).mean()
    hard = F.cross_entropy(logits, images.labels)
    assert record["loss"] == pytest.approx(float(0.75 * soft + 0.25 * hard), rel=1e-4)


def test_what_is_said_alike_is_no_distance_apart():
    logits = torch.randn(5, 7)
    assert float(distance(logits, logits + 3, 4.0)) == pytest.approx(0, abs=1e-6)
    assert float(distance(logits, -logits, 1.0)) > 0.1


def test_a_teacher_learns_nothing():
    teacher = begun(9)
    before = {key: it.clone() for key, it in teacher.weights.items()}
    tuned(teacher=teacher)
    assert all(torch.equal(it, before[key]) for key, it in teacher.weights.items())


def test_a_teacher_that_does_not_fit_is_refused():
    other = Network.named("residual-fc6,width=8", num_classes=5, input_shape=GREY)
    with pytest.raises(TrainingError, match=r"has 5 classes, .* has 4: choose a teacher with"):
        tuned(teacher=Checkpoint(other, other.initial_weights()))
    large = Network.named("residual-fc6,width=8", num_classes=4, input_shape=(1, 9, 9))
    with pytest.raises(TrainingError, match=r"takes images of \(1, 9, 9\).*choose a teacher that"):
        tuned(teacher=Checkpoint(large, large.initial_weights()))
    with pytest.raises(DataError, match="made up has 5 classes"):
        tuned(images=random_images(40, GREY, 5))
    with pytest.raises(DataError, match="made up has images of"):
        tuned(images=bright_images(40, (1, 9, 9)))


def tuned_further(**options) -> Checkpoint:
    options = {"normalization": NORMALIZATIONS["cifar10"], **options}
    return tuned(start=begun(name=DROPOUT), teacher=begun(9, DROPOUT), **options)


@pytest.fixture(scope="module")
def further() -> Checkpoint:
    """What further training ends with that nothing stops."""
    return tuned_further()


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8])
def test_further_training_is_resumed_to_the_same_weights(tmp_path, further, stop):
    state, step, calls = tmp_path / "it.state", torch.optim.SGD.step, []

    def stepping(self, *rest):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return step(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stepping)
        with pytest.raises(KeyboardInterrupt):
            tuned_further(state=state)
    assert load_state(state)["done"] == stop
    assert same_weights(tuned_further(state=state, resume=True), further)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Checkpoint, bytes]:
    """What a teacher has taught, and the state that was kept of it."""
    state = tmp_path_factory.mktemp("taught") / "it.state"
    return tuned(teacher=begun(9), state=state), state.read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"start": begun(6)}, "start was"),
        ({"teacher": begun(8)}, "teacher was"),
        ({"teacher": None}, "teacher was"),
        ({"recipe": replace(TUNE, learning_rate=0.03)}, f"learning_rate was {LOW}, is now 0.03"),
        ({"start": begun(6), "teacher": None}, "start was .*; teacher was"),
    ],
)
def test_the_state_of_another_start_is_refused_and_kept(tmp_path, taught, changed, named):
    state, (whole, content) = tmp_path / "it.state", taught
    state.write_bytes(content)
    with pytest.raises(TrainingError, match=named):
        tuned(**{"teacher": begun(9), "state": state, "resume": True, **changed})
    assert state.read_bytes() == content
    assert same_weights(tuned(teacher=begun(9), state=state, resume=True), whole)


def test_a_loss_that_is_no_number_leaves_the_state_that_was_kept(tmp_path, taught, every_step):
    """With the state on the disk after every step, the last one that is there is a good one."""
    distance, calls = learner.feature_distance, []

    def breaking(*features):
        calls.append(1)
        return distance(*features) * (math.nan if len(calls) >= 6 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "feature_distance", breaking)
        with pytest.raises(TrainingError, match="lower the learning rate"):
            tuned(teacher=begun(9), state=every_step)
    kept = load_state(every_step)
    assert kept["done"] == 5
    assert all(bool(it.isfinite().all()) for it in kept["tensors"].values())
    again = tuned(teacher=begun(9), state=every_step, resume=True)
    assert same_weights(again, taught[0])
