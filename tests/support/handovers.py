"""A plan as users have them: a small task repeated, one whole, a part of one, one left out; odd names and texts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from support.pools import make_config, make_task
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.export.handover import By, Handover
from taskpgm.pool.plan import plan_rows
from taskpgm.pool.task_pool import TaskPool

COUNTS = {"gsm 8k": 10, "数学: 題 (易)": 30, "Ärger, #2": 12, "left out": 0}
SIZES = {"gsm 8k": 4, "数学: 題 (易)": 30, "Ärger, #2": 50, "left out": 7}


def plain_rows(name: str, count: int) -> list[Conversation]:
    """Two turns, every third row with a system text and a second exchange; line ends of Unicode among the letters."""
    rows = []
    for i in range(count):
        turns = [("user", f'{name} {i}: "a\u2028b\u0085c"\n{{x}}'), ("assistant", f"é{i} 😀\n")]
        if i % 3 == 2:
            turns = [("system", "Be brief."), *turns, ("user", f"and {i}?"), ("assistant", "yes")]
        rows.append(conversation(*turns))
    return rows


def make_handover(
    rows: Mapping[str, list[Conversation]] | None = None, by: By = "rows", counts: Mapping[str, int] = COUNTS, **given: Any
) -> Handover:  # fmt: skip
    """A handover whose plan has these counts."""
    rows = rows or {name: plain_rows(name, size) for name, size in SIZES.items()}
    tasks = tuple(make_task(name, [1 + i % 3 for i in range(len(own))], own) for name, own in rows.items())
    pool = TaskPool(tasks, (), np.zeros((len(tasks), len(tasks)), dtype=np.int64))
    config = make_config(pool, examples=sum(counts.values()), max_epochs=4)
    plan = plan_rows(pool, {name: count / sum(counts.values()) for name, count in counts.items()}, config)
    assert {task.name: task.count for task in plan.tasks} == dict(counts)
    return Handover(pool, plan, by, "some/model", 512, 3, **given)


def planned(handover: Handover) -> Counter[Any]:
    """The multiset of the planned rows, straight from the plan's indices."""
    pairs = zip(handover.plan.task.tolist(), handover.plan.row.tolist(), strict=True)
    return texts(handover.pool.tasks[task].train[row].conversation.to_dicts() for task, row in pairs)


def texts(rows: Iterable[Iterable[Mapping[str, Any]]]) -> Counter[Any]:
    """The multiset of rows as (role, content) of their turns."""
    return Counter(tuple((turn["role"], turn["content"]) for turn in row) for row in rows)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLING = Conversation(
    (
        Message("system", "Use tools."), Message("user", "1 + 2?"), Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "3"), Message("assistant", "It is 3."),
    ),
    (TOOL,),
)  # fmt: skip
THINKING = Conversation((Message("user", "why?"), Message("assistant", "so.", reasoning_content="Let me see.")))
FLAGGED = Conversation(
    (
        Message("user", "a"), Message("assistant", "wrong", learned=False), Message("user", "no"), Message("assistant", "right"),
    )
)  # fmt: skip
MIXED = Conversation(
    (
        Message("user", "a"), Message("assistant", "one"), Message("user", "b"), Message("assistant", "two", learned=False),
        Message("user", "c"), Message("assistant", "three"),
    )
)  # fmt: skip


def made_call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def made_tool(name: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    about = {"name": name, "description": f"does {name}", "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": about}


# Tasks whose rows differ in all that may differ: calls with other arguments, of other types, null inside; thoughts.
ANSWERED = (Message("tool", "é 3"), Message("assistant", "3 😀"))
MANY_CALLS = Conversation(
    (
        Message("user", "1 + 2, now?"), Message("assistant", "", tool_calls=(made_call("add", a=1, b=[2]), made_call("now"))),
        Message("tool", "3"), *ANSWERED,
    ),
    (made_tool("add", a="integer", b="array"), {"type": "function", "function": {"name": "now"}}),
)  # fmt: skip
DEEP_CALL = Conversation(
    (
        Message("user", "wx?"), Message("assistant", "", tool_calls=(made_call("add", a="one", deep={"x": None}),)), *ANSWERED,
    ),
    (made_tool("add", a="string"),),
)  # fmt: skip
OF_ALL_KINDS = {
    "calls": [MANY_CALLS, DEEP_CALL], "one call": [CALLING], "thoughts": [THINKING],
    "plain": [Conversation((Message("user", "no tools"), Message("assistant", "ok")))],
}  # fmt: skip


def of_all_kinds(by: By = "rows", without: tuple[str, ...] = ()) -> Handover:
    """A handover of tasks of which each has other parts of a row."""
    rows = {name: own for name, own in OF_ALL_KINDS.items() if name not in without}
    return make_handover(rows, by, {name: len(own) for name, own in rows.items()})
