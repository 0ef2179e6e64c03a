"""`gate`: the command that learns gates for a network that was trained without them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from gatepruner.cli.foretelling import foretell
from gatepruner.cli.keeping import Kept, stopping
from gatepruner.cli.learning import (
    check,
    gating_work,
    held_out_fifth,
    list_images,
    read,
    warn_of_misfit,
)
from gatepruner.cli.options import Data, HoldOut, Resumable, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.several import writes
from gatepruner.cli.signature import Group
from gatepruner.learning.recipes import CHOICES, GateRecipe

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.terminal import Terminal

SOME = Data(split="train", limit=10_000, batch_size=GateRecipe.batch_size)


def gate(
    source: Source,
    *,
    call: Resumable,
    data: Annotated[Data, Group(needs=("data",))] = SOME,
    recipe: Annotated[GateRecipe, Group(words=CHOICES)],
    held: HoldOut,
) -> None:
    """Add gates to a trained network and learn the order in which its blocks can be removed.

    The network's own weights stay as they are. What the remaining blocks have learned is kept
    after every removal: `prune`, `sweep` and every target then need no further learning.

    Example: `gatepruner gate resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.learning.gates import learn_gates
    from gatepruner.learning.learner import matched
    from gatepruner.learning.units import meter_of
    from gatepruner.measuring.device import pick_device
    from gatepruner.report.tables import path_table

    target = call.target(source.ckpt, "gated", seed=recipe.seed)
    problems = Problems()
    with problems:
        kept = Kept.beside(target, call, epochs=False)
    whole, images = _checked(source, data, recipe, held, call.terminal, problems)
    if call.dry_run:
        how = replace(data, batch_size=recipe.at_once(data.batch_size))
        return foretell(call, whole, [target], [gating_work(whole, images, recipe)], how)
    images = data.kept(images, call.terminal)
    warn_of_misfit(source.ckpt, whole, images, data)
    if recipe.match != "logits" and not recipe.labels:
        what = matched(recipe.match, whole.network, whole)
        call.terminal.say(f"matching {what} of the whole network")
    progress = call.terminal.track("measuring latencies")
    meter = meter_of(whole.network, recipe, pick_device(data.device), progress)
    with stopping(kept.state), call.terminal.watching() as watch:
        gated = learn_gates(
            whole,
            images,
            recipe,
            normalization=data.normalization(whole, images, call.terminal),
            meter=meter,
            device=data.device,
            state=kept.state,
            resume=kept.resume,
            watch=watch,
            on_stop=call.terminal.stopping,
        )
    if not writes():
        return None
    save(gated, target, force=kept.force)
    call.record(target)
    kept.state.unlink(missing_ok=True)  # last: until then, a killed run can be resumed
    records = gated.path.records
    call.terminal.say(path_table(records))
    noun = "blocks" if recipe.units == "blocks" else "units"
    call.terminal.say(f"wrote {target}: {len(records)} {noun} can go without further learning")
    return call.finish({"input": str(source.ckpt), "output": str(target), "path": records})


def _checked(
    source: Source,
    data: Data,
    recipe: GateRecipe,
    held: HoldOut,
    terminal: Terminal,
    problems: Problems,
) -> tuple[Checkpoint, Images]:
    """The network and the images to learn from; refuses all that stands in the way at once."""
    from gatepruner.learning.gates import check_plan
    from gatepruner.pruning.surgery import add_gates

    whole = read(source, data, problems, recipe.amp)
    every = replace(data, limit=None)
    images, _ = list_images(
        lambda: every.listed(whole, terminal, labels=recipe.labels),
        HoldOut(hold_out=0),
        problems,
    )
    images, _ = held_out_fifth(images, held, terminal)
    images = images.spread(data.limit)
    check(whole, images, recipe.batch_size, problems, labels=recipe.labels)
    with problems:
        check_plan(add_gates(whole).network, recipe, data.device)
    problems.refuse()
    return whole, images
