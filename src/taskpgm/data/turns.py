"""Turns and tools in every spelling: OpenAI's, ShareGPT's, LLaMA-Factory's, Anthropic's text blocks, Arrow's nulls.

A key that is read is taken out of the turn; what is left is named by the caller, or an error if it would change what
is trained on.
"""

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from taskpgm.data.messages import Message
from taskpgm.data.parts import Number, type_of
from taskpgm.data.values import is_absent, is_empty, is_null, plain, text_of, unpacked, without_absent
from taskpgm.errors import UserError

_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
CANONICAL = frozenset(_NAMES)
ROLES = {name: role for role, names in _NAMES.items() for name in names}
CALLS = ("function_call", "tool_call")  # roles of an assistant turn whose text is a call, as JSON
SPOKEN = ("tool_calls", "function_call")  # what an assistant turn may have in place of text
ROLE, CONTENT = ("role", "from", "speaker"), ("content", "value", "text", "parts")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
FLAGS = ("weight", "train", "training", "trainable", "learn", "loss", "loss_weight", "loss_scale", "train_on_turn")
# What would change what is trained on, and is not read: an error if a turn has it.
REFUSED = (
    "mask", "masked", "loss_mask", "ignore", "ignored", "train_detail", "tools", "functions", "thoughts", "thought",
    "reasoning_details", "image", "images", "video", "videos", "audio", "refusal",
)  # fmt: skip
ARGUMENTS = ("arguments", "parameters", "args", "input", "params")  # of a call
PYTHON = re.compile(r"\s*\[?\s*\{\s*'")  # how a text begins that is Python's for a list of objects
HEAD = ("id", "index", "type", "name", "call_id", "tool_call_id")  # what a call may have and are no arguments


@dataclass(frozen=True)
class Spot:
    """Where a value stands, for messages, and what was found there and not read."""

    at: str  # Task 'a': line 5 of jars.jsonl
    column: str
    unread: dict[str, None]  # names of keys in order of appearance: messages.id
    where: str = field(default="")  # turn 3 of 'messages'

    def turn(self, number: int) -> "Spot":
        """The same for one turn, counted from 1."""
        return replace(self, where=f"turn {number} of {self.column!r}")

    def error(self, what: str, remedy: str = "correct or remove the row") -> UserError:
        """`what` is wrong here."""
        return UserError(f"{self.at} has {what} in {self.where or repr(self.column)}; {remedy}.")

    def note(self, *keys: str) -> None:
        """Remember a key that is not read."""
        self.unread[".".join((self.column, *keys))] = None


def read_turns(value: Any, spot: Spot, remedy: str = "correct or remove the row") -> tuple[Message, ...]:
    """Messages of a list of turns, of such a list as JSON text, or of an object of equally long lists.

    Raises:
        UserError: no such list, or a turn that cannot be read in full.
    """
    found = _rows(unpacked(value))
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        wrong = "missing or null" if value is None else _kind_of(found)
        raise UserError(f"{spot.at} has no list of {{role, content}} in {spot.column!r} ({wrong}); {remedy}.")
    return tuple(message for i, turn in enumerate(found, 1) for message in _messages(turn, spot.turn(i)))


def are_turns(value: Any) -> bool:
    """Whether the value is a list of turns, or one as JSON text."""
    found = _rows(unpacked(value, strict=False))
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(turn, dict) and any(key in turn for key in ROLE) for turn in found)
    )


def speaks(value: Any) -> bool:
    """Whether a text is turns as JSON beyond doubt, or one: with a known role beside what it says."""
    if not isinstance(value, str):
        return False
    if PYTHON.match(value):  # which `read_turns` refuses
        said = any(f"'{key}'" in value for key in CONTENT)
        return said and bool(re.search(rf"'(?:{'|'.join(ROLE)})': *'(?:{'|'.join(ROLES)})'", value))
    found = _rows(unpacked(value, strict=False))
    turns = found if isinstance(found, list) else [found]
    return all(isinstance(turn, dict) for turn in turns) and any(map(_is_said, turns))


def _kind_of(value: Any) -> str:
    """What kind of value that is, in words."""
    python = isinstance(value, str) and PYTHON.match(value)
    return "text as Python writes it instead of JSON" if python else type_of(value)


def _is_said(turn: dict[str, Any]) -> bool:
    roles = (str(turn[key]).strip().lower() for key in ROLE if key in turn)
    return any(role in ROLES or role in CALLS for role in roles) and any(key in turn for key in (*CONTENT, *SPOKEN))


