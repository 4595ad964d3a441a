"""A model as it is, in NF4 and in int8: bytes, time, and how far its losses and gains move.

    python benchmarks/quantized.py runs/demo/mix.yaml [--tasks 3]

A probe of each of the first tasks is trained and scored on their contexts, each way in a process of its own. Losses are
means over contexts, nats a token: the base's, and the probes'. Moved is the root mean square over contexts of what
changes against the model as it is.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import Config
from taskpgm.config_file import load_config
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.lm.quantized import held_bytes
from taskpgm.pool.task_pool import load_tasks
from taskpgm.probes.scoring import score_contexts
from taskpgm.probes.training import train_probes
from taskpgm.system import Clock


def measured(config: Config) -> dict[str, object]:
    """Bytes and seconds, and by context the loss of the base and of every probe."""
    clock = Clock()
    lm = load_model(config.model.model_copy(update={"processes": 1}))
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length, lm.limits)
    pool = load_tasks(config, encoder.lengths)
    started = time.perf_counter()
    probes = list(train_probes(Engine.of(lm), {task.name: task.train for task in pool.tasks}, config))
    trained = time.perf_counter()
    scores = score_contexts(lm, pool, probes, config)
    scored = time.perf_counter()
    count = np.bincount(scores.context)
    losses = np.stack([-np.bincount(scores.context, row) / count for row in scores.logp])
    return {
        "bytes": held_bytes(lm.model, None), "peak": clock.peak(), "training": trained - started,
        "scoring": scored - trained, "base": losses[0].tolist(), "probes": losses[1:].tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(args.config)
    config = config.model_copy(update={"tasks": config.tasks[: args.tasks], "targets": ()})
    if args.one:
        model = config.model.model_copy(update={"quantization": None if args.one == "as it is" else args.one})
        print(json.dumps(measured(config.model_copy(update={"model": model}))))
        sys.exit()
    view = Table("base", "weights, MiB", "peak", "training, s", "scoring", "loss", "of probes", "moved", "of probes")
    first = None
    for way in ("as it is", "nf4", "int8"):
        command = [sys.executable, __file__, args.config, "--tasks", str(args.tasks), "--one", way]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        base, probes = np.array(found["base"]), np.array(found["probes"])
        first = first or (base, probes)
        moved = [float(np.sqrt(np.mean((new - old) ** 2))) for new, old in zip((base, probes), first, strict=True)]
        view.add_row(
            way, f"{found['bytes'] / 2**20:,.0f}", f"{found['peak'] / 2**20:,.0f}", f"{found['training']:.1f}",
            f"{found['scoring']:.1f}", f"{base.mean():.3f}", f"{probes.mean():.3f}", *(f"{m:.3f}" for m in moved),
        )  # fmt: skip
    Console().print(view)
