"""Files of rows, and what is read from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from taskpgm.config import Config
from taskpgm.config_file import parse_config
from taskpgm.data.conversations import read_source
from taskpgm.data.messages import Conversation, conversation
from taskpgm.errors import UserError
from taskpgm.pool.task_pool import Length, TaskPool, load_tasks

LONGEST = 30


def lengths_of(batch: Sequence[Conversation]) -> list[Length | None]:
    """Words as tokens, one more to end a turn: a real length, and rows that are cut or do not fit."""
    lengths: list[Length | None] = []
    for row in batch:
        response = sum(
            len(text.split()) + 1 for role, text in ((m.role, m.content) for m in row.messages) if role == "assistant"
        )
        prompt = sum(
            len(text.split()) + 1 for role, text in ((m.role, m.content) for m in row.messages) if role != "assistant"
        )
        fits = response <= LONGEST
        lengths.append(Length(min(prompt + response, LONGEST), response, prompt + response > LONGEST) if fits else None)
    return lengths


def pair(prompt: str, completion: str = "yes") -> Conversation:
    return conversation(("user", prompt), ("assistant", completion))


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(*prompts: object) -> list[dict[str, str]]:
    return [{"prompt": str(prompt), "completion": "yes"} for prompt in prompts]


def configure(tasks: dict[str, Any], targets: dict[str, Any] | None = None, seed: int = 0, **contexts: int) -> Config:
    def sources(given: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": name, **(one if isinstance(one, dict) else {"path": str(one)})} for name, one in given.items()]

    return parse_config(
        {
            "tasks": sources(tasks),
            "targets": sources(targets or {}),
            "budget": {"examples": 1},
            "contexts": {"per_set": 2, **contexts},
            "seed": seed,
        }
    )


def read(path: object, **settings: Any) -> list[Conversation]:
    return read_source(configure({"a": {"path": str(path), **settings}}).tasks[0]).rows


def load(config: Config) -> TaskPool:
    return load_tasks(config, lengths_of)


def prompts(rows: Sequence[Any]) -> list[str]:
    return [row.conversation.messages[0].content for row in rows]


def bad(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


GOOD = '{"prompt": "p", "completion": "c"}\n'


def one_sentence(error: pytest.ExceptionInfo[UserError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ";" in text  # the remedy