def read_tools(value: Any, spot: Spot) -> tuple[dict[str, Any], ...]:
    """Tools as `{type: function, function: {name, …}}`, from a list of them or of bare functions, or either as JSON.

    Raises:
        UserError: a value that is no such list.
    """
    if is_null(value):
        return ()
    found = unpacked(value)
    items = [unpacked(item) for item in found] if isinstance(found, list) else None
    if items is None or not all(isinstance(item, dict) and ("function" in item or "name" in item) for item in items):
        raise spot.error(
            f"{_kind_of(found)} that is no list of functions with names",
            f"correct the row, or ignore the column with columns: {{{spot.column}: ''}}",
        )
    return tuple(plain(item if "function" in item else {"type": "function", "function": _tool(item)}) for item in items)


def _tool(item: dict[str, Any]) -> dict[str, Any]:
    """A bare function with its parameters under the name that chat templates know; Anthropic has another."""
    if "input_schema" not in item or not is_null(item.get("parameters")):
        return item
    kept = {key: value for key, value in item.items() if key != "parameters" and (key, value) != ("type", "custom")}
    return {"parameters" if key == "input_schema" else key: value for key, value in kept.items()}


def system_text(value: Any, spot: Spot) -> str:
    """The text of a system column: text, blocks of text, or a system turn of such, as Gemini's {parts: […]}.

    Raises:
        UserError: it is none.
    """
    given = unpacked(value, strict=False)
    inner = _one(without_absent(given), ("parts", "content"), spot) if isinstance(given, dict) else None
    found = given if inner is None else inner
    blocks = [found] if isinstance(found, dict) else found
    if isinstance(blocks, list) and blocks and all(isinstance(one, dict) and "text" in one for one in blocks):
        text, thoughts = _joined([_block(block, spot) for block in blocks])
        if not thoughts:
            return text
    return text_of(found if speaks(value) or not isinstance(value, str) else value, spot.column, spot.at)


def _rows(value: Any) -> Any:
    """A list of objects, if the value is an object of lists: {role: [...], content: [...]}."""
    if not isinstance(value, dict) or not any(key in value for key in ROLE):
        return value
    if not all(isinstance(part, list) for part in value.values()):
        return value
    if len({len(part) for part in value.values()}) > 1:
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]


def _usual(turn: dict[str, Any]) -> Message | None:
    """A turn of only role and text, which most are: read at once."""
    if turn.keys() != {"role", "content"} or not all(isinstance(one, str) for one in turn.values()):
        return None
    return Message(str(turn["role"]), str(turn["content"])) if turn["role"] in _NAMES else None


def _messages(turn: dict[str, Any], spot: Spot) -> tuple[Message, ...]:
    """The message that a turn is; more if it holds results of tools, as Anthropic's turns of the user do."""
    if usual := _usual(turn):
        return (usual,)
    turn = without_absent(turn)
    blocks = turn.get("content")
    kinds = [one.get("type") if isinstance(one, dict) else None for one in blocks] if isinstance(blocks, list) else []
    if "tool_result" in kinds:
        return _results(turn, kinds, spot)
    return (_message(_with_calls(turn, kinds) if "tool_use" in kinds else turn, spot),)


def _with_calls(turn: dict[str, Any], kinds: list[Any]) -> dict[str, Any]:
    """The turn with the blocks of calls at its end as `tool_calls`; as it is if other blocks stand behind them."""
    first = kinds.index("tool_use")
    if any(kind != "tool_use" for kind in kinds[first:]) or not is_null(turn.get("tool_calls")):
        return turn
    calls = [{key: value for key, value in block.items() if key != "type"} for block in turn["content"][first:]]
    return {**turn, "content": turn["content"][:first] or "", "tool_calls": calls}


def _results(turn: dict[str, Any], kinds: list[Any], spot: Spot) -> tuple[Message, ...]:
    """Turns of tools for the results that a user's turn begins with, and one of what else it says."""
    count = next((i for i, kind in enumerate(kinds) if kind != "tool_result"), len(kinds))
    blocks = turn["content"]
    if _role(dict(turn), spot)[0] != "user" or not count:
        return (_message(turn, spot),)
    told = []
    for block in map(without_absent, blocks[:count]):
        more = {key: value for key, value in block.items() if key not in ("type", "tool_use_id")}
        said = {"content": "", **more, "role": "tool", "tool_call_id": block.get("tool_use_id")}
        told.append(_message(said, spot))
    return (*told, *([_message({**turn, "content": blocks[count:]}, spot)] if blocks[count:] else []))


