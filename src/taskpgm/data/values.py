"""What a value of a record may mean: nothing, text, a number that a file spells, or JSON stored as text."""

import json
import math
from typing import Any

from taskpgm.data.parts import Number, reason_of, type_of
from taskpgm.errors import UserError


class UnreadableError(ValueError):
    """JSON that would lose something if it was read: why."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for JSON decoders.

    Raises:
        UnreadableError: it has a key twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UnreadableError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice in one object")
    return found


def is_absent(value: Any) -> bool:
    """Whether it is null or not a number, which is how data frames store a missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether nothing is said: absent, blank text, or a list or an object of only such values."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return is_absent(value) or (isinstance(value, str) and not value.strip())


def is_null(value: Any) -> bool:
    """Whether a value that is a list or an object, perhaps as JSON text, says nothing: `null` in such a text too."""
    return is_empty(value) or (isinstance(value, str) and value.strip() == "null")


def without_absent(value: dict[str, Any]) -> dict[str, Any]:
    """The object without keys that have no value."""
    return {key: one for key, one in value.items() if not is_absent(one)}


def text_of(value: Any, column: str, at: str) -> str:
    """The value as text; numbers and truth values the way JSON spells them.

    Raises:
        UserError: it is missing, a list or an object.
    """
    if isinstance(value, str):
        return str(value)  # plain text, though it was a number in a JSON file
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    wrong = "missing or null" if is_absent(value) else str(value) if isinstance(value, float) else type_of(value)
    remedy = "fill it in" if is_absent(value) else "write it as text"
    raise UserError(f"{at} has no text in column {column!r} ({wrong}); {remedy} or remove the row.")


def unpacked(value: Any, strict: bool = True) -> Any:
    """The list or object that a text holds as JSON, as in CSV; any other value as it is.

    Raises:
        UnreadableError: an object has a key twice; if not `strict`, the last counts.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return _loads(value, strict)
    except (json.JSONDecodeError, RecursionError):
        return value


def _loads(text: str, strict: bool = True) -> Any:
    return json.loads(text, parse_int=Number, parse_float=Number, object_pairs_hook=unique if strict else None)


def from_text(value: Any, column: str, at: str) -> Any:
    """The value, read from JSON if it is text, as in CSV; None if it says nothing.

    Raises:
        UserError: text that is not JSON.
        UnreadableError: an object has a key twice.
    """
    if is_empty(value):
        return None
    if not isinstance(value, str):
        return value
    try:
        return _loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{at} has text in column {column!r} that is not JSON ({reason_of(error)}); correct the row, or ignore the "
            f"column with columns: {{{column}: ''}}."
        ) from error


def plain(value: Any) -> Any:
    """Plain data with the numbers of a JSON file as numbers again.

    Raises:
        UnreadableError: a number that is too long to be one.
    """
    if isinstance(value, Number):
        return _number(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _number(spelled: str) -> Any:
    try:
        return json.loads(spelled)
    except ValueError as error:  # Python reads no whole number of more than some 4,300 digits
        raise UnreadableError(f"a number has {len(spelled):,} digits, too many") from error
