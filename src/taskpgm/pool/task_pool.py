"""`TaskPool`: the rows of n tasks and of the targets, split into training, contexts and validation.

Rows are ranked by a hash of (run seed, conversation), so neither file order nor the other tasks decide which rows of a
set are its contexts, and a row that two tasks share falls on the same side in both as far as their sizes allow.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taskpgm.config import Config, Source
from taskpgm.data.columns import Layout
from taskpgm.data.conversations import title_of
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.pool.cleaning import without_leaks
from taskpgm.pool.copies import Contamination, Leaks, numbered, shared
from taskpgm.pool.drawing import response_tokens
from taskpgm.pool.meter import Memory, Meter
from taskpgm.pool.ranking import Counts as Counts
from taskpgm.pool.ranking import Estimate, SplitSet, gather_sources, measure_heads, split_rows
from taskpgm.pool.rowfiles import Length as Length
from taskpgm.pool.rowfiles import LengthsOf, RowFiles, Sample, keys_of
from taskpgm.pool.rowfiles import Measured as Measured
from taskpgm.pool.rowfiles import Refused as Refused
from taskpgm.pool.rowfiles import Row as Row
from taskpgm.pool.rows import Rows, Store, costs_of
from taskpgm.progress import QUIET, Progress
from taskpgm.types import Brief, Ints

SIDES = ("train", "contexts", "validation")


@dataclass(frozen=True, repr=False)
class TaskSet(Brief):
    """The rows of one task or target, each side ordered by key. A target has no training rows."""

    name: str
    kind: Literal["task", "target"]
    layout: Layout
    columns: dict[str, str]  # field -> column it was read from
    train: Sequence[Row]  # of a large set `Rows`, which are measured where they are drawn: some may not fit
    contexts: Sequence[Row]
    validation: Sequence[Row]
    counts: Counts
    notes: tuple[str, ...] = ()  # what `check` says of its source
    estimate: Estimate | None = None  # None: every row was measured
    refused: Literal["error", "drop"] = "error"  # what becomes of rows that the chat template does not take

    @property
    def rows(self) -> int:
        """Training rows that fit; an estimate if not all were measured."""
        return self.estimate.rows if self.estimate else len(self.train)

    @cached_property
    def response_tokens(self) -> int:
        """Response tokens of one pass over the training rows; an estimate if not all were measured."""
        if self.estimate:
            return self.estimate.response_tokens
        return int(response_tokens(self.train, np.arange(len(self.train))).sum())

    @property
    def tokens(self) -> int:
        """Tokens of the rows that were measured."""
        costs = np.concatenate([costs_of(getattr(self, side))["tokens"] for side in SIDES])
        return int(costs[costs >= 0].sum(dtype=np.int64))

    @cached_property
    def train_key(self) -> str:
        """Hash of the training rows in order."""
        return _key_of(self.train)

    @cached_property
    def context_key(self) -> str:
        """Hash of the contexts in order."""
        return _key_of(self.contexts)

    @cached_property
    def lengths(self) -> tuple[float, float]:
        """Mean tokens, and mean response tokens, of those rows that were measured."""
        costs = np.concatenate([costs_of(getattr(self, side)) for side in SIDES])
        costs = costs[costs["tokens"] >= 0]
        return float(costs["tokens"].mean()), float(costs["response"].mean())


@dataclass(frozen=True, eq=False, repr=False)
class TaskPool(Brief):
    """All sets, and how many distinct rows every two of them share."""

    tasks: tuple[TaskSet, ...]
    targets: tuple[TaskSet, ...]
    overlap: Ints  # (sets, sets) in the order of `sets`, before any drop; diagonal: a set's distinct rows
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

    @property
    def bytes(self) -> int:
        """Size of the rows on disk, about."""
        sides = (getattr(s, side) for s in self.all for side in SIDES)
        return sum(int(rows.entries["length"].sum(dtype=np.int64)) for rows in sides if isinstance(rows, Rows))

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

    def save(self, folder: Path | str) -> None:
        """Write the rows, index.npz and pool.json into the folder (not atomic; the store does that)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        store = Store(folder)
        arrays: dict[str, Any] = {}
        for i, task_set in enumerate(self.all):
            for side in SIDES:
                rows = store.kept(getattr(task_set, side))
                arrays |= {f"{i}.{side}.entries": rows.entries, f"{i}.{side}.costs": rows.costs}
        with (folder / "index.npz").open("wb") as file:
            np.savez(file, **arrays)
        keys = ("name", "kind", "layout", "columns", "notes", "estimate", "refused")
        described = [{key: getattr(s, key) for key in keys} | {"counts": asdict(s.counts)} for s in self.all]
        data = {"sets": described, "overlap": self.overlap.tolist()} | store.about
        data |= {"leaks": self.leaks.to_dict()} if self.leaks else {}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        (folder / "pool.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: Path | str,
        lengths_of: LengthsOf | None = None,
        memory: Memory | None = None,
        progress: Progress = QUIET,
    ) -> "TaskPool":
        """Pool written by `save`.

        Args:
            lengths_of: lengths of rows that are drawn and were not measured; not needed if all were.
            memory: lengths of earlier runs.
            progress: hears of rows that are measured, if many are.

        Raises:
            UserError: it was written by another version, or is damaged.
        """
        folder = Path(folder)
        described = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        if not (folder / "index.npz").exists():
            raise UserError(
                f"{folder} was written by an older version, or is damaged (it has no index.npz); remove it, then "
                "`taskpgm run` makes what is missing again and keeps the rest."
            )
        files = RowFiles(folder, map(tuple, described["places"]), described["shapes"])
        meter = Meter(lengths_of, memory, progress) if lengths_of else None
        sets = []
        with np.load(folder / "index.npz", allow_pickle=False) as arrays:
            for i, one in enumerate(described["sets"]):
                estimate = _estimate_of(one["estimate"]) if one["estimate"] else None
                fields = {**one, "counts": Counts(**one["counts"]), "notes": tuple(one["notes"]), "estimate": estimate}
                title = None if one["refused"] == "drop" else f"{one['kind'].capitalize()} {one['name']!r}"
                for side in SIDES:
                    found = (arrays[f"{i}.{side}.entries"], arrays[f"{i}.{side}.costs"])
                    files.check(found[0])
                    fields[side] = Rows(files, *found, meter, title)
                sets.append(TaskSet(**fields))
        leaks = Leaks.from_dict(described["leaks"]) if "leaks" in described else None
        return _pool(sets, np.array(described["overlap"], dtype=np.int64), leaks)


