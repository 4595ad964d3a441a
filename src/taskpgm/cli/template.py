"""`taskpgm init`: a commented configuration filled in from data files."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from taskpgm.config import Config, ContextConfig, Section, Source, TargetConfig, TaskConfig
from taskpgm.data.columns import hint
from taskpgm.data.conversations import count_rows, title_of
from taskpgm.data.sources import read_columns
from taskpgm.data.splits import bare
from taskpgm.errors import UserError
from taskpgm.names import NAME_BYTES, bad_in_name, name_key
from taskpgm.progress import QUIET, Progress

WIDTH = 100  # of a line: a comment and its value fit on most screens
LEAST = 3  # rows of a task: two contexts, and one to train on
CHATS = ("conversations", "conversation", "messages", "dialogue", "dialog", "contents", "chat", "turns")
QUESTIONS = (
    "question", "query", "problem", "prompt", "instruction", "input", "inputs", "user", "human", "document", "article",
)  # fmt: skip
EXTRAS = ("input", "context", "passage")  # beside an instruction or a question
ANSWERS = (
    "answer", "answers", "response", "completion", "output", "solution", "target", "targets", "label", "answerkey",
    "assistant", "gpt", "summary", "highlights",
)  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A task of the configuration: what was found in its file."""

    source: Source
    rows: int | None = None  # distinct ones; None if they cannot be read yet
    found: tuple[str, ...] = ()  # columns, if it takes `columns` to read them
    trouble: str = ""  # why they cannot be read


def write_template(files: Sequence[Path], progress: Progress = QUIET) -> tuple[str, list[str]]:
    """YAML text of a configuration with one task a file and every other setting at its default, described; and notes.

    A file whose columns have other names gets a `columns` to confirm or to fill in; one that cannot be read is listed
    with the reason. The notes say what there is to do.
    """
    paths = list(dict.fromkeys(files))
    drafts = []
    with progress.stage("reading", len(paths), "file"):
        for name, path in zip(_names(paths), paths, strict=True):
            drafts.append(_draft(Source(name=name, path=str(path))))
            progress.advance()
    rows = [draft.rows for draft in drafts if draft.rows is not None]
    lines = [
        "# TaskPGM configuration; check it with `taskpgm check`. Only tasks and budget are required, the rest",
        "# stands at its defaults.",
    ]
    for name, field in Config.model_fields.items():
        lines += ["", *_comment(str(field.description), "")]
        if name in ("tasks", "targets"):
            lines += _sources(name, drafts)
        elif name == "contexts":
            lines += _contexts(name, field, rows)
        elif name == "budget":
            lines += _section(name, field, {"examples": min(10_000, sum(rows) or 10_000)})
        else:
            lines += _section(name, field, {})
    notes = [f"{draft.source.name}: {note}" for draft in drafts if (note := _note(draft))]
    return "\n".join(lines) + "\n", notes


def _draft(source: Source) -> Draft:
    """What a file holds: read as it is, or with the columns that are likely meant."""
    try:
        return Draft(source, count_rows(source))
    except UserError as error:
        first = _reason(error, source)
    try:
        names = read_columns(source, title_of(source))
    except UserError as error:
        return Draft(source, trouble=_reason(error, source))
    if names is None:
        return Draft(source, trouble="it holds no rows")
    found = tuple(names)
    if not found:
        return Draft(source, trouble="it has no columns")
    columns = _likely(found)
    if columns is None:
        return Draft(source, found=found)
    if not set(columns.items()) - {(column, column) for column in found}:
        return Draft(source, trouble=first)  # its columns have the usual names: a row is wrong
    guess = source.model_copy(update={"columns": columns})
    try:
        return Draft(guess, count_rows(guess), found)
    except UserError as error:
        return Draft(guess, found=found, trouble=_reason(error, source))


def _reason(error: UserError, source: Source) -> str:
    return str(error).removeprefix(f"{title_of(source)}: ").rstrip(".")


