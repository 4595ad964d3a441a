"""Finished run directories, made by the project's own functions from synthetic scores instead of training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from support.numerics import synthetic_scores
from taskpgm.config_file import parse_config
from taskpgm.data.messages import conversation
from taskpgm.evaluation.statistics import Measurement, compare_measurements
from taskpgm.files import write_json
from taskpgm.pipeline.keys import mixture_parts, score_parts
from taskpgm.pipeline.stages import counted, solve
from taskpgm.pool.task_pool import Counts, Row, TaskPool, TaskSet, row_key

HOSTILE = "<script>window.ran=1<img src=x onerror='window.ran=1'>"
HOSTILE_ROW = "<img src=x onerror=\"window.ran=2\"><a href='https://example.org/'>x</a>"


def finished_run(
    folder: Path, n: int = 14, targets: int = 4, seeds: int = 1, contexts: int = 4, compared: bool = False,
    jsd: bool = False, names: Any = None, energy: Any = None,
) -> Path:  # fmt: skip
    """The folder, with all that a run leaves but for its weights."""
    rng = np.random.default_rng(n + targets)
    tasks = tuple(names or (f"task {i}" for i in range(n)))
    served = tuple(f"target {i}" for i in range(targets))
    scores = synthetic_scores(rng, n, targets, contexts, longest=3, seeds=seeds, jsd=jsd)
    scores = replace(scores, tasks=tasks, sets=tasks + served)
    config = parse_config({
        "model": {"path": str(folder / "no-model")},
        "tasks": [{"name": t, "path": "x.jsonl"} for t in tasks], "targets": [{"name": t, "path": "x.jsonl"} for t in served],
        "budget": {"examples": 10 * n, "max_epochs": 4}, "probes": {"seeds": seeds}, "contexts": {"per_set": contexts},
        "energy": energy or {},
    })  # fmt: skip
    sets = [
        _set(name, "task" if name in tasks else "target", contexts, 12 + i % 7) for i, name in enumerate(scores.sets)
    ]
    overlap = np.diag([s.counts.read for s in sets])
    overlap[0, 1] = overlap[1, 0] = 3
    pool = TaskPool(tuple(sets[:n]), tuple(sets[n:]), overlap)
    result = solve(pool, scores, config)
    folder.mkdir(parents=True, exist_ok=True)
    pool.save(folder / "pool")
    scores.save(folder / "scores.npz")
    result.affinity.save(folder / "affinity.npz")
    write_json(folder / "mixture.json", counted(result.mixture, result.plan))
    _adapters(folder, tasks, rng)
    parts: Any = {"pool": {}, "probe": {}, "score": score_parts(config, pool, {})}
    parts["solve"] = mixture_parts(config, {name: {"parts": of} for name, of in parts.items()})
    stages = {name: {"parts": of, "seconds": 2.5, "peak_memory": 2**30} for name, of in parts.items()}
    write_json(folder / "manifest.json", {
        "taskpgm": "test", "python": "3", "versions": {"numpy": np.__version__}, "hardware": {"cores": 2},
        "model": {"path": "no-model", "fingerprint": "0"}, "settings": config.model_dump(mode="json"), "stages": stages,
    })  # fmt: skip
    if compared:
        _comparison(folder, rng, tasks, served)
    return folder


def _set(name: str, kind: Any, contexts: int, rows: int) -> TaskSet:
    def row(i: int) -> Row:
        said = conversation(("user", f"{HOSTILE_ROW} {name} {i}"), ("assistant", f"<b>{i}</b>"))
        return Row(said, 10 + i, 3, False, row_key(0, said))

    made = [row(i) for i in range(rows + contexts)]
    train = tuple(made[contexts:]) if kind == "task" else ()
    validation = () if kind == "task" else tuple(made[contexts:])
    counts = Counts(len(made) + 2, 0, 2, 0, 0, 0, 1)
    notes = ("column 'difficulty' is not used",)
    return TaskSet(
        name, kind, "prompt_completion", {"prompt": "q"}, train, tuple(made[:contexts]), validation, counts, notes
    )


def _adapters(folder: Path, tasks: tuple[str, ...], rng: np.random.Generator) -> None:
    for i, task in enumerate(tasks):
        place = folder / "adapters" / f"{i}"
        place.mkdir(parents=True)
        losses = (3 * np.exp(-np.arange(12) / 5) + 1 + 0.02 * rng.random(12)).tolist()
        if i == 0:
            losses = [2.0] * 12
        record = {"task": task, "seed": 0, "losses": losses, "seconds": 1.0, "peak_memory": 1, "trained_tokens": 10}
        (place / "training.json").write_text(json.dumps(record))


def _comparison(folder: Path, rng: np.random.Generator, tasks: tuple[str, ...], targets: tuple[str, ...]) -> None:
    sets = targets + tasks
    runs = [
        Measurement(
            mixture, seed, {name: float(2 + shift + 0.01 * rng.random()) for name in sets},
            {name: float(rng.random()) for name in sets},
        )
        for mixture, shift in (("taskpgm", -0.1), ("uniform", 0.0), ("size", 0.05))
        for seed in range(3)
    ]  # fmt: skip
    found = compare_measurements(runs, tasks, targets)
    write_json(
        folder / "comparison.json", found.to_dict() | {"budget equivalence": {"sentence": "uniform needs twice"}}
    )