def _message(turn: dict[str, Any], spot: Spot) -> Message:
    role, spoken_call = _role(turn, spot)
    content, inner = _content(turn, role, spoken_call, spot)
    thoughts = _thoughts(turn, inner, spot)
    calls = _spoken(content, spot) if spoken_call else _calls(turn, spot)
    if role != "assistant" and (calls or thoughts):
        what = "tool_calls" if calls else "reasoning_content"
        raise spot.error(f"{what} of {role}", "only assistant turns have them: correct or remove the row")
    learned = _learned(turn, role, spot)
    call_id, name = (_optional(turn, key, spot) for key in ("tool_call_id", "name"))
    _leave(turn, spot)
    content = "" if spoken_call else content
    return Message(role, content, thoughts, calls, call_id, name, learned)


def _role(turn: dict[str, Any], spot: Spot) -> tuple[str, bool]:
    """The role as chat templates know it, and whether the turn's text is a call."""
    given = _one(turn, ROLE, spot)
    if not isinstance(given, str):
        wrong = "missing or null" if given is None else type_of(given)
        raise spot.error(f"no text as role ({wrong})")
    name = given.strip().lower()
    if name in CALLS:
        return "assistant", True
    if name not in ROLES:
        raise spot.error(f"the unknown role {given[:40]!r}", f"known are {', '.join((*ROLES, *CALLS))}: rename it")
    return ROLES[name], False


def _content(turn: dict[str, Any], role: str, spoken_call: bool, spot: Spot) -> tuple[str, str | None]:
    """The text of a turn, and the thoughts among its blocks; "" beside calls."""
    given = _one(turn, CONTENT, spot)
    calls = any(not is_null(turn.get(key)) for key in SPOKEN)
    if given is None and role == "assistant" and calls:
        return "", None
    if spoken_call and isinstance(given, dict | list):
        return json.dumps(plain(given)), None
    if isinstance(given, str):
        return str(given), None
    blocks = [given] if isinstance(given, dict) else given
    if isinstance(blocks, list) and all(isinstance(one, dict | str) and not isinstance(one, Number) for one in blocks):
        texts = sum(isinstance(block, str) for block in blocks)
        if texts > 1:  # nobody says whether they belong together
            raise spot.error(
                f"a list of {texts} texts as content", "join them to one text, or write {type: text, text}"
            )
        return _joined([_block(block, spot) for block in blocks])
    wrong = "missing or null" if given is None else type_of(given)
    raise spot.error(f"no text as content ({wrong})")


def _joined(blocks: list[tuple[str, str]]) -> tuple[str, str | None]:
    texts = ["".join(text for kind, text in blocks if kind == wanted) for wanted in ("text", "thinking")]
    return texts[0], texts[1] or None


def _block(block: dict[str, Any] | str, spot: Spot) -> tuple[str, str]:
    """Kind (text or thinking) and text of one block of content."""
    if isinstance(block, str):
        return "text", str(block)
    given = without_absent(block)
    left, kind = dict(given), given.get("type", "text")
    left.pop("type", None)
    keys = {
        "text": "text", "input_text": "text", "output_text": "text", "thinking": "thinking", "reasoning": "reasoning"
    }  # fmt: skip
    key = keys.get(kind) if isinstance(kind, str) else None
    text = left.pop(key, left.pop("text", None)) if key else None
    says_more = "type" not in given and isinstance(text, str) and not all(map(is_empty, left.values()))
    if not isinstance(text, str) or says_more:
        what = (
            f"a block of type {kind!r}"
            if "type" in given
            else f"a block of {' and '.join(map(repr, given)) or 'nothing'}"
        )
        raise spot.error(
            f"{what} without text" if key and not says_more else what,
            "only text is trained on: write it as text, or remove the block or the row",
        )
    for other in left:
        spot.note("content", other)
    return "thinking" if key in ("thinking", "reasoning") else "text", str(text)


def _thoughts(turn: dict[str, Any], inner: str | None, spot: Spot) -> str | None:
    given = _one(turn, THOUGHTS, spot)
    if given is None:
        return inner
    if not isinstance(given, str) or inner:
        raise spot.error(f"{type_of(given)} as thoughts" if not inner else "thoughts as a block and as a key")
    return str(given) or None


def _calls(turn: dict[str, Any], spot: Spot) -> tuple[dict[str, Any], ...]:
    """Calls of an assistant turn; OpenAI's older `function_call` is one call."""
    given, older = (unpacked(turn.pop(key, None)) for key in SPOKEN)
    calls = [] if is_null(given) else given
    if not isinstance(calls, list):
        raise spot.error(f"{type_of(calls)} as tool_calls, not a list of calls")
    calls = calls if is_null(older) else [*calls, older]
    return tuple(_call(unpacked(call), spot) for call in calls)


def _spoken(text: str, spot: Spot) -> tuple[dict[str, Any], ...]:
    """Calls that a turn's text spells as JSON: {name, arguments}, or a list of them."""
    found = unpacked(text)
    calls = found if isinstance(found, list) else [found]
    return tuple(_call(call, spot) for call in calls)


