"""From data files to a model trained on their mixture, with TRL.

    pip install '.[lm,trl]'
    python examples/from_files_to_trainer.py [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--out runs/example]

The three tasks are written by the script, so that it runs as it stands; replace them by files of your own. Settings are
small, for a first look: leave `probes` and `contexts` out for a real run. Any hub id or folder of a causal language
model with a chat template will do.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from taskpgm import parse_config, run

ROWS = 60


def write_tasks(folder: Path) -> dict[str, Path]:
    """Three small tasks as JSON Lines, by name."""
    rng = random.Random(0)
    pairs = [divmod(code, 100) for code in rng.sample(range(10_000), ROWS)]
    tasks = {
        "sums": [(f"What is {a} + {b}?", str(a + b)) for a, b in pairs],
        "larger": [(f"Which is larger, {a} or {b}?", str(max(a, b))) for a, b in pairs],
        "backwards": [(f"Write {a:02}{b:02} backwards.", f"{a:02}{b:02}"[::-1]) for a, b in pairs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in tasks}
    for name, rows in tasks.items():
        lines = (json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
        files[name].write_text("".join(lines), encoding="utf-8")
    return files


def settings(files: dict[str, Path], model: str) -> dict[str, object]:
    """What `mix.yaml` would hold."""
    return {
        "model": {"path": model},
        "tasks": [{"name": name, "path": str(path.resolve())} for name, path in files.items()],
        "budget": {"examples": 48},
        "probes": {"examples": 16, "batch": 8, "max_length": 256, "lora": {"r": 4}},
        "contexts": {"per_set": 8, "validation": 4},
        "export": {"format": "prompt_completion"},  # TRL needs no further setting
    }


def main() -> None:
    """Measure the mixture, print it, train on it for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--steps", type=int, default=6)
    given = parser.parse_args()

    config = parse_config(settings(write_tasks(given.out / "data"), given.model))
    mixture = run(config, given.out).mixture
    for task, share, error in zip(mixture.tasks, mixture.weights, mixture.standard_error, strict=True):
        print(f"{task}: {share:.1%} ± {error:.1%}")

    rows = load_dataset("json", data_files=str(given.out / "train.jsonl"), split="train")
    cpu = not torch.accelerator.is_available()
    args = SFTConfig(
        str(given.out / "trained"), max_length=256, max_steps=given.steps, report_to=[], use_cpu=cpu, bf16=not cpu
    )
    trainer = SFTTrainer(given.model, args, train_dataset=rows)
    print(f"trained on {len(rows)} rows for {given.steps} steps: loss {trainer.train().training_loss:.3f}")


if __name__ == "__main__":
    main()
