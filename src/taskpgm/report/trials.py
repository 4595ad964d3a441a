"""What did trial runs say? Where `refine` ran: losses measured and fitted, and those from uniform to the choice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from plotly.graph_objects import Figure, Scatter

from taskpgm.evaluation.baselines import OURS
from taskpgm.mixture.trials import HELD
from taskpgm.report.material import SAME, Material
from taskpgm.report.parts import Picture, Section, Table
from taskpgm.report.style import GREY, LINE, OTHER, OWN, blank, name_axis

SURFACE = "refined/response_surface.json"
TWO_SIDED = 1.96  # standard errors to either side of a 95 % interval


def section(material: Material) -> Section | None:
    """What `refine` found, or None if it did not run."""
    surface = material.optional(SURFACE)
    if surface is None:
        return None
    choice = surface["choice"]
    expected = (
        "Uniform was chosen: no mixture can be told from it by these runs."
        if choice["uniform"]
        else f"The choice is expected {choice['gain over uniform']:.4f} ± {choice['error']:.4f} below uniform; its "
        "shares are in refined/mixture.json, the run's own mixture is what it was."
    )
    if choice.get("held"):  # surfaces of earlier versions do not say
        expected += f" {HELD[0].upper()}{HELD[1:]}."
    said = [f"{text[0].upper()}{text[1:]}." for text in [surface.get("verdict")] if text]
    said += _of_sizes(surface)
    said += [f"Trials ended {surface['ended']}."] if "ended" in surface else []
    said = [*_of_another(material, surface), *said]
    more = surface["one hundredth more"]
    pictures = [
        Picture("trials-picture", "Loss of every trial: measured, and fitted with its 95 % interval",
                trials_figure(surface), trials_table(surface)),
        Picture("surface", "Predicted loss from uniform to the choice, with the 95 % interval of the difference",
                way_figure(surface), way_table(surface)),
    ]  # fmt: skip
    return Section("trials", "What did trial runs say?", [*said, expected], pictures, [_shares(surface, more)])


def _of_sizes(surface: Mapping[str, Any]) -> list[str]:
    """That trials were of another budget than the choice, if they were; earlier versions did not say."""
    budget = surface.get("budget")
    if budget is None or budget["trials"] == budget["choice"]:
        return []
    return [
        f"Trials had {budget['trials']:,} {budget['unit']}, the choice has {budget['choice']:,}: what is said of it is "
        "for that budget, from uniform's loss in the trials."
    ]


def _of_another(material: Material, surface: Mapping[str, Any]) -> list[str]:
    """A warning if the default that was tried is another mixture than the run's."""
    apart = max((material.elsewhere(one["weights"]) for one in surface["trials"] if one["name"] == OURS), default=0.0)
    if apart <= SAME:
        return []
    return [
        f"These runs tried another mixture than the run has now, which spends {apart:.1%} of the budget otherwise. "
        f"`taskpgm refine {material.command}` starts from today's."
    ]


def trials_figure(surface: Mapping[str, Any]) -> Figure:
    """One row a trial: what was measured, and what the surrogate says with its error."""
    trials = surface["trials"]
    places = list(range(len(trials)))
    bars = {"type": "data", "array": [TWO_SIDED * t["error"] for t in trials], "color": OWN}
    made = blank(120 + LINE * len(trials))
    fitted = Scatter(
        x=[t["fitted"] for t in trials], y=places, error_x=bars, mode="markers", name="fitted",
        marker={"color": OWN, "symbol": "circle"},
    )  # fmt: skip
    measured = Scatter(
        x=[t["measured"] for t in trials], y=places, mode="markers", name="measured",
        marker={"color": OTHER, "symbol": "x", "size": 9},
    )  # fmt: skip
    made.add_traces([fitted, measured])
    made.update_yaxes(**name_axis([t["name"] for t in trials]))
    made.update_xaxes(title="loss (left: better)")
    return made


def trials_table(surface: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The same as columns, with the weights of every trial."""
    trials = surface["trials"]
    columns = {name: [t[name] for t in trials] for name in ("name", "measured", "fitted", "error")}
    others = {"predicted_by_the_others": [t["predicted by the others"] for t in trials]}
    return {**columns, **others, **{task: [t["weights"][task] for t in trials] for task in surface["tasks"]}}


def way_figure(surface: Mapping[str, Any]) -> Figure:
    """Predicted loss along the straight line from uniform to the choice."""
    table = way_table(surface)
    part, loss, low, high = (np.array(table[name]) for name in ("part", "loss", "low", "high"))
    made = blank(300)
    band = Scatter(
        x=np.r_[part, part[::-1]], y=np.r_[high, low[::-1]], fill="toself", mode="lines", line={"width": 0},
        fillcolor="rgba(0, 114, 178, 0.2)", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    made.add_traces([band, Scatter(x=part, y=loss, mode="lines", line={"color": OWN}, name="predicted loss")])
    made.add_hline(y=float(loss[0]), line={"color": GREY, "width": 1, "dash": "dot"})
    made.update_xaxes(title="from uniform (0) to the choice (1)")
    made.update_yaxes(title="loss", automargin=True)
    return made


def way_table(surface: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The line's points, with the interval of the difference from uniform."""
    points = surface["from uniform to choice"]
    half = [TWO_SIDED * one["error"] for one in points]
    return {
        "part": [one["part"] for one in points], "loss": [one["loss"] for one in points],
        "low": [one["loss"] - h for one, h in zip(points, half, strict=True)],
        "high": [one["loss"] + h for one, h in zip(points, half, strict=True)],
    }  # fmt: skip


def _shares(surface: Mapping[str, Any], more: Mapping[str, Any]) -> Table:
    weights = surface["choice"]["weights"]
    rows = [
        [task, f"{weights[task]:.1%}", f"{more[task]['change']:+.4f} ± {more[task]['error']:.4f}"]
        for task in sorted(weights, key=lambda task: -weights[task])
    ]
    return Table("Shares of the choice, and what one hundredth more would change", ["task", "share", "loss"], rows)
