"""Two runs side by side: shares, gains, what was set otherwise, what either cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from plotly.graph_objects import Scatter

from taskpgm.progress import many
from taskpgm.report import history
from taskpgm.report.material import Material
from taskpgm.report.parts import Picture, Section, Table, joined
from taskpgm.report.style import COLOURS, GREY, LINE, PERCENT, SHOWN, blank, first_of, name_axis, text
from taskpgm.types import Floats

Names = tuple[str, str]


def names_of(first: Path, second: Path) -> Names:
    """Short names of two runs that differ."""
    a, b = first.resolve().name, second.resolve().name
    return (a, b) if a != b else (str(first), str(second))


def folders_of(first: Path, second: Path) -> Names:
    """Names of a folder for either run."""
    a, b = first.resolve().name, second.resolve().name
    return (a, b) if a != b else (f"{a}-1", f"{b}-2")


def sections(first: Material, second: Material, names: Names) -> list[Section]:
    """What two runs have in common and what not."""
    return [_shares(first, second, names), _gains(first, second, names), _settings(first, second, names)]


def _shares(first: Material, second: Material, names: Names) -> Section:
    tasks = [*first.tasks, *(t for t in second.tasks if t not in first.tasks)]
    p, q = (np.array([m.mixture.shares.get(t, 0.0) for t in tasks]) for m in (first, second))
    order = np.argsort(-np.abs(p - q), kind="stable")
    moved = 0.5 * float(np.abs(p - q).sum())
    most = [f"{tasks[i]} ({p[i]:.1%} and {q[i]:.1%})" for i in order[:3]]
    lines = [f"{moved:.0%} of the budget lies elsewhere in {names[1]}; most apart: {joined(most)}."]
    for material, name in zip((first, second), names, strict=True):
        for v in material.mixture.verdicts[:1]:
            found = "better" if v.better else "not shown to be better"
            lines.append(
                f"{name}, by the probes: {found} than {v.reference}, by {v.gain:+.3f} ± {v.standard_error:.3f} "
                f"{material.unit}."
            )
    table = {"task": tasks, names[0]: p.tolist(), names[1]: q.tolist()}
    picture = Picture(
        "both-shares",
        f"Shares in {names[0]} and in {names[1]}, most apart on top" + first_of(len(tasks), "tasks"),
        _pairs([tasks[i] for i in order[:SHOWN]], p[order[:SHOWN]], q[order[:SHOWN]], names),
        table,
    )
    return Section("both-shares-section", "How do the shares differ?", lines, [picture])


def _pairs(tasks: list[str], p: Floats, q: Floats, names: Names) -> Any:
    rows = list(range(len(tasks)))
    made = blank(
        90 + LINE * len(tasks), xaxis={"title": "share of the budget", "tickformat": PERCENT, "rangemode": "tozero"}
    )
    bridge = [value for a, b in zip(p, q, strict=True) for value in (a, b, None)]
    made.add_trace(
        Scatter(
            x=bridge,
            y=[y for row in rows for y in (row, row, None)],
            mode="lines",
            hoverinfo="skip",
            line={"color": GREY, "width": 2},
            showlegend=False,
        )
    )
    for k, values in enumerate((p, q)):
        made.add_trace(
            Scatter(
                x=values,
                y=rows,
                mode="markers",
                name=text(names[k]),
                customdata=[text(t) for t in tasks],
                marker={"size": 11, "color": COLOURS[k], "symbol": ("circle", "diamond")[k]},
                hovertemplate=f"%{{customdata}}, {text(names[k])}: %{{x:.1%}}<extra></extra>",
            )
        )
    made.update_yaxes(**name_axis(tasks))
    return made


def _gains(first: Material, second: Material, names: Names) -> Section:
    """Gains on the pairs that both measured."""
    title = "Do the gains agree?"
    found = [_pairs_of(material) for material in (first, second)]
    both = [pair for pair in found[0] if pair in found[1]]
    if len(both) < 3:
        return Section("both-gains-section", title, ["The runs have no tasks and sets in common."])
    x, y = (np.array([one[pair] for pair in both]) for one in found)
    line = f"Over {many(len(both), 'pair')} of a task and a set the gains correlate by {np.corrcoef(x, y)[0, 1]:.2f}."
    made = blank(
        520,
        hovermode="closest",
        xaxis={"title": f"gain in {text(names[0])}, nats a token"},
        yaxis={"title": f"gain in {text(names[1])}"},
    )
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    made.add_trace(
        Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip", showlegend=False)
    )
    made.add_trace(
        Scatter(
            x=x,
            y=y,
            mode="markers",
            marker={"color": COLOURS[0], "size": 6, "opacity": 0.7},
            showlegend=False,
            customdata=[f"{text(a)} on {text(b)}" for a, b in both],
            hovertemplate="%{customdata}: %{x:.3f}, %{y:.3f}<extra></extra>",
        )
    )
    table = {"task": [a for a, _ in both], "set": [b for _, b in both], names[0]: x.tolist(), names[1]: y.tolist()}
    return Section(
        "both-gains-section", title, [line], [Picture("both-gains", "Gains of every task on every set", made, table)]
    )


def _pairs_of(material: Material) -> dict[tuple[str, str], float]:
    G = material.affinity.matrices.get("G")
    if G is None:
        return {}
    return {(t, s): float(G[i, j]) for i, t in enumerate(material.tasks) for j, s in enumerate(material.affinity.sets)}


def _settings(first: Material, second: Material, names: Names) -> Section:
    a, b = (_flat(material.run.manifest["settings"]) for material in (first, second))
    other = [[key, a.get(key, "–"), b.get(key, "–")] for key in {**a, **b} if a.get(key) != b.get(key)]
    costs = [history.cost(material.run.manifest.get("stages", {})) for material in (first, second)]
    lines = [f"Set otherwise: {many(len(other), 'setting')}." if other else "The settings are the same."]
    lines += [f"{name}: {cost[0].lower()}{cost[1:]}" for name, cost in zip(names, costs, strict=True)]
    tables = [Table("Settings that differ", ["setting", *names], other)] if other else []
    return Section("both-settings", "What was set otherwise, and what did it cost?", lines, tables=tables)


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names."""
    if isinstance(settings, Mapping):
        items: Any = settings.items()
    elif isinstance(settings, list):
        items = ((one.get("name", k) if isinstance(one, Mapping) else k, one) for k, one in enumerate(settings))
    else:
        return {prefix: str(settings)}
    return {key: value for name, one in items for key, value in _flat(one, f"{prefix}.{name}".lstrip(".")).items()}
