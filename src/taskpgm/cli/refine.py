"""What a person reads at the end of `refine`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskpgm.cli.listing import Listing
from taskpgm.evaluation.refine import Refinement
from taskpgm.mixture.trials import HELD, Metric


def trials_table(surface: Mapping[str, Any]) -> Listing:
    """Every trial as measured, as fitted, and as the others predict it."""
    rows, d = [], _decimals(surface)
    for trial in surface["trials"]:
        others = trial["predicted by the others"]
        cells = [f"{trial['measured']:.{d}f}", f"{trial['fitted']:.{d}f} ± {trial['error']:.{d}f}"]
        rows.append([trial["name"], *cells, "" if others is None else f"{others:.{d}f}"])
    return Listing(["trial", "measured", "fitted", "by the others"], rows)


def task_lines(surface: Mapping[str, Any], most: int = 3) -> list[str]:
    """What one more hundredth of the tasks that matter most would change, where that is surer than its error."""
    steps, d = surface["one hundredth more"].items(), _decimals(surface)
    sure = sorted((s["change"], task, s["error"]) for task, s in steps if abs(s["change"]) > 2 * s["error"])
    shown = [*sure[:most], *[one for one in sure[-most:] if one not in sure[:most]]]
    return [f"1 % more of {task}: {change:+.{d}f} ± {error:.{d}f}" for change, task, error in shown]


def choice_line(surface: Mapping[str, Any]) -> str:
    """What the surrogate expects of the choice."""
    choice, d = surface["choice"], _decimals(surface)
    if choice["uniform"]:
        return f"chosen: uniform; no gain over it is larger than half its error ({choice['error']:.{d}f})"
    held = f"; {HELD}" if choice["held"] else ""
    return (
        f"chosen: expected {choice['gain over uniform']:.{d}f} ± {choice['error']:.{d}f} below uniform "
        f"({choice['loss']:.{d}f}, uniform {surface['uniform']['loss']:.{d}f}){held}"
    )


def refinement_lines(found: Refinement, out: Path) -> list[str]:
    """Why trials ended, what was confirmed, and where everything lies."""
    return [
        f"trials ended {found.ended}", found.sentence,
        f"{found.plan.described}: {out}/refined/train.jsonl; {out}/refined/response_surface.json",
    ]  # fmt: skip


def metric_lines(metrics: Sequence[Metric]) -> list[str]:
    """Which end of each metric was taken for the good one, where that may not be meant."""
    turned = [one.column for one in metrics if one.sign < 0]
    guessed = [one.column for one in metrics if one.sign > 0 and "loss" not in one.column.lower()]
    return [
        *([f"shown as losses: minus {', '.join(turned)}, which is better if larger"] if turned else []),
        *(f"{name} is taken to be better if smaller; if not: --metric {name}:max" for name in guessed),
    ]


def _decimals(surface: Mapping[str, Any]) -> int:
    """As many as show two digits of the noise, four at least: metrics have any unit."""
    noise = surface["noise"]
    return max(4, 1 - math.floor(math.log10(noise))) if noise > 0 else 4
