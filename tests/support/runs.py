"""Small experiments on files."""

import json
from pathlib import Path

import numpy as np

from taskpgm.config import Config
from taskpgm.config_file import load_config

TASKS = ("sums", "sky", "words")


def write_rows(path: Path, name: str, count: int) -> None:
    rng = np.random.default_rng(sum(name.encode()))
    answers = {
        "sums": lambda a, b: str(a + b),
        "sky": lambda a, b: "yes" if a > b else "no",
        "words": lambda a, b: "apple " * (a % 3 + 1),
    }
    pairs = {(int(a), int(b)) for a, b in rng.integers(0, 99, (count * 2, 2))}
    rows = [
        {"prompt": f"{name} {a} and {b}?", "completion": answers.get(name, answers["sums"])(a, b)}
        for a, b in sorted(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))


def experiment(folder: Path, model: Path, tasks=TASKS, **more) -> Path:
    """mix.yaml with its data in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*tasks, "target"):
        if not (folder / f"{name}.jsonl").exists():
            write_rows(folder / f"{name}.jsonl", name, 40)
    settings = {
        "model": {"path": str(model), "device": "cpu"},
        "tasks": [{"name": name, "path": f"{name}.jsonl"} for name in tasks],
        "targets": [{"name": "target", "path": "target.jsonl"}],
        "budget": {"examples": 50},
        "probes": {
            "examples": 12,
            "batch": 4,
            "learning_rate": 0.01,
            "lora": {"r": 4, "last_layers": 2},
            "warm_start": False,
        },
        "contexts": {"per_set": 6, "validation": 3},
    } | more
    (folder / "mix.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder / "mix.yaml"


CHOICES = ["yes", "no", "apple apple", "perhaps"]


def choosing(folder: Path, model: Path, score="tokens", choices=CHOICES, **settings) -> Config:
    """An experiment whose target is answered by one of four options; without choices none are named."""
    config = experiment(folder, model)
    named = {"choices": choices} if choices else {}
    rows = [{"prompt": f"Is {i} more than {i % 7}?", "completion": CHOICES[i % 4], **named} for i in range(40)]
    (folder / "target.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = json.loads(config.read_text()) | settings
    data["targets"][0] |= {"score": score}
    config.write_text(json.dumps(data))
    return load_config(config)
