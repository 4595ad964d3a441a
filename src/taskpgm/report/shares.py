"""What should I train on, and how sure is it?"""

from typing import Any

import numpy as np
from plotly.graph_objects import Scatter

from taskpgm.evaluation.form import form_sentence
from taskpgm.mixture.expected import expected_sentence
from taskpgm.pool.plan import rows_again, tokens_apart
from taskpgm.report.material import Material
from taskpgm.report.parts import Picture, Section, Table, joined
from taskpgm.report.style import LINE, OWN, PERCENT, SHOWN, blank, first_of, name_axis, text

MARKS = (("line-ns-open", "#D55E00"), ("diamond-open", "#009E73"), ("x-thin-open", "#CC79A7"))
LABEL = {"size-proportional": "size"}


def section(material: Material) -> Section:
    """Shares with intervals beside the references, rows and epochs, bounds that bind, and what is predicted."""
    return Section(
        "shares",
        "What should I train on, and how sure is it?",
        [_headline(material), *_verdicts(material), *_tokens(material), *material.run.doubts],
        [_picture(material)],
        _tables(material),
    )


def _headline(material: Material) -> str:
    mixture, order = material.mixture, material.order
    used = [i for i in order if mixture.weights[i] >= 0.0005]
    named = [f"{material.tasks[i]} ({_share(material, i)})" for i in used[:3]]
    size = material.stored.get("budget")
    what = f"{size['rows']:,} rows" if size else "the budget"
    sure = " (95 % intervals over the choice of contexts)" if mixture.interval is not None else ""
    part = float(mixture.weights[used[:3]].sum())
    rest = f", {part:.0%} of {what}; {len(used)} of {len(order)} tasks have a share"
    return f"Train most on {joined(named)}{rest}{sure}."


def _share(material: Material, i: int) -> str:
    mixture = material.mixture
    if mixture.interval is None or mixture.at_bound[i]:
        return f"{mixture.weights[i]:.1%}"
    low, high = mixture.interval[i]
    return f"{mixture.weights[i]:.1%}, {100 * low:.1f} – {high:.1%}"


def _verdicts(material: Material) -> list[str]:
    """What is predicted, or measured, and what that is worth."""
    expected = material.stored.get("expected")
    lines = [f"{expected_sentence(expected).capitalize()}."] if expected else []
    if (form := material.optional("form.json")) and form["mixture"] == material.mixture.shares:
        lines.append(f"{form_sentence(form).capitalize()}.")
    for v in material.mixture.verdicts:
        found = "better than" if v.better else "not shown to be better than"
        lines.append(
            f"By the probes, on held-out contexts: {found} {v.reference} by {v.gain:+.3f} ± {v.standard_error:.3f} "
            f"{material.unit}."
        )
    if material.comparison:
        return [*(f"Measured: {sentence}." for sentence in material.comparison.sentences[:3]), *lines]
    return [
        *lines,
        "That ranks mixtures and promises no gain: nothing was trained on this one. "
        f"`taskpgm compare {material.command}` measures it.",
    ]


def _tokens(material: Material) -> list[str]:
    """How often rows are seen, and whose shares of rows and of response tokens differ twofold."""
    tasks = material.stored["tasks"]
    if "row_share" not in tasks[0]:
        return []
    shares = {task["name"]: (task["row_share"], task["token_share"]) for task in tasks}
    said = tokens_apart(shares, material.stored["budget"]["unit"])
    again = rows_again(material.stored)
    return [f"{one}." for one in (again and again.capitalize(), said) if one]


def _picture(material: Material) -> Picture:
    return Picture(
        "shares-picture",
        "Share of each task with its 95 % interval, beside uniform and size-proportional shares"
        + first_of(len(material.order), "tasks"),
        figure(material),
        _columns(material),
    )


