"""Rows of one set in the order of their hash: which are measured, and which side each falls on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from taskpgm.config import Config, ContextConfig, Source, TargetConfig
from taskpgm.data.conversations import SourceStream, title_of
from taskpgm.errors import UserError
from taskpgm.pool.copies import Members
from taskpgm.pool.gathering import Gathered, Gatherer, gather
from taskpgm.pool.meter import CHUNK, Meter
from taskpgm.pool.rowfiles import COST, UNFIT, UNKNOWN, Entries, Length, Refused, RowFiles, Sample, cost_of, grading_key
from taskpgm.progress import Progress, many
from taskpgm.system import usable_cores
from taskpgm.types import Ints

SAMPLE = 1000  # rows of a source that are measured before they are drawn: its mean length to 3 % of its spread
TENTH = 10  # of a task's rows behind the contexts, one in so many is validation at most


@dataclass(frozen=True)
class Counts:
    """Where the rows of a set went.

    read + validation_read = duplicates + too_long + refused + validation_dropped + train_dropped + repeats + the rows
    on all sides. Copies are those in the sense of `data.duplicates`. Of a set of which a sample was measured, rows that
    are too long or refused are those of the sample.
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


class Estimate(NamedTuple):
    """What is known of the training rows of a set of which a sample was measured."""

    rows: int  # that fit
    response_tokens: int  # of those
    sample: Sample


class Part(NamedTuple):
    """Some rows of one set."""

    entries: Entries
    costs: Entries
    keys: Ints  # the same number for equal hashes
    forms: Ints  # the same number for rows that are equal in the sense of `data.duplicates`

    def of(self, which: Any) -> "Part":
        """Those among them."""
        return Part(*(array[which] for array in self))

    @property
    def members(self) -> Members:
        """What copies are sought by."""
        return Members(self.entries, self.forms)


class Ranked:
    """The distinct rows of one source by key, and what is known of their lengths."""

    def __init__(self, gathered: Gathered, source: Source, files: RowFiles) -> None:
        self.stream, self.notes, self.source, self.files = gathered.stream, gathered.notes, source, files
        self._read = gathered.entries  # in file order, equal rows and all
        self.entries = _distinct(gathered.entries, files)
        self.costs = np.zeros(len(self.entries), COST)
        self.costs["tokens"] = UNKNOWN
        self.keys = self.forms = np.zeros(len(self.entries), np.int64)
        self.refused: dict[int, Refused] = {}  # by place among the entries
        self.lost: dict[int, tuple[str, ...]] = {}  # what the template leaves out, by the same
        self.measured = 0  # the first so many

    @property
    def read(self) -> int:
        """Rows in the file."""
        return len(self._read)

    @property
    def fitting(self) -> int:
        """Rows that are known to fit."""
        return int((self.costs["tokens"] >= 0).sum())

    def measure(self, meter: Meter, until: int) -> None:
        """Have the rows before `until` measured."""
        some = slice(self.measured, until)
        for i, found in enumerate(meter.lengths(self.files, self.entries[some]), self.measured):
            self.costs[i] = cost_of(found)
            if isinstance(found, Refused):
                self.refused[i] = found
            elif isinstance(found, Length) and found.lost:
                self.lost[i] = found.lost
        self.measured = max(self.measured, min(until, len(self.entries)))

    def check_refused(self) -> None:
        """Raise UserError for the first row, in the order of the file, that cannot be used and may not be dropped."""
        by = ("model",) if self.source.refused == "drop" else ("model", "chat template")
        wrong = [i for i, refused in self.refused.items() if refused.by in by]
        if not wrong:
            return
        where = {(int(self.entries[i]["high"]), int(self.entries[i]["low"])): i for i in wrong}
        alike = self._read[np.isin(self._read["high"], self.entries["high"][wrong])]
        bad = [
            (one, self.refused[where[key]]) for one in alike if (key := (int(one["high"]), int(one["low"]))) in where
        ]
        at, row = bad[0]
        who = "model" if row.by == "model" else "model's chat template"
        count = sum(other.by == row.by for _, other in bad)
        all_ = f"{self.read}" if self.measured == len(self.entries) else f"{self.measured} measured"
        first = f", the first at {self.files.place(at)}" if count > 1 else f", {self.files.place(at)}"
        remedy = (
            " Correct or remove such rows, mend the template, or leave them out with `refused: drop`."
            if row.by == "chat template"
            else ""
        )
        raise UserError(
            f"{title_of(self.source)}: the {who} cannot take {count} of {all_} rows{first}: {row.why}.{remedy}"
        )

    def usable(self) -> Part:
        """Rows that fit, or may."""
        return Part(self.entries, self.costs, self.keys, self.forms).of(self.costs["tokens"] != UNFIT)

    def sample(self) -> Sample:
        """What the measured rows came to."""
        costs = self.costs[: self.measured]
        fit = costs[costs["tokens"] >= 0]
        return Sample(len(costs), len(fit), int(fit["response"].sum()), int(fit["truncated"].sum()))


