"""NVIDIA's: NeMo-Automodel (`sft.yaml`), Megatron (a blend list)."""

import json
import shlex
from pathlib import Path

from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, exact, write_task_files, write_yaml

NEMO = """What NeMo-Automodel still needs from you: FILL-IN values, the learning rate, the batch.
Start it in this folder: automodel sft.yaml (or: python -m nemo_automodel.cli.app sft.yaml)"""
CHAT_DATASET = "nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset"


def write_nemo_automodel(handover: Handover, folder: Path) -> Written:
    """The tasks' files as one ChatDataset in `sft.yaml`: it reads them one after the other, repeats included."""
    write_task_files(handover, folder, Form(text_arguments=True, ids=True))
    write_yaml(folder / "sft.yaml", NEMO, {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        "seed": handover.seed,
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 8, "num_epochs": 1},
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": handover.model,
        },
        "peft": {
            "_target_": "nemo_automodel.components._peft.lora.PeftConfig", "target_modules": "*.proj", "dim": 16,
            "alpha": 32,
        },
        "dataset": {
            "_target_": CHAT_DATASET, "path_or_dataset_id": [task.file for task in handover.tasks],
            "seq_length": handover.max_length, "mask_history": handover.learned == "last",
        },
        "dataloader": {
            "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
            "collate_fn": "nemo_automodel.components.datasets.utils.default_collater", "shuffle": True,
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 2e-4},
        "checkpoint": {"enabled": True, "checkpoint_dir": "output"},
    })  # fmt: skip
    keeps = [
        "ChatDataset takes the loss of assistant turns; give it a chat template with `{% generation %}` marks.",
        "`shuffle: true`: files stand one after the other.",
        "`num_epochs: 1`: repeats are in the files already.",
    ]
    if handover.learned == "last":
        keeps.append("`mask_history: true`: in every row only the last answer is learned.")
    return Written(exact(handover), "```sh\nautomodel sft.yaml\n```", tuple(keeps))


PREPARE = '''"""Text for Megatron: render every row of tasks/ with your model's chat template into text/.

Then make text/NAME_text_document.bin and .idx of each with Megatron-LM:

    python tools/preprocess_data.py --input text/NAME.jsonl --json-keys text --append-eod \\\\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model {quoted} --output-prefix text/NAME --workers 2
"""

import json
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).parent
tokenizer = AutoTokenizer.from_pretrained({model!r})
(HERE / "text").mkdir(exist_ok=True)
for file in sorted((HERE / "tasks").glob("*.jsonl")):
    with file.open(encoding="utf-8") as rows, (HERE / "text" / file.name).open("w", encoding="utf-8") as out:
        for row in map(json.loads, rows):
            text = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
            out.write(json.dumps({{"text": text}}, ensure_ascii=False) + "\\n")
'''


def write_megatron(handover: Handover, folder: Path) -> Written:
    """A blend list, `prepare.py`, which renders text for Megatron's own preprocessing, and the tasks' files."""
    write_task_files(handover, folder, Form())
    prefixes = [f"text/{task.stem}_text_document" for task in handover.tasks]
    blend = [part for task, at in zip(handover.tasks, prefixes, strict=True) for part in (str(task.plan.count), at)]
    (folder / "blend.txt").write_text(" ".join(blend) + "\n", encoding="utf-8")
    data = {"train": blend, "valid": None, "test": None}
    (folder / "blend.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "prepare.py").write_text(
        PREPARE.format(model=handover.model, quoted=shlex.quote(handover.model)), encoding="utf-8"
    )
    sees = (
        f"exact counts: {handover.size}, if Megatron is given no size. "
        "With a number of samples of your own, its low-discrepancy order keeps the shares to within a sample a task."
    )
    keeps = (
        "Weights are whole numbers, the rows of each task; none is zero, which Megatron refuses.",
        "Megatron's GPT dataset packs documents into samples and learns every token, questions too. For answers only, "
        "read `tasks/` with its SFT dataset (`--sft`), or use another trainer.",
        "Names of files have no spaces, which its argument list would split.",
    )
    start = (
        "```sh\npython prepare.py   # then preprocess_data.py on every file of text/, as prepare.py says\n"
        "pretrain_gpt.py --data-path $(cat blend.txt) ...   # or --per-split-data-args-path blend.json\n```"
    )
    return Written(sees, start, keeps)
