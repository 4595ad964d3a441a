"""What helps what? Nats a token that each task gains or loses on each target."""

from typing import Any

import numpy as np
from plotly.graph_objects import Heatmap

from taskpgm.report.material import Material
from taskpgm.report.parts import Picture, Section, joined
from taskpgm.report.style import LESS_IS_RED, NUMBERED, SHOWN, blank, short, text
from taskpgm.types import Floats


def section(material: Material) -> Section:
    """Gains on the targets, or on each other's contexts, best and worst in words."""
    title = "What helps what?"
    if "G" not in material.affinity.matrices:
        return Section("gains", title, ["Gains were not measured: this run has an affinity of its own."])
    gains, error, sets = _gains(material)
    lines = [] if material.targets else ["No targets were given, so these are the tasks' gains on each other."]
    lines += _sentences(material, gains, error, sets)
    picture = Picture(
        "gains-picture",
        "Nats a token gained (blue) or lost (red) on each set, against where probes start",
        figure(material),
        _columns(material, gains, error, sets),
    )
    return Section("gains", title, lines, [picture])


def _gains(material: Material) -> tuple[Floats, Floats | None, tuple[str, ...]]:
    """(tasks, targets) gains and errors; over the tasks where there are no targets."""
    G, error = material.affinity.matrices["G"], material.affinity.errors.get("G")
    n = len(material.tasks)
    kept = slice(n, None) if material.targets else slice(None)
    return G[:, kept], None if error is None else error[:, kept], material.affinity.sets[kept]


def _sentences(material: Material, gains: Floats, error: Floats | None, sets: tuple[str, ...]) -> list[str]:
    """What helps and what hurts each target most, of the first five."""

    def words(i: int, j: int) -> str:
        sure = "" if error is None else f" ± {error[i, j]:.2f}"
        return f"{material.tasks[i]} ({gains[i, j]:+.2f}{sure})"

    others = gains.copy()
    if not material.targets:
        np.fill_diagonal(others, np.nan)
    if np.isnan(others).all():
        return []
    lines = [_overall(material, gains, sets)]
    for j in range(min(len(sets), 5)):
        column = others[:, j]
        best, worst = int(np.nanargmax(column)), int(np.nanargmin(column))
        found = [f"helped most by {words(best, j)}"] * bool(column[best] > 0)
        found += [f"hurt most by {words(worst, j)}"] * bool(column[worst] < 0)
        lines.append(f"{sets[j]}: {', '.join(found) or 'neither helped nor hurt'}, in nats a token.")
    if len(sets) > 5:
        lines.append(f"The figure has {joined(sets[5:], 3)} too.")
    return lines


def _overall(material: Material, gains: Floats, sets: tuple[str, ...]) -> str:
    """The task of the largest gain over all sets by their weights, and how many tasks gain at all."""
    mean = gains @ material.target_weights[-len(sets) :]
    best, helpful = int(mean.argmax()), int((mean > 0).sum())
    what = "the targets" if material.targets else "all tasks"
    if not helpful:
        return f"No task helps {what} on the whole; {material.tasks[best]} hurts least, {mean[best]:+.3f} nats a token."
    few, verb = "Only " if 2 * helpful < len(mean) else "", "helps" if helpful == 1 else "help"
    return (
        f"{few}{helpful} of {len(mean)} tasks {verb} {what} on the whole; {material.tasks[best]} helps most, "
        f"{mean[best]:+.3f} nats a token."
    )


def figure(material: Material) -> Any:
    """Heat map of gains: one row a task, best on top; of many tasks the best and worst."""
    gains, error, sets = _gains(material)
    weights = material.target_weights[-len(sets) :]
    order = np.argsort(-(gains @ weights), kind="stable")
    shown = order if len(order) <= SHOWN else np.r_[order[: SHOWN // 2], order[-SHOWN // 2 :]]
    columns = np.arange(len(sets)) if len(sets) <= SHOWN else np.sort(np.argsort(-weights, kind="stable")[:SHOWN])
    z = gains[np.ix_(shown, columns)]
    top = float(np.quantile(np.abs(z), 0.95)) or 1.0
    names, above = [material.tasks[i] for i in shown], [sets[j] for j in columns]
    e = None if error is None else error[np.ix_(shown, columns)]
    more = "" if e is None else " ± %{customdata:.3f}"
    made = blank(150 + 24 * len(shown))
    made.add_trace(
        Heatmap(
            z=z,
            x=[text(a) for a in above],
            y=[text(a) for a in names],
            customdata=e,
            zmin=-top,
            zmax=top,
            xgap=1,
            ygap=1,
            colorscale=LESS_IS_RED,
            colorbar={"title": {"text": "nats"}, "thickness": 12},
            texttemplate="%{z:+.2f}" if z.size <= NUMBERED and z.shape[1] <= 16 else "",
            hovertemplate=f"%{{y}} on %{{x}}: %{{z:+.4f}}{more}<extra></extra>",
        )
    )
    made.update_xaxes(
        tickvals=[text(a) for a in above], ticktext=[short(a, 20) for a in above], side="top", fixedrange=True
    )
    made.update_yaxes(
        tickvals=[text(a) for a in names],
        ticktext=[short(a) for a in names],
        autorange="reversed",
        automargin=True,
        fixedrange=True,
    )
    return made


def _columns(material: Material, gains: Floats, error: Floats | None, sets: tuple[str, ...]) -> dict[str, list[Any]]:
    """Long form, of at most 20000 pairs; `load_run(…).gains.frame()` has all."""
    pairs = [(i, j) for j in range(len(sets)) for i in range(len(gains))][:20_000]
    return {
        "task": [material.tasks[i] for i, _ in pairs],
        "set": [sets[j] for _, j in pairs],
        "gain": [round(float(gains[i, j]), 6) for i, j in pairs],
        "standard_error": [None if error is None else round(float(error[i, j]), 6) for i, j in pairs],
    }
