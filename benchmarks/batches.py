"""Memory and time of a training step with activations kept and computed again, beside what `LanguageModel.memory` says.

    python benchmarks/batches.py [--model M] [--batches 2x1024,16x128,1x2048] [--last-layers 8]

Rows are random ids, a quarter of them responses. Every line is measured in a process of its own, after a first step of
one row.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from taskpgm.chat.encoder import Encoded
from taskpgm.config_file import parse_config
from taskpgm.lm.loading import load_model
from taskpgm.probes import training
from taskpgm.system import Clock, release_memory, resident_memory


def measure(model: str | None, rows: int, length: int, last: int | None, recompute: bool) -> list[str]:
    """MiB beyond the model as measured and predicted, and seconds, of two steps of so many rows."""
    settings = {"r": 16, "alpha": 32} | ({"last_layers": last} if last else {})
    data = {"tasks": [{"name": name, "path": name} for name in "ab"], "budget": {"examples": 10}}
    config = parse_config(data | {"probes": {"lora": settings}, "model": {"path": model} if model else {}})
    lm = load_model(config.model)
    ids = np.random.default_rng(0).integers(1000, 30000, (rows, length), dtype=np.int32)
    step = [Encoded(row, np.arange(length) >= length * 3 // 4, False) for row in ids]
    tokens = min(rows * length, max(lm.token_budget, length))
    training.fitting = lambda *_: training.Fit(lm.token_budget, recompute)
    trainer = training.Trainer(lm, config)
    trainer.train("first", [step[:1]])
    release_memory()
    before, clock, started = resident_memory(), Clock(), time.perf_counter()
    trainer.train("measured", [step, step])
    seconds, taken = time.perf_counter() - started, clock.peak() - before
    predicted = lm.memory(tokens, length, tokens // 4, trainer.first, recompute)
    return [f"{taken / 2**20:,.0f}", f"{predicted / 2**20:,.0f}", f"{seconds:.1f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batches", default="2x1024,16x128,1x2048", help="rows x tokens")
    parser.add_argument("--last-layers", type=int)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        batch, way = args.one
        print(*measure(args.model, *map(int, batch.split("x")), args.last_layers, way == "recomputed"), sep="\t")
        sys.exit()
    view = Table("rows x tokens", "activations", "MiB", "predicted", "s")
    passed_on = [f"--{k}={v}" for k, v in (("model", args.model), ("last-layers", args.last_layers)) if v]
    for batch in args.batches.split(","):
        for way in ("kept", "recomputed"):
            command = [sys.executable, __file__, "--one", batch, way, *passed_on]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            view.add_row(batch, way, *output.splitlines()[-1].split("\t"))
    Console().print(view)
