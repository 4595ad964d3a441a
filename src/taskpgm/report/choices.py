"""Could it be different? Shares along the knob, the order of a selection, and the other draw of probes."""

from typing import Any

import numpy as np
from plotly.graph_objects import Scatter
from plotly.subplots import make_subplots

from taskpgm.errors import UserError
from taskpgm.mixture.optimum import minimise
from taskpgm.mixture.path import KnobPath, trace_path
from taskpgm.mixture.selection import Selection, select_tasks
from taskpgm.pipeline.run import balance_curve
from taskpgm.report.material import EXPLAINED, Material
from taskpgm.report.parts import Picture, Section, joined
from taskpgm.report.style import COLOURS, GREY, LINE, PERCENT, SHOWN, blank, first_of, log_ticks, name_axis, short, text
from taskpgm.types import Floats

POINTS = 13
FEW_POINTS = 3  # with many tasks, of which each takes seconds
BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)
SIZES = 9  # of selections whose bound is shown
MOST_SELECTED = 64
LINES = 8  # tasks with a line of their own
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")


def section(material: Material) -> Section:
    """The mixture under other settings and other probes."""
    path, losses = _path(material)
    lines, pictures = [_stable(material, path)], [_path_picture(material, path, losses)]
    for line, picture in (_balance(material), _selection(material), _seeds(material)):
        lines.append(line)
        pictures += [picture] if picture else []
    return Section("choices", "Could it be different?", lines, pictures)


def _path(material: Material) -> tuple[KnobPath, Floats]:
    """(mixtures along the knob, their loss without the prior); around the knob that the run used."""
    energy, here = material.energy, material.energy.knob
    count = POINTS if len(material.tasks) <= EXPLAINED else FEW_POINTS
    widest = 10 if energy.kind != "affinity" and count == POINTS else 4 if count == POINTS else 2
    values = (here or 1.0) * np.geomspace(1 / widest, widest, count)
    path = trace_path(energy, [float(f"{v:.4g}") for v in values], material.bounds)
    at = [energy.with_knob(float(v)) for v in path.values] if energy.kind == "affinity" else [energy] * count
    return path, np.array([one.loss(p) for one, p in zip(at, path.weights, strict=True)])


def _stable(material: Material, path: KnobPath) -> str:
    """How far shares move if the knob is halved or doubled."""
    knob, here = path.knob, material.energy.knob
    near = [k for k, v in enumerate(path.values) if 0.45 * here <= v <= 2.2 * here]
    moved = max((0.5 * float(np.abs(path.weights[k] - material.mixture.weights).sum()) for k in near), default=0.0)
    return f"With {knob} anywhere from half to twice its {here:g}, at most {moved:.0%} of the budget would move."


def _path_picture(material: Material, path: KnobPath, losses: Floats) -> Picture:
    table = {path.knob: path.values.tolist(), "loss": losses.tolist()}
    table |= {task: path.weights[:, i].tolist() for i, task in enumerate(path.tasks)}
    return Picture("path", f"Shares and predicted loss along {path.knob}", path_figure(material, path, losses), table)


