"""The folder in which a compression keeps the network of every step, to continue from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatepruner.compression.record import StepRecord
from gatepruner.errors import CheckpointError, differences
from gatepruner.files.checkpoints import load, save
from gatepruner.files.storage import write_text
from gatepruner.networks.checkpoint import Checkpoint

STEPS = "steps.json"


@dataclass
class Folder:
    """What is done of a compression, on the disk if it has a path.

    Attributes:
        path: the folder, or `None` to keep nothing.
        configuration: what has to be the same for the compression to be resumed.
        records: of the steps that are done.
        facts: what was measured on the way, and might come out differently if it were again.
    """

    path: Path | None
    configuration: Mapping[str, Any]
    records: list[StepRecord] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, *, resume: bool, force: bool) -> None:
        """Make the folder, or read what was done in it.

        Raises:
            CheckpointError: it holds something else, or the compression of another request.
        """
        if self.path is None:
            return
        steps = self.path / STEPS
        if resume and steps.exists():
            self._read(steps)
            return
        if not force and self.path.exists() and any(self.path.iterdir()):
            what = "holds a compression" if steps.exists() else "is not empty"
            raise CheckpointError(
                f"{self.path} {what}: write to another folder, continue it or replace it",
                **({"resume": True} if steps.exists() else {}),
                force=True,
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for file in (steps, *self.path.glob("*.pt.state")):
            file.unlink(missing_ok=True)
        self.write()

    def _read(self, steps: Path) -> None:
        try:
            kept = json.loads(steps.read_text())
            before = kept["configuration"]
            self.records = [StepRecord(**record) for record in kept["steps"]]
            self.facts = dict(kept["facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{steps} is damaged ({type(error).__name__}: {error}): begin anew"
            ) from None
        if changed := differences(before, self.configuration):
            raise CheckpointError(
                f"cannot resume {self.path} with another request: {'; '.join(changed)}"
            )

    def done(self, name: str) -> Checkpoint | None:
        """The network of a step that is done."""
        if self.path is None or name not in {record.name for record in self.records}:
            return None
        return load(self.path / f"{name}.pt")

    def keep(self, record: StepRecord, made: Checkpoint) -> None:
        """Keep what a step made."""
        if self.path is not None:
            save(made, self.path / f"{record.name}.pt", force=True)
        self.records.append(record)
        self.write()
        if (state := self.state(record.name)) is not None:
            state.unlink(missing_ok=True)

    def state(self, name: str) -> Path | None:
        """Where the state of a step under way is kept."""
        return None if self.path is None else self.path / f"{name}.pt.state"

    def write(self) -> None:
        """Write down what is done, whole or not at all."""
        if self.path is not None:
            steps = [asdict(record) for record in self.records]
            kept = {"configuration": self.configuration, "facts": self.facts, "steps": steps}
            write_text(self.path / STEPS, json.dumps(kept, indent=1) + "\n")