def _likely(found: Sequence[str]) -> dict[str, str] | None:
    """The columns that are likely a row's conversation, or its question and answer; None if none are."""
    plain = {column.strip().lower(): column for column in reversed(found)}

    def first(names: Sequence[str]) -> str | None:
        return next((plain[name] for name in names if name in plain), None)

    chat, question, answer = first(CHATS), first(QUESTIONS), first(ANSWERS)
    if chat is not None:
        return {"messages": chat}
    if question is None or answer is None:
        return None
    extra = first(EXTRAS)
    if extra not in (None, question):
        return {"instruction": question, "input": str(extra), "output": answer}
    return {"prompt": question, "completion": answer}


def _note(draft: Draft) -> str:
    """What there is to do about a task before it can be read, or used; empty if nothing is."""
    if draft.trouble:
        return f"cannot be read yet: {draft.trouble}"
    listed = ", ".join(draft.found[:12]) + ", …" * (len(draft.found) > 12)
    if draft.source.columns is None and draft.found:
        what = "which hold the prompt and the completion, or the messages"
        return f"has the columns {listed}; fill in `columns`: {what}{hint(list(draft.found))}"
    if draft.rows is not None and draft.rows < LEAST:
        return f"has {draft.rows} different rows, and a task needs {LEAST} at least; add some, or leave it out"
    if draft.source.columns is not None and not _is_sure(draft):
        return f"has the columns {listed}; confirm or correct `columns`"
    return ""


def _is_sure(draft: Draft) -> bool:
    """Whether the columns are conversations, and no others could be a row too."""
    chat = (draft.source.columns or {}).get("messages")
    return chat is not None and _likely([column for column in draft.found if column != chat]) is None


def _sources(name: str, drafts: Sequence[Draft]) -> list[str]:
    kind: type[Section] = TaskConfig if name == "tasks" else TargetConfig
    lines = []
    for key, field in kind.model_fields.items():
        lines += _comment(f"{key}: {field.description}", "  ", hang="    ")
    if name == "targets":
        return [*lines, "targets: []"]
    lines.append("tasks:")
    for draft in drafts:
        lines += _task(draft)
    return lines


def _task(draft: Draft) -> list[str]:
    source = draft.source
    given = source.model_dump(include={"name", "path", "columns"}, exclude_none=True)
    note = _note(draft)
    lines = _comment(f"{source.name} {note}", "  ") if note else []
    if draft.found and source.columns is None:
        fields = [f"{key}: {_yaml(value)}" for key, value in given.items()]
        example = "# columns: {prompt: …, completion: …}"
        return [*lines, f"  - {fields[0]}", *(f"    {one}" for one in fields[1:]), f"    {example}"]
    return [*lines, f"  - {_yaml(given)}" + (f"  # {draft.rows} rows" if draft.rows is not None else "")]


def _contexts(name: str, field: FieldInfo, rows: Sequence[int]) -> list[str]:
    """The section, with fewer contexts if the smallest file has not enough rows for the usual number."""
    usual = ContextConfig().per_set
    smallest = min((n for n in rows if n >= LEAST), default=usual + 1)
    if smallest > usual:
        return _section(name, field, {})
    fewer = max(2, smallest // 2)
    lines = _section(name, field, {"per_set": fewer})
    return [
        f"{line}  # {usual} is usual; the smallest file has {smallest} rows" if line == f"  per_set: {fewer}" else line
        for line in lines
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each path, all different: its own, behind its folder's if two have the same, and then numbered."""
    short = [_name(_stem(path)) for path in paths]
    keys = [name_key(name) for name in short]
    names: list[str] = []
    for path, name, key in zip(paths, short, keys, strict=True):
        folder = path.absolute().parent.name
        wanted = _name(f"{folder}_{name}") if keys.count(key) > 1 and folder else name
        names.append(_unused(wanted, {name_key(other) for other in names}))
    return names


def _unused(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while name_key(found) in taken:
        number += 1
        found = _name(name, f"_{number}")
    return found


def _stem(path: Path) -> str:
    name = path.name or path.absolute().name
    return name if path.is_dir() else bare(name)


def _name(text: str, end: str = "") -> str:
    """The text, as far as it can be a name: what cannot be in one becomes an underscore, and a long one is cut."""
    seen = "".join("_" if bad_in_name(f"x{c}x") else c for c in unicodedata.normalize("NFC", text))
    kept = re.sub(r"^[\s.~]+", "", seen).encode()[: NAME_BYTES - len(end)].decode(errors="ignore").strip()
    return (kept or "task") + end


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
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# {hang}")
