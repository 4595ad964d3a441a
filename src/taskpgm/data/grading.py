"""`Grading`: what a row's answer is graded by when a model is evaluated; no part of the conversation."""

from typing import Any, NamedTuple

from taskpgm.data.messages import Conversation
from taskpgm.data.parts import Number
from taskpgm.data.values import UnreadableError, from_text, plain, text_of
from taskpgm.errors import UserError


class Grading(NamedTuple):
    """What an answer to a row is graded by, if its source says so."""

    choices: tuple[str, ...] | None = None  # every answer that may be given; the row's own is one of them
    verifier: dict[str, Any] | None = None  # reasoning-gym: {dataset, answer, metadata}


def read_grading(
    columns: dict[str, str], record: dict[str, Any], row: Conversation, at: str, given: Any = None
) -> Grading:
    """Grading of one row from the columns of `choices` and `reasoning_gym`, if it has them.

    Args:
        given: the answer as the record has it, where a column holds it: a number, say.

    Raises:
        UserError: a column that does not say how the row's answer is graded.
    """
    found = Grading()
    try:
        if column := columns.get("choices"):
            found = found._replace(choices=_choices(record.get(column), column, row, at, given))
        if column := columns.get("reasoning_gym"):
            found = found._replace(verifier=_verifier(record.get(column), column, at))
    except UnreadableError as error:
        raise UserError(
            f"{at} has JSON in column {column!r} that cannot be read ({error}); correct the row."
        ) from error
    return found


def _choices(given: Any, column: str, row: Conversation, at: str, answer: Any) -> tuple[str, ...] | None:
    """The options that the row's answer is one of: the texts, or else their labels."""
    value = from_text(given, column, at)
    if value is None:
        return None
    remedy = "correct the row, or ignore the column with columns: {choices: ''}"
    texts, labels = _options(value)
    if texts is None:
        what = "an object" if isinstance(value, dict) else "no list"
        raise UserError(f"{at} has {what} in column {column!r}, not a list of answers or {{text, label}}; {remedy}.")
    named = [
        tuple(text_of(option, column, at) for option in options)
        for options in (texts, labels if labels and None not in labels else [])
    ]
    found = [choices for choices in named if row.answer in choices and row.answer_is_text]
    if len({choices.index(row.answer) for choices in found}) > 1:
        what = f"{row.answer[:40]!r}, which is one of its choices and the label of another"
        raise UserError(f"{at} has the answer {what}; {remedy}.")
    if named[0] in found and _may_count(answer, texts):
        what = f"{row.answer} as a number, which is one of its choices and may be the place of another"
        raise UserError(f"{at} has the answer {what}; write it as text if it is the choice, or {remedy}.")
    if found:
        return found[0]
    said = repr(row.answer[:40]) if row.answer_is_text else "with a call or thoughts"
    raise UserError(f"{at} has the answer {said}, which is none of its {len(texts)} choices; {remedy}.")


def _may_count(answer: Any, texts: list[Any]) -> bool:
    """Whether an answer is a whole number that may count choices, which are texts themselves."""
    whole = type(answer) is int or (isinstance(answer, Number) and answer.isdecimal())
    return whole and 0 <= int(answer) <= len(texts) and all(type(text) is str for text in texts)


def _options(value: Any) -> tuple[list[Any] | None, list[Any] | None]:
    """Texts and labels: of a list of texts or of {text, label}, an object of two such lists, or of {label: text}."""
    if isinstance(value, dict) and value and all(isinstance(one, str) for one in value.values()):
        return list(value.values()), list(value)
    if isinstance(value, dict):
        texts, labels = value.get("text"), value.get("label")
        return (texts if isinstance(texts, list) else None), (labels if isinstance(labels, list) else None)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [one.get("text") for one in value], [one.get("label") for one in value]
    return (value, None) if isinstance(value, list) else (None, None)


def _verifier(given: Any, column: str, at: str) -> dict[str, Any] | None:
    value = plain(from_text(given, column, at))
    if not value:
        return None
    if isinstance(value, dict) and isinstance(value.get("dataset"), str) and "answer" in value:
        return {"dataset": value["dataset"], "answer": value["answer"], "metadata": value.get("metadata") or {}}
    raise UserError(
        f"{at} has no {{dataset, answer, metadata}} in column {column!r}, which its verifier needs; correct the row, "
        "or ignore the column with columns: {reasoning_gym: ''}."
    )
