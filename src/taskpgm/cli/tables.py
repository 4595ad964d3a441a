"""What a person reads at the end of a stage: tables and sentences for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from taskpgm.config import Config
from taskpgm.data.pool import TaskPool
from taskpgm.data.ranking import Counts
from taskpgm.data.rows import Sample, first, is_open
from taskpgm.evaluation.statistics import Comparison, Estimate, Summary, verdict_sentence
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.explanation import Explanation, strongest_pairs
from taskpgm.mixture.selection import Selection

if TYPE_CHECKING:
    from taskpgm.data.chat import ChatEncoder, Encoded
    from taskpgm.evaluation.predict import Prediction
    from taskpgm.probes.cost import RunEstimate

COLUMN = {"size-proportional": "by size"}
VERDICT_STYLE = {"better": "green", "worse": "red"}


@dataclass(frozen=True)
class Listing:
    """A table whose first column names things. No name is ever broken or cut: if the table is wider than the terminal,
    columns without a heading (bars) are left out, then each name stands on a line of its own above its numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    left: frozenset[str] = frozenset()  # columns whose text begins at their left; the first does in any case

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, as wide as it has to be; print it with crop=False."""
        kept = [i for i, name in enumerate(self.header) if name or i == 0]
        narrow = [self.header[i] for i in kept], [[row[i] for i in kept] for row in self.rows]
        for header, rows in ((self.header, self.rows), narrow):
            table = self._table(header, rows)
            if _wanted(table, console, options) <= options.max_width:
                yield table
                return
        header = self.header[1:]
        widths = [max(_width(row[i]) for row in (self.header, *self.rows)) for i in range(1, len(self.header))]
        bare = {"show_edge": False}
        shape = {**bare, "width": _wanted(self._table(header, [], widths, **bare), console, options)}
        yield Text(str(self.header[0]), style="bold")
        yield self._table(header, [], widths, **shape)
        for name, *rest in self.rows:
            yield Text(str(name), no_wrap=True, overflow="ignore")
            yield self._table(header, [rest], widths, show_header=False, **shape)

    def _table(
        self, header: Sequence[str], rows: Sequence[Sequence[str | Text]], widths: Sequence[int] = (), **options: Any
    ) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True, **options)
        for name, width in zip_longest(header, widths):
            side: Literal["left", "right"] = "left" if name in (self.header[0], *self.left) else "right"
            table.add_column(name, justify=side, no_wrap=True, min_width=width)
        for row in rows:
            table.add_row(*map(_text, row))
        return table


def _wanted(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Cells that the table takes if there is room for all of it."""
    return Measurement.get(console, options.update(max_width=100_000), table).maximum


def _text(cell: str | Text) -> Text:
    """The cell as it stands: what a name holds is no markup."""
    return cell if isinstance(cell, Text) else Text(cell)


def _width(cell: str | Text) -> int:
    return max((line.cell_len for line in _text(cell).split("\n")), default=0)


def mixture_table(data: Mapping[str, Any]) -> Listing:
    """Weights with their intervals, counts and reference shares, heaviest first; `data` is mixture.json."""
    references = list(data["tasks"][0]["references"])
    counted = "count" in data["tasks"][0]
    sampled = data["replicates"] is not None
    measured = ["95 % interval"] * sampled + ["rows", "epochs"] * counted
    header = ["task", "weight", "", *measured, *(COLUMN.get(name, name) for name in references)]
    top = max(task["weight"] for task in data["tasks"])
    rows = []
    for task in sorted(data["tasks"], key=lambda task: (-task["weight"], task["name"])):
        bar = Text("█" * round(6 * task["weight"] / top), style="cyan")
        cells = [task["name"], f"{task['weight']:.1%}", bar]
        cells += [_interval(task)] if sampled else []
        cells += [str(task["count"]), f"{task['epochs']:.2f}"] if counted else []
        rows.append([*cells, *(f"{task['references'][r]:.1%}" for r in references)])
    return Listing(header, rows, frozenset({"", "95 % interval"}))


def knob_lines(data: Mapping[str, Any]) -> list[str]:
    """What a knob was chosen by, if it was left open."""
    settings = data["energy"]["settings"]
    if "tried" not in settings:
        return []
    tried = ", ".join(f"{t}: {loss:.4f}" for t, loss in settings["tried"].items())
    return [f"t = {settings['t']:g} has the lowest predicted loss of the tasks, in nats a token ({tried})"]


