"""A command's signature: a few dataclasses of options, one flat signature for typer.

Each field is an option: its default is the dataclass's (or that of the instance that is the
parameter's default), its help the line of the docstring's `Attributes`, its panel the title of
the dataclass. A field that two dataclasses share is one option. A dataclass that is a context
manager is entered for the time of the command.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum
from typing import Annotated, Any, Literal, Optional, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from gatepruner.cli.configuration import without_overruled
from gatepruner.cli.problems import Problems

EVERYTHING = object()  # marks the field that holds the values of all options of the call


@dataclass(frozen=True)
class Group:
    """How a command takes a dataclass.

    Attributes:
        needs: fields that must be given here, though they have a default.
        leave_out: fields that are no options here and keep their defaults.
        only: the only fields that are options here, with the names of these options.
        words: the words that fields of text may be.
    """

    needs: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    only: Mapping[str, str] | None = None
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Taken:
    """A dataclass that a command takes, and the fields of it that are options."""

    kind: Any  # a dataclass; mypy takes type[Any] for unhashable
    default: Any
    group: Group
    options: dict[str, str]  # the option of each field
    everything: tuple[str, ...]

    def made(self, values: Mapping[str, Any]) -> Any:
        """The dataclass with the values of its options."""
        given = {name: values[option] for name, option in self.options.items()}
        given |= dict.fromkeys(self.everything, values)
        return self.kind(**given) if self.default is None else replace(self.default, **given)


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one parameter for each option, for typer."""
    hints = get_type_hints(command, include_extras=True)
    taken: dict[str, _Taken] = {}
    parameters: dict[str, inspect.Parameter] = {}
    given = inspect.signature(command).parameters.values()
    # Options beside the subject are the rare ones: they come last in the help.
    for parameter in sorted(given, key=lambda one: one.kind is not inspect.Parameter.KEYWORD_ONLY):
        kind, group = _split(hints[parameter.name], Group)
        default = None if parameter.default is parameter.empty else parameter.default
        taken[parameter.name] = one = _take(kind, default, group or Group())
        for name, option in one.options.items():
            parameters.setdefault(option, _parameter(one, name, option))

    @functools.wraps(command)
    def call(context: typer.Context, **given: Any) -> None:
        values = without_overruled(context, given)
        plain = {key: one.value if isinstance(one, Enum) else one for key, one in values.items()}
        with contextlib.ExitStack() as stack:
            made = _made(taken, {"command": command.__name__, **plain})
            for one in made.values():
                if isinstance(one, contextlib.AbstractContextManager):
                    stack.enter_context(one)
            command(**made)

    parameters["context"] = inspect.Parameter(
        "context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
    )
    call.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
    call.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    return call


def _made(taken: Mapping[str, _Taken], values: Mapping[str, Any]) -> dict[str, Any]:
    """The dataclasses that a command takes; all that is wrong with them is told at once."""
    problems, made = Problems(), {}
    for name, one in taken.items():
        with problems:
            made[name] = one.made(values)
    problems.refuse()
    return made


def _take(kind: Any, default: Any, group: Group) -> _Taken:
    hints = _hints(kind)
    names = [one.name for one in fields(kind)]
    everything = tuple(name for name in names if EVERYTHING in get_args(hints[name]))
    options = {name: name for name in names if name not in (*everything, *group.leave_out)}
    return _Taken(kind, default, group, dict(group.only or options), everything)


def _parameter(taken: _Taken, name: str, option: str) -> inspect.Parameter:
    hint, given = _split(_hints(taken.kind)[name], OptionInfo)
    hint, argument = _split(hint, ArgumentInfo)
    info = copy.copy(given or argument or typer.Option())
    info.help = info.help or attributes(taken.kind).get(name, "")
    if isinstance(info, OptionInfo):
        info.rich_help_panel = info.rich_help_panel or title(taken.kind)
    needed = name in taken.group.needs
    one = next(each for each in fields(taken.kind) if each.name == name)
    return inspect.Parameter(
        option,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else _default(one, taken.default),
        annotation=Annotated[_choices(hint, name, taken.group.words.get(name, ())), info],
    )


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _default(one: Field[Any], instance: Any) -> Any:
    if one.default is MISSING and one.default_factory is MISSING:
        return inspect.Parameter.empty
    return one.default if instance is None else getattr(instance, one.name)


def _split(hint: Any, kind: type[Any]) -> tuple[Any, Any]:
    """An annotated type without its annotation of that kind, and that annotation or `None`."""
    if get_origin(hint) is not Annotated:
        return hint, None
    inner, *notes = get_args(hint)
    found = next((note for note in notes if isinstance(note, kind)), None)
    rest = [note for note in notes if note is not found]
    for note in rest:
        inner = Annotated[inner, note]
    return inner, found


def _choices(hint: Any, name: str, words: Sequence[str]) -> Any:
    """The type as typer knows it since 0.15: a set of words is an enumeration."""
    optional = [one for one in get_args(hint) if one is not type(None)]
    if len(optional) == 1 and len(get_args(hint)) == 2:
        return Optional[_choices(optional[0], name, words)]  # noqa: UP045 - a type as a value
    words = get_args(hint) if get_origin(hint) is Literal else words
    return Enum(name, {word: word for word in words}, type=str) if words else hint


def title(kind: type[Any]) -> str:
    """The first line of a dataclass's docstring, as the title of a panel."""
    return (inspect.getdoc(kind) or kind.__name__).splitlines()[0].rstrip(".")


@functools.cache
def attributes(kind: Any) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    told: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for entry in re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            text = " ".join(entry[2].split())
            told[entry[1]] = text[:1].upper() + text[1:]
    return told
