"""`Reading`: the rows of one source as conversations, whatever shape they have."""

import json
import math
from typing import Any, Literal, NamedTuple

from taskpgm.config import MARKS, Source, TargetConfig
from taskpgm.errors import UserError
from taskpgm.messages import Conversation, Message, conversation
from taskpgm.sources import Number, read_table, reason_of, type_of

Layout = Literal["messages", "prompt_completion", "instruction_output"]

LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction_output": ("instruction", "output"),
}
OPTIONAL: dict[Layout, tuple[str, ...]] = {"instruction_output": ("input",)}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # rows of {from, value} instead of {role, content}


class Marking(NamedTuple):
    """What an answer to a row is marked by, where its source says so; no part of the conversation."""

    choices: tuple[str, ...] | None = None  # every answer that may be given; the row's own is one of them
    verifier: dict[str, Any] | None = None  # reasoning-gym: {dataset, answer, metadata}


class Reading(NamedTuple):
    """Rows of one source, in file order, and how its columns were understood."""

    rows: list[Conversation]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    markings: list[Marking]  # one a row
    places: list[str]  # where each row stands: "line 5 of jars.jsonl"
    notes: tuple[str, ...] = ()  # what `check` says of the source: columns that are not read, say


def read_source(source: Source, path: str | None = None) -> Reading:
    """Reading of a task or target, or of another path (its validation rows) with the same columns.

    Every row has an assistant turn that says something and a turn of somebody else before it. Numbers and booleans in
    a text column are taken as text, the way JSON spells them (CSV: exactly as the file does); null is an error.

    Raises:
        UserError: anything about the source that its owner has to put right.
    """
    who = title_of(source)
    table = read_table(source, path, who)
    path = path or source.path
    if not table.records:
        raise UserError(f"{who}: {path} holds no rows; give it some or leave it out.")
    layout, columns = _detect(table.columns, source.columns or {}, path, who)
    marks = {field: (source.columns or {}).get(field, field) for field in MARKS}
    marks = {field: column for field, column in marks.items() if column and column in table.columns}
    rows, markings = [], []
    for at, record in table.records:
        rows.append(_conversation(layout, columns, record, f"{who}: {at}"))
        markings.append(_marking(marks, record, rows[-1], f"{who}: {at}") if marks else Marking())
    return Reading(rows, layout, {**columns, **marks}, markings, [at for at, _ in table.records], table.notes)


def title_of(source: Source) -> str:
    """How messages call a source: Task 'arc'."""
    return f"{'Target' if isinstance(source, TargetConfig) else 'Task'} {source.name!r}"


def _detect(found: list[str], mapped: dict[str, str], path: str, who: str) -> tuple[Layout, dict[str, str]]:
    mapped = {field: column for field, column in mapped.items() if column or field not in MARKS}
    for field, column in mapped.items():
        if column not in found:
            raise UserError(f"{who}: `columns` reads {field} from {column!r}, but {path} has {', '.join(found)}.")
    for layout, required in LAYOUTS.items():
        fields = (*required, *OPTIONAL.get(layout, ()))
        columns = {field: mapped.get(field, field) for field in fields}
        if set(mapped) <= {*fields, *MARKS} and all(columns[field] in found for field in required):
            return layout, {field: column for field, column in columns.items() if column in found}
    also = f" and `columns` maps {', '.join(mapped)}" if mapped else ""
    raise UserError(
        f"{who}: {path} has the columns {', '.join(found)}{also}; a task needs messages, or prompt and completion, or "
        "instruction and output: name them in `columns`."
    )


def _conversation(layout: Layout, columns: dict[str, str], record: dict[str, Any], at: str) -> Conversation:
    if layout == "messages":
        found = Conversation(_turns(record.get(columns["messages"]), columns["messages"], at))
    else:
        user, assistant = LAYOUTS[layout]
        question = _text(record.get(columns[user]), columns[user], at)
        extra = record.get(columns["input"]) if "input" in columns else None
        if extra is not None and (text := _text(extra, columns["input"], at)):
            question = f"{question}\n\n{text}"
        answer = _text(record.get(columns[assistant]), columns[assistant], at)
        found = conversation(("user", question), ("assistant", answer))
    _check_conversation(found, at)
    return found


