"""One call from a trained ResNet-56 to 2.1 times fewer MACs, with what every step did.

Accuracy is measured on images that neither the network was trained on nor anything was chosen on.

usage: python benchmarks/compress.py --checkpoint FILE --data DIR [--split val] [--epochs N]
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import record

import gatepruner
from gatepruner.report.compression import tradeoff_figure
from gatepruner.report.style import save_figure


def main() -> None:
    options = record.parser(__doc__, "train and the split to measure on")
    options.add_argument("--split", default="val", help="images to measure on")
    options.add_argument("--target-macs", default="47.5%", help="as gatepruner compress takes it")
    options.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    options.add_argument("--keep", type=Path, help="folder to keep the network of every step in")
    chosen = options.parse_args()
    limits = (
        {"train": 256, chosen.split: 100} if chosen.quick else {"train": None, chosen.split: None}
    )
    whole, train, test = record.loaded(chosen, **limits)
    epochs, steps = (1, 1) if chosen.quick else (chosen.epochs, 50)
    compressed = gatepruner.compress(
        whole,
        train,
        gatepruner.Goal.parse("macs", chosen.target_macs),
        gatepruner.CompressionRecipe(
            gating=gatepruner.GateRecipe(steps=steps),
            tuning=replace(gatepruner.FINE_TUNING, epochs=epochs),
        ),
        test=test,
        device="cpu",
        folder=chosen.keep,
        watch=lambda event: isinstance(event, gatepruner.StepRecord) and print(event, flush=True),
    )
    settings = {"checkpoint": chosen.checkpoint.name, **compressed.configuration}
    rows = [asdict(step) for step in compressed.steps]
    record.write("compress", settings, rows, quick=chosen.quick)
    save_figure(tradeoff_figure(compressed.steps), record.folder(chosen.quick) / "compress")


if __name__ == "__main__":
    main()
