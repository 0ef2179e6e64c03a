"""How time and memory grow with the number of blocks, of images, and with the size of images.

Every measurement has a process of its own, with one thread; processor time is counted, the least of
three, since what else the machine does only adds to it. An exponent of 1 means that twice the size
takes twice the time; it is that of the two largest sizes. Whatever is asked of a network with n
blocks, and every removal on a path, may take time in proportion to n, and whatever is asked of n
images in proportion to n: an exponent above 1.2 is called superlinear.

- blocks: naming a ResNet for CIFAR-10 and building it; learning gates, without a warm-up, for six
  removals with one step of two images each, with its state on the disk; writing and reading a
  checkpoint, with a path of twelve states.
- images: finding, decoding, and reading from a cache so many pictures of 32 x 32 pixels.
- pixels: decoding 64 pictures of so many pixels, and the accuracy of a network of 8 layers on them.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import record

SIZES = {"blocks": (27, 54, 99, 198), "images": (1000, 4000, 16_000), "pixels": (48, 96, 192)}
QUICK = {"blocks": (9, 18), "images": (50, 100), "pixels": (16, 32)}
REMOVALS, STATES, PICTURES, TIMES = 6, 12, 64, 3
SUPERLINEAR = 1.2
Work = tuple[str, Callable[[], object]]


def of_blocks(blocks: int, folder: Path) -> Iterator[Work]:
    """What is asked of a network with so many blocks."""
    import torch

    import gatepruner
    from gatepruner.networks.path import Path as LearnedPath
    from gatepruner.networks.path import Removal

    name = f"gated-resnet{2 * blocks + 2}"
    made: list[gatepruner.Network] = []

    def build() -> None:
        network = gatepruner.Network.named(name, num_classes=10)
        network.build_blank()
        made.append(network)

    yield "name and build", build
    network = made[0]
    whole = gatepruner.Checkpoint(network, network.initial_weights(), {})
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    shape, names = network.base.input_shape, tuple("0123456789")
    images = gatepruner.Images(torch.arange(4), names, shape, "noise", pixels)
    recipe = gatepruner.GateRecipe(warmup=0, steps=1, batch_size=2, blocks=REMOVALS)
    yield (
        f"learn gates, {REMOVALS} removals",
        lambda: gatepruner.learn_gates(
            whole, images, recipe, device="cpu", state=folder / "it.state"
        ),
    )
    small = {key: tensor for key, tensor in whole.weights.items() if tensor.ndim < 2}
    gone = [block.name for block in network.blocks if block.removable][: min(STATES, blocks // 2)]
    path = LearnedPath(tuple(Removal(one, 1.0, 1.0, 1.0, 1, small) for one in gone))
    learned = replace(whole, path=path)
    yield "write", lambda: gatepruner.save(learned, folder / "it.pt")
    yield "read", lambda: gatepruner.load(folder / "it.pt")


def of_images(images: int, folder: Path) -> Iterator[Work]:
    """What is asked of so many pictures."""
    import gatepruner

    write_pictures(folder / "set", images, 32)
    spec, shape, cache = f"imagefolder:{folder / 'set'}", (3, 32, 32), folder / "cache"
    yield "find", lambda: gatepruner.load_images(spec, shape, decode=False)
    yield "decode", lambda: gatepruner.load_images(spec, shape)
    yield "decode and cache", lambda: gatepruner.load_images(spec, shape, cache=cache)
    yield "read from the cache", lambda: gatepruner.load_images(spec, shape, cache=cache)


def of_pixels(side: int, folder: Path) -> Iterator[Work]:
    """What is asked of pictures of this size."""
    import gatepruner

    write_pictures(folder / "set", PICTURES, side)
    spec, shape = f"imagefolder:{folder / 'set'}", (3, side, side)
    read: list[gatepruner.Images] = []
    yield "decode", lambda: read.append(gatepruner.load_images(spec, shape))
    network = gatepruner.Network.named("resnet8", num_classes=2, input_shape=shape)
    whole = gatepruner.Checkpoint(network, network.initial_weights(), {})
    yield "accuracy", lambda: gatepruner.accuracy(whole, read[0], device="cpu", batch_size=16)


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Noise in two classes."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for index in range(count):
        file = folder / "ab"[index % 2] / f"{index:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(file)


KINDS: Mapping[str, Callable[[int, Path], Iterator[Work]]] = {
    "blocks": of_blocks,
    "images": of_images,
    "pixels": of_pixels,
}


def measured(kind: str, size: int) -> dict[str, Any]:
    """Seconds of each work, and the peak of memory above what was taken before, in bytes."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    taken(kind, QUICK[kind][0])  # imports what is needed
    before = peak()
    seconds = taken(kind, size)
    return {"seconds": seconds, "peak": max(peak() - before, resource.getpagesize())}


def taken(kind: str, size: int) -> dict[str, float]:
    """Processor time of each work: the disk is not what grows."""
    with tempfile.TemporaryDirectory() as folder:
        return {what: processor_seconds(work) for what, work in KINDS[kind](size, Path(folder))}


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux, in KiB


def alone(kind: str, size: int) -> dict[str, Any]:
    """The least of several times, each in a process of its own, which has nothing cached."""
    context, runs = multiprocessing.get_context("spawn"), list[dict[str, Any]]()
    for _ in range(TIMES):
        with ProcessPoolExecutor(1, context) as pool:
            runs.append(pool.submit(measured, kind, size).result())
    works = runs[0]["seconds"]
    seconds = {what: min(run["seconds"][what] for run in runs) for what in works}
    return {"seconds": seconds, "peak": min(run["peak"] for run in runs)}


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """By which power values grow between the two largest sizes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def rows_of(kind: str, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A row for each work, with what it takes at every size, and one for memory."""
    found = [alone(kind, size) for size in sizes]
    given = {what: [one["seconds"][what] for one in found] for what in found[0]["seconds"]}
    shown = tuple(size * size for size in sizes) if kind == "pixels" else sizes
    for what, values in {**given, "peak memory": [one["peak"] for one in found]}.items():
        power = exponent(shown, values)
        unit = "bytes" if what == "peak memory" else "seconds"
        row = {"of": kind, "what": what, "sizes": shown, unit: values, "exponent": power}
        yield {**row, "superlinear": power > SUPERLINEAR}


def main() -> None:
    chosen = record.parser(__doc__).parse_args()
    sizes = QUICK if chosen.quick else SIZES
    rows = [row for kind in KINDS for row in rows_of(kind, sizes[kind])]
    for row in rows:
        print(f"{row['of']}: {row['what']}: exponent {row['exponent']:.2f}")
    settings = {"threads": 1, "superlinear": f"exponent above {SUPERLINEAR}"}
    record.write("growth", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
