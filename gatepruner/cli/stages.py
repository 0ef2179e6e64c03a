"""The steps of a compression, and the folder in which what they have done is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatepruner.cli.changing import curves
from gatepruner.cli.goals import Goal
from gatepruner.errors import CheckpointError

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.learning.recipes import GateRecipe, Recipe
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.report.compression import Step
    from gatepruner.report.terminal import Terminal


@dataclass
class Work:
    """The folder in which a compression keeps what is done, to go on from where it stopped.

    Attributes:
        folder: where.
        configuration: what has to be the same for it to be gone on with.
        evaluated: a network as a step, on the test images.
        terminal: where to say it.
        rows: the steps done.
        facts: what was measured on the way, and would be another number if it were again.
    """

    folder: Path
    configuration: dict[str, Any]
    evaluated: Callable[[str, Checkpoint, float], Step]
    terminal: Terminal
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, *, resume: bool, force: bool) -> None:
        """Make the folder, or read what was done in it."""
        kept = self.folder / "steps.json"
        if kept.exists() and not resume and not force:
            raise CheckpointError(
                f"{self.folder} holds a compression: --resume to go on with it, or --force to "
                "begin anew"
            )
        if not resume:
            if (
                not force
                and not kept.exists()
                and self.folder.exists()
                and any(self.folder.iterdir())
            ):
                raise CheckpointError(
                    f"{self.folder} is there already: give another --output, or --force to write "
                    "into it"
                )
            self.folder.mkdir(exist_ok=True)
            for file in ("steps.json", "gated.pt.state", "fine-tuned.pt.state"):
                (self.folder / file).unlink(missing_ok=True)
            self.write()
            return
        if not kept.exists():
            raise CheckpointError(f"there is no compression to resume: {kept} is not there")
        found = json.loads(kept.read_text())
        other = [
            key for key, it in self.configuration.items() if found["configuration"].get(key) != it
        ]
        if other:
            raise CheckpointError(
                f"{self.folder} is of another compression, its {' and '.join(other)} differ: give "
                "the options of that one, or leave out --resume and give another --output"
            )
        self.rows, self.facts = found["steps"], found["facts"]

    def step(self, name: str, make: Callable[[], Checkpoint]) -> Checkpoint:
        """The network that a step makes: made, kept and evaluated, or read if that was done."""
        from gatepruner.files.checkpoints import load, save
        from gatepruner.report.compression import Step
        from gatepruner.report.terminal import step_text

        path = self.folder / f"{name}.pt"
        done = next((row for row in self.rows if row["name"] == name), None)
        if done is not None:
            self.terminal.say(step_text(Step(**done)))
            return load(path)
        start = time.monotonic()
        made = make()
        row = self.evaluated(name, made, time.monotonic() - start)
        save(made, path, force=True)
        self.rows.append(asdict(row))
        self.write()
        (self.folder / f"{name}.pt.state").unlink(missing_ok=True)
        self.terminal.say(step_text(row))
        return made

    def fact(self, name: str, find: Callable[[], Any]) -> Any:
        """Something that is found out once."""
        if name not in self.facts:
            self.facts[name] = find()
            self.write()
        return self.facts[name]

    def state(self, name: str) -> tuple[Path, bool]:
        """Where the state of a long step is kept, and whether there is one to go on from."""
        path = self.folder / f"{name}.pt.state"
        return path, path.exists()

    def write(self) -> None:
        """Keep what is done, whole or not at all."""
        partial = self.folder / ".steps.json.part"
        kept = {"configuration": self.configuration, "facts": self.facts, "steps": self.rows}
        partial.write_text(json.dumps(kept, indent=1) + "\n")
        partial.replace(self.folder / "steps.json")


@dataclass(frozen=True)
class Plan:
    """How the steps are to be taken.

    Attributes:
        gate_images: training images to learn gates from.
        gating: how; the number of blocks is found from the goal.
        recalibrate: training images for the statistics, or 0.
        tuning: how to fine-tune, if at all.
    """

    gate_images: int
    gating: GateRecipe
    recalibrate: int
    tuning: Recipe | None

    def to_json(self) -> dict[str, Any]:
        """What has to be the same for a compression to be gone on with; not the gates' rates."""
        return {
            "gate_images": self.gate_images,
            "gate_steps": self.gating.steps,
            "recalibrate": self.recalibrate,
            "epochs": self.tuning.epochs if self.tuning else 0,
            "learning_rate": self.tuning.learning_rate if self.tuning else None,
            "batch_size": self.gating.batch_size,
            "identity_only": self.gating.identity_only,
            "seed": self.gating.seed,
        }


