"""TRL, and Unsloth, which trains with it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskpgm.errors import UserError
from taskpgm.export.arrow import write_json_parquet
from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml
from taskpgm.export.train_file import Format, line_of, unfit
from taskpgm.files import write_jsonl

SFT = """What the trainer still needs from you: FILL-IN values, the learning rate, the batch.
Start it in this folder: trl sft --config sft.yaml"""
MARKS = (
    "`assistant_only_loss: true` takes the loss of answers only. It needs a chat template with `{% generation %}` "
    "marks; TRL brings marked templates for families that it knows, and stops at others."
)
ORDER = (
    "Files are read one after the other; TRL shuffles by default (`train_sampling_strategy: random`): leave that on."
)


def write_trl(handover: Handover, folder: Path) -> Written:
    """`sft.yaml` for `trl sft`, and the tasks' files; by shares with `fraction`s."""
    layout = _layout(handover)
    if layout == "messages" and handover.learned != "all":
        raise UserError(
            "TRL learns every answer of a row with messages, and some answers here are context while their rows do not "
            "fit prompt and completion; export --to axolotl or ms-swift."
        )
    names = (["messages"] if layout == "messages" else ["prompt", "completion"]) + ["tools"] * handover.has_tools
    datasets: list[dict[str, Any]] = [
        {"path": kind, "data_files": file, "columns": [*names]}
        for kind, file in _write_tasks(handover, folder, layout, names)
    ]
    sees, keeps = exact(handover), [ORDER]
    if handover.by == "shares":
        for entry, task in zip(datasets, handover.tasks, strict=True):
            entry["fraction"] = task.plan.row_share
        sees = _seen(handover)
        keeps.append("`fraction` takes a file's first rows; it never repeats one.")
    loss = "assistant_only_loss" if layout == "messages" else "completion_only_loss"
    keeps.append(MARKS if layout == "messages" else "`completion_only_loss: true` takes the loss of answers only.")
    write_yaml(folder / "sft.yaml", SFT, {
        "model_name_or_path": handover.model, "datasets": datasets, loss: True, "max_length": handover.max_length,
        "packing": False, "num_train_epochs": 1, "learning_rate": 2e-4, "per_device_train_batch_size": 8,
        "use_peft": True, "lora_r": 16, "lora_alpha": 32, "seed": handover.seed, "output_dir": "output",
    })  # fmt: skip
    keeps.append("`num_train_epochs: 1`: repeats are in the files already.")
    keeps.append("Without a GPU add --use_cpu true --bf16 false.")
    return Written(sees, "```sh\ntrl sft --config sft.yaml\n```", tuple(keeps))


def _write_tasks(handover: Handover, folder: Path, layout: Format, names: list[str]) -> list[tuple[str, str]]:
    """A file a task, as (format, name): JSON Lines if roles and texts are all there is; else Parquet.

    TRL joins the files, and of JSON Lines the type of a column is guessed from what the rows of each file have.
    """
    plain = all(row.plain_texts for _, row in handover.everything())
    if not plain and not find_spec("pyarrow"):
        raise UserError(
            "--to trl needs the package pyarrow for rows with tools, calls or thoughts: pip install pyarrow."
        )
    (folder / "tasks").mkdir()
    files = []
    for task in handover.tasks:
        rows = ({**line_of(row, layout), **_tools(handover, row)} for row in handover.conversations(task))
        files.append(("json", task.file) if plain else ("parquet", f"tasks/{task.stem}.parquet"))
        if plain:
            write_jsonl(folder / task.file, rows)
        else:
            write_json_parquet(folder / files[-1][1], names, rows)
    return files


def _layout(handover: Handover) -> Format:
    """Prompt and completion if all rows fit, whose loss every chat template tells; else messages."""
    pairs: Format = "prompt_completion" if handover.has_template else "text"
    return "messages" if any(unfit(row, pairs) for _, row in handover.everything()) else pairs


def _tools(handover: Handover, row: Any) -> dict[str, Any]:
    return {"tools": list(row.tools) or None} if handover.has_tools else {}


def taken_by_fractions(sizes: list[int], shares: list[float]) -> list[int]:
    """Rows that TRL takes of files of these sizes: round(share · N), N the largest total that repeats no row."""
    total = min(size / share for size, share in zip(sizes, shares, strict=True) if share > 0)
    return [round(share * total) for share in shares]


def _seen(handover: Handover) -> str:
    shares = [task.plan.row_share for task in handover.tasks]
    taken = taken_by_fractions([len(task.rows) for task in handover.tasks], shares)
    worst = max(abs(count / sum(taken) - share) for count, share in zip(taken, shares, strict=True))
    return (
        f"within {100 * worst:.1f} % of the plan's shares, but {sum(taken)} rows instead of {len(handover.plan)}: "
        "fractions repeat no row."
    )


UNSLOTH = '''"""Train on the mixture with Unsloth; what only you know is FILL-IN."""

import json
from pathlib import Path

from datasets import Dataset

HERE = Path(__file__).parent
FILES = {files}
MAX_LENGTH = {max_length}
SEED = {seed}


def texts(tokenizer):
    """Every planned row once, repeats included, as your model's chat template writes it."""
    lines = [line for file in FILES for line in (HERE / file).open(encoding="utf-8")]
    rows = [json.loads(line) for line in lines]
    written = [
        tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False) for row in rows
    ]
    return Dataset.from_dict({{"text": written}}).shuffle(seed=SEED)


if __name__ == "__main__":
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel
    from unsloth.chat_templates import train_on_responses_only

    model, tokenizer = FastLanguageModel.from_pretrained({model}, max_seq_length=MAX_LENGTH)
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, random_state=SEED)
    # Tokens in front of a user's turn and of an answer in your model's template; ChatML's are here.
    USER, ANSWER = "<|im_start|>user\\n", "<|im_start|>assistant\\n"
    settings = SFTConfig(output_dir="output", max_length=MAX_LENGTH, packing=False, num_train_epochs=1, seed=SEED)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=texts(tokenizer), args=settings)
    train_on_responses_only(trainer, instruction_part=USER, response_part=ANSWER).train()
'''


def write_unsloth(handover: Handover, folder: Path) -> Written:
    """`train.py` for Unsloth, which reads the tasks' files without weights."""
    write_task_files(handover, folder, Form())
    text = UNSLOTH.format(
        files=json.dumps([task.file for task in handover.tasks], indent=4, ensure_ascii=False),
        max_length=handover.max_length, seed=handover.seed, model=json.dumps(handover.model, ensure_ascii=False),
    )  # fmt: skip
    (folder / "train.py").write_text(text, encoding="utf-8")
    keeps = (
        "`train_on_responses_only` takes the loss of answers only; its two texts depend on your model's template.",
    )
    return Written(exact(handover), "```sh\npython train.py\n```", keeps)
