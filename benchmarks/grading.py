"""Grading by options under several adapters: prompts through all layers for each, or what is below the adapters once.

    python benchmarks/grading.py [--questions 48] [--adapters 6] [--last-layers 8]

The embedded model, random adapters, generated questions with five options each. Both ways in turn, in one process;
prints seconds an adapter of either, what running the shared layers takes once, and how far the log-likelihoods differ.
"""

import argparse
import json
import random

import numpy as np

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.cli.demo import generate
from taskpgm.config import ModelConfig
from taskpgm.config_file import parse_config
from taskpgm.data.messages import conversation
from taskpgm.evaluation.full_finetuning import under
from taskpgm.evaluation.likelihood import Questions
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.pool.task_pool import Row
from taskpgm.probes.training import train_probes
from taskpgm.progress import QUIET
from taskpgm.system import Clock, environment


def questions(encoder, count):
    """Rows of a generator with five answers of others beside their own."""
    given = [json.loads(line) for line in generate("syllogism", count, 120) + generate("letter_counting", count, 120)]
    answers = sorted({row["completion"] for row in given})
    rows = []
    for k, row in enumerate(given[:count]):
        others = random.Random(k).sample([a for a in answers if a != row["completion"]], 4)
        chat = conversation(("user", row["prompt"]), ("assistant", row["completion"]))
        rows.append(Row(chat, *encoder.lengths([chat])[0][:3], key="", choices=(row["completion"], *others)))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--last-layers", type=int, default=8)
    args = parser.parse_args()
    lm = load_model(ModelConfig())
    encoder = ChatEncoder(lm.tokenizer, 512)
    rows = questions(encoder, args.questions)
    config = parse_config({
        "tasks": [{"name": "a", "path": "a.jsonl"}], "budget": {"examples": 8},
        "probes": {"examples": 8, "lora": {"last_layers": args.last_layers}},
    })  # fmt: skip
    probes = list(train_probes(Engine.of(lm), {str(k): rows[:8] for k in range(args.adapters)}, config))
    clock = Clock()
    kept = Questions(lm, encoder, rows, probes[0].first_layer(len(lm.layers)))
    kept.fill(QUIET)
    filled, whole = clock.seconds, Questions(lm, encoder, rows)
    seconds, far = {"all layers": [], "adapters' layers": []}, 0.0
    for probe in probes:
        found = []
        with under(lm, probe):
            for name, way in (("all layers", whole), ("adapters' layers", kept)):
                clock = Clock()
                found.append(way.logp())
                seconds[name].append(clock.seconds)
        far = max(far, max(float(abs(a - b).max()) for a, b in zip(*found, strict=True)))
    a, b = (float(np.median(of)) for of in seconds.values())
    print(environment()["hardware"]["processor"])
    print(f"all layers: {a:.2f} s an adapter; adapters' layers: {b:.2f} s, and {filled:.2f} s once; ratio {a / b:.2f}")
    print(f"log-likelihoods of an option differ by at most {far:.3f} nats")


if __name__ == "__main__":
    main()
