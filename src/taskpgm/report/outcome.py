"""Did it work? Where `compare` ran: differences with intervals, losses and accuracies by set, budgets, predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from plotly.graph_objects import Heatmap, Scatter
from plotly.subplots import make_subplots

from taskpgm.evaluation.baselines import OURS
from taskpgm.evaluation.statistics import Comparison, Difference, Values
from taskpgm.report.material import SAME, Material
from taskpgm.report.parts import Picture, Section, Table
from taskpgm.report.style import COLOURS, GREY, NUMBERED, SHOWN, blank, first_of, short, text

# Shape and colour say the same, for those who see one of them.
MARK = {
    "better": (COLOURS[0], "triangle-left"),
    "worse": (COLOURS[1], "triangle-right"),
    "no difference": (GREY, "circle"),
    "not tested": (GREY, "circle-open"),
}


def section(material: Material) -> Section:
    """What was measured, or how to measure it."""
    title, comparison = "Did it work?", material.comparison
    if comparison is None:
        found = f"Not measured: nothing was trained on the mixture. `taskpgm compare {material.command}` does."
        return Section("outcome", title, [found])
    pictures = [Picture("losses", _cells_title(comparison), cells_figure(comparison), losses_table(comparison))]
    if comparison.differences:
        pictures.insert(
            0,
            Picture(
                "differences",
                f"Differences paired by seed, with {100 * comparison.level:g} % intervals; left is less",
                differences_figure(comparison),
                _differences_table(comparison),
            ),
        )
    if sets := [one for one in comparison.sets if one in comparison.measurements[0].option_loss]:
        pictures.append(
            Picture(
                "options",
                f"Loss of options (how the right one stands among those that may be given) minus that of "
                f"{comparison.reference}, nats a question, mean over seeds" + first_of(len(sets), "sets"),
                excess_figure(comparison, sets[:SHOWN], "option_loss"),
                _options_table(comparison),
            )
        )
    if any(m.accuracy for m in comparison.measurements):
        pictures.append(
            Picture(
                "accuracies",
                "Accuracy of every mixture on every set that is graded" + first_of(len(_graded(comparison)), "sets"),
                accuracy_figure(comparison),
                _accuracy_table(comparison),
            )
        )
    lines = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in comparison.sentences] or [
        f"Only {comparison.mixtures[0]} was trained, so there is nothing to compare it with."
    ]
    lines = [*_of_another(material, comparison), *lines]
    if equivalence := material.run.comparison.get("budget equivalence"):
        lines.append(f"Budget equivalence: {equivalence['sentence']}.")
    if predicted := _predictions(material):
        lines.append(predicted[0])
        pictures.append(predicted[1])
    return Section("outcome", title, lines, pictures, [_averages(comparison)])


def _of_another(material: Material, comparison: Comparison) -> list[str]:
    """A warning if what was trained is another mixture than the run's."""
    apart = max((material.elsewhere(m.weights) for m in comparison.measurements if m.mixture == OURS), default=0.0)
    if apart <= SAME:
        return []
    return [
        f"This was measured with another mixture than the one above, which spends {apart:.1%} of the budget otherwise: "
        f"it says nothing sure of this one. `taskpgm compare {material.command}` measures it."
    ]


def differences_figure(comparison: Comparison) -> Any:
    """Paired differences of the losses, one panel for targets and one for tasks, one row for each other mixture."""
    panels = [q for q in comparison.quantities if q in ("targets", "tasks")]
    others = comparison.mixtures[1:]
    made = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.16,
        subplot_titles=[f"{q}: {text(comparison.mixtures[0])} minus …" for q in panels],
    )
    for row, quantity in enumerate(panels, start=1):
        for d in (d for d in comparison.differences if d.quantity == quantity):
            made.add_trace(_dot(d, others.index(d.other)), row=row, col=1)
        made.add_vline(x=0, line={"color": GREY, "width": 1}, row=row, col=1)
    names = [short(name, 30) for name in others]
    made.update_yaxes(
        tickvals=list(range(len(others))), ticktext=names, range=[len(others) - 0.5, -0.5], automargin=True
    )
    made.update_xaxes(title="nats a token (left: lower loss)", row=len(panels), col=1)
    height = 120 + len(panels) * (60 + 34 * len(others))
    made.update_layout(
        template="plotly_white", showlegend=False, height=height, margin={"t": 40, "b": 50, "r": 20, "l": 10}
    )
    return made


def _dot(d: Difference, row: int) -> Scatter:
    e, (colour, symbol) = d.estimate, MARK[d.verdict]
    bars = None
    if e.low is not None and e.high is not None:
        bars = {"type": "data", "array": [e.high - e.mean], "arrayminus": [e.mean - e.low], "width": 6, "thickness": 2}
    return Scatter(
        x=[e.mean],
        y=[row],
        error_x=bars,
        mode="markers",
        marker={"size": 13, "color": colour, "symbol": symbol},
        hovertemplate=f"{text(d.other)}: %{{x:.4f}}<extra>{d.verdict}</extra>",
    )


def _cells_title(comparison: Comparison) -> str:
    where = "; targets above the line, tasks below" if _split(comparison) else ""
    what = f"Loss minus that of {comparison.reference}, nats a token, mean over seeds{where}"
    return what + first_of(len(comparison.sets), "sets")


def _split(comparison: Comparison) -> bool:
    """Whether targets and tasks are both shown."""
    return bool(comparison.tasks) and 0 < len(comparison.targets) < SHOWN


def cells_figure(comparison: Comparison) -> Any:
    """Loss minus the reference's: one row a set, targets above tasks, one column a mixture."""
    made = excess_figure(comparison, comparison.sets[:SHOWN], "loss")
    if _split(comparison):
        made.add_hline(y=len(comparison.targets) - 0.5, line={"color": GREY, "width": 2})
    return made


