"""`taskpgm init`: a commented configuration filled in from data files."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from taskpgm.config import Config, Section, Source, TargetConfig, TaskConfig
from taskpgm.conversations import read_source
from taskpgm.errors import UserError

WIDTH = 100


def write_template(files: Sequence[Path]) -> str:
    """YAML text of a configuration with one task a file and every other setting at its default, described.

    Raises:
        UserError: a file that cannot be read as a task.
    """
    sources = [Source(name=_name(path), path=str(path)) for path in files]
    sizes = {source.name: len(read_source(source).rows) for source in sources}
    if len(sizes) < len(sources):
        twice = next(s.name for s in sources if [t.name for t in sources].count(s.name) > 1)
        paths = " and ".join(s.path for s in sources if s.name == twice)
        raise UserError(f"{paths} give the same task name {twice!r}; rename one of them, or name it once.")
    lines = [
        "# TaskPGM configuration; check it with `taskpgm check`. Only tasks and budget are required, the rest",
        "# stands at its defaults.",
    ]
    for name, field in Config.model_fields.items():
        lines += ["", *_comment(str(field.description), "")]
        if name in ("tasks", "targets"):
            lines += _sources(name, sources, sizes)
        elif name == "budget":
            lines += _section(name, field, {"examples": min(10_000, sum(sizes.values()))})
        else:
            lines += _section(name, field, {})
    return "\n".join(lines) + "\n"


def _sources(name: str, sources: Sequence[Source], sizes: dict[str, int]) -> list[str]:
    kind: type[Section] = TaskConfig if name == "tasks" else TargetConfig
    lines = []
    for key, field in kind.model_fields.items():
        lines += _comment(f"{key}: {field.description}", "  ", hang="    ")
    if name == "targets":
        return [*lines, "targets: []"]
    listed = [f"  - {_yaml({'name': s.name, 'path': s.path})}  # {sizes[s.name]} rows" for s in sources]
    return [*lines, "tasks:", *listed]


def _section(name: str, field: FieldInfo, filled: dict[str, Any], indent: str = "") -> list[str]:
    """A section with a described line a field; fields without a value are commented out."""
    kind = field.annotation
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        return _setting(name, filled.get(name, field.get_default(call_default_factory=True)), indent)
    lines = [f"{indent}{name}:"]
    for key, inner in kind.model_fields.items():
        lines += _comment(str(inner.description), indent + "  ")
        lines += _section(key, inner, filled, indent + "  ")
    return lines


def _setting(name: str, value: Any, indent: str) -> list[str]:
    if value is None:
        return [f"{indent}# {name}:"]
    return [f"{indent}{name}: {_yaml(list(value) if isinstance(value, tuple) else value)}"]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _comment(text: str, indent: str, hang: str = "") -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# {hang}")


def _name(path: Path) -> str:
    stem = path.name.removesuffix(".gz")
    stem = Path(stem).stem if path.is_file() else stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:100] or "task"