def _call(given: Any, spot: Spot) -> dict[str, Any]:
    """`{id, type, function: {name, arguments}}` with arguments as an object, as chat templates expect them."""
    remedy = "write {name, arguments}, or remove the row"
    if not isinstance(given, dict):
        raise spot.error(f"a call that is {type_of(given)}", remedy)
    call = without_absent(given)
    function = unpacked(call.pop("function", call))
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise spot.error("a call without the name of its function", remedy)
    kind = call.get("type", "function")
    if kind != "function":
        raise spot.error(f"a call of type {str(kind)[:40]!r}", "only calls of functions are read: remove the row")
    function = without_absent(function)
    both = {"arguments": _one(function, ARGUMENTS, spot), "arguments beside them": _one(call, ARGUMENTS, spot)}
    given = _one(both, tuple(both), spot)
    left = {key: value for key, value in {**call, **function}.items() if key not in ("id", "type", "name")}
    _leave_of_call(name, given, left, spot)
    arguments = _arguments(given, name, spot)
    head = {"id": str(call["id"])} if "id" in call else {}
    return {**head, "type": "function", "function": {"name": str(name), "arguments": arguments}}


def _leave_of_call(name: str, arguments: Any, left: dict[str, Any], spot: Spot) -> None:
    """Note the keys that are left of a call; an error if they may be its arguments, which it has not."""
    other = next((key for key, value in left.items() if key not in HEAD and not _is_blank(value)), None)
    if _is_blank(arguments) and not isinstance(arguments, dict) and other is not None:
        raise spot.error(
            f"a call of {name!r} with {other!r} and without arguments",
            "it would change what is trained on and is not read: call it arguments, or remove it",
        )
    for key in left:
        spot.note("tool_calls", key)


def _arguments(given: Any, name: str, spot: Spot) -> dict[str, Any]:
    found = {} if is_null(given) and not isinstance(given, dict) else unpacked(given)
    if not isinstance(found, dict):
        wrong = f"text that is not JSON: {given[:40]!r}" if isinstance(found, str) else type_of(found)
        raise spot.error(f"arguments of {name!r} that are no object ({wrong})")
    return dict(plain(found))


def _learned(turn: dict[str, Any], role: str, spot: Spot) -> bool:
    """Whether the turn's flag, if it has one, has it learned."""
    given = {key: value for key in FLAGS if key in turn and not is_empty(value := turn.pop(key))}
    flags = {key: _flag(key, value, spot) for key, value in given.items()}
    if len(set(flags.values())) > 1:
        raise spot.error(f"{' and '.join(flags)} that differ")
    if role != "assistant" and any(flags.values()):
        key = next(iter(flags))
        raise spot.error(f"{key}: {given[key]} at the {role}'s turn", f"only assistant turns are learned: remove {key}")
    return role != "assistant" or all(flags.values())


def _flag(key: str, value: Any, spot: Spot) -> bool:
    text = {"true": "1", "false": "0"}.get(name := str(value).strip().lower(), name)
    try:
        return {1.0: True, 0.0: False}[float(text)]
    except (KeyError, ValueError):
        remedy = "a turn is learned or is context, parts are not supported: give 1 or 0"
        raise spot.error(f"{key}: {str(value)[:40]}", remedy) from None


def _optional(turn: dict[str, Any], key: str, spot: Spot) -> str | None:
    given = turn.pop(key, None)
    if given is not None and not isinstance(given, str | int):
        raise spot.error(f"{type_of(given)} as {key}")
    return None if given is None or given == "" else str(given)


def _leave(turn: dict[str, Any], spot: Spot) -> None:
    """Note the keys that are left; an error if one of them would change what is trained on."""
    for key, value in turn.items():
        if is_empty(value):
            continue
        if key in REFUSED or (key == "channel" and value != "final"):
            raise spot.error(
                f"{key!r}", "it would change what is trained on and is not read: remove the key or the row"
            )
        spot.note(key)


def _one(turn: dict[str, Any], keys: tuple[str, ...], spot: Spot) -> Any:
    """The value that one of the keys has; all of them leave the turn. One that says nothing differs from none."""
    found = {key: turn.pop(key) for key in keys if key in turn}
    said = {key: value for key, value in found.items() if not _is_blank(value)} or found
    values = list(said.values())
    if len(said) < 2 or all(value == values[0] for value in values):
        return values[0] if values else None
    if all(map(_is_blank, values)):
        return next((value for value in values if value is not None), None)
    raise spot.error(f"{' and '.join(said)} that differ")


def _is_blank(value: Any) -> bool:
    """Whether a value says nothing: absent, blank text, an empty list or object."""
    return is_absent(value) or value in ([], {}) or (isinstance(value, str) and not value.strip())
