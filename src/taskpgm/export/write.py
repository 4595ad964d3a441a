"""`export_plan`: a row plan, written for a trainer; whole or not at all."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import filelock

from taskpgm.errors import UserError, did_you_mean
from taskpgm.export.carry import NEEDED, Learned, Part, parts_of
from taskpgm.export.handover import FILL_IN, Handover, Written
from taskpgm.export.targets import TARGETS, Target
from taskpgm.files import digest, is_held, replace_folder
from taskpgm.progress import many

SCRATCH = ".taskpgm-export-"  # what a folder is in until it is whole
MARK = "HOWTO.md"  # what tells an earlier export from a folder of someone's own
INSTALL = {"streaming": "mosaicml-streaming"}  # package -> what pip calls it, where the two differ
LEARNED: dict[Learned, str] = {
    "all": "all answers",
    "last": "the last answer of every row",
    "flags": "the answers that flags in the rows say",
}


@dataclass(frozen=True)
class Export:
    """What was written for a trainer."""

    target: str
    folder: Path
    sees: str  # what the trainer will see of the plan
    tasks: tuple[tuple[str, str, int], ...]  # (task, file name without ending, rows)
    notes: tuple[str, ...]  # what was dropped


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name in TARGETS:
        return TARGETS[name]
    guess = did_you_mean(name.lower().replace("_", "-"), TARGETS)
    raise UserError(
        f"There is no export to {name!r}{guess or '.'} Known are {', '.join(TARGETS)}; `taskpgm export --list`."
    )


def export_plan(handover: Handover, to: str, out: Path, lossy: bool = False, force: bool = False) -> Export:
    """The plan's rows, the trainer's config and HOWTO.md in the folder `out`.

    Args:
        handover: the plan and its rows.
        to: a name in `TARGETS`.
        lossy: leave out parts of rows that the format has no place for, instead of refusing them.
        force: replace an export that is there.

    Raises:
        UserError: unknown target; a folder that is there; rows that the format cannot carry; a package that is missing.
    """
    target = find_target(to)
    if handover.by not in target.by:
        raise UserError(f"--by {handover.by} is nothing that {to} can do; it takes --by {' or '.join(target.by)}.")
    if target.needs and not find_spec(target.needs):
        raise UserError(
            f"--to {to} needs the package {target.needs}: pip install {INSTALL.get(target.needs, target.needs)}."
        )
    _check_place(out, force)
    handover, notes = _carried(handover, to, target, lossy)
    with _replaced(out) as scratch:
        written = target.write(handover, scratch)
        (scratch / MARK).write_text(_howto(handover, to, target, written, notes), encoding="utf-8")
    tasks = tuple((task.name, task.stem, task.plan.count) for task in handover.tasks)
    return Export(to, out, written.sees, tasks, tuple(notes))


def _check_place(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder that is not there yet.")
    if not any(out.iterdir()):
        return
    if not force:
        raise UserError(f"{out} is there already; name another folder, or give --force to replace it.")
    if not (out / MARK).is_file():
        raise UserError(f"{out} is no earlier export (it has no {MARK}), so --force does not replace it; name another.")


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which takes its place when the block ends well, and vanishes otherwise.

    What exports to `out` that were killed have left goes too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    own = f"-{digest(out.name)}"
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=own, dir=out.parent))
    new, lock = scratch / "new", filelock.FileLock(scratch / ".lock")
    try:
        with lock:
            new.mkdir()
            new.chmod(0o755)
            yield new
            replace_folder(new, out, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for left in out.parent.glob(f"{SCRATCH}*{own}"):
        if not is_held(left / ".lock"):
            shutil.rmtree(left, ignore_errors=True)


def _carried(handover: Handover, to: str, target: Target, lossy: bool) -> tuple[Handover, list[str]]:
    """The handover without what the format cannot carry, and sentences that say so."""
    counts: Counter[Part] = Counter()
    examples: dict[Part, str] = {}
    for task, row in handover.everything():
        if why := target.unfit(row):
            raise UserError(f"{to} cannot take a row of task {task!r}: {why}; export it to another trainer.")
        for part in parts_of(row) - target.carries:
            counts[part] += 1
            examples.setdefault(part, task)
    notes = []
    if handover.quantization:
        notes.append(f"model.quantization {handover.quantization} is not in the config: set the trainer's own (QLoRA)")
    if told := _cut(handover):
        notes.append(told)
    for part, count in counts.items():
        if part in NEEDED or not lossy:
            remedy = "export to another trainer" if part in NEEDED else "give --lossy to drop them, or another trainer"
            raise UserError(
                f"{to} has no place for {part}, which {count} rows have, some of task {examples[part]!r}; {remedy}."
            )
        notes.append(f"{part} of {many(count, 'row')} dropped: {to} has no place for them")
    handover = replace(handover, dropped=frozenset(counts))
    if handover.learned not in target.learns:
        if not lossy:
            raise UserError(
                f"{to} cannot be told to learn only {LEARNED[handover.learned]}; give --lossy to have it learn all, or "
                "another trainer."
            )
        notes.append(f"{to} learns all answers, also those that are context")
    return handover, notes


def _cut(handover: Handover) -> str | None:
    """A sentence on rows that probes read only the end of; None if there are none."""
    cut = sum(row.truncated for task in handover.tasks for row in handover.rows(task))
    if not cut:
        return None
    return (
        f"{many(cut, 'row')} of more than {handover.max_length} tokens: probes read the end, but trainers cut it off, "
        "and answers with them, or leave such rows out; set the trainer's greatest length to that of your longest rows"
    )


def _howto(handover: Handover, to: str, target: Target, written: Written, notes: list[str]) -> str:
    """HOWTO.md."""
    rows = [
        f"| {_cell(task.name)} | {task.stem} | {task.plan.count} | {task.plan.epochs:.2f} | "
        f"{task.plan.row_share:.1%} | {task.plan.token_share:.1%} |"
        for task in handover.tasks
    ]
    fill = f"{FILL_IN} in a file stands for what only you know.\n\n" if to != "weights" else ""
    sections = [
        f"# {target.title}: {handover.size}\n",
        f"The trainer will see: {written.sees}\n",
        "## Start\n\n" + fill + "Paths are relative to this folder; start there.\n\n" + written.start + "\n",
        "## What keeps the mixture true\n",
        *(f"- {sentence}" for sentence in (*written.keeps, *notes)),
        "- Contexts and validation rows are in no file here: do not add your own files beside them.",
        f"- Learned: {LEARNED[handover.learned]}; probes were read on answers only.",
        "\n## Tasks\n",
        "| task | file | rows | epochs | share of rows | share of response tokens |\n|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(sections) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