def verdict_lines(data: Mapping[str, Any]) -> list[str]:
    """One sentence for each reference mixture: is it worse, on contexts that did not choose the mixture?"""
    unit = " nats a token" if data["energy"]["kind"] in ("likelihood", "gain") else ""
    lines = []
    for v in data["verdicts"]:
        verdict = "predicted better than" if v["better"] else "not shown to be better than"
        error = "" if v["standard_error"] is None else f" ± {v['standard_error']:.4f}"
        p = "" if v["p_value"] is None else f", p = {v['p_value']:.2g}"
        lines.append(f"{verdict} {v['reference']}: {v['gain']:+.4f}{error}{unit}, cross-fitted{p}")
    if lines:
        lines.append("(errors and intervals cover the choice of contexts, and of probes if probes.seeds > 1)")
    return lines


def relation_lines(affinity: Affinity, most: int = 3) -> list[str]:
    """The strongest redundancies and interferences, in words."""
    pairs = strongest_pairs(affinity, most)
    lines = [
        f"redundant: [b]{escape(first)}[/] and [b]{escape(second)}[/], correlation {pair['correlation']:.2f}"
        for pair in pairs["redundancies"]
        for first, second in [pair["tasks"]]
    ]
    for pair in pairs["interferences"]:
        error = "" if pair["standard_error"] is None else f" ± {pair['standard_error']:.2f}"
        worse = f"{-pair['gain']:.2f}{error} nats a token worse than where probes start"
        lines.append(f"interfering: [b]{escape(pair['task'])}[/] makes [b]{escape(pair['set'])}[/] {worse}")
    if "G" in affinity.matrices and not pairs["interferences"]:
        lines.append("no interference: no probe predicts another set worse than where it started")
    return lines


def selection_table(selection: Selection) -> RenderableType:
    """Chosen tasks in order, what each added, and how far from the best set they can be."""
    rows = []
    for place, (task, value, gain) in enumerate(
        zip(selection.chosen, selection.values, selection.gains, strict=True), 1
    ):
        part = value / selection.full_value if selection.full_value > 0 else 1.0
        rows.append([task, str(place), f"{gain:.4g}", f"{part:.1%}"])
    table = Listing(["task", "place", "gain", "of all tasks' value"], rows)
    found = (
        "the best set there is"
        if selection.exhaustive
        else f"at least {selection.certified:.1%} of the best set's value"
    )
    return Group(table, f"{len(selection.chosen)} tasks: {found}")


def explanation_table(explanation: Explanation) -> RenderableType:
    """What is lost without each task and who takes over its share, dearest first; then interchangeable tasks."""
    rows = []
    for dropped in sorted(explanation.dropped, key=lambda dropped: -(np.inf if dropped.loss is None else dropped.loss)):
        takers = sorted(dropped.takers.items(), key=lambda item: -item[1])[:3]
        loss = "cannot" if dropped.loss is None else f"{dropped.loss:.4g}"
        rows.append([dropped.task, loss, "\n".join(f"{name} {change:+.1%}" for name, change in takers if change > 0)])
    table = Listing(["without", "energy lost", "who takes over"], rows, frozenset({"who takes over"}))
    return Group(table, *(Text(f"interchangeable: {', '.join(group)}") for group in explanation.clusters))


def comparison_view(comparison: Comparison) -> RenderableType:
    """Every mixture's averages and worst task, the judged one first, then a sentence for each difference."""
    header = ["mixture", *(quantity.replace(" ", "\n") for quantity in comparison.quantities), "seeds"]
    rows, below = [], []
    for summary in comparison.summaries:
        averages = [_average(summary.averages[q], q.endswith("accuracy")) for q in comparison.quantities]
        seeds = sum(m.mixture == summary.mixture for m in comparison.measurements)
        rows.append([summary.mixture, *averages, str(seeds)])
        if comparison.tasks and any(worst := _worst(summary, comparison)):
            below.append(Text(f"{summary.mixture}'s worst task: {' '.join(worst)}"))
    table = Listing(header, rows)
    lines = []
    for quantity in comparison.quantities:
        lines += [Text()] * bool(comparison.differences)
        lines += [
            Text(verdict_sentence(difference, comparison.level), style=VERDICT_STYLE.get(difference.verdict, ""))
            for difference in comparison.differences
            if difference.quantity == quantity
        ]
    return Group(table, *below, *(Text(note, style="dim") for note in _comparison_notes(comparison)), *lines)


