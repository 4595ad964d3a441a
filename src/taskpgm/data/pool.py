"""`TaskPool`: the rows of n tasks and of the targets, split into training, contexts and validation.

Rows are ranked by a hash of (run seed, conversation), so neither file order nor the other tasks decide which rows of a
set are its contexts, and a row that two tasks share falls on the same side in both as far as their sizes allow.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskpgm.config import Config, ContextConfig, Source, TargetConfig
from taskpgm.data.conversations import Layout, Reading, read_source, title_of
from taskpgm.data.copies import Contamination, Leaks, without_leaks
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.progress import QUIET, Progress
from taskpgm.types import Brief

CHUNK = 512  # rows measured at a time: often enough for a progress bar
SIDES = ("train", "contexts", "validation")


class Length(NamedTuple):
    """What a row costs: tokens in all, those of its assistant turns, and whether its prompt lost its left end."""

    tokens: int
    response_tokens: int
    truncated: bool
    lost: tuple[str, ...] = ()  # what of the row the template leaves out: "the system text"


class Refused(NamedTuple):
    """A row that cannot be used, and why: the model's chat template refuses it, or hides what is to be learned; or the
    model has no place for one of its tokens."""

    why: str
    by: Literal["chat template", "model"] = "chat template"


Measured = Length | Refused | None  # None: the completion does not fit
LengthsOf = Callable[[Sequence[Conversation]], Sequence[Measured]]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, its cost in tokens, the hash that identifies and ranks it, and what its answer is graded by."""

    conversation: Conversation
    tokens: int
    response_tokens: int
    truncated: bool
    key: str  # of the conversation, whatever its grading
    choices: tuple[str, ...] | None = None  # every answer that may be given; the row's own is one of them
    verifier: dict[str, Any] | None = field(default=None, hash=False)  # reasoning-gym: {dataset, answer, metadata}


@dataclass(frozen=True)
class Counts:
    """Where the rows of a set went.

    read + validation_read = duplicates + too_long + refused + validation_dropped + train_dropped + repeats + the rows
    on all sides. Copies are those in the sense of `data.duplicates`.
    """

    read: int  # rows in the set's own source
    validation_read: int  # rows in the validation file it names, if any
    duplicates: int  # equal to an earlier row of the same file
    too_long: int  # the completion does not fit probes.max_length
    validation_dropped: int  # validation rows that copy a context of any set
    train_dropped: int  # training rows that copy a context, validation or target row of any set
    truncated: int  # of the rows on all sides, those whose prompt lost its left end
    refused: int = 0  # the chat template does not take them, and `refused: drop` leaves them out
    repeats: int = 0  # training rows that copy another one of the task, left out by `data.within_tasks`


@dataclass(frozen=True, repr=False)
class TaskSet(Brief):
    """The rows of one task or target, each side ordered by key. A target has no training rows."""

    name: str
    kind: Literal["task", "target"]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    train: tuple[Row, ...]
    contexts: tuple[Row, ...]
    validation: tuple[Row, ...]
    counts: Counts
    notes: tuple[str, ...] = ()  # what `check` says of its source

    @property
    def response_tokens(self) -> int:
        """Response tokens of one pass over the training rows."""
        return sum(row.response_tokens for row in self.train)

    @cached_property
    def train_key(self) -> str:
        """Hash of the training rows in order."""
        return _key_of(self.train)

    @cached_property
    def context_key(self) -> str:
        """Hash of the contexts in order."""
        return _key_of(self.contexts)