def _turns(value: Any, column: str, at: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        wrong = "missing or null" if value is None else type_of(value)
        raise UserError(f"{at} has no list of {{role, content}} in {column!r} ({wrong}); correct or remove the row.")
    turns = []
    for i, turn in enumerate(value, 1):
        role = turn.get("role")
        role = SHAREGPT_ROLES.get(name := turn.get("from"), name) if role is None else role
        content = turn.get("content")
        content = turn.get("value") if content is None else content
        for key, text in (("role", role), ("content", content)):
            if not isinstance(text, str):
                wrong = "missing or null" if text is None else type_of(text)
                raise UserError(
                    f"{at} has no text as {key} of turn {i} of {column!r} ({wrong}); correct or remove the row."
                )
        turns.append(Message(str(role), str(content)))
    return tuple(turns)


def _text(value: Any, column: str, at: str) -> str:
    if isinstance(value, str):
        return str(value)  # plain text, where it was a number of a JSON file
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    wrong = "missing or null" if value is None or isinstance(value, float) else type_of(value)
    raise UserError(f"{at} has no text in column {column!r} ({wrong}); fill it in or remove the row.")


def _check_conversation(row: Conversation, at: str) -> None:
    roles = [message.role for message in row.messages]
    asked = next((i for i, role in enumerate(roles) if role != "assistant"), len(roles))
    if not any(message.answers and message.content.strip() for message in row.messages[asked:]):
        said = "an empty answer" if "assistant" in roles[asked:] else "no assistant turn after another one"
        raise UserError(f"{at} has {said} (roles: {', '.join(roles) or 'none'}); every row needs an answer to learn.")
    try:
        json.dumps(row.to_data(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{at} holds half a surrogate pair, which is not text; correct or remove the row.") from error


def _marking(columns: dict[str, str], record: dict[str, Any], row: Conversation, at: str) -> Marking:
    choices = _choices(columns, record, row.answer, at)
    return Marking(choices, _verifier(columns, record, at))


def _choices(columns: dict[str, str], record: dict[str, Any], answer: str, at: str) -> tuple[str, ...] | None:
    column = columns.get("choices")
    value = _from_text(record.get(column), column, at) if column else None
    if not column or not value:
        return None
    remedy = "correct the row, or ignore the column with columns: {choices: ''}"
    if not isinstance(value, list):
        raise UserError(f"{at} has {type_of(value)} in column {column!r}, not a list of answers; {remedy}.")
    choices = tuple(_text(choice, column, at) for choice in value)
    if answer not in choices:
        raise UserError(f"{at} has the answer {answer[:40]!r}, which is none of its {len(choices)} choices; {remedy}.")
    return choices


def _verifier(columns: dict[str, str], record: dict[str, Any], at: str) -> dict[str, Any] | None:
    column = columns.get("reasoning_gym")
    value = _numbers(_from_text(record.get(column), column, at)) if column else None
    if not column or not value:
        return None
    if isinstance(value, dict) and isinstance(value.get("dataset"), str) and "answer" in value:
        return {"dataset": value["dataset"], "answer": value["answer"], "metadata": value.get("metadata") or {}}
    raise UserError(
        f"{at} has no {{dataset, answer, metadata}} in column {column!r}, which its verifier needs; correct the row, "
        "or ignore the column with columns: {reasoning_gym: ''}."
    )


def _from_text(value: Any, column: str, at: str) -> Any:
    """The value, read from JSON where it is text, as in CSV."""
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    try:
        return json.loads(value, parse_int=Number, parse_float=Number)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{at} has text in column {column!r} that is not JSON ({reason_of(error)}); correct the row, or ignore the "
            f"column with columns: {{{column}: ''}}."
        ) from error


def _numbers(value: Any) -> Any:
    """Plain data with the numbers of a JSON file as numbers again."""
    if isinstance(value, Number):
        return json.loads(value)
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return {key: _numbers(item) for key, item in value.items()} if isinstance(value, dict) else value
