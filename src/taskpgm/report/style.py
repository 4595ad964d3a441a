"""How figures look, on a page and in a notebook: colours that colour-blind people tell apart, names, sizes."""

from html import escape
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from taskpgm.types import Floats

# Okabe and Ito's, which all common kinds of colour blindness tell apart; black is left to the text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#888888")
OWN, OTHER = COLOURS[:2]
GREY = "#888888"  # stands out from white and from black
LESS_IS_RED = "RdBu"
MORE = "Cividis"
BESIDE = 34  # characters of a name beside an axis
LARGE = 10_000  # cells
NUMBERED = 600  # heat maps with more cells print no numbers
SHOWN = 60  # of more tasks than this, a figure with one line a task shows the most important
PERCENT = ".2~%"  # of an axis: 20%, and 0.5% where shares are small
LINE = 22  # pixels


def blank(height: int, **layout: Any) -> Figure:
    """A figure without traces."""
    figure = Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"t": 30, "b": 50, "r": 20, "l": 10},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        colorway=COLOURS,
        **layout,
    )
    return figure


def text(name: str) -> str:
    """A name from the data as Plotly's text, which reads tags, but no entities of quotes."""
    return escape(name, quote=False)


def short(name: str, longest: int = BESIDE) -> str:
    """A name as an axis label: its end if it is long, since paths differ there."""
    return escape(name if len(name) <= longest else "…" + name[1 - longest :], quote=False)


def first_of(count: int, what: str) -> str:
    """What a title adds if the figure shows the first of many."""
    return f"; the first {SHOWN} of {count:,} {what}, all in the CSV" if count > SHOWN else ""


def name_axis(names: Any, **more: Any) -> dict[str, Any]:
    """An axis of tasks in their order, the first on top."""
    places = list(range(len(names)))
    return {
        "tickvals": places,
        "ticktext": [short(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "automargin": True,
        "zeroline": False,
        "showgrid": False,
        **more,
    }


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """An axis in powers, with whole numbers at 1, 2 and 5 times each, or at all; a plain axis where few of them lie."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 5), range(1, 10)):
        values = [m * 10.0**k for k in decades for m in steps]
        if sum(low <= value <= high for value in values) >= 3:
            return {"type": "log", "tickvals": values, "ticktext": [f"{value:.6g}" for value in values]}
    return {}


def compact(values: Floats, digits: int) -> Any:
    """The numbers of a heat map; of a large one to so many significant digits, since a page must stay small."""
    if values.size <= LARGE:
        return values
    size = 10.0 ** (digits - 1 - np.floor(np.log10(np.maximum(np.abs(values), 1e-12))))
    return (np.round(values * size) / size).astype(np.float32)  # of lists, Plotly looks at every number


def buttons(labels: Any, args: Any, kind: str = "buttons") -> dict[str, Any]:
    """A switch: one button a label, with what it does to traces and layout."""
    made = [{"label": text(label), "method": "update", "args": arg} for label, arg in zip(labels, args, strict=True)]
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}
    return {"type": kind, "direction": "right" if kind == "buttons" else "down", "buttons": made, **place}
