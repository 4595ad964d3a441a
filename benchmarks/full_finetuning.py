"""Do mixtures that adapters chose hold when every weight of the model is trained?

    python benchmarks/full_finetuning.py OUT [--settings demo,…] [--seeds 1] [--rows 16]

OUT as evidence.py left it. The default and uniform are trained with `compare --method full`, and kept in
OUT/NAME/full. Prints losses, and differences from uniform in percent.
"""

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from evidence import SETTINGS
from outcome import cell, table

from taskpgm.config_file import load_config
from taskpgm.evaluation.compare import Trainings, mixture_weights, training_run
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run

NAMES = ("uniform", "taskpgm")


def train(folder, options):
    """{mixture: {"targets" or "tasks": losses by seed}} of one setting."""
    with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
        finished = finished_run(session, solved(session))
        (folder / "full").mkdir(exist_ok=True)
        trainings = Trainings(replace(finished, folder=folder / "full"), options)
        given = mixture_weights(session.config, finished.result, NAMES, 0)
        runs = [training_run(finished, name, given[name], seed) for seed in range(options.seeds) for name in NAMES]
        measured = trainings.measurements(runs, f"{folder.name}, all weights")
        pool = finished.result.pool
        sets = {"targets": [s.name for s in pool.targets], "tasks": list(pool.names)}
        return {
            name: {w: np.array([np.mean([m.loss[s] for s in of]) for m in measured if m.mixture == name])
                   for w, of in sets.items()}
            for name in NAMES
        }  # fmt: skip


def report(found):
    """One table in Markdown."""
    rows = {}
    for what in ("targets", "tasks"):
        rows[f"uniform's loss on the {what}"] = [f"{one['uniform'][what].mean():.3f}" for one in found.values()]
        for name in NAMES[1:]:
            rows[f"{name} on the {what}"] = [
                cell(100 * (one[name][what] / one["uniform"][what] - 1)) for one in found.values()
            ]
    print(table(list(found), rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, help="of a set that are evaluated; all if left out")
    args = parser.parse_args()
    options = CompareOptions(method="full", seeds=args.seeds, accuracy=False, rows=args.rows)
    report({name: train(args.out.resolve() / name, options) for name in args.settings.split(",")})


if __name__ == "__main__":
    main()
