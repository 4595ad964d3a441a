"""verl, torchtune, Tinker's cookbook: trainers that take files and no amounts."""

import json
import shlex
from pathlib import Path
from typing import Any

from taskpgm.export.arrow import write_messages_parquet
from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml
from taskpgm.files import write_jsonl

ONE_EPOCH = "One epoch: repeats are in the files already."
VERL = """#!/bin/sh
# What verl still needs from you: FILL-IN values, the learning rate, the batch, how many GPUs. Start it in this folder.
set -eu
torchrun --standalone --nproc_per_node=1 -m verl.trainer.sft_trainer \\
    "data.train_files=[{files}]" \\
    data.messages_key=messages data.max_length={max_length} data.truncation=error \\
    data.train_batch_size=8 data.micro_batch_size_per_gpu=8 \\
    {model} optim.lr=2e-5 \\
    trainer.total_epochs=1 trainer.seed={seed} trainer.default_local_dir=output
"""


def write_verl(handover: Handover, folder: Path) -> Written:
    """A Parquet file a task with `messages` of role and content, and `sft.sh`."""
    (folder / "tasks").mkdir()
    for task in handover.tasks:
        rows = handover.conversations(task)
        write_messages_parquet(folder / f"tasks/{task.stem}.parquet", rows)
    files = ",".join(f"'tasks/{task.stem}.parquet'" for task in handover.tasks)  # Hydra wants quotes beyond ASCII
    text = VERL.format(
        files=files,
        max_length=handover.max_length,
        model=shlex.quote("model.path='" + handover.model.replace("'", "\\'") + "'"),
        seed=handover.seed,
    )
    (folder / "sft.sh").write_text(text, encoding="utf-8")
    keeps = (
        "verl learns assistant turns only, with what the template writes behind their end (ChatML: a line break).",
        f"`data.truncation=error`: a row of more than {handover.max_length} tokens stops the training; it is not cut.",
        ONE_EPOCH,
    )  # fmt: skip
    return Written(exact(handover), "```sh\nsh sft.sh\n```", keeps)


TUNE = """The dataset of a torchtune recipe's config, such as llama3_2/1B_lora_single_device: copy it (tune cp),
put this in the place of its `dataset`. Start it in this folder."""


def write_torchtune(handover: Handover, folder: Path) -> Written:
    """`dataset.yaml`: a list of chat datasets, which torchtune joins."""
    write_task_files(handover, folder, Form())
    datasets: list[dict[str, Any]] = [
        {
            "_component_": "torchtune.datasets.chat_dataset", "source": "json", "data_files": task.file,
            "conversation_column": "messages", "conversation_style": "openai", "train_on_input": False,
            "split": "train", "packed": False,
        }
        for task in handover.tasks
    ]  # fmt: skip
    settings = {"dataset": datasets, "shuffle": True, "epochs": 1, "seed": handover.seed}
    write_yaml(folder / "dataset.yaml", TUNE, settings)
    start = (
        "```sh\ntune cp llama3_2/1B_lora_single_device recipe.yaml   # put dataset.yaml into it\n"
        "tune run lora_finetune_single_device --config recipe.yaml\n```"
    )
    keeps = (
        "`train_on_input: false` takes the loss of answers only.",
        "`epochs: 1`: repeats are in the files already.",
    )
    return Written(exact(handover), start, keeps)


TINKER = '''"""The mixture for Tinker's cookbook; what only you know is FILL-IN. Needs the package tinker-cookbook."""

from pathlib import Path

from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

HERE = Path(__file__).parent


def builder(model={model}, renderer="FILL-IN"):
    """Builder of the training set, for the cookbook's supervised trainer."""
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model, renderer_name=renderer, max_length={max_length}, batch_size={batch},
        train_on_what=TrainOnWhat.{what},
    )
    return FromConversationFileBuilder(file_path=str(HERE / "train.jsonl"), common_config=common, shuffle_seed={seed})
'''


def write_tinker(handover: Handover, folder: Path) -> Written:
    """`train.jsonl` and `builder.py`; the cookbook's interleaving builder would draw with replacement."""

    def lines() -> Any:
        for task, row in handover.in_order():
            yield {"messages": [{"role": turn.role, "content": turn.content} for turn in row.messages], "task": task}

    write_jsonl(folder / "train.jsonl", lines())
    batch = max(size for size in range(1, 9) if len(handover.plan) % size == 0)
    what = "LAST_ASSISTANT_MESSAGE" if handover.learned == "last" else "ALL_ASSISTANT_MESSAGES"
    text = TINKER.format(
        model=json.dumps(handover.model, ensure_ascii=False),
        max_length=handover.max_length,
        seed=handover.seed,
        what=what,
        batch=batch,
    )
    (folder / "builder.py").write_text(text, encoding="utf-8")
    start = "```python\nfrom builder import builder\n\ntrain, _ = builder()()\n```"
    keeps = (
        f"`train_on_what` is {what}.",
        f"`batch_size` should divide {len(handover.plan)}: rows that fill no batch are left out of the epoch.",
        "The cookbook's datums weigh every row alike (`reduction: mean`), not every token.",
        ONE_EPOCH,
    )
    return Written(exact(handover), start, keeps)
