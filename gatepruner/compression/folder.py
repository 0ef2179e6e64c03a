"""The folder of a compression: the network of every step, so that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from typing_extensions import TypedDict

from gatepruner import processes
from gatepruner.compression.record import StepRecord
from gatepruner.documents import checked, parsed, text_of
from gatepruner.errors import CheckpointError, differences, listed
from gatepruner.files.checkpoints import load, save
from gatepruner.files.locks import SUFFIX
from gatepruner.files.writing import is_temporary, write_text
from gatepruner.measuring.latency import Latency
from gatepruner.networks.checkpoint import Checkpoint

STEPS = "steps.json"
WHOLE = "whole"  # the first step


class Facts(TypedDict, total=False):
    """Measurements and choices that a resumed compression does not repeat."""

    latencies: dict[str, Latency]
    choices: dict[str, str]


class Document(msgspec.Struct):
    """What `steps.json` holds."""

    configuration: dict[str, Any]
    facts: Facts
    steps: list[StepRecord]


@dataclass
class Folder:
    """The finished steps of a compression, kept on the disk if there is a path.

    Of several processes the first one writes; each of them reads the networks of finished steps.

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

    def begin(self, names: Sequence[str], *, resume: bool, force: bool) -> None:
        """Begin the steps, or read those in the folder; in all processes, as the first one finds.

        Args:
            names: of all steps, in their order.
            resume: whether to continue from the steps in the folder, if there are any.
            force: whether to replace what is in the folder.

        Raises:
            CheckpointError: the folder is not empty, or belongs to another compression.
        """
        if self.path is not None:
            path = self.path
            self.records, self.facts = processes.agreed(
                lambda: self._begun(path, names, resume=resume, force=force)
            )

    def _begun(
        self, path: Path, names: Sequence[str], *, resume: bool, force: bool
    ) -> tuple[list[StepRecord], dict[str, Any]]:
        steps = path / STEPS
        if resume and steps.exists():
            self._read(steps, names)
            return self.records, self.facts
        if not force and _files(path):
            problem = "contains a compression" if steps.exists() else "is not empty"
            remedy = "continue or replace it" if steps.exists() else "replace its contents"
            raise CheckpointError(
                f"{path} {problem}: write to another folder, or {remedy}",
                **({"resume": True} if steps.exists() else {}),
                force=True,
            )
        for file in path.glob("*.pt.state"):  # before the steps that they belong to
            file.unlink(missing_ok=True)
        self.write()
        return self.records, self.facts

    def _read(self, steps: Path, known: Sequence[str]) -> None:
        try:
            plain = parsed(text_of(steps), str(steps))
            document = checked(plain, Document, str(steps))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; start a new compression", force=True) from None
        names = [record.name for record in document.steps]
        changed = differences(document.configuration, self.configuration)
        if not changed and names != list(known[: len(names)]):
            raise CheckpointError(
                f"{steps} is damaged: it has the steps {listed(names)}, expected the first of "
                f"{listed(known)}; start a new compression",
                force=True,
            )
        self.records, self.facts = document.steps, dict(plain["facts"])
        if changed:
            raise CheckpointError(
                f"{self.path} contains another compression ({'; '.join(changed)}): resume it with "
                "the options of that compression, or write to another folder"
            )

    def done(self, name: str, whole: Checkpoint) -> Checkpoint | None:
        """The network of a step, if the step is done.

        Args:
            name: of the step.
            whole: the network that is compressed.

        Raises:
            CheckpointError: the file of the step has another network.
        """
        if self.path is None or name not in {record.name for record in self.records}:
            return None
        base = whole.network.base
        step = load(self.path / f"{name}.pt", module=base.module, leaves=base.leaves)
        kept = replace(step, network=replace(step.network, base=base))
        other = step.network.to_json()["base"] != whole.network.to_json()["base"]
        if other or (name == WHOLE and kept.fingerprint != whole.fingerprint):
            raise CheckpointError(
                f"{self.path / f'{name}.pt'} has another network, {step.network}, than this "
                "compression had after that step: start a new compression",
                force=True,
            )
        return kept

    def keep(self, record: StepRecord, checkpoint: Checkpoint) -> None:
        """Keep the record and the network of a step, and delete its state."""
        if self.path is not None and processes.rank() == 0:
            save(checkpoint, self.path / f"{record.name}.pt", force=True)
        self.records.append(record)
        self.write()
        if (state := self.state(record.name)) is not None and processes.rank() == 0:
            state.unlink(missing_ok=True)

    def state(self, name: str) -> Path | None:
        """The file for the state of a running step."""
        return None if self.path is None else self.path / f"{name}.pt.state"

    def write(self) -> None:
        """Write the records of the finished steps atomically."""
        if self.path is not None and processes.rank() == 0:
            steps = [asdict(record) for record in self.records]
            document = {"configuration": self.configuration, "facts": self.facts, "steps": steps}
            write_text(self.path / STEPS, json.dumps(document, indent=1) + "\n")


def _files(folder: Path) -> list[str]:
    """What is in a folder, without what killed runs have left behind."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if not (name.endswith(SUFFIX) or is_temporary(name))]
