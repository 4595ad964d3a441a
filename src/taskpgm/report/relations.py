"""How do the tasks relate? The random field as a graph, and the matrices beside their dendrogram."""

from typing import Any

import networkx as nx
import numpy as np
from plotly.graph_objects import Heatmap, Scatter
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.explanation import REDUNDANT
from taskpgm.progress import many
from taskpgm.report.field import KINDS, Edge, Field
from taskpgm.report.material import Material
from taskpgm.report.parts import Panel, Picture, Section
from taskpgm.report.style import COLOURS, GREY, LESS_IS_RED, MORE, blank, buttons, compact, short, text
from taskpgm.types import Floats

STEPS = 10  # of the slider
FIRST = 10  # edges of a kind that its first step leaves
MOST = 1500  # edges of a kind that are drawn
LABELLED = 40  # nodes with their names beside them
NAMES = {
    "S": "affinity S",
    "G": "gain G",
    "pmi_own": "PMI, own probe",
    "pmi_base": "PMI, start",
    "ratio": "ratio",
    "jsd": "JSD (nats)",
    "given": "given",
}
STYLES = {"alike": (COLOURS[0], "solid"), "interfering": (COLOURS[1], "dash")}


def section(material: Material, field: Field) -> Section:
    """The field as a graph and as matrices, and what stands out in words."""
    title = "How do the tasks relate?"
    if field.n < 2:
        return Section("relations", title, ["There is one task, so there is nothing to relate."])
    edges, unsure = field.edges
    pictures = [
        Picture(
            "graph",
            "Tasks by share, coloured by cluster; solid: alike, dashed: interfering",
            graph(material, field),
            _edge_table(field),
        ),
        Picture(
            "matrix",
            "Every pair of tasks, ordered by hierarchical clustering",
            matrix(field),
            names=(_ordered(field), _ordered(field)),
        ),
    ]
    return Section("relations", title, _sentences(field, edges, unsure), pictures, panels=_panels(material, field))


def _sentences(field: Field, edges: list[Edge], unsure: int) -> list[str]:
    beyond = "" if field.error is None else " beyond two standard errors"
    lines = []
    for kind in KINDS:
        own = [edge for edge in edges if edge.kind == kind]
        strongest = f"; strongest: {own[0].words(field.tasks)}" if own else ""
        lines.append(f"{many(len(own), 'pair') if own else 'No pair'} {kind}{beyond}{strongest}.")
    hidden = f" Not drawn: {many(unsure, 'relation')} within two standard errors of nothing." if unsure else ""
    return [_redundant(field), lines[0], lines[1] + hidden]


def _redundant(field: Field) -> str:
    """How many pairs are alike enough to be called redundant, the strongest by name."""
    pairs = np.triu(field.correlation, 1)
    if not (count := int((pairs >= REDUNDANT).sum())):
        return f"No two tasks are redundant: all correlations are below {REDUNDANT:g}."
    i, j = np.unravel_index(int(pairs.argmax()), pairs.shape)
    pair = f"{field.tasks[i]} and {field.tasks[j]}, {pairs[i, j]:.2f}"
    return f"{many(count, 'redundant pair')}, of correlation {REDUNDANT:g} or more; strongest: {pair}."


def graph(material: Material, field: Field) -> Any:
    """Tasks as nodes sized by share and coloured by cluster; edges by kind and strength, with a slider for strength."""
    place = _layout(field)
    x = [at[0] for at in place.values()]
    room = 0.12 * float(np.ptp(x))  # for names beside the outermost
    across = {"visible": False, "range": [min(x) - room, max(x) + room]}
    made = blank(620, hovermode="closest", xaxis=across, yaxis={"visible": False})
    level, counts = [], _counts(field)
    for kind in KINDS:
        own = [edge for edge in field.edges[0] if edge.kind == kind]
        for step, (start, stop) in enumerate(zip([0, *counts], counts, strict=False)):
            if part := own[start:stop]:
                made.add_traces(_lines(part, kind, step, place, field.tasks))
                level += [step, step]
    made.add_trace(_nodes(material, field, place))
    made.update_layout(sliders=[_slider(level, counts, field.n)])
    for trace, step in zip(made.data, level, strict=False):
        trace.visible = step <= made.layout.sliders[0].active
    return made


def _counts(field: Field) -> list[int]:
    """How many edges of a kind each step of the slider leaves at most: the same factor from step to step."""
    kinds = [edge.kind for edge in field.edges[0]]
    most = min(MOST, max(kinds.count(kind) for kind in KINDS)) or 1
    return sorted({int(count) for count in np.geomspace(min(FIRST, most), most, STEPS).round()})


