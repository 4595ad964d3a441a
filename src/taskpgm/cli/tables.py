"""What a person reads at the end of a stage: tables and sentences for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from taskpgm.cli.listing import Listing, some
from taskpgm.config import Config
from taskpgm.evaluation.statistics import Comparison, Quantity, Summary, verdict_sentence
from taskpgm.mixture.doubts import few_contexts, half_width, more_contexts
from taskpgm.pool.drawing import first, is_open
from taskpgm.pool.plan import tokens_apart
from taskpgm.pool.ranking import Counts
from taskpgm.pool.rowfiles import Sample
from taskpgm.pool.task_pool import TaskPool
from taskpgm.progress import duration, many
from taskpgm.scores import LossBy

if TYPE_CHECKING:
    from taskpgm.chat.encoder import ChatEncoder, Encoded
    from taskpgm.evaluation.predict import Prediction
    from taskpgm.probes.cost import RunEstimate

FEW_SETS = 22  # of a kind, up to which `check` shows every one; of more, the ten largest and the ten smallest
HERE = ("cpu", "cuda", "xpu", "mps")  # devices that a trial was made on, not those of a table
ENOUGH_SEEDS = 5  # from which on one more narrows an interval by less than a sixth
FEW_NOTES = 24  # on sets, which `check` shows
AT_ONCE = 4  # quantities that a table of 80 columns has room for
VERDICT_STYLE = {"better": "green", "worse": "red"}


def comparison_view(comparison: Comparison, chosen_by: LossBy = "per_row") -> RenderableType:
    """Every mixture's averages and worst task, the judged one first, then a sentence for each difference.

    Args:
        chosen_by: `energy.loss` of the run; losses here are means over tokens.
    """
    below = [
        Text(f"{summary.mixture}'s worst task: {' '.join(worst)}")
        for summary in comparison.summaries
        if comparison.tasks and any(worst := _worst(summary, comparison))
    ]
    lines = []
    for quantity in comparison.quantities:
        lines += [Text()] * bool(comparison.differences)
        lines += [
            Text(verdict_sentence(difference, comparison.level), style=VERDICT_STYLE.get(difference.verdict, ""))
            for difference in comparison.differences
            if difference.quantity == quantity
        ]
    first = [Text(_headline(comparison), style="bold")] if comparison.differences else []
    notes = [Text(note, style="dim") for note in _comparison_notes(comparison, chosen_by)]
    some = comparison.quantities
    parts = [some] if len(some) <= AT_ONCE else [some[:2], some[2:]]  # losses first
    return Group(*first, *(_averages(comparison, part) for part in parts), *below, *notes, *lines)


def _averages(comparison: Comparison, quantities: Sequence[Quantity]) -> Listing:
    """Averages of these quantities, a mixture a row."""
    rows = []
    for summary in comparison.summaries:
        averages = [summary.averages[q].words(q) for q in quantities]
        seeds = sum(m.mixture == summary.mixture for m in comparison.measurements)
        rows.append([summary.mixture, *averages, str(seeds)])
    return Listing(["mixture", *(quantity.replace(" ", "\n") for quantity in quantities), "seeds"], rows)


def _worst(summary: Summary, comparison: Comparison) -> list[str]:
    if summary.worst is None or summary.worst_task is None:
        return ["", ""]
    if comparison.reference != "uniform":
        return [summary.worst_task, f"{summary.worst.mean:.3f}"]
    return ["", ""] if summary.mixture == "uniform" else [summary.worst_task, f"{summary.worst.mean:+.3f}"]


def _comparison_notes(comparison: Comparison, chosen_by: LossBy) -> list[str]:
    notes = [f"losses in nats a token ± half of the {100 * comparison.level:g} % interval over seeds"]
    if "taskpgm" in comparison.mixtures:
        notes.append(f"losses are means over tokens; taskpgm was chosen by the loss {chosen_by} (energy.loss)")
    if any(quantity.endswith("option loss") for quantity in comparison.quantities):
        notes.append("option loss: −log of the right option's share of what all options have, in nats a question")
    if comparison.tasks:
        what = "loss" if comparison.reference != "uniform" else "loss increase over uniform"
        notes.append(f"worst task: the one with the largest {what}")
    if any(difference.corrected is not None for difference in comparison.differences):
        notes.append("differences paired by seed; intervals and p by Holm's correction for the mixtures compared")
    seeds = min((d.estimate.seeds for d in comparison.differences), default=ENOUGH_SEEDS)
    if 1 < seeds < ENOUGH_SEEDS:
        narrower = 1 - half_width(ENOUGH_SEEDS) / half_width(seeds)
        notes.append(f"{seeds} seeds are few: --seeds {ENOUGH_SEEDS} would narrow the intervals by {narrower:.0%}")
    return notes


def _headline(comparison: Comparison) -> str:
    """The difference that matters most: from uniform if it was measured, on the targets if there are any."""
    first = [d for d in comparison.differences if d.quantity == comparison.quantities[0]]
    other = next((d for d in first if d.other == comparison.reference), first[0])
    sentence = verdict_sentence(other, comparison.level)
    return f"{comparison.mixtures[0]} on the {sentence[0].lower()}{sentence[1:]}"


def pool_view(pool: TaskPool, config: Config, everything: bool = False) -> RenderableType:
    """What was read and where it went, one row a set; then what was left out, and rows that sets share.

    Of many sets the largest and the smallest, unless `everything` is asked for.
    """
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
            "duplicate" + "s" * (c.duplicates > 1): c.duplicates,
            "dropped for copying held-out rows": c.train_dropped + c.validation_dropped,
            "dropped for copying another row of the task": c.repeats,
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
    if not everything:
        cells, lines = _ends(cells), _alike(lines, pool.sets)
    table = Listing(header, cells, frozenset({"kind"}))
    names, shared = pool.sets, pool.overlap
    pairs = sorted(((int(shared[i, j]), names[j], names[i]) for i in range(len(names)) for j in range(i)), reverse=True)
    lines += [f"{a} and {b} share {many(count, 'row')}" for count, a, b in pairs[:5] if count]
    lines += [
        f"{one.share:.0%} of {one.set} ({many(one.rows, 'row')}) stands in {one.task}, from which it was left out"
        for one in pool.contamination()[:5]
        if one.set != one.task
    ]
    unit = config.budget.unit
    lines.append(
        f"budget {config.budget.size} {unit}; probes {config.probe_size} {unit} each in {config.probe_steps} steps, "
        f"{len(pool.tasks) * config.probes.seeds} of them" + (" from a warm start" if config.probes.warm_start else "")
    )
    if config.budget.unit == "examples" and (said := _tokens_apart(pool)):
        lines.append(f"with equal shares {said}")
    doubt = few_contexts(min(len(s.contexts) for s in pool.targets or pool.tasks), more_contexts(config))
    return Group(table, *map(Text, lines), *([Text(doubt, style="yellow")] if doubt else []))


def _tokens_apart(pool: TaskPool) -> str | None:
    """Which task's answers are so long or short that equal shares of rows are other shares of tokens."""
    lengths = {task.name: task.response_tokens / task.rows for task in pool.tasks if task.rows}
    total = sum(lengths.values())
    return tokens_apart({name: (1 / len(lengths), length / total) for name, length in lengths.items()}, "examples")


