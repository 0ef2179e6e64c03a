"""What recalibration wins when its images are shifted as in training, and when they are not.

Blocks are removed at random from a network that was trained on shifted images, no gate is learned
and no weight trained.

usage: python benchmarks/recalibration.py --checkpoint FILE --data DIR
"""

from __future__ import annotations

from pathlib import Path

import record

import gatepruner

STATISTICS = 2000  # training images that statistics are estimated on
COUNTS = (0, 1, 2, 4, 8)
KEPT, PLAIN, SHIFTED = "statistics kept", "images as they are", "images shifted"


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--checkpoint", required=True, type=Path, help="a trained network")
    options.add_argument("--data", required=True, help="folder with train/CLASS and val/CLASS")
    options.add_argument("--split", default="val", help="what accuracy is counted on")
    options.add_argument("--orders", type=int, default=3, help="random ones")
    chosen = options.parse_args()
    counts, orders = ((0, 2), 1) if chosen.quick else (COUNTS, chosen.orders)
    whole = gatepruner.load(chosen.checkpoint)
    shape, spec = whole.network.base.input_shape, f"imagefolder:{chosen.data}"
    train = gatepruner.load_images(spec, shape, split="train", limit=STATISTICS)
    limit = 100 if chosen.quick else None
    test = gatepruner.load_images(spec, shape, split=chosen.split, limit=limit)
    rows = []
    for count in counts:
        for order in range(orders if count else 1):
            names = gatepruner.rank(whole, "random", seed=order).first(count)
            small = gatepruner.remove(whole, names) if names else whole
            networks = {
                KEPT: small,
                PLAIN: gatepruner.recalibrate(small, train, augment=False),
                SHIFTED: gatepruner.recalibrate(small, train, augment=True),
            }
            shifted = gatepruner.recalibrate(small, train).notes["history"][-1]["augmented"]
            for way, network in networks.items():
                found = gatepruner.accuracy(network, test, batch_size=500).to_json()
                by_default = way == (SHIFTED if shifted else PLAIN)
                named = {"way": way, "by default": by_default, "removed": count, "order": order}
                rows.append({**named, **found})
                print(f"{way}, {count} removed: {100 * found['accuracy']:.2f} %", flush=True)
    settings = {
        "checkpoint": chosen.checkpoint.name,
        "images for statistics": len(train),
        "images": len(test),
        "random orders": orders,
    }
    record.write("recalibration", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
