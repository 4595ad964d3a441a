"""ms-swift: `sft.yaml`."""

from pathlib import Path

from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml

CONFIG = """What ms-swift still needs from you: FILL-IN values, the learning rate, the batch.
Start it in this folder: USE_HF=1 swift sft sft.yaml"""


def write_ms_swift(handover: Handover, folder: Path) -> Written:
    """The tasks' files in `sft.yaml`; by counts with `#count` behind them."""
    form = Form(flag="loss", values=(True, False), text_arguments=True)
    write_task_files(handover, folder, form, tools_as_text=True)
    counts = handover.by == "counts"
    write_yaml(folder / "sft.yaml", CONFIG, {
        "model": handover.model,
        "dataset": [task.file + (f"#{task.plan.count}" if counts else "") for task in handover.tasks],
        "split_dataset_ratio": 0, "dataset_shuffle": True, "train_dataloader_shuffle": True,
        "max_length": handover.max_length, "loss_scale": "default", "packing": False, "tuner_type": "lora",
        "lora_rank": 16, "lora_alpha": 32, "num_train_epochs": 1, "per_device_train_batch_size": 8,
        "learning_rate": 2e-4, "seed": handover.seed, "output_dir": "output",
    })  # fmt: skip
    sees = exact(handover)
    if counts:
        sees = f"exact counts: {handover.size}, in whole passes over a task's training rows and a random rest."
    keeps = (
        "`split_dataset_ratio: 0`: a share taken out of the files would change the mixture.",
        "`loss_scale: default` takes the loss of answers only; `loss: false` marks those that are context.",
        "`num_train_epochs: 1`: repeats are in the " + ("counts" if counts else "files") + " already.",
    )
    return Written(sees, "```sh\nUSE_HF=1 swift sft sft.yaml\n```", keeps)
