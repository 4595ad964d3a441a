"""`run --dry-run`: what a run would make, why, and about how long it takes."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from taskpgm.cli.listing import Listing
from taskpgm.config import Config
from taskpgm.pipeline.outlook import Step, outlook, solves_anew
from taskpgm.pipeline.session import open_session
from taskpgm.progress import Progress, duration

PARTS = {  # of an estimate, by stage
    "pool": ("read tasks",),
    "warm start": ("train the warm start",),
    "probe": ("train probes",),
    "score": ("score contexts", "divergences"),
}
UP_TO_DATE = "up to date"


def look_ahead(config: Config, out: Path, progress: Progress) -> list[Step]:
    """What a run would make in `out`, which is not made if missing; nothing is written."""
    place = nullcontext(out) if out.exists() else tempfile.TemporaryDirectory()
    with place as folder, open_session(config, folder, progress) as session:
        return outlook(session) or solves_anew(session)


def seconds_of(steps: Sequence[Step], config: Config, progress: Progress) -> list[float | None]:
    """Seconds of each step, by an estimate if the model is needed; None: under a second, or not worth a trial."""
    if all(step.stage in ("pool", "solve") for step in steps):
        return [None for _ in steps]
    from taskpgm.probes.cost import estimate_run

    parts: Mapping[str, float] = estimate_run(config, progress).seconds
    return [
        sum(parts.get(part, 0.0) for part in PARTS[step.stage]) * step.share if step.stage in PARTS else None
        for step in steps
    ]


def outlook_view(steps: Sequence[Step], seconds: Sequence[float | None]) -> Listing:
    """One line a step."""
    shown = ["" if spent is None else f"~{duration(max(1.0, spent))}" for spent in seconds]
    rows = [(step.what, step.why, spent) for step, spent in zip(steps, shown, strict=True)]
    return Listing(["would be made", "because", "takes"], rows, frozenset({"because"}))


def outlook_line(seconds: Sequence[float | None]) -> str:
    """What stands below."""
    known = sum(spent for spent in seconds if spent is not None)
    all_of_it = f"about {duration(known)}, " if known else ""
    return f"{all_of_it}then the mixture and the training set, which take seconds. Nothing was written."
