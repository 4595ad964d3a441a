"""Is the data all right? Sizes, lengths, truncations, drops, overlaps, contamination of targets, unused columns."""

from typing import Any

import numpy as np
from plotly.graph_objects import Bar, Box

from taskpgm.pool.rows import costs_of
from taskpgm.pool.task_pool import TaskPool, TaskSet
from taskpgm.progress import many
from taskpgm.report.material import Material
from taskpgm.report.parts import Picture, Section, Table, joined
from taskpgm.report.style import COLOURS, LINE, SHOWN, blank, log_ticks, name_axis, text

USES = ("train", "contexts", "validation", "dropped")


def section(material: Material) -> Section:
    """Where the rows of each set went, how long they are, and what sets share."""
    pool = material.run.pool
    shown = _shown(pool)
    lines = [_sizes(pool), _losses(pool), *_contamination(pool)]
    pictures = [
        Picture("rows-picture", "Rows of each set by what they are used for", rows_figure(shown), _counts(pool)),
        Picture(
            "lengths",
            "Tokens of the rows of each set: quartiles, and all but the longest and shortest twentieth",
            lengths_figure(shown),
            _lengths(pool),
        ),
    ]
    return Section("rows", "Is the data all right?", lines, pictures, _tables(pool))


def _shown(pool: TaskPool) -> list[TaskSet]:
    """The sets, or the largest and the smallest of many."""
    if len(pool.all) <= SHOWN:
        return list(pool.all)
    ordered = sorted(pool.all, key=lambda s: -_size(s))
    return [*ordered[: SHOWN // 2], *ordered[-SHOWN // 2 :]]


def _size(s: TaskSet) -> int:
    return len(s.train) + len(s.contexts) + len(s.validation)


def _dropped(s: TaskSet) -> int:
    c = s.counts
    return c.duplicates + c.too_long + c.validation_dropped + c.train_dropped + c.refused


def _sizes(pool: TaskPool) -> str:
    sizes = [len(s.train) for s in pool.tasks]
    return f"{many(sum(sizes), 'training row')} in {many(len(sizes), 'task')}, {min(sizes):,} to {max(sizes):,} each."


def _losses(pool: TaskPool) -> str:
    counts = {
        "dropped as equal to another row of its file": sum(s.counts.duplicates for s in pool.all),
        "dropped as too long": sum(s.counts.too_long for s in pool.all),
        "refused by the chat template": sum(s.counts.refused for s in pool.all),
        "dropped for copying held-out rows": sum(
            s.counts.train_dropped + s.counts.validation_dropped for s in pool.all
        ),
        "with the left end of the prompt cut": sum(s.counts.truncated for s in pool.all),
    }
    found = [f"{many(count, 'row')} {what}" for what, count in counts.items() if count]
    return f"{'; '.join(found)}." if found else "No row was dropped or cut."


def _pairs(pool: TaskPool) -> list[tuple[int, str, str]]:
    """(shared rows, set, set), most first."""
    i, j = np.nonzero(np.triu(pool.overlap, 1))
    shared = [(int(pool.overlap[a, b]), pool.sets[a], pool.sets[b]) for a, b in zip(i, j, strict=True)]
    return sorted(shared, key=lambda one: (-one[0], one[1:]))


def _contamination(pool: TaskPool) -> list[str]:
    """How much of what is held out stood in tasks' training rows, as copies in the sense of `data.duplicates`."""
    shared = len(_pairs(pool))
    first = f"{many(shared, 'pair')} of sets with rows in common." if shared else "No two sets share a row."
    names = {s.name for s in pool.targets} or {s.name for s in pool.tasks}
    found = [one for one in pool.contamination() if one.set in names and one.set != one.task]
    kind = "a target" if pool.targets else "a task"
    if not found:
        return [f"{first} No held-out row of {kind} stands in another task's training rows."]
    words = [f"{one.share:.0%} of {one.set} in {one.task} ({one.rows})" for one in found]
    return [f"{first} Held-out rows stood in tasks' training rows, and were left out of them: {joined(words, 4)}."]


def rows_figure(sets: list[TaskSet]) -> Any:
    """Stacked bars: training, contexts, validation, dropped."""
    made = blank(100 + LINE * len(sets), barmode="stack", xaxis={"title": "rows"})
    made.update_layout(legend_traceorder="normal")
    for k, use in enumerate(USES):
        values = [_dropped(s) if use == "dropped" else len(getattr(s, use)) for s in sets]
        pattern = ("", "/", ".", "x")[k]
        made.add_trace(
            Bar(
                x=values,
                y=list(range(len(sets))),
                orientation="h",
                name=use,
                customdata=[text(s.name) for s in sets],
                marker={"color": COLOURS[(0, 5, 4, 7)[k]], "pattern": {"shape": pattern}},
                hovertemplate=f"%{{customdata}}, {use}: %{{x}}<extra></extra>",
            )
        )
    made.update_yaxes(**name_axis([s.name for s in sets]))
    return made


def _quantiles(s: TaskSet) -> list[float]:
    tokens = np.concatenate([costs_of(side)["tokens"] for side in (s.train, s.contexts, s.validation)])
    known = tokens[tokens >= 0]
    return [float(q) for q in np.quantile(known if len(known) else [0], [0.05, 0.25, 0.5, 0.75, 0.95])]


def lengths_figure(sets: list[TaskSet]) -> Any:
    """Boxes of row lengths in tokens."""
    low, q1, median, q3, high = np.array([_quantiles(s) for s in sets]).T
    made = blank(
        90 + LINE * len(sets),
        xaxis={"title": "tokens a row", **log_ticks(max(low.min(), 1), high.max())},
        showlegend=False,
    )
    made.add_trace(
        Box(
            y=list(range(len(sets))),
            lowerfence=low,
            q1=q1,
            median=median,
            q3=q3,
            upperfence=high,
            orientation="h",
            line={"color": COLOURS[0]},
        )
    )
    made.update_yaxes(**name_axis([s.name for s in sets]))
    return made


def _counts(pool: TaskPool) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {"set": [s.name for s in pool.all], "kind": [s.kind for s in pool.all]}
    table |= {use: [len(getattr(s, use)) for s in pool.all] for use in USES[:3]}
    for name in ("read", "duplicates", "too_long", "refused", "train_dropped", "validation_dropped", "truncated"):
        table[name] = [getattr(s.counts, name) for s in pool.all]
    return table


def _lengths(pool: TaskPool) -> dict[str, list[Any]]:
    found = np.array([_quantiles(s) for s in pool.all]).T
    table: dict[str, list[Any]] = {"set": [s.name for s in pool.all]}
    return table | {q: values.tolist() for q, values in zip(("5%", "25%", "50%", "75%", "95%"), found, strict=True)}


def _tables(pool: TaskPool) -> list[Table]:
    tables = []
    if pairs := _pairs(pool)[:100]:
        tables.append(
            Table("Rows that two sets share", ["set", "other set", "rows"], [[a, b, f"{c:,}"] for c, a, b in pairs])
        )
    notes = [[s.name, note] for s in pool.all for note in s.notes]
    if notes:
        tables.append(Table("What was noticed while reading, columns without a use among it", ["set", "note"], notes))
    columns = [[s.name, ", ".join(f"{k} from {v}" for k, v in s.columns.items()), s.layout] for s in pool.all]
    tables.append(Table("Columns that were read", ["set", "columns", "layout"], columns, folded=True))
    return tables