def _distinct(entries: Entries, files: RowFiles) -> Entries:
    """One of every key, by key; of equal rows graded differently, the first in the order of JSON counts."""
    ranked = entries[np.lexsort((entries["low"], entries["high"]))]
    new = np.r_[True, (ranked["high"][1:] != ranked["high"][:-1]) | (ranked["low"][1:] != ranked["low"][:-1])]
    starts = np.flatnonzero(new[: len(ranked)])
    found = ranked[starts]
    if ranked["graded"].any():
        ends = np.r_[starts[1:], len(ranked)]
        for i in np.flatnonzero(ends - starts > 1).tolist():
            alike = [one for one in ranked[starts[i] : ends[i]] if one["graded"]]
            found[i] = min(alike, key=lambda one: grading_key(files, one)) if alike else found[i]
    return found


def gather_sources(config: Config, files: RowFiles, progress: Progress) -> tuple[list[Ranked], list[Ranked | None]]:
    """The rows of every source, and of the validation file that it names, if any."""
    wanted: list[tuple[Source, str | None]] = []
    for source in (*config.tasks, *config.targets):
        path = getattr(source, "validation", None)
        wanted += [(source, None), *([(source, path)] if path else [])]
    gatherer = Gatherer([SourceStream(*one) for one in wanted], files, config.seed, config.data.duplicates != "exact")
    found = gather(gatherer, config.model.processes or usable_cores(), progress)
    files.shapes = list(gatherer.shapes)
    ranked = [Ranked(one, source, files) for one, (source, _) in zip(found, wanted, strict=True)]
    own = [one for one, (_, path) in zip(ranked, wanted, strict=True) if path is None]
    given = {one.source.name: one for one, (_, path) in zip(ranked, wanted, strict=True) if path is not None}
    return own, [given.get(one.source.name) for one in own]


def measure_heads(
    own: Sequence[Ranked], given: Sequence[Ranked | None], config: Config, meter: Meter, exact: bool
) -> None:
    """Have the first rows of every source measured: a sample, and as many as decide what falls on which side."""
    ranked = [*own, *(one for one in given if one)]
    heads = [len(one.entries) if exact else min(SAMPLE, len(one.entries)) for one in ranked]
    all_heads = np.concatenate([one.entries[:head] for one, head in zip(ranked, heads, strict=True)])
    meter.lengths(own[0].files, all_heads, shown=True)
    for one, head in zip(ranked, heads, strict=True):
        one.measure(meter, head)
    for one, other in zip(own, given, strict=True):
        is_target = isinstance(one.source, TargetConfig)
        contexts = config.target_contexts if is_target else config.task_contexts
        carved = 0 if other or is_target else TENTH * contexts.validation
        while one.fitting < contexts.per_set + carved and one.measured < len(one.entries):
            one.measure(meter, one.measured + CHUNK)