def _ends(cells: list[list[str]]) -> list[list[str]]:
    """Of many sets of a kind those with the most rows and those with the fewest, and how many lie between."""
    kept: list[list[str]] = []
    for kind in dict.fromkeys(row[1] for row in cells):
        rows = [row for row in cells if row[1] == kind]
        if len(rows) > FEW_SETS:
            rows.sort(key=lambda row: -int(row[2]))
            between = rows[10:-10]
            read = str(sum(int(row[2]) for row in between))
            rows[10:-10] = [[f"{len(between)} more (--all)", kind, read, *[""] * (len(cells[0]) - 3)]]
        kept += rows
    return kept


def _alike(lines: list[str], names: Sequence[str]) -> list[str]:
    """Of many notes on sets those that say the same as one, and of many such the first."""
    if len(lines) <= FEW_NOTES:
        return lines
    known, of_note = set(names), dict[str, list[str]]()
    for line in lines:
        name, _, note = line.partition(": ")
        of_note.setdefault(note if name in known else line, []).extend([name] if name in known else [])
    found = [f"{some(of, 2)}: {note}" if of else note for note, of in of_note.items()]
    more = len(found) - FEW_NOTES
    return [*found[:FEW_NOTES], f"{more} more notes (--all)"] if more > 1 else found


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


def prediction_table(predictions: "Sequence[Prediction]") -> RenderableType:
    """Predicted losses of every mixture, lowest ensemble first, beside the measured ones if there are any."""
    rows = []
    for prediction in sorted(predictions, key=lambda prediction: prediction.ensemble):
        values = (prediction.ensemble, prediction.gain, prediction.merged, prediction.measured)
        rows.append([prediction.mixture, *("" if value is None else f"{value:.4f}" for value in values)])
    table = Listing(["mixture", "ensemble", "gain", "merged probes", "measured"], rows)
    return Group(table, Text("loss in nats a token; predictions on the contexts, measured on rows for evaluation"))


def estimate_view(estimate: "RunEstimate") -> RenderableType:
    """Time by stage, memory and disk, as they are predicted."""
    rows = []
    for stage, seconds in estimate.seconds.items():
        work = estimate.tera_operations.get(stage)
        rate = estimate.giga_operations_per_second.get(stage)
        done = [f"{work:,.1f} T" if work else "", f"{rate:,.0f} GFLOP/s" if rate else ""]
        rows.append([stage, duration(seconds), *done])
    rows += [["all", duration(estimate.total), "", ""]]
    caption = (
        f"{estimate.trained_tokens:,} tokens to train on, {estimate.run_tokens:,} of them run (what rows begin with is "
        f"shared); {estimate.scored_tokens:,} to score. {estimate.rates}"
    )
    table = Listing(["stage", "time", "operations", "rate of all workers"], rows)
    return Group(Text(_estimate_headline(estimate), style="bold"), table, Text(caption))


def _estimate_headline(estimate: "RunEstimate") -> str:
    """Time, what is paid for, memory and disk."""
    here = estimate.device in HERE and not estimate.elsewhere
    workers = many(estimate.workers, "worker")
    where = (
        f"here with {workers}"
        if here
        else f"with {workers} of {estimate.devices / estimate.workers:g} {estimate.device}"
    )
    unit = "core hours" if estimate.device == "cpu" else "GPU hours"
    money = "" if estimate.money is None else f", {estimate.money:,.2f} at {estimate.price:g} an hour"
    return (
        f"About {duration(estimate.total)} {where}: {estimate.device_hours:.3g} {unit}{money}. "
        f"{_bytes(estimate.memory)} of memory{'' if estimate.device in HERE else ' a worker'}, "
        f"{_bytes(estimate.disk)} on disk."
    )


def _bytes(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
