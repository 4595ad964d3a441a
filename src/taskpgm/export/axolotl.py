"""Axolotl: `axolotl.yaml`."""

from pathlib import Path
from typing import Any

from taskpgm.data.messages import EXTRAS
from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml

FLAG = "train"
CONFIG = """What Axolotl 0.20 or newer still needs from you: FILL-IN values, the learning rate, the batch.
Start it in this folder: axolotl train axolotl.yaml"""


def write_axolotl(handover: Handover, folder: Path) -> Written:
    """A dataset a task in `axolotl.yaml`, without weights: they sample down only."""
    form = Form(flag=FLAG, values=(True, False), every=True, text_arguments=True)
    write_task_files(handover, folder, form, tools_as_text=True)
    datasets: list[dict[str, Any]] = [
        {
            "path": task.file, "ds_type": "json", "type": "chat_template", "field_messages": "messages",
            "message_field_training": FLAG, "roles_to_train": ["assistant"], "train_on_eos": "turn",
            "message_property_mappings": {key: key for key in ("role", "content", *EXTRAS)},
            **({"field_tools": "tools"} if handover.has_tools else {}),
        }
        for task in handover.tasks
    ]  # fmt: skip
    write_yaml(folder / "axolotl.yaml", CONFIG, {
        "base_model": handover.model, "datasets": datasets, "dataset_exact_deduplication": False,
        "shuffle_merged_datasets": True, "val_set_size": 0.0, "sequence_len": handover.max_length,
        "sample_packing": False, "adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True,
        "num_epochs": 1, "micro_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 2e-4,
        "optimizer": "adamw_torch", "lr_scheduler": "cosine", "seed": handover.seed, "output_dir": "output",
    })  # fmt: skip
    keeps = (
        "`dataset_exact_deduplication: false`: repeats are part of the plan.",
        f"`roles_to_train` and `message_field_training: {FLAG}` take the loss of answers only.",
        "`val_set_size: 0`: a share taken out of the files would change the mixture.",
        "`num_epochs: 1`: repeats are in the files already.",
    )
    return Written(exact(handover), "```sh\naxolotl train axolotl.yaml\n```", keeps)