def _layout(field: Field) -> dict[int, Floats]:
    """Where each task stands: tasks that are alike near each other."""
    apart = {i: {j: 0.3 + 1 - float(field.correlation[i, j]) for j in range(field.n)} for i in range(field.n)}
    net = nx.complete_graph(field.n)
    if field.n <= LABELLED:  # a minimum over all pairs at once, which takes minutes of hundreds of tasks
        exact: dict[int, Floats] = nx.kamada_kawai_layout(net, dist=apart)
        return exact
    near = nx.Graph()
    near.add_nodes_from(range(field.n))
    strongest = [e for e in field.edges[0] if e.kind == "alike"][: 6 * field.n]
    near.add_weighted_edges_from((e.first, e.second, e.strength) for e in strongest)
    found: dict[int, Floats] = nx.spring_layout(near, k=2.0 / np.sqrt(field.n), seed=0, iterations=80)
    return found


def _lines(edges: list[Edge], kind: str, step: int, place: dict[int, Floats], tasks: tuple[str, ...]) -> list[Scatter]:
    """Edges of one strength, and a point on each that says what it is, nearer to the task that suffers."""
    ends = [(place[edge.first], place[edge.second]) for edge in edges]
    points = np.array([a + (0.5 if kind == "alike" else 0.6) * (b - a) for a, b in ends])
    colour, dash = STYLES[kind]
    opacity = 0.85 - 0.06 * step
    lines = Scatter(
        x=[x for a, b in ends for x in (a[0], b[0], None)],
        y=[y for a, b in ends for y in (a[1], b[1], None)],
        mode="lines",
        line={"color": colour, "dash": dash, "width": 4.2 - 0.36 * step},
        opacity=opacity,
        hoverinfo="skip",
        name=kind,
        legendgroup=kind,
        showlegend=step == 0,
    )
    said = Scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker={"size": 5, "color": colour},
        opacity=opacity,
        hovertext=[text(edge.words(tasks)) for edge in edges],
        hoverinfo="text",
        legendgroup=kind,
        showlegend=False,
    )
    return [lines, said]


def _nodes(material: Material, field: Field, place: dict[int, Floats]) -> Scatter:
    w = material.mixture.weights
    at = np.array([place[i] for i in range(field.n)])
    said = [f"{text(t)}<br>share {w[i]:.1%}<br>cluster {field.cluster[i] + 1}" for i, t in enumerate(field.tasks)]
    colours = [COLOURS[c % len(COLOURS)] for c in field.cluster]
    size = 10 + 34 * np.sqrt(w / w.max()) * min(1.0, np.sqrt(20 / field.n))
    return Scatter(
        x=at[:, 0],
        y=at[:, 1],
        mode="markers+text" if field.n <= LABELLED else "markers",
        name="task",
        text=[short(t, 22) for t in field.tasks],
        textposition="top center",
        hovertext=said,
        hoverinfo="text",
        marker={"size": size, "color": colours, "line": {"color": GREY, "width": 1}},
        showlegend=False,
        customdata=list(range(field.n)),
        cliponaxis=False,
    )


