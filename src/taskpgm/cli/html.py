"""A finished comparison as one self-contained HTML page: paired differences with intervals, and losses set by set."""

import importlib.util
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from taskpgm.errors import UserError
from taskpgm.evaluation.statistics import Comparison, Difference
from taskpgm.files import atomic_file

COLOUR = {"better": "#1a7f37", "worse": "#cf222e", "no difference": "#57606a", "not tested": "#57606a"}
FONT = "system-ui, sans-serif"
BESIDE, ABOVE = 44, 18  # characters of a name beside an axis, and above a column
NUMBERED = 600  # heat maps with more cells print no numbers


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write the page to `path`; it needs no network and holds plotly's own script (some 4 MB).

    Dots are the judged mixture minus each other one, so left of the line is better; their bars are the intervals of
    single comparisons, their colours the verdicts after correction. Cells are loss minus the reference's, by set.

    Raises:
        UserError: plotly is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise UserError("The picture needs plotly; pip install 'taskpgm[report]'.")
    figures = [_dots(comparison), _cells(comparison)] if comparison.differences else []
    bodies = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False, "responsive": True})
        for i, figure in enumerate(figures)
    ]
    with atomic_file(path) as scratch:
        scratch.write_text(_page(comparison, bodies), encoding="utf-8")


def _dots(comparison: Comparison) -> Any:
    """Paired differences of the losses, one panel for targets and one for tasks, one row for each other mixture."""
    from plotly.subplots import make_subplots

    panels = [q for q in comparison.quantities if not q.endswith("accuracy")]
    others = comparison.mixtures[1:]
    titles = [f"{quantity}, {comparison.mixtures[0]} minus …" for quantity in panels]
    figure = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.06)
    for column, quantity in enumerate(panels, start=1):
        for d in (d for d in comparison.differences if d.quantity == quantity):
            figure.add_trace(_dot(d, others.index(d.other)), row=1, col=column)
        figure.add_vline(x=0, line={"color": "#24292f", "width": 1}, row=1, col=column)
        figure.update_xaxes(title="nats a token  (left: lower loss)", zeroline=False, row=1, col=column)
    names = [_short(name, BESIDE) for name in others]
    span = [len(others) - 0.5, -0.5]
    figure.update_yaxes(tickvals=list(range(len(others))), ticktext=names, range=span, automargin=True, zeroline=False)
    height = 150 + 38 * len(others)
    figure.update_layout(template="plotly_white", showlegend=False, height=height, margin={"t": 50, "b": 60, "r": 20})
    return figure


def _dot(d: Difference, row: int) -> Any:
    from plotly.graph_objects import Scatter

    e, colour = d.estimate, COLOUR[d.verdict]
    bars = None
    if e.low is not None and e.high is not None:
        bars = {"type": "data", "array": [e.high - e.mean], "arrayminus": [e.mean - e.low], "width": 6, "thickness": 2}
    return Scatter(
        x=[e.mean], y=[row], error_x=bars, mode="markers", marker={"size": 11, "color": colour},
        hovertemplate=f"{escape(d.other)}: %{{x:.4f}}<extra>{d.verdict}</extra>",
    )  # fmt: skip


def _cells(comparison: Comparison) -> Any:
    """Loss minus the reference's: one row a set, targets above tasks, one column a mixture."""
    from plotly.graph_objects import Figure, Heatmap

    mixtures = [name for name in comparison.mixtures if name != comparison.reference]
    sets = comparison.sets
    found = [[comparison.excess(mixture, one) for mixture in mixtures] for one in sets]
    values = [[np.nan if e is None else e.mean for e in row] for row in found]
    limit = float(np.nanquantile(np.abs(values), 0.95)) or 1.0  # a single set that breaks leaves colours to the others
    heat = Heatmap(
        z=values, x=list(range(len(mixtures))), y=list(range(len(sets))), zmid=0, zmin=-limit, zmax=limit,
        colorscale="RdBu_r", xgap=2, ygap=2, colorbar={"title": {"text": "nats"}, "thickness": 14},
        texttemplate="%{z:+.2f}" if len(mixtures) * len(sets) <= NUMBERED else "",
        customdata=[[f"{escape(one)}, {escape(mixture)}" for mixture in mixtures] for one in sets],
        hovertemplate="%{customdata}: %{z:+.4f}<extra></extra>",
    )  # fmt: skip
    figure = Figure(heat)
    figure.update_xaxes(tickvals=list(range(len(mixtures))), ticktext=[_short(m, ABOVE) for m in mixtures], side="top")
    figure.update_yaxes(
        tickvals=list(range(len(sets))),
        ticktext=[_short(one, BESIDE) for one in sets],
        autorange="reversed",
        automargin=True,
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    if comparison.targets and comparison.tasks:
        figure.add_hline(y=len(comparison.targets) - 0.5, line={"color": "#24292f", "width": 1.5})
    figure.update_layout(template="plotly_white", height=140 + 24 * len(sets), margin={"t": 60, "b": 30, "r": 20})
    return figure


def _page(comparison: Comparison, bodies: list[str]) -> str:
    where = ": targets above the line, tasks below it" if comparison.targets and comparison.tasks else ""
    captions = [
        f"Differences paired by seed; bars: {100 * comparison.level:g} % intervals; green and red: lower and higher "
        "after Holm's correction.",
        f"Loss minus that of {comparison.reference}, nats a token, mean over seeds{where}.",
    ]
    figures = "".join(f"<p>{escape(caption)}</p>{body}" for caption, body in zip(captions, bodies, strict=False))
    items = "".join(
        f'<li style="color:{COLOUR[d.verdict]}">{escape(sentence)}</li>'
        for d, sentence in zip(comparison.differences, comparison.sentences, strict=True)
    )
    seeds = max(one.seeds for summary in comparison.summaries for one in summary.averages.values())
    others = len(comparison.mixtures) - 1
    title = f"{comparison.mixtures[0]} against {_some(others, 'other mixture')}, {_some(seeds, 'seed')}"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
        f'<body style="font-family:{FONT};max-width:1100px;margin:2em auto;padding:0 1em;color:#24292f">'
        f"<h1>{escape(title)}</h1>{figures}<ul>{items}</ul></body></html>\n"
    )


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _short(name: str, longest: int) -> str:
    """A name as an axis label: its end if it is long, since paths differ there."""
    return escape(name if len(name) <= longest else "…" + name[1 - longest :])
