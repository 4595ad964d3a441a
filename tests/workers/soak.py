"""Random kills of workers, drivers and nodes while a Ray cluster of this machine works, `make soak`.

    python tests/workers/soak.py FOLDER [--kills 20] [--seed 0]

A tiny model, six tasks, a warm start, divergences. Run directories are made one after another by `taskpgm run` and
`taskpgm compare` as a user starts them; whatever is killed is started again, until the kills are used up and the last
directory is done. Checked: every directory has the bytes of one that was made in turn and undisturbed, `compare` its
losses, and no finished file or block was made a second time.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
from support.drivers import MARK, Driver, running, until
from support.models import make_model
from support.runs import experiment

TASKS = ("sums", "sky", "words", "more", "most", "last")
FILES = ("mixture.json", "train.jsonl", "overlap.json")
FINISHED = ("pool/[!.]*", "warm/[!.]*", "adapters/[!.]*/*", "compare/[!.]*.json")
COMMANDS = (("run",), ("compare", "--mixtures", "taskpgm,uniform", "--seeds", "3", "--no-accuracy"))
KINDS = {"worker": 0.4, "driver": 0.3, "node": 0.3}
BETWEEN = (0.5, 15.0)  # seconds of work until the next kill
QUICK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
NODES = 2  # of one core, beside a head without any


def prepared(folder, model, backend):
    probes = {
        "examples": 160,
        "batch": 2,
        "learning_rate": 0.001,
        "lora": {"r": 4, "last_layers": 3},
        "warm_start": True,
    }
    return experiment(
        folder, model, TASKS, probes=probes, workers={"backend": backend, "cpus": 1}, affinity={"kind": "jsd"},
        contexts={"per_set": 24, "validation": 6}, budget={"examples": 200},
    )  # fmt: skip


class Watch:
    """Remembers finished files and blocks of a run directory, and what became of them."""

    def __init__(self, out):
        self.out, self.files, self.blocks, self.again = out, {}, {}, []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look_on)
        self.thread.start()

    def look_on(self):
        while not self.over.wait(0.05):
            self.look()

    def look(self):
        for path in [path for pattern in FINISHED for path in self.out.glob(pattern)]:
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if self.files.setdefault(path, (stat.st_ino, stat.st_mtime_ns)) != (stat.st_ino, stat.st_mtime_ns):
                self.again.append(str(path))
                self.files[path] = stat.st_ino, stat.st_mtime_ns

    def look_at_blocks(self):
        """A block is known by what it was made of and the seconds that it took. While no driver runs."""
        from taskpgm.probes.cache import read_blocks

        for path in self.out.glob("blocks/[!.]*.npz"):
            for key, (_, _, seconds) in read_blocks(path).items():
                if self.blocks.setdefault((path.name, key), seconds) != seconds:
                    self.again.append(f"{path}: {key}")

    def end(self):
        self.over.set()
        self.thread.join()
        self.look()
        self.look_at_blocks()
        gone = [str(path) for path in self.files if not path.exists()]
        return {"made again": self.again, "gone": gone, "files": len(self.files), "blocks": len(self.blocks)}


class Soak:
    """The cluster, and what is killed of it when."""

    def __init__(self, folder, kills, seed):
        from ray.cluster_utils import Cluster

        self.folder, self.rng = folder, np.random.default_rng(seed)
        kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * kills))]
        self.kills = list(self.rng.permutation((kinds + ["worker"] * kills)[:kills]))
        self.killed, self.told, self.mark = [], [], uuid.uuid4().hex
        os.environ[MARK] = self.mark
        path = os.pathsep.join(part for part in sys.path if part)
        os.environ["PYTHONPATH"] = path
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, "include_dashboard": False}
        )
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(NODES)]

    def workers(self):
        return sorted(pid for pid, name in running(self.mark).items() if name.startswith("ray::Actor"))

    def strike(self, driver):
        """Kill what is next, at random among those there are."""
        kind, stage = self.kills.pop(0), last_stage(driver)
        if kind == "driver":
            driver.kill()
        elif kind == "worker":
            os.kill(int(self.rng.choice(self.workers())), 9)
        else:
            self.cluster.remove_node(self.nodes.pop(int(self.rng.integers(NODES))), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1))
        self.killed.append((kind, stage))
        print(f"{time.strftime('%H:%M:%S')} kill {len(self.killed)}: {kind} in {stage!r}", flush=True)

    def attend(self, driver):
        """Kill what is next after some seconds of work, again and again, until the driver has ended."""
        while driver.process.poll() is None:
            if not self.workers():
                time.sleep(0.1)
                continue
            stop = time.monotonic() + self.rng.uniform(*BETWEEN)
            while time.monotonic() < stop and driver.process.poll() is None:
                time.sleep(0.05)
            if self.kills and self.workers() and driver.process.poll() is None:
                self.strike(driver)

    def make(self, config, number):
        """A run directory, by as many starts as it takes."""
        out, starts = self.folder / f"run{number}", 0
        watch = Watch(out)
        for command in COMMANDS:
            code = None
            while code != 0:
                starts += 1
                log = self.folder / f"run{number}-{starts}.log"
                driver = Driver(
                    command[0], config, "--out", out, *command[1:], log=log, RAY_ADDRESS=self.cluster.address
                )
                self.attend(driver)
                code, said = driver.ended()
                watch.look_at_blocks()
                # Three lost workers with one job end a run, by design.
                assert code in (0, -9) or "was lost with 3 workers" in said, said
        return {"directory": str(out), "starts": starts, **watch.end()}

    def end(self):
        self.cluster.shutdown()
        until(lambda: not running(self.mark).keys() - {os.getpid()}, 30, "the end of the cluster")


def last_stage(driver):
    """Of the driver's plain lines, the stage that it is at."""
    stages = re.findall(r"^([a-z][\w ,]+?)(?: \(\d+ workers?\))?: (\d+ |done)", driver.log.read_text(), re.M)
    return "the start" if not stages else stages[-1][0] if stages[-1][1] != "done" else f"after {stages[-1][0]}"


def losses(out):
    records = [json.loads(path.read_text()) for path in (out / "compare").glob("[!.]*.json")]
    return {(r["mixture"], r["seed"]): r["sets"] for r in records}


def undisturbed(folder, config):
    """A run directory that was made in turn."""
    out = folder / "undisturbed"
    for command in COMMANDS:
        driver = Driver(command[0], config, "--out", out, *command[1:], log=folder / f"undisturbed-{command[0]}.log")
        code, said = driver.ended(1200)
        assert code == 0, said
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder.resolve() / f"{time.strftime('%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    model = make_model(folder / "model")
    expected = undisturbed(folder, prepared(folder / "in-turn", model, "serial"))
    config, started = prepared(folder / "ray", model, "ray"), time.monotonic()
    soak, made = Soak(folder, args.kills, args.seed), []
    try:
        while soak.kills or not made:
            made.append(soak.make(config, len(made) + 1))
    finally:
        soak.end()
    for one in made:
        out = Path(one["directory"])
        one["other bytes"] = [name for name in FILES if (out / name).read_bytes() != (expected / name).read_bytes()]
        one["same losses"] = losses(out) == losses(expected)
    good = all(not (m["made again"] or m["gone"] or m["other bytes"]) and m["same losses"] for m in made)
    result = {
        "kills": Counter(kind for kind, _ in soak.killed), "stages": Counter(stage for _, stage in soak.killed),
        "minutes": round((time.monotonic() - started) / 60, 1), "made": made, "good": good,
    }  # fmt: skip
    (folder / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(not good)


if __name__ == "__main__":
    main()