@dataclass(frozen=True, eq=False, repr=False)
class TaskPool(Brief):
    """All sets, and how many distinct rows every two of them share."""

    tasks: tuple[TaskSet, ...]
    targets: tuple[TaskSet, ...]
    overlap: NDArray[np.int64]  # (sets, sets) in the order of `sets`, before any drop; diagonal: a set's distinct rows
    leaks: Leaks | None = None  # training rows that copied held-out rows, before they were left out

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self.tasks)

    @property
    def all(self) -> tuple[TaskSet, ...]:
        """The tasks, then the targets."""
        return self.tasks + self.targets

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the tasks, then of the targets."""
        return tuple(task_set.name for task_set in self.all)

    def __getitem__(self, name: str) -> TaskSet:
        """The task or target of that name."""
        return self.all[self.sets.index(name)]

    def overlap_table(self) -> dict[str, Any]:
        """The overlap matrix with its names, for JSON."""
        table: dict[str, Any] = {"sets": list(self.sets), "rows": self.overlap.tolist()}
        return table | (
            {**self.leaks.to_dict(), "contamination": [asdict(one) for one in self.contamination()]}
            if self.leaks
            else {}
        )

    def contamination(self) -> list[Contamination]:
        """How much of each set stood in tasks' training rows, largest share first; empty if nobody looked."""
        sizes = [len(s.contexts) + len(s.validation) for s in self.all]
        return self.leaks.contamination(self.sets, sizes) if self.leaks else []

    def save(self, folder: Path) -> None:
        """Write rows.jsonl and pool.json into the folder (not atomic; the store does that)."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rows.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for task_set in self.all:
                for side in SIDES:
                    for r in getattr(task_set, side):
                        file.write(json.dumps([task_set.name, side, *_stored(r)], ensure_ascii=False) + "\n")
        described = [
            {key: getattr(s, key) for key in ("name", "kind", "layout", "columns", "notes")}
            | {"counts": asdict(s.counts)}
            for s in self.all
        ]
        data = {"sets": described, "overlap": self.overlap.tolist()}
        data |= {"leaks": self.leaks.to_dict()} if self.leaks else {}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        (folder / "pool.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TaskPool":
        """Pool written by `save`."""
        described = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        rows: dict[tuple[str, str], list[Row]] = {}
        with (folder / "rows.jsonl").open(encoding="utf-8", newline="\n") as file:
            for line in file:
                name, side, *stored = json.loads(line)
                rows.setdefault((name, side), []).append(_restored(*stored))
        sets = []
        for one in described["sets"]:
            train, contexts, validation = (tuple(rows.get((one["name"], side), ())) for side in SIDES)
            fields = {**one, "counts": Counts(**one["counts"]), "notes": tuple(one["notes"])}
            sets.append(TaskSet(train=train, contexts=contexts, validation=validation, **fields))
        leaks = Leaks.from_dict(described["leaks"]) if "leaks" in described else None
        return _pool(sets, np.array(described["overlap"], dtype=np.int64), leaks)


def _stored(row: Row) -> list[Any]:
    """The row as a line of rows.jsonl."""
    grading = [row.choices, row.verifier] if row.choices or row.verifier else []
    return [row.conversation.to_data(), row.tokens, row.response_tokens, row.truncated, row.key, *grading]


def _restored(data: list[Any], tokens: int, response: int, truncated: bool, key: str, *grading: Any) -> Row:
    """The row of such a line."""
    choices, verifier = grading or (None, None)
    chosen = tuple(choices) if choices else None
    return Row(Conversation.from_data(data), tokens, response, truncated, key, chosen, verifier)


def load_tasks(config: Config, lengths_of: LengthsOf, progress: Progress = QUIET) -> TaskPool:
    """Pool of the tasks and targets that the configuration names.

    Within a set, equal rows are merged and ranked by key. The lowest are its contexts, as many as `contexts` says; of a
    target the rest is validation; of a task the next `contexts.validation`, at most a tenth of what the contexts leave,
    are validation (or all rows of its `validation` file are), and the rest is for training. Then whatever copies a
    context of any set leaves validation, and whatever copies a context, validation or target row of any set leaves
    training, in the sense of `data.duplicates`: no other set ever changes a set's contexts.

    Args:
        config: its seed, tasks, targets and contexts count here.
        lengths_of: lengths of conversations, None if the completion does not fit, or why a row cannot be used;
            sees every distinct row once.
        progress: hears of files read and rows tokenised.

    Raises:
        UserError: a source that cannot be read, rows that the chat template refuses, or a set with too few rows.
    """
    sources = (*config.tasks, *config.targets)
    read: list[Reading] = []
    given: list[Reading | None] = []
    with progress.stage("reading", len(sources), "sets"):
        for source in sources:
            read.append(read_source(source))
            path = getattr(source, "validation", None)
            given.append(read_source(source, path) if path else None)
            progress.advance()

    keys = [[row_key(config.seed, m) for m in reading.rows] for reading in read]
    given_keys = [[row_key(config.seed, m) for m in reading.rows] if reading else [] for reading in given]
    distinct: dict[str, Conversation] = {}
    for found, reading in zip(keys + given_keys, [*read, *given], strict=True):
        distinct.update(zip(found, reading.rows if reading else (), strict=True))
    measured, lost = _measured(distinct, lengths_of, progress)
    for source, reading, found in [
        *zip(sources, read, keys, strict=True),
        *zip(sources, given, given_keys, strict=True),
    ]:
        if reading:
            _check_refused(source, reading, found, measured)
    rows = {key: row if isinstance(row, Row) else None for key, row in measured.items()}

    sets = []
    for source, reading, other, own, validation in zip(sources, read, given, keys, given_keys, strict=True):
        kind: Literal["task", "target"] = "target" if isinstance(source, TargetConfig) else "task"
        counts = _counted(own, validation, measured)
        ranked = _ranked(own, rows, reading)
        contexts = config.target_contexts if kind == "target" else config.task_contexts
        _check_enough(source.name, kind, len(ranked), counts, contexts)
        sides = _split(ranked, kind, contexts, _ranked(validation, rows, other) if other else None)
        notes = (*reading.notes, *_other_notes(reading, other), *_losses({*own, *validation}, lost))
        sets.append(TaskSet(source.name, kind, reading.layout, reading.columns, *sides, counts, notes))
    members = [{row.key for side in SIDES for row in getattr(task_set, side)} for task_set in sets]
    overlap = np.array([[len(a & b) for b in members] for a in members], dtype=np.int64)
    clean, leaks = without_leaks(sets, config.data.duplicates, config.data.within_tasks)
    return _pool(clean, overlap, leaks)


def _other_notes(reading: Reading, other: Reading | None) -> tuple[str, ...]:
    """What is to be said of the validation file itself."""
    return tuple(f"validation file: {note}" for note in (other.notes if other else ()) if note not in reading.notes)


def row_key(seed: int, row: Conversation) -> str:
    """Hash of (run seed, conversation) as 32 hexadecimal digits."""
    text = json.dumps([seed, *row.to_data()], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _measured(
    distinct: dict[str, Conversation], lengths_of: LengthsOf, progress: Progress
) -> tuple[dict[str, Row | Refused | None], dict[str, tuple[str, ...]]]:
    """Every row with its cost, or why it has none; and what the template leaves out of rows."""
    rows: dict[str, Row | Refused | None] = {}
    lost: dict[str, tuple[str, ...]] = {}
    keys = list(distinct)
    with progress.stage("tokenising", len(keys), "rows"):
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            for key, length in zip(chunk, lengths_of([distinct[key] for key in chunk]), strict=True):
                if isinstance(length, Length):
                    assert length.response_tokens > 0
                    lost[key] = length.lost
                    rows[key] = Row(distinct[key], length.tokens, length.response_tokens, length.truncated, key)
                else:
                    rows[key] = length
            progress.advance(len(chunk))
    return rows, lost


def _check_refused(source: Source, reading: Reading, keys: list[str], rows: dict[str, Row | Refused | None]) -> None:
    """Raise UserError for the first row that cannot be used; what the template refuses may be dropped."""
    by = ("model",) if source.refused == "drop" else ("model", "chat template")
    refused = [
        (at, row)
        for at, key in zip(reading.places, keys, strict=True)
        if isinstance(row := rows[key], Refused) and row.by in by
    ]
    if not refused:
        return
    at, row = refused[0]
    who = "model" if row.by == "model" else "model's chat template"
    alike = sum(other.by == row.by for _, other in refused)
    first = f", the first at {at}" if alike > 1 else f", {at}"
    remedy = (
        " Correct or remove such rows, mend the template, or leave them out with `refused: drop`."
        if row.by == "chat template"
        else ""
    )
    raise UserError(f"{title_of(source)}: the {who} cannot take {alike} of {len(keys)} rows{first}: {row.why}.{remedy}")


def _losses(keys: set[str], lost: dict[str, tuple[str, ...]]) -> list[str]:
    """What the template leaves out of the rows of a set, in words."""
    counts = Counter(what for key in keys for what in lost.get(key, ()))
    return [
        f"{count} row{'s' * (count > 1)}: the chat template leaves out {what}" for what, count in sorted(counts.items())
    ]


def _ranked(keys: list[str], rows: dict[str, Row | None], reading: Reading) -> list[Row]:
    """Distinct rows of one source by key; of equal rows graded differently, the first in the order of JSON counts."""
    graded = [(key, grading) for key, grading in zip(keys, reading.gradings, strict=True) if any(grading)]
    graded.sort(key=lambda pair: json.dumps(pair[1], sort_keys=True), reverse=True)
    gradings = {key: grading._asdict() for key, grading in graded}
    ranked = (row for key in sorted(set(keys)) if (row := rows[key]))
    return [replace(row, **gradings[row.key]) if row.key in gradings else row for row in ranked]


def _counted(own: list[str], given: list[str], rows: dict[str, Row | Refused | None]) -> Counts:
    files = [set(own), set(given)]
    distinct = [rows[key] for keys in files for key in keys]
    refused = sum(isinstance(row, Refused) for row in distinct)
    return Counts(
        len(own), len(given), len(own) + len(given) - len(distinct), distinct.count(None), 0, 0, 0, refused
    )  # fmt: skip


def _split(
    ranked: list[Row], kind: str, contexts: ContextConfig, given: list[Row] | None
) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]:
    """Training, contexts and validation, in this order."""
    head, rest = tuple(ranked[: contexts.per_set]), tuple(ranked[contexts.per_set :])
    if kind == "target":
        return (), head, rest
    if given is not None:
        return rest, head, tuple(given)
    held = min(contexts.validation, len(rest) // 10)
    return rest[held:], head, rest[:held]


def _check_enough(name: str, kind: str, rows: int, counts: Counts, contexts: ContextConfig) -> None:
    need = contexts.per_set + (kind == "task")
    if rows >= need:
        return
    lost = [f"{counts.duplicates} duplicates"] * bool(counts.duplicates)
    lost += [f"{counts.too_long} longer than probes.max_length allows"] * bool(counts.too_long)
    lost += [f"{counts.refused} that the chat template cannot take"] * bool(counts.refused)
    read = f" ({counts.read + counts.validation_read} read, {', '.join(lost)})" if lost else ""
    needs = f"{contexts.per_set} contexts" + (" and one training row" if kind == "task" else "")
    raise UserError(
        f"{kind.capitalize()} {name!r} has {rows} usable row{'s' * (rows != 1)}{read}, but {needs} need {need}; "
        f"{'raise probes.max_length, ' * bool(counts.too_long)}lower {_setting(kind, contexts)} or add data."
    )


def _setting(kind: str, contexts: ContextConfig) -> str:
    """The setting that says how many contexts a set has."""
    if kind == "target":
        return "contexts.per_set" if contexts.per_target is None else "contexts.per_target"
    return "contexts.per_set" if contexts.total is None else "contexts.total"


def _pool(sets: list[TaskSet], overlap: NDArray[np.int64], leaks: Leaks | None) -> TaskPool:
    overlap.setflags(write=False)
    tasks = tuple(task_set for task_set in sets if task_set.kind == "task")
    return TaskPool(tasks, tuple(task_set for task_set in sets if task_set.kind == "target"), overlap, leaks)


def _key_of(rows: Iterable[Row]) -> str:
    return hashlib.blake2b("".join(row.key for row in rows).encode(), digest_size=16).hexdigest()
