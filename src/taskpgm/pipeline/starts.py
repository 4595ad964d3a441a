"""Where adapters lie and what they are made of: the warm start, and the probes that start from it.

A warm start is kept when tasks are added: the others' probes then stay as they are, and only the new ones are trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskpgm.config import TaskConfig
from taskpgm.files import Parts
from taskpgm.pipeline.artifacts import Artifacts
from taskpgm.pipeline.keys import ROWS_OF, has_warm_start, is_frozen, probe_parts, warm_parts
from taskpgm.pipeline.session import Session
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import WARM


def adapter_folder(artifacts: Artifacts, task: str, seed: int) -> Path:
    """Where the adapter of a task, or the warm start, of a probe seed lies."""
    number = f".{seed}" if seed else ""
    return artifacts / f"warm{number}" if task == WARM else artifacts / f"adapters{number}" / task


def parts_of_warm_start(session: Session, pool: TaskPool, seed: int) -> Parts | None:
    """What the warm start of a seed is made of: as it lies there if tasks were added and it is kept; None without."""
    config, artifacts = session.config, session.artifacts
    if not has_warm_start(config):
        return None
    wanted = warm_parts(config, session.engine.fingerprint, pool, seed)
    found = artifacts.parts(adapter_folder(artifacts, WARM, seed))
    return found if found is not None and is_frozen(config, found, wanted) else wanted


def parts_of_probe(session: Session, pool: TaskPool, task: TaskConfig, seed: int) -> Parts:
    """What a task's probe is made of."""
    warm = parts_of_warm_start(session, pool, seed)
    return probe_parts(session.config, session.engine.fingerprint, pool, task, seed, warm)


def kept_sentence(pool: TaskPool, parts: Parts) -> str:
    """That a warm start made of `parts` is kept though it has not seen some tasks; empty if it has seen all."""
    unseen = [name for name in pool.names if f"{ROWS_OF}{name!r}" not in parts]
    if not unseen:
        return ""
    return (
        f"the warm start is kept: it was trained without {_some(unseen)}, whose probes start from it like all others; "
        "`probes: {freeze_warm_start: false}` trains it and all probes again"
    )


def ended_sentence(ended: Mapping[str, str], of: int) -> str:
    """Which probes ended early, and why."""
    by_reason = {why: [task for task in ended if ended[task] == why] for why in sorted(set(ended.values()))}
    words = {"flat": "as their loss was flat", "out of rows": "as their rows had all been seen"}
    parts = [f"{len(tasks)} {words[why]} ({_some(tasks)})" for why, tasks in by_reason.items()]
    return f"{len(ended)} of {of} probes ended early: {', '.join(parts)}; training.json beside each has its losses"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
