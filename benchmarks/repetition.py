"""What it costs to see the same rows again: uniform trained on distinct rows, and on a quarter of them four times.

    python benchmarks/repetition.py OUT [--rows 1152 4608] [--seeds 2]

The demo's ten generators with 560 rows a task and its four targets; every training of a budget takes as many steps on
the same shares. Prints macro losses on the targets and on the tasks by times that a row is seen, and the cost of a unit
of R (see `taskpgm.mixture.energy`), in percent. Trainings are kept and used again.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from settings import Setting, write_setting

from taskpgm.cli import demo
from taskpgm.config_file import load_config
from taskpgm.evaluation.compare import TrainingRun, Trainings, _seeded
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run
from taskpgm.pool.plan import plan_rows

ROWS = 560  # a task: more than a tenth of the largest budget
TIMES = (1, 4)


def trainings(finished, rows, seed):
    """Uniform at so many rows, each drawn row seen so many times."""
    config = _seeded(finished.config, seed)
    config = config.model_copy(update={"budget": config.budget.model_copy(update={"examples": rows})})
    pool = finished.result.pool
    shares = dict.fromkeys(pool.names, 1 / len(pool.names))
    plan = plan_rows(pool, shares, config)
    for times in TIMES:
        row = plan.row.copy()
        for task in np.unique(plan.task):
            at = np.flatnonzero(plan.task == task)
            assert len(set(row[at])) == len(at), "rows are distinct"
            row[at] = np.resize(row[at][: max(1, round(len(at) / times))], len(at))
        yield TrainingRun(f"{rows} rows, {times} times", seed, shares, config, replace(plan, row=row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1152, 4608])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, "PYTHONHASHSEED": "0"}).returncode)
    folder = args.out.resolve() / "repetition"
    if not (folder / "mix.yaml").exists():
        write_setting(folder, Setting(dict.fromkeys(demo.ROWS, ROWS), demo.TARGETS))
    with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
        finished = finished_run(session, run_session(session))
        made = Trainings(finished, CompareOptions(accuracy=False))
        for rows in args.rows:
            for seed in range(args.seeds):
                report(finished.result.pool, made.measurements(list(trainings(finished, rows, seed)), f"{rows} rows"))


def report(pool, found):
    """Losses of one budget and seed."""
    names = {"targets": [s.name for s in pool.targets], "tasks": pool.names}
    losses = {what: [float(np.mean([one.loss[name] for name in of])) for one in found] for what, of in names.items()}
    for what, (once, again) in losses.items():
        more = 100 * (again / once - 1)
        unit = more / (TIMES[1] - 1) ** 2 * TIMES[1]
        seen = f"{once:.4f} seen once, {again:.4f} seen {TIMES[1]} times"
        said = f"{more:+.1f} %, {unit:+.2f} % for a unit of R"
        print(f"{found[0].rows} rows, seed {found[0].seed}, {what}: {seen}: {said}", flush=True)


if __name__ == "__main__":
    main()
