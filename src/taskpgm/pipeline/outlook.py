"""What a run would make, before it makes anything: by stage, how much of it and why. Nothing is written."""

from collections.abc import Sequence
from typing import NamedTuple

from taskpgm.errors import UserError
from taskpgm.files import digest, loaded
from taskpgm.pipeline.directory import stale_because
from taskpgm.pipeline.inspection import inspect
from taskpgm.pipeline.keys import block_keys, data_parts, has_warm_start
from taskpgm.pipeline.session import Session
from taskpgm.pipeline.stages import (
    mixture_is_there,
    recorded_pool,
    recorded_scores,
    solve,
    training_set_is_there,
)
from taskpgm.pipeline.starts import adapter_folder, parts_of_probe, parts_of_warm_start
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import BASE, WARM, BlockCache


class Step(NamedTuple):
    """Something that a run would make."""

    stage: str  # pool, warm start, probe, score, solve
    what: str
    why: str
    share: float  # of what a run from nothing makes in this stage, by number


def outlook(session: Session) -> list[Step]:
    """What a run would make in this directory, in its order; empty if the scores are up to date, see `solves_anew`.

    Raises:
        UserError: what a run would raise for its data.
    """
    artifacts, config = session.artifacts, session.config
    wanted = {**data_parts(config), "model": session.engine.fingerprint}
    why = stale_because(artifacts / "pool", wanted)
    steps = [Step("pool", "rows of all sets", _changed(why), 1.0)] if why else []
    pool = inspect(config, session.progress).pool if why else loaded(TaskPool.load, artifacts / "pool")
    for seed in range(config.probes.seeds):
        steps += _warm_start(session, pool, seed)
    steps += _probes(session, pool)
    return steps + _scores(session, pool)


def _changed(why: str) -> str:
    return why if why == "missing" else f"{why} changed"


def _warm_start(session: Session, pool: TaskPool, seed: int) -> list[Step]:
    parts = parts_of_warm_start(session, pool, seed)
    why = None if parts is None else stale_because(adapter_folder(session.artifacts, WARM, seed), parts)
    return [Step("warm start", "the warm start", _changed(why), 1 / session.config.probes.seeds)] if why else []


def _probes(session: Session, pool: TaskPool) -> list[Step]:
    """Probes that are missing or out of date, together if for the same reason."""
    config, by_reason = session.config, dict[str, list[str]]()
    for seed in range(config.probes.seeds):
        for task in config.tasks:
            folder = adapter_folder(session.artifacts, task.name, seed)
            if why := stale_because(folder, parts_of_probe(session, pool, task, seed)):
                by_reason.setdefault(_changed(why), []).append(task.name + (f", seed {seed}" if seed else ""))
    of = len(config.tasks) * config.probes.seeds
    return [Step("probe", _probes_of(names, of), why, len(names) / of) for why, names in by_reason.items()]


def _probes_of(names: Sequence[str], of: int) -> str:
    if len(names) == of and of > 1:
        return f"all {of} probes"
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"the probe of {some}" if len(names) == 1 else f"{len(names)} of {of} probes: {some}"


def _scores(session: Session, pool: TaskPool) -> list[Step]:
    """Blocks of scores that are not there: of a set under a probe."""
    config, artifacts = session.config, session.artifacts
    adapters = {} if has_warm_start(config) else {BASE: BASE}
    for seed in range(config.probes.seeds):
        if (parts := parts_of_warm_start(session, pool, seed)) is not None:
            adapters[f"{WARM}__{seed}"] = digest(parts)
        for task in config.tasks:
            adapters[f"{task.name}__{seed}"] = digest(parts_of_probe(session, pool, task, seed))
    keys = block_keys(config, session.engine.fingerprint, pool, adapters)
    cache = BlockCache(keys, artifacts / "blocks")
    missing = sum(len(set(of_set.values()) - cache.read(name).keys()) for name, of_set in keys.items())
    of = sum(map(len, keys.values()))
    if not missing and _assembled(session, pool):
        return []
    if not missing:
        return [Step("score", "the table of scores", "missing", 0.0)]
    why = "missing" if missing == of and not (artifacts / "scores.npz").exists() else "other probes or contexts"
    return [Step("score", f"{missing} of {of} blocks of scores", why, missing / of)]


def _assembled(session: Session, pool: TaskPool) -> bool:
    """Whether the scores of all blocks are together."""
    try:
        recorded_scores(session, pool)
    except UserError:
        return False
    return (session.artifacts / "scores.npz").exists()


def solves_anew(session: Session) -> list[Step]:
    """Whether a run would find another mixture, or write a training set that is missing, from scores that are there.

    Raises:
        UserError: what a run would raise for the mixture's settings.
    """
    pool = recorded_pool(session)
    result = solve(pool, recorded_scores(session, pool), session.config)
    if not mixture_is_there(session, result):
        return [Step("solve", "the mixture and the training set", "other settings or none yet", 1.0)]
    if training_set_is_there(session, result):
        return []
    missing = not (session.artifacts / "train.jsonl").exists()
    return [Step("solve", "the training set", "missing" if missing else "of another mixture or format", 1.0)]
