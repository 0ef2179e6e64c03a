"""One call from a trained ResNet-56 to 2.1 times fewer MACs, with what every step did.

Accuracy is measured on images that neither the network was trained on nor anything was chosen on.
With `--pictures N`, only so many training images are used, and their labels are not.

usage: python benchmarks/compress.py --checkpoint FILE --data DIR [--split val] [--epochs N]
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import record
import torch

import gatepruner
from gatepruner.compression.record import Choice
from gatepruner.report.compression import tradeoff_figure
from gatepruner.report.style import save_figure

SHOWN = (gatepruner.StepRecord, Choice)


def main() -> None:
    options = record.parser(__doc__, "train and the split to measure on")
    options.add_argument("--split", default="val", help="images to measure on")
    options.add_argument("--target-macs", default="47.5%", help="as gatepruner compress takes it")
    options.add_argument("--epochs", type=int, help="of fine-tuning")
    options.add_argument("--match", default="features", help="what fine-tuning matches")
    options.add_argument("--pictures", type=int, help="training images without labels")
    options.add_argument("--name", default="compress", help="of the result")
    options.add_argument("--keep", type=Path, help="folder to keep the network of every step in")
    chosen = options.parse_args()
    few = 256 if chosen.quick else chosen.pictures
    limits = {"train": few, chosen.split: 100 if chosen.quick else None}
    whole, train, test = record.loaded(chosen, **limits)
    if chosen.pictures:
        train = replace(train, labels=torch.full_like(train.labels, -1), classes=())
    train, held_out = train.held_out(min(1000, len(train) // 5), 0)
    epochs, steps = (1, 2) if chosen.quick else (chosen.epochs, 50)
    recipe = gatepruner.CompressionRecipe(
        gating=gatepruner.GateRecipe(steps=steps),
        tuning=replace(gatepruner.FINE_TUNING, epochs=epochs, match=chosen.match),
    )
    compressed = gatepruner.compress(
        whole,
        train,
        gatepruner.Goal.parse("macs", chosen.target_macs),
        recipe.fitted(len(train)),
        held_out=held_out,
        test=test,
        device=chosen.device,
        folder=chosen.keep,
        watch=lambda event: isinstance(event, SHOWN) and print(event, flush=True),
    )
    configuration = {
        key: value.replace(chosen.data, "DIR") if isinstance(value, str) else value
        for key, value in compressed.configuration.items()
        if key != "fingerprint"
    }
    settings = {"checkpoint": chosen.checkpoint.name, **configuration}
    rows = [asdict(step) for step in compressed.steps]
    record.write(chosen.name, settings, rows, quick=chosen.quick)
    save_figure(tradeoff_figure(compressed.steps), record.folder(chosen.quick) / chosen.name)


if __name__ == "__main__":
    main()
