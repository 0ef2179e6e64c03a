"""One command from a trained ResNet-56 to 2.1 times fewer MACs, with what every step did.

Runs `gatepruner compress` and keeps its report. Accuracy is measured on images that neither the
network was trained on nor anything was chosen on.

usage: python benchmarks/compress.py --checkpoint FILE --data DIR [--split val] [--epochs N]
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import record


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--checkpoint", required=True, type=Path, help="a trained ResNet")
    options.add_argument("--data", required=True, help="folder with train/CLASS and SPLIT/CLASS")
    options.add_argument("--split", default="val", help="images to measure on")
    options.add_argument("--target-macs", default="47.5%", help="as gatepruner compress takes it")
    options.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    options.add_argument("--keep", type=Path, help="folder to keep the compressed network in")
    chosen = options.parse_args()
    few: list[str] = []
    if chosen.quick:
        few = ["--gate-steps", "1", "--gate-images", "256", "--limit", "100"]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.pt"
        command = ["compress", str(chosen.checkpoint), "--data", f"imagefolder:{chosen.data}"]
        command += ["--split", chosen.split, "--target-macs", chosen.target_macs]
        command += ["--epochs", str(1 if chosen.quick else chosen.epochs), *few]
        record.run([record.COMMAND, *command, "-o", str(small), "--device", "cpu", "--quiet"])
        report = Path(folder) / "small-compress"
        document: dict[str, Any] = json.loads((report / "report.json").read_text())
        for suffix in ("png", "svg"):
            target = record.folder(chosen.quick) / f"compress.{suffix}"
            shutil.copy(report / f"tradeoff.{suffix}", target)
        if chosen.keep is not None:
            shutil.copytree(folder, chosen.keep, dirs_exist_ok=True)
    configuration = document["configuration"]
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "split": chosen.split,
        **{key: configuration[key] for key in ("goal", "epochs", "gate_images", "gate_steps")},
        **{key: configuration[key] for key in ("learning_rate", "batch_size", "seed")},
        "latency": "batch size 1, median of 30 rounds in turns",
    }
    record.write("compress", settings, document["steps"], quick=chosen.quick)


if __name__ == "__main__":
    main()
