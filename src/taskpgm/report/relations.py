"""How do the tasks relate? The random field as a graph, and the matrices beside their dendrogram."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from plotly.graph_objects import Heatmap, Scatter
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram, fcluster, linkage
from scipy.spatial.distance import squareform

from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.jackknife import standard_error
from taskpgm.report.material import Material
from taskpgm.report.parts import Panel, Picture, Section, some
from taskpgm.report.style import COLOURS, GREY, LESS_IS_RED, MORE, blank, buttons, short, text
from taskpgm.types import Floats

STEPS = 10  # of the slider
MOST = 1500  # edges of a kind that are drawn
LABELLED = 40  # nodes with their names beside them
NAMES = {
    "S": "affinity S", "G": "gain G", "pmi_own": "PMI, own probe", "pmi_base": "PMI, start", "ratio": "ratio",
    "jsd": "JSD (nats)", "given": "given",
}  # fmt: skip
KINDS = {"redundant": (COLOURS[0], "solid"), "interfering": (COLOURS[1], "dash")}


@dataclass(frozen=True)
class Edge:
    """A relation between two tasks; `first` acts on `second` if it is interference."""

    first: int
    second: int
    kind: str
    strength: float  # correlation, or nats a token lost
    error: float | None

    def words(self, tasks: tuple[str, ...]) -> str:
        """What it says."""
        a, b, sure = tasks[self.first], tasks[self.second], "" if self.error is None else f" ± {self.error:.2f}"
        if self.kind == "redundant":
            return f"{a} and {b} are redundant, correlation {self.strength:.2f}{sure}"
        return f"{a} makes {b} {self.strength:.2f}{sure} nats a token worse"


class Relations:
    """Redundancy and interference between tasks with errors, and their hierarchy."""

    def __init__(self, affinity: Affinity) -> None:
        self.affinity, self.tasks, self.n = affinity, affinity.tasks, len(affinity.tasks)

    @cached_property
    def correlation(self) -> Floats:
        """(n, n) correlation in S centred on the simplex."""
        return correlation(self.affinity.S)

    @cached_property
    def error(self) -> Floats | None:
        """(n, n) jackknife error of the correlation."""
        if not len(self.affinity.without):
            return None
        by_seed = [correlation(S) for S in self.affinity.seeds]
        return standard_error([correlation(S) for S in self.affinity.without], by_seed)

    @cached_property
    def edges(self) -> tuple[list[Edge], int]:
        """(those beyond two standard errors, strongest first; how many more were not)."""
        found, unsure = [], 0
        for i, j in zip(*np.triu_indices(self.n, 1), strict=True):
            value, error = float(self.correlation[i, j]), None if self.error is None else float(self.error[i, j])
            if value > 2 * (error or 0.0):
                found.append(Edge(int(i), int(j), "redundant", value, error))
            elif value > 0:
                unsure += 1
        G, G_error = self.affinity.matrices.get("G"), self.affinity.errors.get("G")
        for i, j in [] if G is None else np.argwhere(G[:, : self.n] < 0):
            value, error = -float(G[i, j]), None if G_error is None else float(G_error[i, j])
            if i != j and value > 2 * (error or 0.0):
                found.append(Edge(int(i), int(j), "interfering", value, error))
            elif i != j:
                unsure += 1
        return sorted(found, key=lambda edge: -edge.strength), unsure

    @cached_property
    def hierarchy(self) -> Any:
        """SciPy's linkage of 1 − correlation, average, optimally ordered."""
        distance = np.clip(1 - self.correlation, 0, 2)
        return linkage(squareform(distance, checks=False), "average", optimal_ordering=self.n <= 400)

    @cached_property
    def cluster(self) -> list[int]:
        """(n,) cluster of each task: where the dendrogram is cut at 0.7 of its height, as SciPy colours it."""
        if self.n < 2:
            return [0] * self.n
        height = 0.7 * float(self.hierarchy[:, 2].max())
        return [int(c) - 1 for c in fcluster(self.hierarchy, height, criterion="distance")]


def correlation(S: Floats) -> Floats:
    """(n, n) of S centred on the simplex: 1 for copies; 0 where a task has no spread."""
    J = np.eye(len(S)) - 1 / len(S)
    centred = J @ S @ J
    size = np.sqrt(np.maximum(np.diag(centred), 0))
    scale = np.outer(size, size)
    return np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)


def section(material: Material, relations: Relations) -> Section:
    """The field as a graph and as matrices, and what stands out in words."""
    title = "How do the tasks relate?"
    if relations.n < 2:
        return Section("relations", title, ["There is one task, so there is nothing to relate."])
    edges, unsure = relations.edges
    pictures = [
        Picture("graph", "Tasks by share, coloured by cluster; solid: redundant, dashed: interfering",
                graph(material, relations), _edge_table(relations)),
        Picture("matrix", "Every pair of tasks, ordered by hierarchical clustering", matrix(relations),
                names=(_ordered(relations), _ordered(relations))),
    ]  # fmt: skip
    return Section("relations", title, _sentences(relations, edges, unsure), pictures, panels=_panels(material, relations))


