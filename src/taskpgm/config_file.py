"""A configuration from its YAML file or from plain data, with the first mistake in one sentence."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel

from taskpgm.config import Config, Section
from taskpgm.errors import UserError, did_you_mean
from taskpgm.paths import is_pattern, literal_folders, local_path
from taskpgm.yamls import read_yaml

PLAIN = {  # what pydantic says of Python's types, for those who write YAML
    "model_type": "takes settings by name, {setting: value}",
    "dict_type": "takes names and values, {name: value}",
    "tuple_type": "takes a list, a line that begins with - for each",
    "too_short": "needs one at least",
    "int_parsing": "Input should be a valid integer",
}


def load_config(path: str | Path) -> Config:
    """Config read from a YAML file; paths in it are relative to the file's folder.

    Raises:
        UserError: the file is missing, is not YAML, or has a wrong or unknown setting.
    """
    path = Path(path)
    data = read_yaml(_text_of(path), str(path))
    if data is None:
        raise UserError(f"{path} holds no settings; `taskpgm init FILES > {path}` writes some to start from.")
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no settings by name (tasks: …, budget: …), as `taskpgm init FILES` prints them.")
    return resolve_paths(parse_config(data, str(path)), path.parent)


def _text_of(path: Path) -> str:
    """Text of a configuration: UTF-8, or UTF-16 if its first bytes say so."""
    try:
        data = path.read_bytes()
        return data.decode(json.detect_encoding(data[:4]))
    except OSError as error:
        there = "name the experiment's YAML file" if path.exists() else f"`taskpgm init FILES > {path}` writes one"
        raise UserError(f"Cannot read the configuration {path}: {error.strerror}; {there}.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not {error.encoding.upper()} text; save the file as UTF-8.") from error


def parse_config(data: dict[str, Any], where: str = "configuration") -> Config:
    """Config from plain data, with the first mistake as a UserError in one sentence."""
    try:
        return Config.model_validate(_without_empty(data))
    except pydantic.ValidationError as error:
        said = f"{where}: {_first_mistake(error)}"
        raise UserError(said if said.endswith("?") else f"{said}.") from None  # a notebook would print all mistakes
    except RecursionError as error:
        raise UserError(f"{where} holds itself by an alias; write out what is meant.") from error


def resolve_paths(config: Config, folder: Path) -> Config:
    """The same config with existing local paths, and patterns of such, made absolute from `folder`."""

    def local(path: str | None) -> str | None:
        expanded = local_path(path) if path else None
        return str((folder / expanded).resolve()) if expanded and (folder / expanded).exists() else path

    def data(path: str) -> str:
        expanded, here = local_path(path), Path.cwd() / folder
        if (here / expanded).exists():  # not resolved: a link may be all that has an ending to its name
            return os.path.normpath(here / expanded)
        if not is_pattern(path):
            return path
        return str(Path(glob.escape(os.path.normpath(here))) / literal_folders(expanded, here))

    settings = config.model_dump()
    settings["model"]["path"] = local(settings["model"]["path"])
    for source in (*settings["tasks"], *settings["targets"]):
        for key, absolute in (("path", data), ("validation", data), ("adapter", local)):
            if source.get(key):
                source[key] = absolute(source[key])
    return Config.model_validate(settings)


def _without_empty(data: Any) -> Any:
    """The data without settings that have no value: a section whose lines are all commented out stands at its defaults.

    Keys that are no settings stay, to be refused: `examples: 10,000` within braces has the key 000.
    """
    if isinstance(data, list):
        return [_without_empty(value) for value in data]
    if not isinstance(data, dict):
        return data
    return {k: _without_empty(v) for k, v in data.items() if v is not None or k not in _settings(Config)}


def _settings(section: type[Section]) -> set[str]:
    """Names of all settings in a section and in those within it."""
    inner = [one for field in section.model_fields.values() for one in _sections(field.annotation)]
    return {*section.model_fields}.union(*map(_settings, inner))


def _first_mistake(error: pydantic.ValidationError) -> str:
    """The first validation error in words; an unknown key names the nearest known one, which may be what is missing."""
    errors = error.errors()
    unknown = [one for one in errors if one["type"] == "extra_forbidden"]
    first = unknown[0] if unknown and errors[0]["type"] == "missing" else errors[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = _keys_at(first["loc"][:-1])
        return f"unknown key {place!r}{did_you_mean(key, known) or '; known here: ' + ', '.join(known)}"
    message = PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "missing":
        return f"{place!r} is required; add it"
    given = first["input"]
    quoted = "; put it in quotes" if first["type"] == "string_type" and isinstance(given, int | float) else ""
    said = "cannot be a name" in message or isinstance(given, dict | BaseModel)
    shown = "" if said else f" (got {json.dumps(given, default=str)[:80]}{quoted})"
    return f"{place}: {message}{shown}" if place else message


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    section: Any = Config
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:
            section = next(_sections(section.model_fields[part].annotation))
    return list(section.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _sections(part)
