"""The folder of a compression: the network of every step, so that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gatepruner.compression.record import StepRecord
from gatepruner.errors import CheckpointError, differences
from gatepruner.files.checkpoints import load, save
from gatepruner.files.locks import SUFFIX
from gatepruner.files.writing import is_temporary, write_text
from gatepruner.networks.base import Base
from gatepruner.networks.checkpoint import Checkpoint

STEPS = "steps.json"


@dataclass
class Folder:
    """The finished steps of a compression, kept on the disk if there is a path.

    Attributes:
        path: the folder; `None` keeps nothing.
        configuration: what must be equal for the compression to be resumed.
        records: of the finished steps.
        facts: measurements that a resumed compression must not repeat, such as latencies.
    """

    path: Path | None
    configuration: Mapping[str, Any]
    records: list[StepRecord] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, *, resume: bool, force: bool) -> None:
        """Begin the steps, or read those in the folder.

        Args:
            resume: whether to continue from the steps in the folder, if there are any.
            force: whether to replace what is in the folder.

        Raises:
            CheckpointError: the folder is not empty, or belongs to another compression.
        """
        if self.path is None:
            return
        steps = self.path / STEPS
        if resume and steps.exists():
            self._read(steps)
            return
        if not force and _files(self.path):
            problem = "contains a compression" if steps.exists() else "is not empty"
            remedy = "continue or replace it" if steps.exists() else "replace its contents"
            raise CheckpointError(
                f"{self.path} {problem}: write to another folder, or {remedy}",
                **({"resume": True} if steps.exists() else {}),
                force=True,
            )
        for file in self.path.glob("*.pt.state"):  # before the steps that they belong to
            file.unlink(missing_ok=True)
        self.write()

    def _read(self, steps: Path) -> None:
        try:
            document = json.loads(steps.read_text())
            changed = differences(document["configuration"], self.configuration)
            self.records = [StepRecord(**record) for record in document["steps"]]
            self.facts = dict(document["facts"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{steps} is damaged ({type(error).__name__}: {error}): start a new compression",
                force=True,
            ) from None
        if changed:
            raise CheckpointError(
                f"{self.path} contains another compression ({'; '.join(changed)}): resume it with "
                "the options of that compression, or write to another folder"
            )

    def done(self, name: str, base: Base) -> Checkpoint | None:
        """The network of a step, if the step is done; `base` is that of the whole network."""
        if self.path is None or name not in {record.name for record in self.records}:
            return None
        step = load(self.path / f"{name}.pt", module=base.module, leaves=base.leaves)
        return replace(step, network=replace(step.network, base=base))

    def keep(self, record: StepRecord, checkpoint: Checkpoint) -> None:
        """Keep the record and the network of a step, and delete its state."""
        if self.path is not None:
            save(checkpoint, self.path / f"{record.name}.pt", force=True)
        self.records.append(record)
        self.write()
        if (state := self.state(record.name)) is not None:
            state.unlink(missing_ok=True)

    def state(self, name: str) -> Path | None:
        """The file for the state of a running step."""
        return None if self.path is None else self.path / f"{name}.pt.state"

    def write(self) -> None:
        """Write the records of the finished steps atomically."""
        if self.path is not None:
            steps = [asdict(record) for record in self.records]
            document = {"configuration": self.configuration, "facts": self.facts, "steps": steps}
            write_text(self.path / STEPS, json.dumps(document, indent=1) + "\n")


def _files(folder: Path) -> list[str]:
    """What is in a folder, without what killed runs have left behind."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if not (name.endswith(SUFFIX) or is_temporary(name))]
