"""Files that trainers read: train.jsonl, and each trainer's own unit of a mixture."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from taskpgm.errors import UserError
from taskpgm.plan import RowPlan
from taskpgm.tasks import Row, TaskPool
from taskpgm.chat_template import separated

Format = Literal["messages", "prompt_completion"]


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
    """Column layout of the whole file: the one asked for, or `messages` where the model has a chat template or a
    planned row is more than one question and its answer, else `prompt_completion`.

    Raises:
        UserError: prompt_completion is asked for and a planned row is no single user and assistant turn.
    """
    if asked == "messages" or (asked == "auto" and has_chat_template):
        return "messages"
    odd = next((task for task, row in _planned_rows(pool, plan) if not _is_pair(row)), None)
    if odd is None:
        return "prompt_completion"
    if asked == "auto":
        return "messages"
    raise UserError(
        f"export.format prompt_completion cannot hold rows of task {odd!r} that are more than a prompt and an answer; "
        "set it to messages or auto."
    )


def write_train_jsonl(path: Path, pool: TaskPool, plan: RowPlan, format: Format) -> None:
    """Write the planned rows in training order, one object a line, every line with the same columns.

    messages: `messages` (a list of {role, content}) and `task`; prompt_completion: `prompt`, `completion` and `task`,
    all text. A prompt ends with white space, a newline unless it has its own, as in the plain template: trainers join
    the two as they stand. UTF-8 and \\n on every system: the same plan gives the same bytes. Not atomic; the store does
    that.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for task, row in _planned_rows(pool, plan):
            file.write(json.dumps({**_columns(row, format), "task": task}, ensure_ascii=False) + "\n")


def _planned_rows(pool: TaskPool, plan: RowPlan) -> Iterator[tuple[str, Row]]:
    assert tuple(task.name for task in plan.tasks) == pool.names, "the plan is of another pool"
    for task, row in zip(plan.task.tolist(), plan.row.tolist(), strict=True):
        yield pool.tasks[task].name, pool.tasks[task].train[row]


def _is_pair(row: Row) -> bool:
    return row.conversation.plain and [m.role for m in row.conversation.messages] == ["user", "assistant"]


def _columns(row: Row, format: Format) -> dict[str, object]:
    if format == "messages":
        return {"messages": row.conversation.to_dicts()}
    assert _is_pair(row), "choose_format refuses these rows"
    question, answer = row.conversation.messages
    return {"prompt": separated(question.content), "completion": answer.content}
