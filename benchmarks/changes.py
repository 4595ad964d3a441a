"""What a kept warm start, and probes that end early, do to the demo's mixture.

    python benchmarks/changes.py FOLDER

Four runs: the demo's 10 tasks; from it 11 tasks, the warm start kept; 11 tasks from nothing; 10 tasks with
`probes.early_stop`. Distances are total variation, ½ Σ |p_i − q_i|. Beside them stands what another draw of the probes'
rows and order does: the 10 tasks with two probes a task, one seed against the other.
"""

import argparse
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from taskpgm.cli.demo import generate, write_demo
from taskpgm.config_file import load_config
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.finished import load_run
from taskpgm.pipeline.stages import allowed_shares

ADDED, ROWS = "count_bits", 300


def run(folder: Path, settings: dict[str, Any], name: str) -> dict[str, float]:
    """Shares of the run `name`, made or gone on with, in a process of its own."""
    mix = folder / f"{name}.yaml"
    mix.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "taskpgm", "run", str(mix), "--out", str(folder / name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(load_run(folder / name).mixture.shares)


def distance(one: dict[str, float], other: dict[str, float]) -> str:
    """Total variation, and the task that moves most."""
    moved = {task: one[task] - other[task] for task in one}
    most = max(moved, key=lambda task: abs(moved[task]))
    return f"total variation {sum(map(abs, moved.values())) / 2:.3f}, most {most} {moved[most]:+.3f}"


def of_one_seed(folder: Path, name: str, seed: int) -> dict[str, float]:
    """Shares by the probes of one seed of a run with several."""
    config, found = load_config(folder / f"{name}.yaml"), load_run(folder / name)
    kept = found.scores.seed == seed
    scores = copy.copy(found.scores)
    for key, value in {
        "logp": scores.logp[:, kept], "context": scores.context[kept], "position": scores.position[kept],
        "seed": np.zeros(int(kept.sum()), dtype=int),
    }.items():  # fmt: skip
        object.__setattr__(scores, key, value)
    energy = build_energy(scores, measure_affinity(scores, config.affinity), config.energy, config.target_weights)
    return dict(solve_mixture(energy, allowed_shares(found.pool, config)).shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_demo(folder)
    ten = yaml.safe_load((folder / "mix.yaml").read_text())
    added = folder / "data" / f"{ADDED}.jsonl"
    added.write_text("".join(generate(ADDED, ROWS)), encoding="utf-8")
    eleven = copy.deepcopy(ten)
    eleven["tasks"].append({"name": ADDED, "path": f"data/{ADDED}.jsonl"})
    early = copy.deepcopy(ten)
    early["probes"]["early_stop"] = True
    seeds = copy.deepcopy(ten)
    seeds["probes"]["seeds"] = 2

    plain = run(folder, ten, "ten")
    if not (folder / "kept").exists():
        shutil.copytree(folder / "ten", folder / "kept")
    kept = run(folder, eleven, "kept")
    fresh = run(folder, eleven, "fresh")
    print(f"a task added, warm start kept, against from nothing: {distance(kept, fresh)}", flush=True)
    print(f"  {ADDED}: {kept[ADDED]:.3f} and {fresh[ADDED]:.3f}; largest standard error of a weight "
          f"{np.nanmax(load_run(folder / 'fresh').mixture.standard_error):.3f}")  # fmt: skip
    ended = run(folder, early, "early")
    records = [json.loads(path.read_text()) for path in sorted((folder / "early/adapters").glob("*/training.json"))]
    print(f"early stop against none: {distance(ended, plain)}", flush=True)
    for record in records:
        print(f"  {record['task']}: {len(record['losses'])} steps {record.get('ended', '')}")
    run(folder, seeds, "seeds")
    apart = distance(of_one_seed(folder, "seeds", 0), of_one_seed(folder, "seeds", 1))
    print(f"one probe seed against another: {apart}")


if __name__ == "__main__":
    main()