def _sentences(relations: Relations, edges: list[Edge], unsure: int) -> list[str]:
    lines = []
    for kind in KINDS:
        own = [edge for edge in edges if edge.kind == kind]
        found = f"{own[0].words(relations.tasks)}" if own else f"no pair is {kind}"
        beyond = "" if relations.error is None else " beyond two standard errors"
        lines.append(f"{some(len(own), f'{kind} pair')}{beyond}; strongest: {found}." if own else f"{found.capitalize()}{beyond}.")
    hidden = f" {some(unsure, 'relation')} within two standard errors of nothing are not drawn." if unsure else ""
    return [lines[0], lines[1] + hidden]


def graph(material: Material, relations: Relations) -> Any:
    """Tasks as nodes sized by share and coloured by cluster; edges by kind and strength, with a slider for strength."""
    place = _layout(relations)
    made = blank(620, hovermode="closest", xaxis={"visible": False}, yaxis={"visible": False})
    level = []
    for kind in KINDS:
        own = [edge for edge in relations.edges[0] if edge.kind == kind]
        drawn = np.array_split(np.array(own[:MOST], dtype=object), STEPS)
        for step, part in enumerate(drawn):
            if len(part):
                made.add_trace(_lines(list(part), kind, step, place, relations.tasks))
                level.append(step)
    made.add_trace(_nodes(material, relations, place))
    made.update_layout(sliders=[_slider(level, relations.n)])
    for trace, step in zip(made.data, level, strict=False):
        trace.visible = step <= made.layout.sliders[0].active
    return made


def _layout(relations: Relations) -> dict[int, Floats]:
    """Where each task stands: redundant tasks near each other."""
    apart = {i: {j: 0.3 + 1 - float(relations.correlation[i, j]) for j in range(relations.n)} for i in range(relations.n)}
    net = nx.complete_graph(relations.n)
    if relations.n <= LABELLED:  # a minimum over all pairs at once, which takes minutes of hundreds of tasks
        exact: dict[int, Floats] = nx.kamada_kawai_layout(net, dist=apart)
        return exact
    near = nx.Graph()
    near.add_nodes_from(range(relations.n))
    strongest = [e for e in relations.edges[0] if e.kind == "redundant"][: 6 * relations.n]
    near.add_weighted_edges_from((e.first, e.second, e.strength) for e in strongest)
    found: dict[int, Floats] = nx.spring_layout(near, k=2.0 / np.sqrt(relations.n), seed=0, iterations=80)
    return found


def _lines(edges: list[Edge], kind: str, step: int, place: dict[int, Floats], tasks: tuple[str, ...]) -> Scatter:
    xs, ys, said, size = [], [], [], []
    for edge in edges:
        a, b = place[edge.first], place[edge.second]
        middle = a + (0.5 if kind == "redundant" else 0.6) * (b - a)  # nearer to the one that suffers
        xs += [a[0], middle[0], b[0], None]
        ys += [a[1], middle[1], b[1], None]
        said += ["", text(edge.words(tasks)), "", ""]
        size += [0, 5, 0, 0]
    colour, dash = KINDS[kind]
    return Scatter(
        x=xs, y=ys, mode="lines+markers", line={"color": colour, "dash": dash, "width": 4.2 - 0.36 * step},
        marker={"size": size, "color": colour}, opacity=0.85 - 0.06 * step, hovertext=said, hoverinfo="text", name=kind,
        legendgroup=kind, showlegend=step == 0,
    )  # fmt: skip


def _nodes(material: Material, relations: Relations, place: dict[int, Floats]) -> Scatter:
    w = material.mixture.weights
    at = np.array([place[i] for i in range(relations.n)])
    said = [f"{text(t)}<br>share {w[i]:.1%}<br>cluster {relations.cluster[i] + 1}" for i, t in enumerate(relations.tasks)]
    colours = [COLOURS[c % len(COLOURS)] for c in relations.cluster]
    size = 10 + 34 * np.sqrt(w / w.max()) * min(1.0, np.sqrt(20 / relations.n))
    return Scatter(
        x=at[:, 0], y=at[:, 1], mode="markers+text" if relations.n <= LABELLED else "markers", name="task",
        text=[short(t, 22) for t in relations.tasks], textposition="top center", hovertext=said, hoverinfo="text",
        marker={"size": size, "color": colours, "line": {"color": GREY, "width": 1}}, showlegend=False,
        customdata=list(range(relations.n)), cliponaxis=False,
    )  # fmt: skip


