"""open-instruct: `finetune.sh` with a mixer list."""

import shlex
from pathlib import Path

from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, drawn_counts, exact, write_task_files

SCRIPT = """#!/bin/sh
# What open-instruct still needs from you: FILL-IN values, the learning rate, the batch, how many processes.
# Start it in open-instruct's own folder, where open_instruct/finetune.py is.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
accelerate launch open_instruct/finetune.py \\
    --model_name_or_path {model} \\
    --dataset_mixer_list {mixer} \\
    --dataset_mixer_list_splits train \\
    --max_seq_length {max_length} \\
    --num_train_epochs 1 \\
    --per_device_train_batch_size 8 \\
    --learning_rate 2e-5 \\
    --seed {seed} \\
    --output_dir output
"""


def write_open_instruct(handover: Handover, folder: Path) -> Written:
    """Every file whole (1.0 of its rows), or by counts so many rows of it."""
    write_task_files(handover, folder, Form())
    counts = handover.by == "counts"
    # A decimal is a multiple of the file's rows, an integer is rows: 1.0 is the whole file, 1 is one row.
    amounts = [(task.file, str(task.plan.count) if counts else "1.0") for task in handover.tasks]
    mixer = " ".join(f'"$HERE"/{shlex.quote(file)} {amount}' for file, amount in amounts)
    model = shlex.quote(handover.model)
    text = SCRIPT.format(model=model, mixer=mixer, max_length=handover.max_length, seed=handover.seed)
    script = folder / "finetune.sh"
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    keeps = (
        "Amounts: `1.0` is the whole file, `1` would be one row.",
        "The loss is taken of assistant turns only, in open-instruct's own way.",
        "`--num_train_epochs 1`: repeats are part of the plan already.",
    )
    return Written(drawn_counts(handover) if counts else exact(handover), "```sh\nsh finetune.sh\n```", keeps)