def figure(material: Material) -> Any:
    """Shares with intervals, heaviest on top, beside every reference mixture; of many tasks the heaviest."""
    mixture, shown = material.mixture, material.order[:SHOWN]
    names = [material.tasks[i] for i in shown]
    made = blank(
        90 + LINE * len(shown), xaxis={"title": "share of the budget", "tickformat": PERCENT, "rangemode": "tozero"}
    )
    rows = list(range(len(shown)))
    for (reference, r), (symbol, colour) in zip(mixture.references.items(), MARKS, strict=False):
        label = LABEL.get(reference, reference)
        marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2, "color": colour}}
        made.add_trace(
            Scatter(
                x=r[shown],
                y=rows,
                mode="markers",
                marker=marker,
                name=text(label),
                customdata=[text(n) for n in names],
                hovertemplate=f"%{{customdata}}, {text(label)}: %{{x:.1%}}<extra></extra>",
            )
        )
    made.add_trace(_own(material, shown))
    made.update_yaxes(**name_axis(names))
    return made


def _own(material: Material, shown: list[int]) -> Scatter:
    mixture = material.mixture
    w, inside = mixture.weights[shown], ~mixture.at_bound[shown]
    bars = None
    if mixture.interval is not None:
        low, high = mixture.interval[shown].T
        bars = {
            "type": "data",
            "array": np.where(inside, high - w, 0),
            "arrayminus": np.where(inside, w - low, 0),
            "width": 4,
            "color": OWN,
        }
    marker = {"size": 10, "color": OWN, "symbol": ["circle" if one else "circle-open" for one in inside]}
    said = [
        f"{text(material.tasks[i])}: {_share(material, i)}{'' if inside[k] else ', at a bound'}{_both(material, i)}"
        for k, i in enumerate(shown)
    ]
    return Scatter(
        x=w,
        y=list(range(len(shown))),
        error_x=bars,
        mode="markers",
        marker=marker,
        name="this mixture",
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _both(material: Material, i: int) -> str:
    task = material.stored["tasks"][i]
    if "row_share" not in task:
        return ""
    return f"<br>{task['row_share']:.1%} of the rows, {task['token_share']:.1%} of the response tokens"


def _columns(material: Material) -> dict[str, list[Any]]:
    rows = [material.stored["tasks"][i] for i in material.order]
    columns: dict[str, list[Any]] = {"task": [row["name"] for row in rows], "weight": [row["weight"] for row in rows]}
    columns["low"] = [row["interval"][0] if row["interval"] else None for row in rows]
    columns["high"] = [row["interval"][1] if row["interval"] else None for row in rows]
    columns["at_bound"] = [row["at_bound"] for row in rows]
    for key in ("count", "epochs", "tokens", "row_share", "token_share"):
        if key in rows[0]:
            columns[key] = [row[key] for row in rows]
    return columns | {name: [row["references"][name] for row in rows] for name in rows[0]["references"]}


def _tables(material: Material) -> list[Table]:
    columns = _columns(material)
    header = [
        "task",
        "share",
        "95% CI",
        *(["rows", "epochs", "of rows", "of response tokens"] if "count" in columns else []),
    ]
    references = list(material.mixture.references)
    rows = []
    for k, i in enumerate(material.order):
        low = columns["low"][k]
        interval = (
            "at a bound"
            if columns["at_bound"][k]
            else f"{low:.1%} – {columns['high'][k]:.1%}"
            if low is not None
            else ""
        )
        counts = []
        if "count" in columns:
            counts = [f"{columns['count'][k]:,}", f"{columns['epochs'][k]:.2f}"]
            counts += [f"{columns[key][k]:.2%}" for key in ("row_share", "token_share")]
        rows.append(
            [
                material.tasks[i],
                f"{columns['weight'][k]:.2%}",
                interval,
                *counts,
                *(f"{columns[r][k]:.2%}" for r in references),
            ]
        )
    tables = [Table("All shares", [*header, *(LABEL.get(r, r) for r in references)], rows, folded=True)]
    if prices := material.mixture.shadow_prices:
        priced = sorted(prices.items(), key=lambda item: -item[1])[:50]
        title = (
            f"Bounds that bind: what one more hundredth of the budget there would gain, in {material.unit}; "
            "of max_loss, one more hundredth of uniform's loss"
        )
        tables.append(Table(title, ["bound", "gain"], [[name, f"{price:.2g}"] for name, price in priced]))
    return tables