def _slider(level: list[int], n: int) -> dict[str, Any]:
    steps = [
        {"label": f"{100 * (k + 1) // STEPS} %", "method": "restyle", "args": ["visible", [one <= k for one in level] + [True]]}
        for k in range(STEPS)
    ]
    return {"active": STEPS - 1 if n <= 4 else 3 if n <= LABELLED else 0, "steps": steps,
            "currentvalue": {"prefix": "strongest edges of each kind: "}, "pad": {"t": 20}}  # fmt: skip


def _edge_table(relations: Relations) -> dict[str, list[Any]]:
    edges = relations.edges[0][:5000]
    return {
        "first": [relations.tasks[e.first] for e in edges], "second": [relations.tasks[e.second] for e in edges],
        "kind": [e.kind for e in edges], "strength": [e.strength for e in edges],
        "standard_error": [e.error for e in edges],
    }  # fmt: skip


def _panels(material: Material, relations: Relations) -> list[Panel]:
    """Of every task its neighbours, strongest first."""
    near: dict[int, list[str]] = {i: [] for i in range(relations.n)}
    for edge in relations.edges[0]:
        for i in (edge.first, edge.second):
            if len(near[i]) < 8:
                near[i].append(edge.words(relations.tasks))
    return [
        Panel(task, f"{task}, share {material.mixture.weights[i]:.1%}: neighbours",
              near[i] or ["No relation beyond two standard errors."])
        for i, task in enumerate(relations.tasks)
    ]  # fmt: skip


def _order(relations: Relations) -> list[int]:
    return [int(i) for i in dendrogram(relations.hierarchy, no_plot=True)["leaves"]]


def _ordered(relations: Relations) -> list[str]:
    return [relations.tasks[i] for i in _order(relations)]


def matrix(relations: Relations) -> Any:
    """Heat maps of the measured matrices over the tasks, one shown at a time, below their dendrogram."""
    n, order = relations.n, _order(relations)
    made = make_subplots(rows=2, cols=1, row_heights=[0.16, 0.84], vertical_spacing=0.01)
    measured = _measured(relations.affinity)
    for k, (values, error) in enumerate(measured.values()):
        name = list(measured)[k]
        made.add_trace(_heat(name, values[np.ix_(order, order)], None if error is None else error[np.ix_(order, order)],
                             [text(relations.tasks[i]) for i in order], k == 0), row=2, col=1)  # fmt: skip
    made.add_trace(_tree(relations), row=1, col=1)
    labels = [NAMES.get(name, name) for name in measured]
    seen = [[{"visible": [j == k for j in range(len(measured))] + [True]}] for k in range(len(measured))]
    made.update_layout(
        template="plotly_white", height=int(min(900, 300 + 24 * n)), margin={"t": 30, "b": 20, "r": 20, "l": 10},
        showlegend=False, updatemenus=[buttons(labels, seen)],
    )  # fmt: skip
    ticks = [short(relations.tasks[i], 20) for i in order]
    every = max(1, n // 45)
    named = {"tickvals": [text(relations.tasks[i]) for i in order][::every], "ticktext": ticks[::every], "fixedrange": True}
    made.update_xaxes(**named, tickangle=-60, row=2, col=1)
    made.update_yaxes(**named, autorange="reversed", automargin=True, row=2, col=1)
    made.update_xaxes(visible=False, range=[-0.5, n - 0.5], fixedrange=True, row=1, col=1)
    made.update_yaxes(visible=False, fixedrange=True, row=1, col=1)
    return made


def _measured(affinity: Affinity) -> dict[str, tuple[Floats, Floats | None]]:
    """Square matrices over the tasks with their errors, S first; none twice."""
    n = len(affinity.tasks)
    kind = next((name for name, M in affinity.matrices.items() if M.shape == (n, n) and np.array_equal(M, affinity.S)), "")
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
    scale = {"zmin": -top, "zmax": top, "colorscale": LESS_IS_RED} if signed else {"colorscale": MORE, "zmin": float(values.min()), "zmax": top}
    more = "" if error is None else " ± %{customdata:.3f}"
    return Heatmap(
        z=values, x=names, y=names, customdata=error, visible=visible, name=NAMES.get(name, name), **scale,
        colorbar={"thickness": 12, "len": 0.8, "y": 0.42},
        hovertemplate=f"%{{y}} → %{{x}}: %{{z:.4f}}{more}<extra></extra>",
    )  # fmt: skip


def _tree(relations: Relations) -> Scatter:
    found = dendrogram(relations.hierarchy, no_plot=True)
    xs, ys = [], []
    for x, y in zip(found["icoord"], found["dcoord"], strict=True):
        xs += [*((np.array(x) - 5) / 10), None]
        ys += [*y, None]
    return Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.2}, hoverinfo="skip")