@dataclass(frozen=True)
class Learning:
    """The steps of a compression, each from one network to the next."""

    goal: Goal
    drop: int | None
    train: Images
    held_out: Images | None
    normalization: Normalization
    device: str
    stock: bool
    terminal: Terminal

    def carry_out(self, plan: Plan, whole: Checkpoint, work: Work) -> tuple[Checkpoint, Checkpoint]:
        """Take all steps; the network as its blocks have gone, and as it is at the end."""
        work.step("whole", lambda: whole)
        gating = replace(plan.gating, blocks=work.fact("blocks", lambda: self.blocks(whole)))
        state = work.state("gated")
        gated = work.step("gated", lambda: self.gated(whole, gating, plan.gate_images, state))
        removed = work.step("removed", lambda: self.removed(gated, plan))
        small = work.step("folded", lambda: self.folded(removed))
        if plan.recalibrate:
            folded = small
            small = work.step("recalibrated", lambda: self.recalibrated(folded, plan.recalibrate))
        if (recipe := plan.tuning) is not None:
            start, tuning = small, work.state("fine-tuned")
            small = work.step("fine-tuned", lambda: self.tuned(start, whole, recipe, tuning))
        return removed, small

    def may_go(self, whole: Checkpoint) -> list[str]:
        """The blocks that may: what stock torchvision is to load keeps those that change shape."""
        blocks = [block for block in whole.network.blocks if block.removable]
        return [block.name for block in blocks if block.identity or not self.stock]

    def gated(
        self, whole: Checkpoint, recipe: GateRecipe, images: int, state: tuple[Path, bool]
    ) -> Checkpoint:
        """With gates, and as much of the path as the goal can take."""
        from gatepruner.learning.gates import learn_gates

        with self.terminal.gating() as watch:
            return learn_gates(
                whole,
                self.train.spread(images),
                recipe,
                normalization=self.normalization,
                device=self.device,
                state=state[0],
                resume=state[1],
                watch=watch,
            )

    def blocks(self, whole: Checkpoint) -> int | None:
        """The most blocks that may have to go; `None` for all."""
        from gatepruner.measuring.latency import savings
        from gatepruner.pruning.goals import most_needed

        target = self.goal.target
        if target is None:
            return self.drop
        measure = self.goal.measure(target.cost)
        (cost,) = measure([whole.network])
        every = savings(whole.network, target.cost, measure.device, measure.batch)
        saved = {name: every[name] for name in self.may_go(whole)}
        spare = 3 if target.cost == "latency" else 0  # its measurements scatter
        needed = most_needed(cost, target.limit(cost), saved) + spare
        return max(1, needed) if needed < len(saved) else None

    def removed(self, gated: Checkpoint, plan: Plan) -> Checkpoint:
        """Without the blocks that the goal asks for."""
        from gatepruner.pruning.surgery import follow

        ranking = self.goal.ranking(gated, "gate", plan.gating.seed).among(self.may_go(gated))
        if self.drop is not None:
            return follow(gated, ranking.first(self.drop))

        def curve() -> list[Point]:
            assert self.held_out is not None
            return curves(
                gated,
                [ranking],
                self.held_out,
                self.normalization,
                self.terminal,
                device=self.device,
                batch_size=plan.gating.batch_size,
            )[0]

        return follow(gated, ranking.first(self.goal.count(gated, ranking, curve, self.terminal)))

    def folded(self, removed: Checkpoint) -> Checkpoint:
        """Without a gate."""
        from gatepruner.pruning.surgery import fold_gates

        return fold_gates(removed)

    def recalibrated(self, small: Checkpoint, images: int) -> Checkpoint:
        """With the statistics of so many training images."""
        from gatepruner.measuring.recalibration import recalibrate

        return recalibrate(
            small,
            self.train.spread(images),
            device=self.device,
            normalization=self.normalization,
            track=self.terminal.track("recalibrating"),
        )

    def tuned(
        self,
        small: Checkpoint,
        teacher: Checkpoint,
        recipe: Recipe,
        state: tuple[Path, bool],
    ) -> Checkpoint:
        """With all weights trained further, the whole network being the teacher."""
        from gatepruner.learning.training import finetune

        with self.terminal.training() as watch:
            return finetune(
                small,
                self.train,
                recipe,
                teacher=teacher,
                normalization=self.normalization,
                device=self.device,
                state=state[0],
                resume=state[1],
                watch=watch,
            )
