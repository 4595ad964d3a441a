"""TRL, and Unsloth, which trains with it."""

import json
from pathlib import Path
from typing import Any

from taskpgm.errors import UserError
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
    for task in handover.tasks:
        rows = ({**line_of(row, layout), **_tools(handover, row)} for row in handover.conversations(task))
        write_jsonl(folder / task.file, rows)
    names = (["messages"] if layout == "messages" else ["prompt", "completion"]) + ["tools"] * handover.has_tools
    datasets: list[dict[str, Any]] = [
        {"path": "json", "data_files": task.file, "columns": names} for task in handover.tasks
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

from pathlib import Path

from datasets import concatenate_datasets, load_dataset

HERE = Path(__file__).parent
FILES = {files}
MAX_LENGTH = {max_length}
SEED = {seed}


def rows():
    """Every planned row once, repeats included."""
    parts = [load_dataset("json", data_files=str(HERE / file), split="train") for file in FILES]
    return concatenate_datasets(parts).shuffle(seed=SEED)


if __name__ == "__main__":
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel
    from unsloth.chat_templates import train_on_responses_only

    model, tokenizer = FastLanguageModel.from_pretrained({model}, max_seq_length=MAX_LENGTH)
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, random_state=SEED)
    # Tokens in front of a user's turn and of an answer in your model's template; ChatML's are here.
    USER, ANSWER = "<|im_start|>user\\n", "<|im_start|>assistant\\n"
    texts = rows().map(lambda row: {{"text": tokenizer.apply_chat_template(row["messages"], {tools}tokenize=False)}})
    settings = SFTConfig(output_dir="output", max_length=MAX_LENGTH, packing=False, num_train_epochs=1, seed=SEED)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=texts, args=settings)
    train_on_responses_only(trainer, instruction_part=USER, response_part=ANSWER).train()
'''


def write_unsloth(handover: Handover, folder: Path) -> Written:
    """`train.py` for Unsloth, which reads the tasks' files without weights."""
    write_task_files(handover, folder, Form())
    text = UNSLOTH.format(
        files=json.dumps([task.file for task in handover.tasks], indent=4, ensure_ascii=False),
        max_length=handover.max_length, seed=handover.seed, model=json.dumps(handover.model, ensure_ascii=False),
        tools='tools=row["tools"], ' if handover.has_tools else "",
    )  # fmt: skip
    (folder / "train.py").write_text(text, encoding="utf-8")
    keeps = (
        "`train_on_responses_only` takes the loss of answers only; its two texts depend on your model's template.",
    )
    return Written(exact(handover), "```sh\npython train.py\n```", keeps)
