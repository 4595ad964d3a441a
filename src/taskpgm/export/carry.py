"""What of a conversation a trainer's format can carry, and the messages in the form that it reads."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from taskpgm.data.messages import Conversation, Message

Part = Literal["tools", "tool calls", "thoughts", "names"]
Learned = Literal["all", "last", "flags"]
PARTS: tuple[Part, ...] = ("tools", "tool calls", "thoughts", "names")
# Without the call the answer would be empty, and without its result the next turn would answer nothing.
NEEDED: frozenset[Part] = frozenset({"tool calls"})


def parts_of(conversation: Conversation) -> set[Part]:
    """What the row has beyond roles and texts."""
    turns = conversation.messages
    found: dict[Part, bool] = {
        "tools": bool(conversation.tools),
        "tool calls": any(turn.tool_calls or turn.role == "tool" for turn in turns),
        "thoughts": any(turn.reasoning_content is not None for turn in turns),
        "names": any(turn.name is not None and turn.role != "tool" for turn in turns),
    }
    return {part for part, there in found.items() if there}


def learned_in(conversations: Iterable[Conversation]) -> Learned:
    """Which answers are learned: all; in every row only its last turn; or those that the rows' flags say."""
    every, last = True, True
    for row in conversations:
        answers = [turn.learned for turn in row.messages if turn.role == "assistant"]
        every &= all(answers)
        last &= row.messages[-1].answers and sum(answers) == 1
    return "all" if every else "last" if last else "flags"


def without(conversation: Conversation, parts: Iterable[Part]) -> Conversation:
    """The row without these parts."""
    drop = set(parts)
    turns = tuple(
        replace(
            turn,
            reasoning_content=None if "thoughts" in drop else turn.reasoning_content,
            name=None if "names" in drop and turn.role != "tool" else turn.name,
        )
        for turn in conversation.messages
    )
    return Conversation(turns, () if "tools" in drop else conversation.tools)


@dataclass(frozen=True)
class Form:
    """How a trainer wants messages written."""

    flag: str | None = None  # key of an assistant turn that says whether it is learned
    values: tuple[Any, Any] = (1, 0)  # of that key: learned, not learned
    every: bool = False  # the key stands on every assistant turn, else on those that are not learned
    text_arguments: bool = False  # arguments of calls as JSON text, as OpenAI has them
    ids: bool = False  # every call and result has an id


def messages(conversation: Conversation, form: Form) -> list[dict[str, Any]]:
    """The turns as JSON objects."""
    turns = [_message(turn, form) for turn in conversation.messages]
    return with_ids(turns) if form.ids else turns


def _message(turn: Message, form: Form) -> dict[str, Any]:
    given = turn.to_dict()
    given.pop("weight", None)
    if form.flag and turn.role == "assistant" and (form.every or not turn.learned):
        given[form.flag] = form.values[0 if turn.learned else 1]
    if form.text_arguments and "tool_calls" in given:
        given["tool_calls"] = [_with_text_arguments(call) for call in given["tool_calls"]]
    return given


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments", {})
    function["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": function}


def with_ids(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with an id at every call (`call_0`, `call_1`, …) and at every result, which answer calls in order."""
    number, open_calls, done = 0, list[str](), []
    for turn in turns:
        if "tool_calls" in turn:
            calls = []
            for call in turn["tool_calls"]:
                calls.append({"id": f"call_{number}", **{k: v for k, v in call.items() if v is not None}})
                open_calls.append(calls[-1]["id"])
                number += 1
            turn = {**turn, "tool_calls": calls}
        elif turn["role"] == "tool":
            own = turn.get("tool_call_id") or (open_calls[0] if open_calls else f"call_{number}")
            open_calls = [call for call in open_calls if call != own]
            turn = {**turn, "tool_call_id": own}
        done.append(turn)
    return done
