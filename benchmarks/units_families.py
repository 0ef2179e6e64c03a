"""What blocks, channels, or both of them save on other networks: at equal MACs, measured.

resnet50  torchvision's, random weights: latency alone
vit       timm's ViT-S/16, random weights: latency alone
lite0     EfficientNet-Lite0, trained, with pictures of ImageNet: accuracy and latency

With random weights there is no path. `blocks` go in random order, `channels` as the same share of
every inner width, in slices of 8, and for `both`, blocks save one half and channels the other.

For Lite0 a path of each is learned from the pictures in DIR/learn, and the networks are taken from
these paths. Accuracy and agreement with the whole network are counted on those in DIR/test, on
which nothing is chosen: with the weights and statistics as they were, and with those learned along
the path. `few_pictures.py` says how DIR and the file are made, and that fine-tuning on so few
pictures wins nothing. So there is none here.

All networks of a network are timed in turns, on every engine and at every batch size. Work is kept
in `results/units_families.work/`; a rerun with the same settings goes on from there. Each takes
less than 15 minutes on two idle cores of a CPU.

usage: python benchmarks/units_families.py resnet50
       python benchmarks/units_families.py lite0 --checkpoint FILE --sample DIR
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import record
import torch
from few_pictures import loaded, sampled
from units import OURS, first_within

import gatepruner
from gatepruner.measuring.engines import ENGINES
from gatepruner.networks.slices import Slice
from gatepruner.pruning.groups import reduced, widths_of
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.widths import MULTIPLE, Width

NETWORKS = {"resnet50": "torchvision:resnet50", "vit": "timm:vit_small_patch16_224"}
GATES = gatepruner.GateRecipe(warmup=10, steps=8, batch_size=16)
QUICK = replace(GATES, blocks=3, warmup=1, steps=1, batch_size=4)
Plans = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Case:
    """A network that is small enough, or that there is none.

    Attributes:
        method: what is removed: blocks, channels, or both.
        share: of the whole network's MACs that it keeps at most, in percent.
        units: names of what is removed; `None` if there is no such network.
    """

    method: str
    share: int
    units: Sequence[str] | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.share}"


def within(network: gatepruner.Network, plans: Plans, share: float) -> Sequence[str] | None:
    """The first of ever longer plans that leaves at most a share (%) of the MACs, if any does."""
    limit = share / 100 * gatepruner.count(network).macs

    def macs(number: int) -> int:
        return gatepruner.count(reduced(network, plans[number])).macs

    number = first_within(macs, len(plans) - 1, limit)
    return None if number is None else plans[number]


def starts(units: Sequence[str]) -> Plans:
    """All starts of an order, from none on."""
    return [units[:number] for number in range(len(units) + 1)]


def without_path(network: gatepruner.Network, method: str, share: int) -> Sequence[str] | None:
    """Blocks in random order, slices of all widths evenly, or each for half of the saving."""
    names, draw = network.removable, torch.Generator().manual_seed(0)
    order = [names[at] for at in torch.randperm(len(names), generator=draw).tolist()]
    left = {"blocks": share, "both": (100 + share) / 2, "channels": 100}[method]
    blocks = within(network, starts(order), left)
    if method == "blocks" or blocks is None:
        return blocks
    slices = even_slices(widths_of(network).found)
    return within(network, [[*blocks, *some] for some in starts(slices)], share)


def even_slices(widths: Mapping[str, Width]) -> list[str]:
    """The names of slices in an order that takes the same share of every width; one each stays."""
    slices = []
    for name, width in widths.items():
        step = width.step(MULTIPLE)
        count = -(-width.size // step)
        for at in range(count - 1):
            one = Slice(name, tuple(range(at * step, (at + 1) * step)))
            slices.append(((at + 1) / count, str(one)))
    return [name for _, name in sorted(slices, key=itemgetter(0))]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, its pictures, and the paths that it learns from them.

    Attributes:
        whole: the trained network.
        learn: pictures to learn from.
        test: labelled pictures that nothing is chosen on.
        recipe: of the paths.
        device: where to compute.
    """

    whole: gatepruner.Checkpoint
    learn: gatepruner.Images
    test: gatepruner.Images
    recipe: gatepruner.GateRecipe
    device: str

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Trained:
        """What the command line names."""
        whole = loaded(chosen.checkpoint)
        learn, test = (sampled(chosen.sample / name, whole, 256) for name in ("learn", "test"))
        if chosen.quick:
            return cls(whole, learn.spread(16), test.spread(8), QUICK, chosen.device)
        return cls(whole, learn, test, GATES, chosen.device)

    @property
    def settings(self) -> dict[str, Any]:
        """What its paths depend on."""
        return {
            "checkpoint": self.whole.fingerprint[:12],
            "images_learn": len(self.learn),
            "images_test": len(self.test),
            "gates": asdict(self.recipe),
        }

    def gated(self, method: str, work: Path) -> gatepruner.Checkpoint:
        """The network with a learned path, which is kept in a folder."""
        path = work / f"{method}.pt"
        if not path.exists():
            recipe, start = replace(self.recipe, units=method), time.perf_counter()
            gated = gatepruner.learn_gates(self.whole, self.learn, recipe, device=self.device)
            gatepruner.save(gated, path)
            print(f"path of {method}: {time.perf_counter() - start:.0f} s", flush=True)
        return gatepruner.load(path)

    def answers(self, case: Case, work: Path) -> dict[str, Any]:
        """Accuracy and agreement with weights and statistics as they were, and as learned."""
        units, gated = case.units or (), self.gated(case.method, work)
        ways = {
            "as they were": gatepruner.remove(self.whole, units),
            "learned": gatepruner.fold_gates(gatepruner.follow(gated, units)),
        }
        return {"answers": {name: self.measured(small) for name, small in ways.items()}}

    def measured(self, small: gatepruner.Checkpoint) -> dict[str, Any]:
        """Accuracy, and agreement with the whole network."""
        agreed = gatepruner.agreement(small, self.whole, self.test, device=self.device)
        return {"accuracy": agreed.accuracy, "correct": agreed.correct, **agreed.to_json()}


