"""What a person reads at the end of a stage: tables and sentences for the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from taskpgm.affinity import Affinity
from taskpgm.config import Config
from taskpgm.tasks import TaskPool

COLUMN = {"size-proportional": "by size"}


def mixture_table(data: Mapping[str, Any]) -> Table:
    """Weights with their intervals, counts and reference shares, heaviest first; `data` is mixture.json."""
    references = list(data["tasks"][0]["references"])
    counted = "count" in data["tasks"][0]
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in ("task", "weight", "", "95 % interval", *(["rows", "epochs"] if counted else []), *references):
        justify = "left" if name in ("task", "", "95 % interval") else "right"
        table.add_column(COLUMN.get(name, name), justify=justify, no_wrap=name != "task", overflow="ellipsis")
    top = max(task["weight"] for task in data["tasks"])
    for task in sorted(data["tasks"], key=lambda task: (-task["weight"], task["name"])):
        bar = "█" * round(6 * task["weight"] / top)
        cells = [task["name"], f"{task['weight']:.1%}", f"[cyan]{bar}[/]", _interval(task)]
        cells += [str(task["count"]), f"{task['epochs']:.2f}"] if counted else []
        table.add_row(*cells, *(f"{task['references'][r]:.1%}" for r in references))
    return table


def verdict_lines(data: Mapping[str, Any]) -> list[str]:
    """One sentence for each reference mixture: is it worse, on contexts that did not choose the mixture?"""
    unit = " nats a token" if data["energy"]["kind"] == "likelihood" else ""
    lines = []
    for v in data["verdicts"]:
        verdict = "better than" if v["better"] else "not shown to be better than"
        error = "" if v["standard_error"] is None else f" ± {v['standard_error']:.4f}"
        p = "" if v["p_value"] is None else f", p = {v['p_value']:.2g}"
        lines.append(f"predicted {verdict} {v['reference']}: {v['gain']:+.4f}{error}{unit}, cross-fitted{p}")
    return lines


def relation_lines(affinity: Affinity, most: int = 3) -> list[str]:
    """The strongest redundancies (pmi nearest to zero) and interferences (most negative gains), in words."""
    if "pmi_own" not in affinity.matrices:
        return []
    pmi, pmi_se = affinity.matrices["pmi_own"], affinity.errors.get("pmi_own")
    gain, gain_se = affinity.matrices["G"], affinity.errors.get("G")
    lines = []
    n = len(affinity.tasks)
    pairs = sorted(((pmi[i, j], i, j) for i in range(n) for j in range(i)), reverse=True)
    for value, i, j in pairs[:most]:
        a, b = affinity.tasks[j], affinity.tasks[i]
        cost = f"{-value:.2f}{_error(pmi_se, i, j)} nats a token worse than" if value < 0 else "as well as"
        lines.append(f"redundant: [b]{a}[/] and [b]{b}[/] predict each other's answers {cost} their own")
    if pairs:
        lines[-1] += f" (median pair: {-np.median([value for value, _, _ in pairs]):.2f})"
    worst = sorted((gain[i, j], i, j) for i in range(n) for j in range(len(affinity.sets)) if i != j and gain[i, j] < 0)
    for value, i, j in worst[:most]:
        lines.append(
            f"interfering: [b]{affinity.tasks[i]}[/] makes [b]{affinity.sets[j]}[/] "
            f"{-value:.2f}{_error(gain_se, i, j)} nats a token worse than the base model"
        )
    return lines if worst else [*lines, "no interference: no probe predicts another set worse than the base model"]


def pool_view(pool: TaskPool, config: Config) -> RenderableType:
    """What was read and where it went, one row a set, then rows that sets share."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in (
        "set",
        "kind",
        "format",
        "read",
        "train",
        "contexts",
        "validation",
        "tokens a row",
        "response",
        "notes",
    ):
        table.add_column(name, justify="left" if name in ("set", "kind", "format", "notes") else "right")
    for s in pool.all:
        rows = [*s.train, *s.contexts, *s.validation]
        c = s.counts
        notes = {
            "duplicates": c.duplicates, "too long, dropped": c.too_long, "prompt cut": c.truncated,
            "held out elsewhere, dropped": c.train_dropped + c.validation_dropped,
        }  # fmt: skip
        table.add_row(
            s.name, s.kind, s.layout.replace("_", "+"), str(c.read + c.validation_read), str(len(s.train)),
            str(len(s.contexts)), str(len(s.validation)), f"{np.mean([r.tokens for r in rows]):.0f}",
            f"{np.mean([r.response_tokens for r in rows]):.1f}",
            ", ".join(f"{count} {what}" for what, count in notes.items() if count),
        )  # fmt: skip
    names, shared = pool.sets, pool.overlap
    pairs = sorted(((int(shared[i, j]), names[j], names[i]) for i in range(len(names)) for j in range(i)), reverse=True)
    lines = [f"{a} and {b} share {count} rows" for count, a, b in pairs[:5] if count]
    unit = config.budget.unit
    lines.append(
        f"budget {config.budget.size} {unit}; probes {config.probe_size} {unit} each in {config.probe_steps} steps, "
        f"{len(pool.tasks) * config.probes.seeds} of them"
    )
    return Group(table, *lines)


def _interval(task: Mapping[str, Any]) -> str:
    if task["at_bound"]:
        often = task["off_bound_frequency"]
        return "at bound" + ("" if often is None else f" {1 - often:.0%}")
    return "" if task["interval"] is None else f"{100 * task['interval'][0]:.1f} – {task['interval'][1]:.1%}"


def _error(errors: Any, i: int, j: int) -> str:
    return "" if errors is None else f" ± {errors[i, j]:.2f}"
