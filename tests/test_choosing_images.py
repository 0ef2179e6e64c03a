"""Which pictures are decoded: only those that are used, and each of them once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import bright_images, data_in, draw, drawn, random_images, write_folder

from gatepruner.files.checkpoints import save
from gatepruner.images import arrow, memory
from gatepruner.images import images as reading
from gatepruner.images.readers import load_images
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import GateRecipe
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import sweep
from gatepruner.pruning.ranking import rank

SHAPE = (3, 8, 8)
TRAIN, HELD_OUT, SEED = 50, 7, 3


@pytest.fixture
def folder(tmp_path) -> Path:
    network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
    save(Checkpoint(network, drawn(network.initial_weights())), tmp_path / "whole.pt")
    write_folder(tmp_path / "images", bright_images(24, SHAPE))
    write_folder(tmp_path / "images", bright_images(TRAIN, SHAPE, seed=8), "train")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> Counter[str]:
    """How often each file was decoded, by split and name."""
    counts: Counter[str] = Counter()

    def counting(file, shape, resize, decode=memory.decode):
        counts["/".join(Path(file).parts[-3::2])] += 1
        return decode(file, shape, resize)

    for module in (memory, reading):
        monkeypatch.setattr(module, "decode", counting)
    return counts


def names(folder: Path, split: str) -> list[str]:
    return [f"{split}/{file.name}" for file in sorted((folder / "images" / split).rglob("*.png"))]


def parted(folder: Path, held_out: int, limit: int | None = None) -> tuple[set[str], set[str]]:
    """The training files that are learned from and those held out, by their definition."""
    every = names(folder, "train")
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(SEED)).tolist()
    apart, rest = sorted(order[:held_out]), sorted(order[held_out:])
    limit = limit or len(rest)
    return {every[rest[at * len(rest) // limit]] for at in range(limit)}, {
        every[at] for at in apart
    }


GATE = ("--warmup", 2, "--steps", 2, "--blocks", 1, "--batch-size", 8)


def test_gates_are_learned_from_a_limit_without_decoding_the_rest(run, folder, decoded):
    chosen = ("--limit", 9, "--hold-out", HELD_OUT, "--seed", SEED)
    told = run(
        *("gate", folder / "whole.pt", "--data", data_in(folder), *chosen, *GATE),
        *("--device", "cpu"),
    )
    assert told.code == 0, told.err
    learned, _ = parted(folder, HELD_OUT, 9)
    assert learned <= set(decoded)
    assert sum(decoded.values()) <= 10  # one more may have told that it can be decoded


def test_a_loss_is_measured_without_decoding_training_images_that_are_not_used(
    run, folder, decoded
):
    told = run(
        *("prune", folder / "whole.pt", "--data", data_in(folder), "--max-loss", 50),
        *("--hold-out", HELD_OUT, "--recalibrate", 6, "--limit", 5, "--seed", SEED),
        *("--by", "depth", "--device", "cpu", "-o", folder / "small.pt"),
    )
    assert told.code == 0, told.err
    learned, apart = parted(folder, HELD_OUT, 6)
    assert {name for name in decoded if name.startswith("train/")} == learned | apart
    assert set(decoded.values()) == {1}
    assert sum(decoded.values()) == HELD_OUT + 6 + 5


def test_a_compression_without_fine_tuning_decodes_what_it_learns_from(run, folder, decoded):
    told = run(
        *("compress", folder / "whole.pt", "--data", data_in(folder), "--drop", 1),
        *("--hold-out", HELD_OUT, "--gate-images", 16, "--gate-warmup", 2, "--gate-steps", 2),
        *("--recalibrate", 6, "--epochs", 0, "--limit", 5, "--batch-size", 16),
        *("--device", "cpu", "-o", folder / "small.pt"),
    )
    assert told.code == 0, told.err
    assert sum(decoded.values()) < TRAIN


def test_a_dry_run_decodes_one_picture(run, folder, decoded):
    told = run(
        *("finetune", folder / "whole.pt", "--data", data_in(folder), "--dry-run"),
        *("--device", "cpu", "--batch-size", 8),
    )
    assert told.code == 0, told.err
    assert sum(decoded.values()) == 1


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_sweep_decodes_every_image_once(tmp_path, decoded, monkeypatch, learned, statistics):
    checkpoint = draw("gated-resnet14", input_shape=SHAPE)
    write_folder(tmp_path, random_images(13, SHAPE))
    if learned:
        recipe = GateRecipe(warmup=1, steps=1, batch_size=8, blocks=4)
        checkpoint = learn_gates(checkpoint, random_images(16, SHAPE), recipe, device="cpu")
    kept = load_images(f"imagefolder:{tmp_path}", SHAPE)
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    streamed = load_images(f"imagefolder:{tmp_path}", SHAPE)
    ranking = rank(checkpoint, "gate")
    given = {"statistics": random_images(8, SHAPE) if statistics else None, "device": "cpu"}
    decoded.clear()
    points = list(sweep(checkpoint, streamed, ranking, counts=range(4), **given))
    assert set(decoded.values()) == {1}
    assert points == list(sweep(checkpoint, kept, ranking, counts=range(4), **given))


def test_only_groups_of_a_table_with_chosen_rows_are_read(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from test_tables import pq, table

    pq.write_table(table(12), tmp_path / "train-00000-of-00001.parquet", row_group_size=3)
    every = load_images(f"parquet:{tmp_path}", (3, 6, 5), split="train")
    column, groups = arrow.Group.column, []

    def noting(group, *names):
        groups.append(group.start)
        return column(group, *names)

    monkeypatch.setattr(arrow.Group, "column", noting)
    listed = load_images(f"parquet:{tmp_path}", (3, 6, 5), split="train", decode=False)
    groups.clear()  # of labels
    part = listed.take(torch.tensor([1, 2, 9])).kept()
    assert groups == [0, 9]
    assert torch.equal(part.pixels, every.pixels[[1, 2, 9]])
    assert torch.equal(part.labels, every.labels[[1, 2, 9]])
