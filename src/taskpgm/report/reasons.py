"""Why this share? Marginal energies, leave-one-out, and rows that a task helps and hurts most."""

from typing import Any

import numpy as np
from plotly.graph_objects import Bar

from taskpgm.mixture.explanation import Dropped, Margin
from taskpgm.report.examples import Examples
from taskpgm.report.material import EXPLAINED, Material
from taskpgm.report.parts import Panel, Picture, Section, joined
from taskpgm.report.style import COLOURS, LINE, blank, buttons, name_axis, short, text

AS_IN = "as in "
HOLD = 5  # tasks whose redundancy is named


def section(material: Material) -> Section:
    """Of a chosen task: how its marginal energy adds up, what is lost without it, and its rows."""
    title = "Why this share?"
    examples, notes = material.examples
    explanation = material.explanation
    dropped = {one.task: one for one in explanation.dropped}
    lines = [_dearest(material, list(dropped.values()))]
    if len(material.tasks) > EXPLAINED:
        lines.append(
            f"Of {len(material.tasks)} tasks the {len(dropped)} heaviest are left out, each in turn; "
            f"`taskpgm explain {material.command}` does it with all."
        )
    lines += [f"Interchangeable: {joined(group, 12)}." for group in explanation.clusters[:5]]
    margins = {one.task: one for one in explanation.margins}
    ordered = [material.tasks[i] for i in material.order]
    pictures = [
        Picture(
            "margin",
            "How the marginal energy of the chosen task adds up to zero",
            margin_figure([margins[t] for t in ordered], explanation.nu, material.unit),
            _margin_table(list(margins.values()), explanation.nu),
            follows=True,
        ),
        Picture(
            "dropped",
            f"What is lost without each task, in {material.unit}",
            dropped_figure(material, dropped),
            _dropped_table(list(dropped.values())),
        ),
    ]
    panels = [_panel(t, margins[t], dropped.get(t), examples) for t in ordered]
    return Section("reasons", title, [*lines, *notes], pictures, panels=panels)


def _dearest(material: Material, dropped: list[Dropped]) -> str:
    needed = [one.task for one in dropped if one.loss is None]
    if needed:
        return f"Without {joined(needed)} the others cannot hold the budget."
    first = max(dropped, key=lambda one: one.loss or 0.0)
    takers = [f"{name} ({change:+.1%})" for name, change in _takers(first)]
    over = f"; {joined(takers)} would take over" if takers else ""
    lost = f"{first.loss or 0:.4f} {material.unit}"
    return f"The task that is missed most is {first.task}: without it, {lost} are lost{over}."


def _takers(one: Dropped) -> list[tuple[str, float]]:
    return [(name, change) for name, change in one.takers.items() if change > 0.0005][:3]


def _over(one: Dropped) -> str:
    return joined([f"{name} {change:+.1%}" for name, change in _takers(one)]) or "nobody"


def _parts(one: Margin, nu: float) -> list[tuple[str, float]]:
    """The terms of the marginal energy in words; they add up to zero."""
    redundancy = sorted(one.redundancy.items(), key=lambda item: -abs(item[1]))
    parts = [("utility", one.utility)]
    parts += [(f"{AS_IN}{name}", -value) for name, value in redundancy[:HOLD]]
    if redundancy[HOLD:]:
        parts.append(("as in the others", -sum(value for _, value in redundancy[HOLD:])))
    parts += [("prior", one.prior), ("price of budget", -nu)]
    others = [("rows again", -one.repetition), ("bounds", one.lower - one.upper - one.group)]
    return [*parts, *(part for part in others if abs(part[1]) > 1e-9)]


def _labels(parts: list[str]) -> list[str]:
    """Names below the bars, which all differ: bars of one name would lie on each other."""
    task = [name.startswith(AS_IN) for name in parts]
    labels = [AS_IN + short(p.removeprefix(AS_IN), 20) if of else p for p, of in zip(parts, task, strict=True)]
    return labels if len(set(labels)) == len(labels) else [text(name) for name in parts]


def margin_figure(margins: list[Margin], nu: float, unit: str) -> Any:
    """Bars of the terms of marginal energy, each from where the last one ended: a set a task, of which one is shown."""
    made = blank(420, showlegend=False, yaxis={"title": f"{unit} per share", "zeroline": True})
    for k, one in enumerate(margins):
        parts = _parts(one, nu)
        values = np.array([value for _, value in parts])
        made.add_trace(
            Bar(
                x=_labels([name for name, _ in parts]),
                y=values,
                base=(np.cumsum(values) - values).tolist(),
                visible=k == 0,
                name=text(one.task),
                marker={"color": [COLOURS[int(value < 0)] for value in values]},
                customdata=values,
                hovertemplate="%{x}: %{customdata:+.4f}<extra></extra>",
            )
        )
    seen = [[{"visible": [j == k for j in range(len(margins))]}] for k in range(len(margins))]
    made.update_layout(updatemenus=[buttons([one.task for one in margins], seen, "dropdown")])
    return made


def dropped_figure(material: Material, dropped: dict[str, Dropped]) -> Any:
    """Bars of what is lost without each task, dearest on top."""
    ordered = sorted((one for one in dropped.values() if one.loss is not None), key=lambda one: -(one.loss or 0.0))
    names = [one.task for one in ordered]
    said = [f"{text(one.task)}: {one.loss:.4f}; {text(_over(one))} would take over" for one in ordered]
    made = blank(90 + LINE * len(names), xaxis={"title": material.unit})
    made.add_trace(
        Bar(
            x=[one.loss for one in ordered],
            y=list(range(len(names))),
            orientation="h",
            hovertext=said,
            hoverinfo="text",
            marker={"color": COLOURS[0]},
        )
    )
    made.update_yaxes(**name_axis(names))
    return made


def _margin_table(margins: list[Margin], nu: float) -> dict[str, list[Any]]:
    rows = [(one.task, name, value) for one in margins for name, value in _parts(one, nu)]
    return {"task": [r[0] for r in rows], "term": [r[1] for r in rows], "value": [r[2] for r in rows]}


def _dropped_table(dropped: list[Dropped]) -> dict[str, list[Any]]:
    return {
        "task": [one.task for one in dropped],
        "lost": [one.loss for one in dropped],
        "takers": ["; ".join(f"{name} {change:+.4f}" for name, change in _takers(one)) for one in dropped],
    }


def _panel(task: str, margin: Margin, dropped: Dropped | None, examples: dict[str, Examples]) -> Panel:
    pulls = sorted(margin.redundancy.items(), key=lambda item: -item[1])
    most = [f"{name} ({value:.3f})" for name, value in pulls if name != task][:3]
    lines = [f"Utility {margin.utility:.3f}; what it says is said most by {joined(most)}."] if most else []
    if dropped is not None and dropped.loss is not None:
        lines.append(f"Without it {dropped.loss:.4f} are lost; {_over(dropped)} would take over.")
    shown = examples.get(task)
    return Panel(task, task, lines, shown.parts if shown else ())