def _estimate_of(stored: list[Any]) -> Estimate:
    rows, tokens, sample = stored
    return Estimate(rows, tokens, Sample(*sample))


def load_tasks(
    config: Config, lengths_of: LengthsOf, progress: Progress = QUIET, folder: Path | None = None,
    memory: Memory | None = None, exact: bool = False,
) -> TaskPool:  # fmt: skip
    """Pool of the tasks and targets that the configuration names.

    Within a set, equal rows are merged and ranked by key. The lowest that fit are its contexts, as many as `contexts`
    says; of a target the rest is validation; of a task the next `contexts.validation`, at most a tenth of what the
    contexts leave, are validation (or all rows of its `validation` file are), and the rest is for training. Then
    whatever copies a context of any set leaves validation, and whatever copies a context, validation or target row of
    any set leaves training, in the sense of `data.duplicates`: no other set ever changes a set's contexts.

    Of a large set the first `SAMPLE` rows are measured, those with the lowest keys; others where they are drawn.

    Args:
        config: its seed, tasks, targets, data and contexts count here.
        lengths_of: lengths of conversations, None if the completion does not fit, or why a row cannot be used;
            sees a distinct row once.
        progress: hears of what is read and of rows tokenised.
        folder: where a temporary folder is made for the rows, gone with the pool; the system's own place if left out.
        memory: lengths of earlier runs.
        exact: measure every row.

    Raises:
        UserError: a source that cannot be read, rows that the chat template refuses, or a set with too few rows.
    """
    files = RowFiles(folder, temporary=True)
    sources = (*config.tasks, *config.targets)
    own, given = gather_sources(config, files, progress)
    meter = Meter(lengths_of, memory, progress)
    measure_heads(own, given, config, meter, exact)
    ranked = [one for one in (*own, *given) if one]
    for one in (one for pair in zip(own, given, strict=True) for one in pair if one):
        one.check_refused()
    numbers = numbered([one.entries for one in ranked], config.data.duplicates, files)
    for one, keys, forms in zip(ranked, *numbers, strict=True):
        one.keys, one.forms = keys, forms
    sets = [split_rows(one, other, config) for one, other in zip(own, given, strict=True)]
    members = [np.unique(np.concatenate([side.keys for side in one.sides.values()])) for one in sets]
    overlap = shared(members, members)
    leaks = without_leaks(sets, config, files)
    finished = [_finished(source, one, meter) for source, one in zip(sources, sets, strict=True)]
    return _pool(finished, overlap, leaks)


def _finished(source: Source, split: SplitSet, meter: Meter) -> TaskSet:
    own, given = split.own, split.given
    title = None if source.refused == "drop" else title_of(source)
    sides = {name: Rows(own.files, part.entries, part.costs, meter, title) for name, part in split.sides.items()}
    other = [f"validation file: {note}" for note in (given.notes if given else ()) if note not in own.notes]
    return TaskSet(
        source.name, split.kind, own.stream.way.layout, own.stream.way.all_columns, sides["train"], sides["contexts"],
        sides["validation"], split.counts, (*own.notes, *other, *split.losses()), split.estimate, source.refused,
    )  # fmt: skip


def row_key(seed: int, row: Conversation) -> str:
    """Hash of (run seed, conversation) as 32 hexadecimal digits."""
    text = json.dumps([seed, *row.to_data()], ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _pool(sets: list[TaskSet], overlap: Ints, leaks: Leaks | None) -> TaskPool:
    overlap.setflags(write=False)
    tasks = tuple(task_set for task_set in sets if task_set.kind == "task")
    targets = tuple(task_set for task_set in sets if task_set.kind == "target")
    return TaskPool(tasks, targets, overlap, leaks)


def _key_of(rows: Sequence[Row]) -> str:
    keys = keys_of(rows.entries) if isinstance(rows, Rows) else "".join(row.key for row in rows).encode()
    return hashlib.blake2b(keys, digest_size=16).hexdigest()
