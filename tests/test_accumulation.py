"""A step of a batch that passes in parts is the step of the whole batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import bright_images, data_in, random_images, stopping, write_folder
from narrow_blocks import network_of
from test_processes import DATA, GATING, TRAINING, TUNING, near, normed, plain
from torch import nn

from gatepruner import processes
from gatepruner.errors import OutOfMemoryError, TrainingError, is_out_of_memory
from gatepruner.files.checkpoints import save
from gatepruner.learning.accumulation import averaged, parts_of
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.learning.training import finetune, train
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE = (3, 8, 8)
VERBS: dict[str, Callable[..., Checkpoint]] = {
    "gate": lambda most=None, **how: learn_gates(
        normed(), DATA, replace(GATING, micro_batch_size=most), device="cpu", **how
    ),
    "gate by labels": lambda most=None, **how: learn_gates(
        normed(), DATA, replace(GATING, labels=True, micro_batch_size=most), device="cpu", **how
    ),
    "tune": lambda most=None, **how: finetune(
        *(normed(), DATA, replace(TUNING, micro_batch_size=most)),
        **{"teacher": normed(5), "device": "cpu", **how},
    ),
    "tune by all": lambda most=None, **how: finetune(
        *(normed(), DATA, replace(TUNING, match="both", micro_batch_size=most)),
        **{"teacher": normed(5), "device": "cpu", **how},
    ),
    "train": lambda most=None, **how: train(
        *(normed().network.with_gates(), DATA, replace(TRAINING, micro_batch_size=most)),
        **{"validation": bright_images(11, SHAPE, seed=3), "device": "cpu", **how},
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_without_batch_norm_parts_learn_what_the_whole_batch_learns(verb):
    """Of 14 images in parts of 2, 3, 3, 3 and 3: random views, slopes and the order, too."""
    whole, parts = VERBS[verb](), VERBS[verb](3)
    near(plain(parts), plain(whole))
    for one, other in zip(parts.path.removals, whole.path.removals, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-3)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    for one, other in zip(
        parts.notes.get("epochs", ()), whole.notes.get("epochs", ()), strict=True
    ):
        for key in ("loss", "accuracy"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_the_slopes_of_channels_are_those_of_the_whole_batch():
    recipe = GateRecipe(units="both", multiple=2, warmup=2, steps=2, batch_size=14)
    images = random_images(28, (3, 6, 6), classes=5)
    whole, parts = (
        learn_gates(network_of("sigmoid"), images, replace(recipe, micro_batch_size=most))
        for most in (None, 4)
    )
    assert parts.path.blocks == whole.path.blocks
    for one, other in zip(parts.path.removals, whole.path.removals, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-3)


@pytest.mark.parametrize("verb", ["gate", "tune"])
def test_a_run_goes_on_in_other_parts(every_step, verb):
    with pytest.raises(KeyboardInterrupt):
        VERBS[verb](state=every_step, watch=stopping("interrupted", 2))
    near(plain(VERBS[verb](4, state=every_step, resume=True)), plain(VERBS[verb]()))


# --------------------------------------------------------------------------- parts, and batch norm


def test_parts_are_all_images_a_few_at_a_time(monkeypatch):
    """As many in every process, none of a single image, and none larger than it has to be."""
    for batch, count, most in itertools.product(range(2, 40), (1, 2, 3), (2, 3, 4, 7, 50, None)):
        if batch < 2 * count:
            continue
        every = []
        for rank in range(count):
            own = slice(batch * rank // count, batch * (rank + 1) // count)
            monkeypatch.setattr(processes, "count", lambda count=count: count)
            monkeypatch.setattr(processes, "slice_of", lambda number, own=own: own)
            every.append(parts_of(batch, most))
            images = torch.arange(own.stop - own.start)
            assert torch.cat([images[part] for part in every[-1]]).tolist() == images.tolist()
        sizes = [part.stop - part.start for parts in every for part in parts]
        assert len({len(parts) for parts in every}) == 1
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1 + (count > 1)
        if most is None:
            assert len(every[0]) == 1
        elif most >= 4:
            assert max(sizes) <= most


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_once_by_the_mean_of_the_parts(momentum):
    """As many processes would average them; `None` is the mean over all batches so far."""
    layer, images = nn.BatchNorm2d(3, momentum=momentum), torch.randn(10, 3, 4, 4)
    layer(torch.randn(5, 3, 4, 4))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    parts = parts_of(10, 4)
    for part in averaged(parts, list(layer.buffers())):
        layer(images[part]).sum().backward()
    share = 0.5 if momentum is None else momentum  # of the second of two batches
    each = [images[part].movedim(1, 0).flatten(1) for part in parts]
    means, vars_ = (
        torch.stack(s).mean(0) for s in ([e.mean(1) for e in each], [e.var(1) for e in each])
    )
    torch.testing.assert_close(layer.running_mean, (1 - share) * mean + share * means)
    torch.testing.assert_close(layer.running_var, (1 - share) * var + share * vars_)
    assert layer.num_batches_tracked == 2


# ------------------------------------------------------------------------------------ command line


@pytest.fixture
def folder(tmp_path) -> Path:
    network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
    notes = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    save(Checkpoint(network, network.initial_weights(), notes), tmp_path / "whole.pt")
    write_folder(tmp_path / "images", bright_images(24, SHAPE, seed=9))
    write_folder(tmp_path / "images", bright_images(60, SHAPE, seed=8), "train")
    return tmp_path


def commands(folder: Path) -> dict[str, tuple]:
    whole, done = folder / "whole.pt", ("-o", folder / "done.pt", "--hold-out", 12)
    shared = ("--data", data_in(folder), "--device", "cpu", "--batch-size", 16, *done)
    steps = ("--warmup", 1, "--steps", 1, "--blocks", 1)
    gate_steps = ("--gate-warmup", 1, "--gate-steps", 1, "--recalibrate", 0)
    return {
        "gate": ("gate", whole, *steps, *shared),
        "train": ("train", "resnet8", "--input-size", 8, "--epochs", 1, *shared),
        "finetune": ("finetune", whole, "--teacher", whole, "--epochs", 1, *shared),
        "compress": ("compress", whole, "--max-loss", 50, *gate_steps, "--epochs", 1, *shared),
    }


@pytest.fixture
def limited(monkeypatch) -> Callable[[int | None], list[int]]:
    """A device with memory for so many images at once; which numbers have passed."""
    passed: list[int] = []
    most: list[int | None] = [None]
    forward = nn.Conv2d.forward

    def passing(self, images):
        if images.device.type != "meta":  # on which shapes are found out
            passed.append(len(images))
            if most[0] is not None and len(images) > most[0]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, images)

    def limit(images: int | None) -> list[int]:
        most[0] = images
        return passed

    monkeypatch.setattr(nn.Conv2d, "forward", passing)
    return limit


@pytest.mark.parametrize("name", ["gate", "train", "finetune", "compress"])
def test_no_more_images_than_that_pass_at_once(run, folder, limited, name):
    """Whether they are learned from, answered by the teacher, or measured."""
    passed = limited(None)
    assert run(*commands(folder)[name], "--micro-batch-size", 4).code == 0
    assert set(passed) - {1, 2, 3} == {4}


@pytest.mark.parametrize("name", ["gate", "train", "finetune"])
def test_without_memory_for_a_step_a_line_says_what_helps_and_it_does(run, folder, limited, name):
    limited(7)
    refused = run(*commands(folder)[name])
    told = "error: out of memory: cpu cannot learn from 16 images of 3x8x8 at once"
    line = f"{told}; pass --micro-batch-size 8"
    assert (refused.code, refused.err.splitlines()[-1]) == (1, line)
    again = run(*commands(folder)[name], "--resume", "--micro-batch-size", 8, "--json")
    assert '"kind": "memory"' in again.out
    assert "pass --micro-batch-size 4" in again.err
    assert run(*commands(folder)[name], "--resume", "--micro-batch-size", 4).code == 0


def test_a_compression_without_memory_for_what_it_measures_says_so_too(run, folder, limited):
    limited(7)
    refused = run(*commands(folder)["compress"])
    line = refused.err.splitlines()[-1]
    assert (refused.code, line[:20]) == (1, "error: out of memory")
    assert "--micro-batch-size" in line
    more = ("--resume", "--micro-batch-size", 4)
    assert run(*commands(folder)["compress"], *more).code == 0


def test_without_memory_for_two_images_nothing_helps(limited):
    limited(1)
    network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
    whole = Checkpoint(network, network.initial_weights())
    with pytest.raises(OutOfMemoryError, match=r"from 3 images of 3x8x8 at once$"):
        learn_gates(whole, DATA, replace(GATING, batch_size=14, micro_batch_size=3), device="cpu")


def test_what_only_looks_names_the_batch(run, folder, limited):
    limited(7)
    told = run("evaluate", folder / "whole.pt", "--data", data_in(folder), "--device", "cpu")
    line = told.err.splitlines()[-1]
    assert (told.code, line[:40]) == (1, "error: out of memory: lower --batch-size")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.98 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_it_is_known_how_devices_say_it(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


@pytest.mark.parametrize("images", [0, 1])
def test_a_part_of_less_than_two_images_is_refused(images):
    with pytest.raises(TrainingError, match=f"micro_batch_size is {images}: expected at least 2"):
        GateRecipe(micro_batch_size=images)