def measured(
    network: gatepruner.Network, cases: Sequence[Case], chosen: argparse.Namespace, work: Path
) -> Iterator[dict[str, Any]]:
    """A row for every case: costs, and the latency on every engine at every batch size."""
    left = {case.name: reduced(network, case.units) for case in cases if case.units is not None}
    whole, times = gatepruner.count(network), dict[str, dict[str, Any]]()
    names = "-".join(map(str, chosen.shares))
    for engine, batch in itertools.product(chosen.engines, chosen.batches):

        def timed(engine: str = engine, batch: int = batch) -> dict[str, Any]:
            meter = Meter(network, "cpu", batch, chosen.seconds, engine=engine)
            first, *others = meter.latencies([network, *left.values()])
            found = zip(left, others, strict=True)
            return {
                name: {"kept": one.median / first.median, "whole": asdict(first), **asdict(one)}
                for name, one in found
            }

        times[f"{engine} {batch}"] = record.once(work / f"{engine}-{batch}-{names}.json", timed)
        print(f"timed on {engine}, batches of {batch}", flush=True)
    for case in cases:
        row = {"method": case.method, "share": case.share, "reached": case.name in left}
        if case.name in left:
            cost = gatepruner.count(left[case.name])
            row |= {"macs_kept": cost.macs / whole.macs, "params_kept": cost.params / whole.params}
            row |= {"depth": left[case.name].depth, "units": len(case.units or ())}
            row["latency"] = {place: of[case.name] for place, of in times.items()}
        yield row


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("network", choices=(*NETWORKS, "lite0"))
    options.add_argument("--checkpoint", type=Path, help="the trained network, for lite0")
    options.add_argument("--sample", type=Path, help="folder with ImageNet pictures, for lite0")
    options.add_argument("--device", default="cpu", help="where to learn and count")
    options.add_argument("--shares", nargs="+", type=int, default=[75, 50, 35], help="in %%")
    options.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager", "onnxruntime"])
    options.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    chosen = options.parse_args()
    chosen.seconds = 0.1 if chosen.quick else 20.0
    if chosen.quick:
        chosen.shares, chosen.engines, chosen.batches = [75], ["eager"], [1]
    trained = None if chosen.network in NETWORKS else Trained.of(chosen)
    named = gatepruner.Network.named
    network = trained.whole.network if trained else named(NETWORKS[chosen.network])
    settings = {
        "network": str(network),
        "threads": torch.get_num_threads(),
        "seconds": chosen.seconds,
        **(trained.settings if trained else {}),
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    work = record.folder(chosen.quick) / "units_families.work" / digest
    work.mkdir(parents=True, exist_ok=True)
    cases = []
    for method, share in itertools.product(OURS, chosen.shares):
        if trained:
            units = within(network, starts(trained.gated(method, work).path.blocks), share)
        else:
            units = without_path(network, method, share)
        cases.append(Case(method, share, units))
        print(f"{cases[-1].name}: {'not reached' if units is None else len(units)}", flush=True)
    rows = list(measured(network, cases, chosen, work))
    if trained:
        settings["whole"] = trained.measured(trained.whole)["accuracy"]
        for case, row in zip(cases, rows, strict=True):
            if row["reached"]:
                kept = work / f"{case.name}.json"
                row |= record.once(kept, lambda case=case: trained.answers(case, work))
                print(case.name, row["answers"], flush=True)
    record.write(f"units_{chosen.network}", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
