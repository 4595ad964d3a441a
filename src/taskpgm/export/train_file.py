"""Files that trainers read: train.jsonl, and each trainer's own unit of a mixture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taskpgm.chat.template import separated
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.files import write_jsonl
from taskpgm.pool.drawing import one_of_each_shape, peek, shapes_of
from taskpgm.pool.plan import RowPlan
from taskpgm.pool.task_pool import TaskPool
from taskpgm.types import Ints

Format = Literal["messages", "prompt_completion", "text"]  # text: prompt and completion for models without a template


@dataclass(frozen=True)
class TrainerUnits:
    """One task's part of the mixture, in the units in which trainers ask for it."""

    share: float  # of the budget, in its own unit
    epochs: float  # passes over the task's training rows
    count: int  # rows, repeats included
    draw_probability: float  # that an example drawn at random is of this task: its share of rows


def trainer_units(plan: RowPlan) -> dict[str, TrainerUnits]:
    """Units of every task, as the plan realises them after rounding."""
    return {
        task.name: TrainerUnits(
            task.row_share if plan.unit == "examples" else task.token_share, task.epochs, task.count, task.row_share
        )
        for task in plan.tasks
    }


def choose_format(
    pool: TaskPool, plan: RowPlan, asked: Literal["auto", "messages", "prompt_completion"], has_chat_template: bool
) -> Format:
    """Columns of the whole file: those asked for; auto takes `messages` if the model has a chat template or a
    planned row is more than one question and its answer.

    With a template and an answer that is not learned, auto takes prompt_completion if all rows fit: trainers that
    know no `weight` would learn that answer from `messages`.

    Raises:
        UserError: prompt_completion is asked for and a planned row does not fit it.
    """
    if asked == "messages":
        return "messages"
    pairs: Format = "prompt_completion" if has_chat_template else "text"
    rows = list(_planned_shapes(pool, plan))
    odd = next(((task, why) for task, row in rows if (why := unfit(row, pairs))), None)
    if asked == "auto" and (odd or (has_chat_template and all(_all_learned(row) for _, row in rows))):
        return "messages"
    if odd:
        raise UserError(
            f"export.format prompt_completion cannot hold task {odd[0]!r}, which has a row {odd[1]}; set it to "
            "messages or auto."
        )
    return pairs


def check_format(pool: TaskPool, asked: str, has_chat_template: bool) -> None:
    """Raise if a training row that a run might draw cannot be written in the format that is asked for.

    Raises:
        UserError: prompt_completion is asked for, and a row does not fit it.
    """
    pairs: Format = "prompt_completion" if has_chat_template else "text"
    for task in pool.tasks if asked == "prompt_completion" else ():
        whys = [(n, why) for n, row in one_of_each_shape(task.train) if (why := unfit(row.conversation, pairs))]
        if whys:
            raise UserError(
                f"export.format prompt_completion cannot hold {sum(number for number, _ in whys)} of the "
                f"{len(task.train)} training rows of task {task.name!r}, such as one {whys[0][1]}; set it to messages "
                "or auto."
            )


def write_train_jsonl(path: Path, pool: TaskPool, plan: RowPlan, format: Format) -> None:
    """Write the planned rows in training order, one object a line, every line with the same columns.

    messages: `messages` and `task`, with `weight: 0` at answers that are not learned; prompt_completion: `prompt`,
    `completion` (both lists of messages) and `task`; text: the same as text, if a prompt ends with white space, a
    newline unless it has its own, as in the plain template: trainers join the two as they stand. If a planned row
    has tools there is also `tools`, null for rows without. UTF-8 and \\n on every system: the same plan gives the same
    bytes. Not atomic; the store does that.
    """
    with_tools = any(row.tools for _, row in _planned_shapes(pool, plan))

    def line(task: str, row: Conversation) -> dict[str, Any]:
        tools = {"tools": list(row.tools) or None} if with_tools else {}
        return {**line_of(row, format), **tools, "task": task}

    write_jsonl(path, (line(task, row) for task, row in _planned_rows(pool, plan)))


def _planned_rows(pool: TaskPool, plan: RowPlan) -> Iterator[tuple[str, Conversation]]:
    return _rows_at(pool, plan, np.arange(len(plan)))


def _planned_shapes(pool: TaskPool, plan: RowPlan) -> Iterator[tuple[str, Conversation]]:
    """The first planned row of every sequence of roles in every task."""
    shape_R = np.zeros(len(plan), dtype=np.int64)
    for i, task in enumerate(pool.tasks):
        shape_R[plan.task == i] = shapes_of(task.train)[plan.row[plan.task == i]]
    _, first = np.unique(np.stack([plan.task, shape_R]), axis=1, return_index=True)
    return _rows_at(pool, plan, np.sort(first))


def _rows_at(pool: TaskPool, plan: RowPlan, places: Ints) -> Iterator[tuple[str, Conversation]]:
    assert tuple(task.name for task in plan.tasks) == pool.names, "the plan is of another pool"
    for task, row in zip(plan.task[places].tolist(), plan.row[places].tolist(), strict=True):
        yield pool.tasks[task].name, peek(pool.tasks[task].train, row).conversation


def unfit(conversation: Conversation, format: Format) -> str | None:
    """What keeps a row from being one prompt and its completion; None if it fits."""
    turns = conversation.messages
    if format == "text":
        fits = conversation.plain and [turn.role for turn in turns] == ["user", "assistant"]
        return None if fits else "that is more than a question and its answer"
    if sum(turn.answers for turn in turns) > 1:
        return "with several answers to learn"
    return None if turns[-1].answers else "that goes on after its answer"


def _all_learned(row: Conversation) -> bool:
    return all(turn.learned for turn in row.messages)


def line_of(conversation: Conversation, format: Format) -> dict[str, object]:
    """The columns of a row that fits the format, without `tools`."""
    if format == "messages":
        return {"messages": conversation.to_dicts()}
    assert not unfit(conversation, format), "the row does not fit the format"
    *asked, answer = conversation.messages
    if format == "text":
        return {"prompt": separated(asked[0].content), "completion": answer.content}
    prompt = [replace(turn, learned=True).to_dict() for turn in asked]  # all of it is context: no turn needs to say so
    return {"prompt": prompt, "completion": [answer.to_dict()]}
