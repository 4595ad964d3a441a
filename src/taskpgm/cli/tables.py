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
        rows = [*s.train, *s.contexts, *s.validation]
        c = s.counts
        notes = {
            "duplicates": c.duplicates, "too long, dropped": c.too_long,
            "refused by the chat template, dropped": c.refused, "prompt cut": c.truncated,
            "held out elsewhere, dropped": c.train_dropped + c.validation_dropped,
        }  # fmt: skip
        cells.append([
            s.name, s.kind,
            str(c.read + c.validation_read), str(len(s.train)), str(len(s.contexts)), str(len(s.validation)),
            f"{np.mean([r.tokens for r in rows]):.0f}", f"{np.mean([r.response_tokens for r in rows]):.1f}",
        ])  # fmt: skip
        lines += [f"{s.name}: {note}" for note in s.notes]
        if found := ", ".join(f"{count} {what}" for what, count in notes.items() if count):
            lines.append(f"{s.name}: {found}")
    table = Listing(header, cells, frozenset({"kind"}))
    names, shared = pool.sets, pool.overlap
    pairs = sorted(((int(shared[i, j]), names[j], names[i]) for i in range(len(names)) for j in range(i)), reverse=True)
    lines += [f"{a} and {b} share {count} rows" for count, a, b in pairs[:5] if count]
    unit = config.budget.unit
    lines.append(
        f"budget {config.budget.size} {unit}; probes {config.probe_size} {unit} each in {config.probe_steps} steps, "
        f"{len(pool.tasks) * config.probes.seeds} of them" + (" from a warm start" if config.probes.warm_start else "")
    )
    return Group(table, *map(Text, lines))


def rows_view(pool: TaskPool, encoder: "ChatEncoder", most: int, marked: bool) -> RenderableType:
    """The first rows of every set as the model sees them: learned text in green, in «» if `marked`."""
    parts = []
    for s in pool.all:
        rows = (s.train or s.contexts)[:most]
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
