"""A removal curve in shared passes, against building and evaluating each network by itself.

A ResNet-56 (fresh weights) and random images: the accuracy after removing 0 to 27 blocks in random
order is counted in both ways, in turns. The correct answers and the mean losses have to be equal,
point by point, or the script fails. Reported are median and quartiles of both times, their ratio,
and the ratio of the MACs that have to be computed (counted by `torch.utils.flop_counter` on the
merged network).
"""

from __future__ import annotations

import sys
from typing import Any

import record
import torch
from torch.utils.flop_counter import FlopCounterMode

import gatepruner
from gatepruner.measuring.merging import merged

NETWORK = "resnet56"


def random_images(count: int) -> gatepruner.Images:
    generator, shape = torch.Generator().manual_seed(0), (3, 32, 32)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=generator)
    return gatepruner.Images(labels, tuple("0123456789"), shape, "random images", pixels)


def macs_ratio(whole: gatepruner.Checkpoint, networks: list[gatepruner.Network]) -> float:
    """MACs of the merged network over those of all networks one by one."""
    module = merged(whole, networks)
    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        module(torch.zeros(1, *whole.network.base.input_shape))
    return flops.get_total_flops() / 2 / sum(gatepruner.count(one).macs for one in networks)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--images", type=int, default=512, help="images evaluated")
    options.add_argument("--rounds", type=int, default=5, help="rounds, after one not counted")
    options.add_argument("--batch-size", type=int, default=128, help="images at a time")
    chosen = options.parse_args()
    count, rounds = (16, 2) if chosen.quick else (chosen.images, chosen.rounds)
    network, images = gatepruner.Network.named(NETWORK), random_images(count)
    whole = gatepruner.Checkpoint(network, network.initial_weights(0))
    ranking = gatepruner.rank(whole, "random")
    plans = [ranking.first(removed) for removed in range(len(ranking.names) + 1)]
    how: dict[str, Any] = {"device": "cpu", "batch_size": chosen.batch_size}
    found: dict[str, list[gatepruner.Accuracy]] = {}

    def shared() -> None:
        found["shared"] = [it.accuracy for it in gatepruner.sweep(whole, images, ranking, **how)]

    def one_by_one() -> None:
        networks = (gatepruner.remove(whole, plan) for plan in plans)
        found["one by one"] = [gatepruner.accuracy(one, images, **how) for one in networks]

    times = record.in_turns({"shared": shared, "one by one": one_by_one}, rounds)
    if found["shared"] != found["one by one"]:
        sys.exit("the two ways differ in correct answers or losses")
    pairs = zip(*times.values(), strict=True)
    row = {
        "network": NETWORK,
        "points": len(plans),
        "images": count,
        "shared_seconds": record.spread(times["shared"]),
        "one_by_one_seconds": record.spread(times["one by one"]),
        "time_ratio": record.spread([one / other for one, other in pairs]),
        "macs_ratio": macs_ratio(whole, [whole.network.without(plan) for plan in plans]),
        "correct": [one.correct for one in found["shared"]],
    }
    settings = {"batch_size": chosen.batch_size, "rounds": rounds, "device": "cpu", "seed": 0}
    record.write("sweep", settings, [row], quick=chosen.quick)


if __name__ == "__main__":
    main()
