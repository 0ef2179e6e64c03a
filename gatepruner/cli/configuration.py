"""The options of a call as a YAML file: read with `--config`, written beside every output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from gatepruner.documents import text_of
from gatepruner.errors import GatePrunerError, nearest
from gatepruner.files.writing import write_text

LARGEST = 2**16  # bytes of such a file; YAML takes long to read
# What a call is about, not what it makes: it is not recorded, and a file cannot set it.
GOALS = frozenset(  # of which a call has one
    {"drop", "keep", "threshold", "blocks"}
    | {"target_macs", "target_params", "target_latency", "max_loss"}
)
PASSING = frozenset({"config", "as_json", "quiet", "force", "dry_run", "resume", "help", "command"})


def read_configuration(context: typer.Context, value: Path | None) -> Path | None:
    """Take the options of a file as the defaults of this call."""
    if value is not None and not context.resilient_parsing:
        known = {str(one.name) for one in context.command.params} - PASSING
        flags = {str(one.name) for one in context.command.params if getattr(one, "is_flag", False)}
        context.default_map = {
            key: setting if key in flags else str(setting)
            for key, setting in _settings(value, known).items()
            if setting is not None
        }
    return value


def without_overruled(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call, without a file's goal where the command line asks for another."""
    sources = {name: context.get_parameter_source(name) for name in GOALS & values.keys()}
    told = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    return {
        name: None if told and name in GOALS - told else value for name, value in values.items()
    }


def _settings(path: Path, known: set[str]) -> dict[str, Any]:
    """What a file sets, by the names of the parameters; all that is wrong is told at once."""
    try:
        text = text_of(path, most=LARGEST)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases, whose values may have no end: write them out")
        content = yaml.safe_load(text)
    except GatePrunerError as error:
        raise typer.BadParameter(str(error)) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path}: expected lines such as `batch-size: 64`")
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    wrong = [
        f"unknown option {_spelled(key)}{_near(key, known)}" for key in settings if key not in known
    ]
    wrong += [
        f"{_spelled(key)}: expected a single value"
        for key, value in settings.items()
        if isinstance(value, (dict, list))
    ]
    if wrong:
        raise typer.BadParameter(f"{path}: {'; '.join(wrong)}")
    return settings


def _near(key: str, known: set[str]) -> str:
    return nearest(_spelled(key), [_spelled(name) for name in sorted(known)])


def _spelled(key: str) -> str:
    return key.replace("_", "-")


def write_configuration(given: Mapping[str, Any], output: Path) -> Path:
    """Write the options of a call: `small.pt.yaml` beside `small.pt`, `config.yaml` in a folder."""
    path = configuration_path(output)
    kept = {
        _spelled(key): str(value) if isinstance(value, Path) else value
        for key, value in given.items()
        if key not in PASSING and value not in (None, "")
    }
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return write_text(path, f"# gatepruner {given['command']} --config {path}\n{text}")


def configuration_path(output: Path) -> Path:
    """Where the options are written that made this output."""
    if output.suffix in (".pt", ".pth", ".safetensors", ".onnx", ".pt2", ".xml"):
        return output.with_name(f"{output.name}.yaml")
    return output / "config.yaml"
