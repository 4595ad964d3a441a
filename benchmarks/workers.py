"""Two Ray workers of a core each against two forked processes, on the probes and scores of a finished run.

    python benchmarks/workers.py RUN [--pairs 5] [--examples 24] [--tasks 6]

Both load the model and do a small job first; then they take turns, so that a busy machine slows both. Timed are
`train_probes` and `score_contexts` of so many tasks, with handing over rows, adapters, blocks. RUN is
the folder of `taskpgm demo`, say.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WAYS = ("local", "ray")
STAGES = ("probes", "scores")


class Working:
    """One of the two, in a process of its own: Ray's must not fork."""

    def __init__(self, way, args):
        command = [sys.executable, __file__, str(args.run), "--way", way, "--examples", str(args.examples)]
        self.process = subprocess.Popen(
            [*command, "--tasks", str(args.tasks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.answer() == "ready"

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def seconds(self):
        """Of each stage, once."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def serve(args):
    """Does the work once for every line that comes, and prints the seconds of its stages."""
    from taskpgm import load_run
    from taskpgm.config import WorkersConfig
    from taskpgm.lm.engine import Engine
    from taskpgm.pool.task_pool import TaskPool
    from taskpgm.probes.scoring import score_contexts
    from taskpgm.probes.training import train_probes

    finished = load_run(args.run)
    workers = WorkersConfig(backend=args.way, count=2, cpus=1 if args.way == "ray" else None)
    tasks = finished.pool.tasks[: args.tasks]
    pool = TaskPool(tasks, (), finished.pool.overlap[: len(tasks), : len(tasks)])

    def config(examples):
        probes = finished.config.probes.model_copy(update={"examples": examples, "warm_start": False})
        tasks = finished.config.tasks[: args.tasks]
        update = {"probes": probes, "tasks": tasks, "targets": (), "workers": workers}
        return finished.config.model_copy(update=update)

    engine = Engine(finished.config.model, workers=workers)
    rows = {task.name: task.train for task in pool.tasks}
    list(train_probes(engine, rows, config(config(1).probes.batch)))
    print('"ready"', flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        probes = list(train_probes(engine, rows, config(args.examples)))
        trained = time.perf_counter()
        score_contexts(engine, pool, probes, config(args.examples))
        print(json.dumps([trained - started, time.perf_counter() - trained]), flush=True)
    engine.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=24, help="of a probe")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return serve(args)
    both = {way: Working(way, args) for way in WAYS}
    pairs = np.empty((args.pairs, len(WAYS), len(STAGES)))
    print("pair   " + "".join(f"{stage:>9} of {way:6}" for stage in STAGES for way in WAYS) + "    ray/local in all")
    for n, pair in enumerate(pairs):
        for way in WAYS if n % 2 else WAYS[::-1]:
            pair[WAYS.index(way)] = both[way].seconds()
        seconds = "".join(f"{pair[w, s]:14.2f} s   " for s in range(len(STAGES)) for w in range(len(WAYS)))
        print(f"{n + 1:4}   {seconds}{pair[1].sum() / pair[0].sum():10.3f}", flush=True)
    for one in both.values():
        one.end()
    ratios = pairs[:, 1] / pairs[:, 0]
    of_stage = ", ".join(f"{stage} {np.median(ratios[:, s]):.3f}" for s, stage in enumerate(STAGES))
    total = pairs.sum(2)
    print(f"ray/local, median of {args.pairs} pairs: {np.median(total[:, 1] / total[:, 0]):.3f} ({of_stage})")
    print(f"ray/local, least time of each: {total[:, 1].min() / total[:, 0].min():.3f}")
    return None


if __name__ == "__main__":
    main()
