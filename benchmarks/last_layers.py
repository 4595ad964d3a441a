"""What `probes.lora.last_layers` does to affinities and mixtures, beside what another probe seed does at full depth.

    python benchmarks/last_layers.py [MIX.YAML] [--layers 16,8,4] [--out FILE.json]

Without a configuration: the demo. Rank correlations are Spearman's over pairs of tasks (S) and over tasks and sets (G);
the change of the mixture is the largest of any weight. Only what lies below the second seed's change is free.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.cli.demo import write_demo
from taskpgm.config_file import load_config, parse_config
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.run import allowed_shares
from taskpgm.pool.task_pool import load_tasks
from taskpgm.probes.scoring import score_contexts
from taskpgm.probes.training import train_probes, train_warm_start

screen = Console(width=110)


def measure(lm, pool, config, last, seed):
    """Affinity S, transfer G, the mixtures for targets and for the tasks, their errors, and seconds."""
    data = config.model_dump(exclude_none=True)
    data["probes"]["lora"].pop("last_layers", None)
    if last:
        data["probes"]["lora"]["last_layers"] = last
    config = parse_config(data)
    started = time.perf_counter()
    rows = {task.name: task.train for task in pool.tasks}
    start = train_warm_start(Engine.of(lm), rows, config, seed) if config.probes.warm_start else None
    probes = [*([start] if start else []), *train_probes(Engine.of(lm), rows, config, seed, start=start)]
    scores = score_contexts(Engine.of(lm), pool, [replace(probe, seed=0) for probe in probes], config)
    seconds = time.perf_counter() - started
    affinity = measure_affinity(scores, config.affinity)
    weights = config.target_weights
    mixtures = {}
    for name, wanted in {"targets": weights, "tasks": dict.fromkeys(pool.names, 1.0)}.items():
        own = scores if name == "targets" else scores.without_targets()
        energy = build_energy(own, affinity, config.energy, wanted)
        mixtures[name] = solve_mixture(energy, allowed_shares(pool, config))
    off = ~np.eye(len(pool.tasks), dtype=bool)
    errors = {name: float(np.max(m.standard_error)) for name, m in mixtures.items()}
    return {
        "S": affinity.S[off], "G": affinity.matrices["G"].ravel(), "seconds": seconds, "errors": errors,
        **{name: np.array([m.shares[task] for task in pool.names]) for name, m in mixtures.items()},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--layers", default="16,8,4")
    parser.add_argument("--out", type=Path, default=Path("last_layers.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(args.config) if args.config else write_demo(Path(folder))
        lm = load_model(config.model)
        pool = load_tasks(config, ChatEncoder(lm.tokenizer, config.probes.max_length).lengths)
    runs = [("all layers", None, 0), ("all layers, another seed", None, 1)]
    runs += [(f"last {k}", int(k), 0) for k in args.layers.split(",")]
    found, rows = {}, []
    table = Table("probes", "Spearman S", "Spearman G", "targets: Δp", "tasks: Δp", "largest error", "s", width=100)
    for name, last, seed in runs:
        found[name] = one = measure(lm, pool, config, last, seed)
        full = found["all layers"]
        row = {
            "probes": name, "spearman S": spearmanr(one["S"], full["S"]).statistic,
            "spearman G": spearmanr(one["G"], full["G"]).statistic,
            "change, targets": float(np.abs(one["targets"] - full["targets"]).max()),
            "change, tasks": float(np.abs(one["tasks"] - full["tasks"]).max()),
            "largest standard error": max(one["errors"].values()), "seconds": one["seconds"],
        }  # fmt: skip
        rows.append(row)
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    screen.print(table)


if __name__ == "__main__":
    main()
