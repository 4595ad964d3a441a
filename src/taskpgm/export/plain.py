"""Formats without a trainer's own config: jsonl, openai, datasets, parquet, weights."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskpgm.data.messages import Conversation
from taskpgm.export.carry import Form, messages
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml
from taskpgm.export.train_file import choose_format, trainer_units, write_train_jsonl
from taskpgm.files import write_jsonl

OPENAI = Form(flag="weight", text_arguments=True, ids=True)


def write_plain_jsonl(handover: Handover, folder: Path) -> Written:
    """`train.jsonl` as a run writes it, and the same rows by task."""
    layout = choose_format(handover.pool, handover.plan, handover.format, handover.has_template)
    write_train_jsonl(folder / "train.jsonl", handover.pool, handover.plan, layout)
    write_task_files(handover, folder, Form(flag="weight"))
    start = f"`train.jsonl` has all rows ({layout}), every task spread evenly; `tasks/` has them by task as messages."
    return Written(exact(handover), start, ("An assistant turn with `weight: 0` is context: do not learn it.",))


def write_openai(handover: Handover, folder: Path) -> Written:
    """`train.jsonl` as OpenAI's fine-tuning and others like it take it: `messages`, `tools` of rows with some."""

    def line(row: Conversation) -> dict[str, Any]:
        tools = {"tools": list(row.tools)} if row.tools else {}
        return {"messages": messages(row, OPENAI), **tools}

    write_jsonl(folder / "train.jsonl", (line(row) for _, row in handover.in_order()))
    for task in handover.tasks:
        write_jsonl(folder / task.file, (line(row) for row in handover.conversations(task)))
    start = (
        "Upload `train.jsonl`:\n\n```python\nfrom openai import OpenAI\n\nclient = OpenAI()\n"
        'file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")\n'
        'client.fine_tuning.jobs.create(training_file=file.id, model="FILL-IN", '
        'method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}})\n```'
    )
    keeps = ("`n_epochs: 1`: repeats are in the file already.", "`weight: 0` marks answers that are context.")
    return Written(exact(handover), start, keeps)


def write_weights(handover: Handover, folder: Path) -> Written:
    """The shares alone: `weights.json`, `.yaml` and `.csv`, for trainers that are not listed."""
    units = trainer_units(handover.plan)
    tasks = [
        {
            "task": task.name, "rows_share": task.row_share, "tokens_share": task.token_share, "epochs": task.epochs,
            "count": task.count, "tokens": task.tokens, "training_rows": task.rows,
            "draw_probability": asdict(units[task.name])["draw_probability"],
        }
        for task in handover.plan.tasks
    ]  # fmt: skip
    data = {"unit": handover.plan.unit, "budget": handover.plan.budget, "rows": len(handover.plan), "tasks": tasks}
    (folder / "weights.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_yaml(folder / "weights.yaml", "Shares of rows and of response tokens, epochs, rows of each task.", data)
    with (folder / "weights.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(tasks[0]))
        writer.writeheader()
        writer.writerows(tasks)
    sees = "shares only: what a trainer makes of them, and whether it reads held-out rows, is its own affair."
    return Written(sees, "Give your trainer `count` rows of each task, or the unit that it knows.", (
        "`tokens_share` differs from `rows_share`: losses averaged over tokens follow the tokens.",
    ))  # fmt: skip
