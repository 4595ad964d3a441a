"""What every artefact of a run depends on: names of things, and a hash of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskpgm.config import Config, Source, TaskConfig
from taskpgm.data.conversations import READING_VERSION, title_of
from taskpgm.data.splits import asked_of, files_of
from taskpgm.errors import UserError
from taskpgm.files import Parts, digest, files_digest, path_digest
from taskpgm.pipeline.directory import differing
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.joining import joined_sets
from taskpgm.probes.options import option_keys

ROWS_OF = "training rows of "  # and the name of a task, in what a warm start depends on


def data_parts(config: Config) -> dict[str, str]:
    """What the pool depends on, but for the model: every source and the settings of the split."""
    parts = {
        f"data of {source.name!r}": digest([_source_settings(source), source_digest(source)])
        for source in (*config.tasks, *config.targets)
    }
    order = [[s.name for s in config.tasks], [s.name for s in config.targets]]
    return {
        **parts,
        "list of tasks and targets": digest(order),
        "how rows are read": digest(READING_VERSION),
        "model setting": digest([config.model.path, config.model.revision]),
        "seed": digest(config.seed),
        "contexts": digest(config.contexts.model_dump(exclude={"positions"}, exclude_none=True)),
        "data.duplicates": digest(config.data.model_dump()),
        "probes.max_length": digest(config.probes.max_length),
    }


def has_warm_start(config: Config) -> bool:
    """Whether probes start from a warm start: not beside the user's own adapters, which started elsewhere."""
    return config.probes.warm_start and not any(task.adapter for task in config.tasks)


def warm_parts(config: Config, model: str, pool: TaskPool, seed: int) -> Parts:
    """What a warm start depends on; `model` is the fingerprint of the base."""
    settings = config.probes.model_dump(include={"lora", "learning_rate", "max_length"})
    size = config.warm_size
    settings |= {"unit": config.budget.unit, "size": size, "steps": config.steps_of(size)}
    return {
        "model": model,
        **{f"{ROWS_OF}{task.name!r}": task.train_key for task in pool.tasks},
        "seed": digest([config.seed, seed]),
        "probes": digest(settings),
    }


def is_frozen(config: Config, found: Parts, wanted: Parts) -> bool:
    """Whether a warm start made of `found` is kept though `wanted` has more: tasks were added, nothing else."""
    added = wanted.keys() - found.keys()
    same = all(wanted.get(name) == value for name, value in found.items())
    return config.probes.freeze_warm_start and same and all(name.startswith(ROWS_OF) for name in added)


def probe_parts(config: Config, model: str, pool: TaskPool, task: TaskConfig, seed: int, warm: Parts | None) -> Parts:
    """What a task's probe depends on.

    Args:
        warm: what its warm start is made of; None without one.

    Raises:
        UserError: the adapter that the task brings is no folder.
    """
    if task.adapter:
        if not Path(task.adapter).is_dir():
            raise UserError(f"Task {task.name!r}: adapter {task.adapter} is no folder; check the path.")
        return {"model": model, "adapter": path_digest(Path(task.adapter))}
    settings = config.probes.model_dump(include={"lora", "learning_rate"})
    settings |= {"unit": config.budget.unit, "size": config.probe_size, "steps": config.probe_steps}
    settings |= {"early_stop": True} if config.probes.early_stop else {}
    return {
        "model": model,
        "training rows": pool[task.name].train_key,
        "seed": digest([config.seed, seed]),
        "probes": digest(settings),
        "probes.max_length": digest(config.probes.max_length),
        "warm start": digest(warm),
    }


def score_parts(config: Config, pool: TaskPool, adapters: Mapping[str, str]) -> dict[str, str]:
    """What scores depend on; `adapters` has the key of every adapter's folder, by its name."""
    positions = config.affinity.jsd_positions if config.affinity.kind == "jsd" else 0
    cut = {"contexts.positions": digest(config.contexts.positions)} if config.contexts.positions else {}
    asked = option_keys(pool, config)
    return {
        **cut,
        "probes": digest(dict(adapters)),
        "contexts": digest([(s.name, s.context_key, *asked.get(s.name, ())) for s in pool.all]),
        "affinity.jsd_positions": digest(positions),
    }


def other_scores(found: Parts, config: Config, pool: TaskPool, adapters: Mapping[str, str]) -> str | None:
    """Names of what scores made of `found` depend on that is another now; None if nothing is."""
    wanted = score_parts(config, pool, adapters)
    if config.affinity.kind != "jsd":  # what was made for it is no harm
        wanted |= {name: value for name, value in found.items() if name == "affinity.jsd_positions"}
    return differing(found, wanted)


def mixture_parts(config: Config, stages: Mapping[str, Any]) -> dict[str, str]:
    """What a mixture depends on; `stages` is what the manifest says of those before it."""
    before = {"rows": "pool", "probes": "probe", "scores": "score"}
    elsewhere = {"model", "tasks", "targets", "probes", "contexts", "data", "export", "workers"}
    asked = [s.model_dump(include={"name", "min_share", "max_share"}) for s in config.tasks]
    asked += [s.model_dump(include={"name", "weight", "score"}) for s in config.targets]
    return {
        **{name: digest(stages.get(stage, {}).get("parts")) for name, stage in before.items()},
        "settings": digest([asked, config.model_dump(exclude=elsewhere)]),
    }


def block_keys(config: Config, model: str, pool: TaskPool, adapters: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By set and probe, what a block of scores is made of, the sets that share its batches among it.

    Args:
        adapters: the key of every probe, by its name.
    """
    cut = [config.contexts.positions] if config.contexts.positions else []
    asked = option_keys(pool, config)
    beside = {name: group for group in joined_sets(pool, config) if len(group) > 1 for name in group}
    contexts = {
        s.name: [
            s.context_key, config.probes.max_length, *asked.get(s.name, ()), *cut,
            *(pool[name].context_key for name in beside.get(s.name, ())),
        ]
        for s in pool.all
    }  # fmt: skip
    return {
        name: {probe: digest([model, adapter, *of_set]) for probe, adapter in adapters.items()}
        for name, of_set in contexts.items()
    }


def _source_settings(source: Source) -> dict[str, Any]:
    settings = source.model_dump(include={"subset", "split", "columns"})
    return settings | ({"refused": source.refused} if source.refused != "error" else {})


def source_digest(source: Source) -> list[str]:
    """Hashes of the files that a source reads; a hub id stands for itself."""
    asked = [asked_of(source, title_of(source))]
    if validation := getattr(source, "validation", None):
        asked.append(asked_of(source, title_of(source), validation))
    return [files_digest(files.paths) if (files := files_of(one)) else one.path for one in asked]