def _average(e: Estimate, percent: bool) -> str:
    unit, digits = (100, 1) if percent else (1, 3)
    half = "" if e.high is None else f" ± {(e.high - e.mean) * unit:.{digits}f}"
    return f"{e.mean * unit:.{digits}f}{half}{' %' * percent}"


def _worst(summary: Summary, comparison: Comparison) -> list[str]:
    if summary.worst is None or summary.worst_task is None:
        return ["", ""]
    if comparison.reference != "uniform":
        return [summary.worst_task, f"{summary.worst.mean:.3f}"]
    return ["", ""] if summary.mixture == "uniform" else [summary.worst_task, f"{summary.worst.mean:+.3f}"]


def _comparison_notes(comparison: Comparison) -> list[str]:
    notes = [f"losses in nats a token ± half of the {100 * comparison.level:g} % interval over seeds"]
    if comparison.tasks:
        what = "loss" if comparison.reference != "uniform" else "loss increase over uniform"
        notes.append(f"worst task: the one with the largest {what}")
    if any(difference.corrected is not None for difference in comparison.differences):
        notes.append("differences paired by seed; p after Holm's correction for the number of mixtures compared")
    return notes


def pool_view(pool: TaskPool, config: Config) -> RenderableType:
    """What was read and where it went, one row a set; then what was left out, and rows that sets share."""
    layouts: dict[str, list[str]] = {}
    for s in pool.all:
        layouts.setdefault(s.layout.replace("_", "+"), []).append(s.name)
    header = ["set", "kind", "read", "train", "contexts", "valid-\nation", "tokens\na row", "response"]
    lines = [f"format of {'all' if len(layouts) == 1 else ', '.join(of)}: {layout}" for layout, of in layouts.items()]
    cells = []
    for s in pool.all:
        c, about = s.counts, "~" * bool(s.estimate)
        tokens, responses = s.lengths
        notes = {
            "duplicates": c.duplicates, "copies of other training rows, dropped": c.copies,
            "copies of held-out rows, dropped": c.train_dropped + c.validation_dropped,
            **({} if s.estimate else _unfit(c.too_long, c.refused, c.truncated)),
        }  # fmt: skip
        cells.append([
            s.name, s.kind,
            str(c.read + c.validation_read), about * is_open(s.train) + str(s.rows), str(len(s.contexts)),
            about * is_open(s.validation) + str(len(s.validation)), f"{about}{tokens:.0f}", f"{about}{responses:.1f}",
        ])  # fmt: skip
        lines += [f"{s.name}: {note}" for note in s.notes]
        if found := ", ".join(f"{count} {what}" for what, count in notes.items() if count):
            lines.append(f"{s.name}: {found}")
        if s.estimate:
            lines.append(f"{s.name}: {_sampled(s.estimate.sample, c)}")
    table = Listing(header, cells, frozenset({"kind"}))
    names, shared = pool.sets, pool.overlap
    pairs = sorted(((int(shared[i, j]), names[j], names[i]) for i in range(len(names)) for j in range(i)), reverse=True)
    lines += [f"{a} and {b} share {count} rows" for count, a, b in pairs[:5] if count]
    lines += _contaminations(pool)
    unit = config.budget.unit
    lines.append(
        f"budget {config.budget.size} {unit}; probes {config.probe_size} {unit} each in {config.probe_steps} steps, "
        f"{len(pool.tasks) * config.probes.seeds} of them" + (" from a warm start" if config.probes.warm_start else "")
    )
    return Group(table, *map(Text, lines))


def _unfit(too_long: int, refused: int, truncated: int) -> dict[str, int]:
    return {
        "too long, dropped": too_long,
        "refused by the chat template, dropped": refused,
        "prompt cut": truncated,
    }