def excess_figure(comparison: Comparison, sets: Sequence[str], values: Values) -> Any:
    """These sets' losses minus the reference's, one column a mixture."""
    mixtures = [name for name in comparison.mixtures if name != comparison.reference] or [comparison.reference]
    found = [[comparison.excess(mixture, one, values) for mixture in mixtures] for one in sets]
    means = np.array([[np.nan if e is None else e.mean for e in row] for row in found])
    return _cells(means, sets, mixtures, "RdBu_r", True)


def accuracy_figure(comparison: Comparison) -> Any:
    """Mean accuracy by set and mixture."""
    sets = _graded(comparison)[:SHOWN]
    values = [[_accuracy(comparison, mixture, one) for mixture in comparison.mixtures] for one in sets]
    return _cells(np.array(values), sets, comparison.mixtures, "Cividis", False)


def _graded(comparison: Comparison) -> list[str]:
    return [one for one in comparison.sets if one in comparison.measurements[0].accuracy]


def _accuracy(comparison: Comparison, mixture: str, one: str) -> float:
    return float(np.mean([m.accuracy[one] for m in comparison.measurements if m.mixture == mixture]))


def _cells(values: Any, rows: Sequence[str], columns: Sequence[str], scale: str, signed: bool) -> Any:
    """A heat map with its numbers; a single set that breaks leaves colours to the others."""
    top = float(np.nanquantile(np.abs(values), 0.95)) if np.isfinite(values).any() else 0.0
    limits = {"zmid": 0, "zmin": -(top or 1.0), "zmax": top or 1.0} if signed else {"zmin": 0, "zmax": 1}
    number = "%{z:+.2f}" if signed else "%{z:.0%}"
    made = blank(150 + 24 * len(rows))
    made.add_trace(
        Heatmap(
            z=values,
            colorscale=scale,
            xgap=2,
            ygap=2,
            colorbar={"thickness": 12},
            **limits,
            texttemplate=number if values.size <= NUMBERED else "",
            customdata=[[f"{text(row)}, {text(column)}" for column in columns] for row in rows],
            hovertemplate=f"%{{customdata}}: {number}<extra></extra>",
        )
    )
    made.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[short(c, 18) for c in columns],
        side="top",
        showgrid=False,
        zeroline=False,
    )
    made.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[short(r) for r in rows],
        autorange="reversed",
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
    return made


def _predictions(material: Material) -> tuple[str, Picture] | None:
    """Predicted against measured losses, if `predict` ran after `compare`."""
    data = material.optional("prediction.json")
    found = [one for one in data["predictions"] if one["measured"] is not None] if data else []
    if not found:
        return None
    ranks = data.get("rank correlation", {}) if data else {}
    said = ", ".join(
        f"{name} {ranks[name]:.2f}" for name in ("ensemble", "gain", "merged") if ranks.get(name) is not None
    )
    line = f"Prediction against measurement over {len(found)} mixtures, rank correlation: {said or 'too few mixtures'}."
    made = blank(420, xaxis={"title": "measured loss, nats a token"}, yaxis={"title": "predicted"})
    names = [one["mixture"] for one in found]
    kinds = [kind for kind in ("ensemble", "gain", "merged") if all(one[kind] is not None for one in found)]
    for k, kind in enumerate(kinds):
        made.add_trace(
            Scatter(
                x=[one["measured"] for one in found],
                y=[one[kind] for one in found],
                mode="markers",
                name=kind,
                marker={"symbol": ("circle", "diamond", "square")[k], "size": 10, "color": COLOURS[k]},
                customdata=[text(n) for n in names],
                hovertemplate="%{customdata}: measured %{x:.4f}, predicted %{y:.4f}<extra></extra>",
            )
        )
    table: dict[str, Any] = {"mixture": names, "measured": [one["measured"] for one in found]}
    table |= {kind: [one[kind] for one in found] for kind in kinds}
    return line, Picture("predictions", "Predicted against measured losses", made, table)


def losses_table(comparison: Comparison) -> Mapping[str, Sequence[Any]]:
    """Loss of every mixture, seed and set."""
    rows = [(m.mixture, m.seed, one, m.loss[one]) for m in comparison.measurements for one in comparison.sets][:20_000]
    return {name: [row[k] for row in rows] for k, name in enumerate(("mixture", "seed", "set", "loss"))}


def _accuracy_table(comparison: Comparison) -> Mapping[str, Sequence[Any]]:
    rows = [(m.mixture, m.seed, one, value) for m in comparison.measurements for one, value in m.accuracy.items()]
    return {name: [row[k] for row in rows] for k, name in enumerate(("mixture", "seed", "set", "accuracy"))}


def _options_table(comparison: Comparison) -> Mapping[str, Sequence[Any]]:
    rows = [(m.mixture, m.seed, one, value) for m in comparison.measurements for one, value in m.option_loss.items()]
    return {name: [row[k] for row in rows] for k, name in enumerate(("mixture", "seed", "set", "loss of options"))}


def _differences_table(comparison: Comparison) -> Mapping[str, Sequence[Any]]:
    found = comparison.differences
    return {
        "quantity": [d.quantity for d in found],
        "other": [d.other for d in found],
        "difference": [d.estimate.mean for d in found],
        "low": [d.estimate.low for d in found],
        "high": [d.estimate.high for d in found],
        "p_corrected": [d.corrected for d in found],
        "verdict": [d.verdict for d in found],
    }


def _averages(comparison: Comparison) -> Table:
    rows = [[one.mixture, *(one.averages[q].words(q) for q in comparison.quantities)] for one in comparison.summaries]
    return Table(
        "Averages over sets, mean over seeds ± half of the interval", ["mixture", *comparison.quantities], rows
    )