def path_figure(material: Material, path: KnobPath, losses: Floats) -> Any:
    """Shares of the tasks that move most above the loss, against the knob."""
    made = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    spread = np.ptp(path.weights, axis=0) + path.weights.max(axis=0)
    for k, i in enumerate(np.argsort(-spread, kind="stable")[:LINES]):
        made.add_trace(
            Scatter(
                x=path.values,
                y=path.weights[:, i],
                mode="lines+markers",
                name=short(path.tasks[i], 24),
                line={"color": COLOURS[k % 8]},
                marker={"symbol": SYMBOLS[k % 8], "size": 7},
                hovertemplate=f"{text(path.tasks[i])}: %{{y:.1%}} at {path.knob} %{{x:.3g}}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    made.add_trace(
        Scatter(
            x=path.values,
            y=losses,
            mode="lines+markers",
            line={"color": GREY, "dash": "dot"},
            showlegend=False,
            hovertemplate=f"loss %{{y:.4f}} at {path.knob} %{{x:.3g}}<extra></extra>",
        ),
        row=2,
        col=1,
    )
    made.add_vline(x=material.energy.knob, line={"color": GREY, "width": 1, "dash": "dash"})
    made.update_xaxes(**log_ticks(path.values.min(), path.values.max()))
    made.update_xaxes(title=f"{path.knob} (dashed: this run)", row=2, col=1)
    made.update_yaxes(tickformat=PERCENT, title="share", row=1, col=1)
    made.update_yaxes(title="loss", row=2, col=1)
    made.update_layout(
        template="plotly_white",
        height=520,
        margin={"t": 30, "b": 50, "r": 20, "l": 10},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    return made


def _balance(material: Material) -> tuple[str, Picture | None]:
    """What the targets gain and the tasks lose from the targets alone to the tasks alone."""
    if not material.targets:
        return "There are no targets to balance against the tasks.", None
    if material.energy.kind == "affinity":
        return "An energy of kind affinity takes no targets, so it has no balance.", None
    run = material.run
    own = run.config.energy.balance or 0.0
    points = balance_curve(run.pool, run.scores, run.config, sorted({*BALANCES, own})).points
    first, last = points[0], points[-1]
    line = (
        f"Serving the targets alone changes their loss by {first.targets:+.1%} and the tasks' by {first.tasks:+.1%} "
        f"against uniform; serving the tasks alone, by {last.targets:+.1%} and {last.tasks:+.1%}."
    )
    if limits := material.energy.settings.get("limits"):
        held = joined([one["name"] for one in limits if one["price"] > 0]) or "no task"
        line += f" Balances above 0 keep the limits on tasks' losses: in this mixture {held} would lose more without."
    table: dict[str, list[Any]] = {
        "balance": [point.balance for point in points],
        "targets": [point.targets for point in points],
        "tasks": [point.tasks for point in points],
        "worst_task": [point.worst_task for point in points],
        "worst": [point.worst for point in points],
    }
    title = "Change of the probes' predicted loss against uniform, from targets alone (0) to tasks alone (1)"
    return line, Picture("balance", title, balance_figure(table, own), table)


def balance_figure(table: dict[str, list[Any]], here: float) -> Any:
    """Change of the targets' loss, the tasks' and the worst task's, against the balance."""
    made = blank(
        360, xaxis={"title": "balance (dashed: this run)"}, yaxis={"title": "loss", "tickformat": f"+{PERCENT}"}
    )
    names = [text(name) for name in table["worst_task"]]
    for k, (key, name) in enumerate({"targets": "targets", "tasks": "tasks", "worst": "worst task"}.items()):
        said = "<br>%{customdata}" if key == "worst" else ""
        made.add_trace(
            Scatter(
                x=table["balance"],
                y=table[key],
                mode="lines+markers",
                name=name,
                customdata=names,
                line={"color": COLOURS[k]},
                marker={"symbol": SYMBOLS[k], "size": 8},
                hovertemplate=f"{name} %{{y:+.2%}} at balance %{{x:g}}{said}<extra></extra>",
            )
        )
    made.add_vline(x=here, line={"color": GREY, "width": 1, "dash": "dash"})
    return made


def _selection(material: Material) -> tuple[str, Picture | None]:
    """The order in which greedy takes the tasks, with what is certified at each of a few sizes."""
    n = len(material.tasks)
    if n < 3:
        return "With two tasks there is nothing to select.", None
    count = SIZES if n <= EXPLAINED else FEW_POINTS
    sizes = sorted({int(k) for k in np.linspace(1, min(n, MOST_SELECTED), min(n, count)).round()})
    most = np.cumsum(-np.sort(-material.bounds.hi))  # of the budget, what any k tasks can hold
    if most[sizes[-1] - 1] < 1:
        return f"Bounds leave no {sizes[-1]} tasks that can hold the budget, so none are selected.", None
    found = [_selected(material, k) for k in sizes if most[k - 1] >= 1]
    selections = [one for one in found if isinstance(one, Selection)]
    if not selections:
        return f"No selection: {found[-1]}", None
    order = selections[-1]
    full = order.full_value or 1.0
    reached = np.flatnonzero(order.values >= 0.95 * full)
    k, part = (int(reached[0]) + 1, "95 %") if len(reached) else (len(order.chosen), f"{order.values[-1] / full:.0%}")
    line = f"{k} of {n} tasks can reach {part} of what all reach: {joined(order.chosen[:k])}."
    table = {"task": list(order.chosen), "value": order.values.tolist(), "part_of_all": (order.values / full).tolist()}
    return line, Picture(
        "selection",
        "What the first k tasks reach of all tasks' value, and what any k could",
        selection_figure(selections, order),
        table,
    )


def _selected(material: Material, k: int) -> Selection | UserError:
    """The selection of k tasks, or why there is none."""
    try:
        return select_tasks(material.energy, material.bounds, k)
    except UserError as error:
        return error


def selection_figure(selections: list[Selection], order: Selection) -> Any:
    """Value after each task of greedy's order, and bounds on the best set of a few sizes."""
    full = order.full_value or 1.0
    made = blank(380, xaxis={"title": "tasks selected"}, yaxis={"title": "of all tasks' value", "tickformat": PERCENT})
    made.add_trace(
        Scatter(
            x=list(range(1, len(order.chosen) + 1)),
            y=order.values / full,
            mode="lines+markers",
            name="greedy's order",
            customdata=[text(t) for t in order.chosen],
            hovertemplate="%{x}: %{customdata}, %{y:.1%}<extra></extra>",
            line={"color": COLOURS[0]},
        )
    )
    at = [len(one.chosen) for one in selections]
    most = [min(1.0, one.upper_bound / full) for one in selections]
    made.add_trace(
        Scatter(
            x=at,
            y=most,
            mode="lines+markers",
            name="certified: no k tasks reach more",
            line={"color": COLOURS[1], "dash": "dash"},
            marker={"symbol": "triangle-down", "size": 9},
        )
    )
    return made


def _seeds(material: Material) -> tuple[str, Picture | None]:
    """The mixture without each probe seed."""
    replicates = material.energy.seeds
    if not replicates:
        return "Probes were drawn once; `probes.seeds: 2` shows what another draw would change.", None
    found = np.array([minimise(one, material.bounds).p for one in replicates])
    moved = max(0.5 * float(np.abs(p - material.mixture.weights).sum()) for p in found)
    line = f"Without any one of {len(found)} probe seeds, at most {moved:.0%} of the budget would move."
    names = [material.tasks[i] for i in material.order]
    table: dict[str, Any] = {"task": names, "all": material.mixture.weights[material.order].tolist()}
    table |= {f"without seed {s}": p[material.order].tolist() for s, p in enumerate(found)}
    shown = names[:SHOWN]
    made = blank(90 + LINE * len(shown), xaxis={"title": "share of the budget", "tickformat": PERCENT})
    for k, (name, values) in enumerate(list(table.items())[1:]):
        made.add_trace(
            Scatter(
                x=values[:SHOWN],
                y=list(range(len(shown))),
                mode="markers",
                name=name,
                marker={"symbol": SYMBOLS[k % 8], "size": 9, "color": COLOURS[k % 8]},
            )
        )
    made.update_yaxes(**name_axis(shown))
    return line, Picture("seeds", "Shares without each probe seed" + first_of(len(names), "tasks"), made, table)