@dataclass
class SplitSet:
    """One set, its rows on three sides."""

    own: Ranked
    given: Ranked | None
    kind: Literal["task", "target"]
    sides: dict[str, Part]  # train, contexts, validation
    counts: Counts

    @property
    def estimate(self) -> Estimate | None:
        """What is not counted, estimated; None if all rows were measured."""
        if not any((side.costs["tokens"] == UNKNOWN).any() for side in self.sides.values()):
            return None
        sample, costs = self.own.sample(), self.sides["train"].costs
        known = costs[costs["tokens"] >= 0]
        more = int((len(costs) - len(known)) * sample.fraction)
        mean = sample.response_tokens / max(sample.fitting, 1)
        return Estimate(len(known) + more, int(known["response"].sum()) + round(more * mean), sample)

    def losses(self) -> list[str]:
        """What the template leaves out of the rows of a set, in words."""
        found = {
            (one.entries["high"][i], one.entries["low"][i]): lost
            for one in (self.own, self.given)
            if one
            for i, lost in one.lost.items()
        }
        counts = Counter(what for lost in found.values() for what in lost)
        measured = sum(one.measured for one in (self.own, self.given) if one)
        among = f" of {measured} measured" if self.estimate else ""
        return [
            f"{f'{count}{among} rows' if among else many(count, 'row')}: the chat template leaves out {what}"
            for what, count in sorted(counts.items())
        ]


def split_rows(own: Ranked, given: Ranked | None, config: Config) -> SplitSet:
    """Training, contexts and validation of one set.

    Raises:
        UserError: it has too few rows.
    """
    kind: Literal["task", "target"] = "target" if isinstance(own.source, TargetConfig) else "task"
    counts = _counted(own, given)
    ranked = own.usable()
    contexts = config.target_contexts if kind == "target" else config.task_contexts
    _check_enough(own.source.name, kind, len(ranked.entries), counts, contexts)
    head, rest = ranked.of(slice(contexts.per_set)), ranked.of(slice(contexts.per_set, None))
    held = min(contexts.validation, len(rest.entries) // TENTH)
    none = ranked.of(slice(0))
    if kind == "target":
        train, validation = none, rest
    elif given:
        train, validation = rest, given.usable()
    else:
        train, validation = rest.of(slice(held, None)), rest.of(slice(held))
    return SplitSet(own, given, kind, {"train": train, "contexts": head, "validation": validation}, counts)


def _counted(own: Ranked, given: Ranked | None) -> Counts:
    files = [own, *([given] if given else [])]
    read = sum(one.read for one in files)
    unfit = sum(int((one.costs["tokens"] == UNFIT).sum()) for one in files)
    refused = sum(len(one.refused) for one in files)
    duplicates = read - sum(len(one.entries) for one in files)
    return Counts(own.read, read - own.read, duplicates, unfit - refused, 0, 0, 0, refused)


def _check_enough(name: str, kind: str, rows: int, counts: Counts, contexts: ContextConfig) -> None:
    need = contexts.per_set + (kind == "task")
    if rows >= need:
        return
    lost = [many(counts.duplicates, "duplicate")] * bool(counts.duplicates)
    lost += [f"{counts.too_long} longer than probes.max_length allows"] * bool(counts.too_long)
    lost += [f"{counts.refused} that the chat template cannot take"] * bool(counts.refused)
    read = f" ({counts.read + counts.validation_read} read, {', '.join(lost)})" if lost else ""
    needs = f"{contexts.per_set} contexts" + (" and one training row" if kind == "task" else "")
    raise UserError(
        f"{kind.capitalize()} {name!r} has {many(rows, 'usable row')}{read}, but {needs} need {need}; "
        f"{'raise probes.max_length, ' * bool(counts.too_long)}lower {_setting(kind, contexts)} or add data."
    )


def _setting(kind: str, contexts: ContextConfig) -> str:
    """The setting that says how many contexts a set has."""
    if kind == "target":
        return "contexts.per_set" if contexts.per_target is None else "contexts.per_target"
    return "contexts.per_set" if contexts.total is None else "contexts.total"
