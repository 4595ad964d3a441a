"""What `taskpgm estimate` predicts against what `taskpgm run` takes, on the demo and on variants of it.

    python benchmarks/estimates.py [--only demo,jsd] [--config MIX.YAML ...] [--repeats 1] [--out estimates.json]

Every experiment is estimated and then run, each in a process of its own, as a user starts them. Times of stages and
memory are those of the run directory's manifest; "all" is the process's from start to end. Beside the memory that the
run reports stands what Linux counts: the largest sum of the processes' proportional set sizes, read every second or so.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from taskpgm.cli.demo import write_demo

# Stages of a run, and of an estimate.
STAGES = {"probe": ("train the warm start", "train probes"), "score": ("score contexts", "divergences")}
screen = Console(width=110)


def variants(demo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Experiments that differ in what an estimate counts."""
    found = {"demo": demo}

    def add(name: str, **settings: Any) -> None:
        found[name] = copy.deepcopy(demo)
        for key, value in settings.items():
            section, *rest = key.split("__")
            place = found[name].setdefault(section, {})
            for part in rest[:-1]:
                place = place.setdefault(part, {})
            place[rest[-1]] = value

    add("full depth", probes__lora__last_layers=None)
    add("no warm start", probes__warm_start=False)
    add("jsd", affinity__kind="jsd", energy__kind="affinity")
    found["jsd"].pop("targets")
    add("one process", model__processes=1)
    add("longer", probes__examples=384, contexts__per_set=24)
    found["three tasks"] = {**copy.deepcopy(demo), "tasks": demo["tasks"][:3]}
    return found


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Predicted and measured seconds, bytes of memory and of disk."""
    mix = folder / "mix.yaml"
    mix.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "taskpgm"]
    started = time.perf_counter()
    subprocess.run([*command, "estimate", mix, "--json", folder / "estimate.json"], check=True, capture_output=True)
    took = time.perf_counter() - started
    started = time.perf_counter()
    running = subprocess.Popen([*command, "run", mix, "--out", folder / "run"], stdout=subprocess.DEVNULL)
    counted = 0
    while running.poll() is None:
        before = time.perf_counter()
        counted = max(counted, proportional_memory(running.pid))
        time.sleep(max(0.1, 30 * (time.perf_counter() - before)))  # reading stops the processes for a moment
    seconds = time.perf_counter() - started
    if running.returncode:
        sys.exit(f"taskpgm run ended with {running.returncode}")
    predicted = json.loads((folder / "estimate.json").read_text())
    stages = json.loads((folder / "run" / "manifest.json").read_text())["stages"]
    found = {
        name: (sum(predicted["seconds"].get(part, 0) for part in parts), stages[name]["seconds"])
        for name, parts in STAGES.items()
    }
    size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    peak = max(stage["peak_memory"] for stage in stages.values() if "peak_memory" in stage)
    return {
        **found, "all": (predicted["total_seconds"], seconds), "memory": (predicted["memory"], peak),
        "disk": (predicted["disk"], size), "memory by Linux": counted, "estimate took": took,
    }  # fmt: skip


def proportional_memory(pid: int) -> int:
    """Bytes that a process and its descendants hold, pages that they share counted once; 0 where it cannot be read."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(one.memory_full_info().pss for one in family)
    except (psutil.Error, AttributeError):
        return 0


def table(rows: dict[str, list[dict[str, Any]]]) -> Table:
    """Predicted / measured of every experiment's stages."""
    view = Table(title="predicted / measured")
    names = ("probe", "score", "all", "memory", "disk")
    for name in ("experiment", *names, "by Linux", "trial"):
        view.add_column(name, justify="left" if name == "experiment" else "right", no_wrap=True)
    for experiment, repeats in rows.items():
        for row in repeats:
            cells = []
            for name in names:
                predicted, measured = row[name]
                unit, text = (2**20, "MiB") if name in ("memory", "disk") else (1, "s")
                change = predicted / measured - 1
                cells.append(f"{predicted / unit:,.0f} / {measured / unit:,.0f} {text}\n{change:+.0%}")
            view.add_row(
                experiment, *cells, f"{row['memory by Linux'] / 2**20:,.0f} MiB", f"{row['estimate took']:.0f} s"
            )
    return view


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some of the variants, by name")
    parser.add_argument("--config", type=Path, nargs="*", default=[], help="experiments of your own, instead")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("estimates.json"))
    args = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        write_demo(base)
        demo = yaml.safe_load((base / "mix.yaml").read_text())
        for source in demo["tasks"] + demo["targets"]:
            source["path"] = str(base / source["path"])
        found = {path.stem: path for path in args.config} or variants(demo)
        for name, settings in found.items():
            if args.only and name not in args.only.split(","):
                continue
            for _ in range(args.repeats):
                with tempfile.TemporaryDirectory() as folder:
                    rows.setdefault(name, []).append(measure(settings, Path(folder)))
                screen.print(table({name: rows[name][-1:]}))
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
        screen.print(table(rows))
