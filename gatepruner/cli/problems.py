"""What is wrong with a request: all of it is collected and told at once, as text or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from gatepruner.errors import GatePrunerError

OPTIONS = {"normalization": "normalize", "input_shape": "input-size"}  # of other names here
FORMS = {"(C, H, W)": "CxHxW"}  # of other forms here


class SeveralError(GatePrunerError):
    """A request that is refused for more than one reason."""

    def __init__(self, errors: Sequence[GatePrunerError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


class Problems:
    """Collects refusals: `with problems:` goes on after one, `refuse` tells them all."""

    def __init__(self) -> None:
        self.errors: list[GatePrunerError] = []

    def __enter__(self) -> Problems:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, GatePrunerError):
            return False
        if str(error) not in map(str, self.errors):
            self.errors.append(error)
        return True

    def refuse(self) -> None:
        """Raise what was collected, if anything was."""
        if self.errors:
            raise self.errors[0] if len(self.errors) == 1 else SeveralError(self.errors)


def lines(error: GatePrunerError) -> list[str]:
    """One line for every reason, with the options that would help."""
    errors = error.errors if isinstance(error, SeveralError) else (error,)
    return [one.told(option) for one in errors]


def option(name: str, value: Any) -> str:
    """An argument of the library as an option: `--resize 8`, `--force`."""
    spelled = f"--{OPTIONS.get(name, name).replace('_', '-')}"
    text = ",".join(value) if isinstance(value, tuple) else FORMS.get(value, value)
    return spelled if value is True else f"{spelled} {text}"


def document(kind: str, messages: Sequence[str]) -> dict[str, Any]:
    """The JSON document of a failure."""
    return {
        "document": 1,
        "error": {"kind": kind, "message": "; ".join(messages), "messages": list(messages)},
    }


def kind_of(error: GatePrunerError) -> str:
    """`checkpoint` for a `CheckpointError`; of the first where there are several."""
    first = error.errors[0] if isinstance(error, SeveralError) else error
    return type(first).__name__.removeprefix("OutOf").removesuffix("Error").lower()