def _slider(level: list[int], counts: list[int], n: int) -> dict[str, Any]:
    steps = [
        {"label": f"{count:,}", "method": "restyle", "args": ["visible", [one <= k for one in level] + [True]]}
        for k, count in enumerate(counts)
    ]
    few = max(FIRST, n if n <= LABELLED else n // 4)  # what an eye can follow
    return {
        "active": sum(count <= few for count in counts[1:]),
        "steps": steps,
        "currentvalue": {"prefix": "edges of each kind, strongest first, at most: "},
        "pad": {"t": 20},
    }


def _edge_table(field: Field) -> dict[str, list[Any]]:
    edges = field.edges[0][:5000]
    return {
        "first": [field.tasks[e.first] for e in edges],
        "second": [field.tasks[e.second] for e in edges],
        "kind": [e.kind for e in edges],
        "strength": [e.strength for e in edges],
        "standard_error": [e.error for e in edges],
    }


def _panels(material: Material, field: Field) -> list[Panel]:
    """Of every task its neighbours, strongest first, and a few of its rows."""
    examples, _ = material.examples
    near: dict[tuple[int, str], list[str]] = {(i, kind): [] for i in range(field.n) for kind in KINDS}
    for edge in field.edges[0]:
        for i in (edge.first, edge.second):
            if len(said := near[i, edge.kind]) < 5:
                said.append(edge.words(field.tasks))
    return [
        Panel(
            task,
            f"{task}, share {material.mixture.weights[i]:.1%}: neighbours",
            near[i, "alike"] + near[i, "interfering"] or ["No relation beyond two standard errors."],
            examples[task].parts[:1] if task in examples else (),  # its own
        )
        for i, task in enumerate(field.tasks)
    ]


def _order(field: Field) -> list[int]:
    return [int(i) for i in np.asarray(dendrogram(field.hierarchy, no_plot=True)["leaves"])]


def _ordered(field: Field) -> list[str]:
    return [field.tasks[i] for i in _order(field)]


def matrix(field: Field) -> Any:
    """Heat maps of the measured matrices over the tasks, one shown at a time, below their dendrogram."""
    n, order = field.n, _order(field)
    made = make_subplots(rows=2, cols=1, row_heights=[0.16, 0.84], vertical_spacing=0.01)
    measured = _measured(field.affinity)
    for k, (values, error) in enumerate(measured.values()):
        name = list(measured)[k]
        made.add_trace(
            _heat(
                name,
                values[np.ix_(order, order)],
                None if error is None else error[np.ix_(order, order)],
                [text(field.tasks[i]) for i in order],
                k == 0,
            ),
            row=2,
            col=1,
        )
    made.add_trace(_tree(field), row=1, col=1)
    labels = [NAMES.get(name, name) for name in measured]
    seen = [[{"visible": [j == k for j in range(len(measured))] + [True]}] for k in range(len(measured))]
    made.update_layout(
        template="plotly_white",
        height=int(min(900, 300 + 24 * n)),
        margin={"t": 30, "b": 20, "r": 20, "l": 10},
        showlegend=False,
        updatemenus=[buttons(labels, seen)],
    )
    ticks = [short(field.tasks[i], 20) for i in order]
    every = -(-n // 44)  # as many names as there is room for
    named = {
        "tickvals": [text(field.tasks[i]) for i in order][::every],
        "ticktext": ticks[::every],
        "fixedrange": True,
    }
    made.update_xaxes(**named, tickangle=-60, row=2, col=1)
    made.update_yaxes(**named, autorange="reversed", automargin=True, row=2, col=1)
    made.update_xaxes(visible=False, range=[-0.5, n - 0.5], fixedrange=True, row=1, col=1)
    made.update_yaxes(visible=False, fixedrange=True, row=1, col=1)
    return made


def _measured(affinity: Affinity) -> dict[str, tuple[Floats, Floats | None]]:
    """Square matrices over the tasks with their errors, S first; none twice."""
    n = len(affinity.tasks)
    kind = next(
        (name for name, M in affinity.matrices.items() if M.shape == (n, n) and np.array_equal(M, affinity.S)), ""
    )
    found = {"S": (affinity.S, affinity.errors.get(kind) if kind else affinity.errors.get(affinity.kind))}
    for name in ("G", "pmi_own", "pmi_base", "ratio", "jsd"):
        if name in affinity.matrices and (name != kind or name == "G"):
            error = affinity.errors.get(name)
            found[name] = affinity.matrices[name][:, :n], None if error is None else error[:, :n]
    return found


def _heat(name: str, values: Floats, error: Floats | None, names: list[str], visible: bool) -> Heatmap:
    signed = name in ("G", "pmi_own", "pmi_base") or bool((values < 0).any())
    off = values[~np.eye(len(values), dtype=bool)]
    top = float(np.quantile(np.abs(off), 0.98)) or 1.0
    scale = (
        {"zmin": -top, "zmax": top, "colorscale": LESS_IS_RED}
        if signed
        else {"colorscale": MORE, "zmin": float(values.min()), "zmax": top}
    )
    more = "" if error is None else " ± %{customdata:.3f}"
    return Heatmap(
        z=compact(values, 3),
        x=names,
        y=names,
        customdata=None if error is None else compact(error, 2),
        visible=visible,
        name=NAMES.get(name, name),
        **scale,
        colorbar={"thickness": 12, "len": 0.8, "y": 0.42},
        hovertemplate=f"%{{y}} → %{{x}}: %{{z:.4f}}{more}<extra></extra>",
    )


def _tree(field: Field) -> Scatter:
    found = dendrogram(field.hierarchy, no_plot=True)
    xs, ys = [], []
    for x, y in zip(found["icoord"], found["dcoord"], strict=True):
        xs += [*((np.array(x) - 5) / 10), None]
        ys += [*y, None]
    return Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.2}, hoverinfo="skip")