def _sampled(sample: Sample, counts: Counts) -> str:
    """What a sample says of all rows."""
    found = _unfit(counts.too_long, counts.refused, sample.truncated)
    said = [f"~{count / sample.measured:.1%} {what}" for what, count in found.items() if count]
    what = ", ".join(said) or "no row too long or cut"
    return f"{what} (of {sample.measured:,} rows measured; --exact measures all)"


def _contaminations(pool: TaskPool, most: int = 5) -> list[str]:
    """Which targets stand in tasks, worst first."""
    found = sorted(
        ((part, target, task) for target, parts in pool.contamination.items() for task, part in parts.items()),
        key=lambda one: (-one[0], *one[1:]),
    )
    copies = {"exact": "", "normalised": " (but for case, spacing and punctuation)", "near": " (nearly)"}
    lines = [f"{part:.2g} % of target {target} stands in task {task}" for part, target, task in
             ((100 * part, target, task) for part, target, task in found[:most])]  # fmt: skip
    more = [f"{len(found) - most} more such pairs are in overlap.json"] if len(found) > most else []
    dropped = [f"such rows are left out of training{copies[pool.duplicates]}"] if found else []
    return lines + more + dropped


def rows_view(pool: TaskPool, encoder: "ChatEncoder", most: int, marked: bool) -> RenderableType:
    """The first rows of every set as the model sees them: learned text in green, in «» if `marked`."""
    parts = []
    for s in pool.all:
        rows = first(s.train or s.contexts, most)
        for i, (row, encoded) in enumerate(zip(rows, encoder.encode([r.conversation for r in rows]), strict=True), 1):
            assert encoded is not None, "rows of a pool fit"
            cut = ", prompt cut" * row.truncated
            title = f"{s.name}, row {i}: {row.tokens} tokens, {row.response_tokens} of them learned{cut}"
            parts += [Text(title, style="bold"), _seen(encoder, encoded, marked), Text()]
    return Group(*parts)


def _seen(encoder: "ChatEncoder", encoded: "Encoded", marked: bool) -> Text:
    """Text of one row's tokens."""
    text, starts = Text(), np.flatnonzero(np.diff(np.r_[False, encoded.response].astype(np.int8)) != 0)
    for ids, learned in zip(np.split(encoded.ids, starts), [False, *encoded.response[starts]], strict=True):
        if piece := encoder.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False):
            text.append(f"«{piece}»" if learned and marked else piece, style="bold green" if learned else "")
    return text


def _interval(task: Mapping[str, Any]) -> str:
    if task["at_bound"]:
        often = task["off_bound_frequency"]
        return "at bound" + ("" if often is None else f" {1 - often:.0%}")
    return "" if task["interval"] is None else f"{100 * task['interval'][0]:.1f} – {task['interval'][1]:.1%}"


def prediction_table(predictions: "Sequence[Prediction]") -> RenderableType:
    """Predicted losses of every mixture, lowest ensemble first, beside the measured ones if there are any."""
    rows = []
    for prediction in sorted(predictions, key=lambda prediction: prediction.ensemble):
        values = (prediction.ensemble, prediction.gain, prediction.merged, prediction.measured)
        rows.append([prediction.mixture, *("" if value is None else f"{value:.4f}" for value in values)])
    table = Listing(["mixture", "ensemble", "gain", "merged probes", "measured"], rows)
    return Group(table, Text("loss in nats a token; predictions on the contexts, measured on rows for evaluation"))


def estimate_table(estimate: "RunEstimate") -> Table:
    """Time by stage, memory and disk, as they are predicted."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("stage")
    for name in ("time", "operations", "rate on this machine"):
        table.add_column(name, justify="right")
    for stage, seconds in estimate.seconds.items():
        work = estimate.tera_operations.get(stage)
        rate = estimate.giga_operations_per_second.get(stage)
        table.add_row(
            stage, _duration(seconds), f"{work:,.1f} T" if work else "", f"{rate:,.0f} GFLOP/s" if rate else ""
        )
    table.add_section()
    table.add_row("[bold]all", f"[bold]{_duration(estimate.total)}")
    table.add_row("memory", _bytes(estimate.memory))
    table.add_row("disk", _bytes(estimate.disk))
    table.caption = (
        f"{estimate.trained_tokens:,} tokens to train on, {estimate.run_tokens:,} of them run (what rows begin with is "
        f"shared); {estimate.scored_tokens:,} to score"
    )
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
