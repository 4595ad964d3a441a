"""What a person reads at the end of `refine`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskpgm.cli.listing import Listing
from taskpgm.evaluation.refine import Refinement
from taskpgm.mixture.trials import HELD


def trials_table(surface: Mapping[str, Any]) -> Listing:
    """Every trial as measured, as fitted, and as the others predict it."""
    rows = []
    for trial in surface["trials"]:
        others = trial["predicted by the others"]
        cells = [f"{trial['measured']:.4f}", f"{trial['fitted']:.4f} ± {trial['error']:.4f}"]
        rows.append([trial["name"], *cells, "" if others is None else f"{others:.4f}"])
    return Listing(["trial", "measured", "fitted", "by the others"], rows)


def task_lines(surface: Mapping[str, Any], most: int = 3) -> list[str]:
    """What one more hundredth of the tasks that matter most would change, where that is surer than its error."""
    steps = surface["one hundredth more"].items()
    sure = sorted((s["change"], task, s["error"]) for task, s in steps if abs(s["change"]) > 2 * s["error"])
    shown = [*sure[:most], *[one for one in sure[-most:] if one not in sure[:most]]]
    return [f"1 % more of {task}: {change:+.4f} ± {error:.4f}" for change, task, error in shown]


def choice_line(surface: Mapping[str, Any]) -> str:
    """What the surrogate expects of the choice."""
    choice = surface["choice"]
    if choice["uniform"]:
        return f"chosen: uniform; no gain over it is larger than half its error ({choice['error']:.4f})"
    held = f"; {HELD}" if choice["held"] else ""
    return (
        f"chosen: expected {choice['gain over uniform']:.4f} ± {choice['error']:.4f} below uniform "
        f"({choice['loss']:.4f}, uniform {surface['uniform']['loss']:.4f}){held}"
    )


def refinement_lines(found: Refinement, out: Path) -> list[str]:
    """Why trials ended, what was confirmed, and where everything lies."""
    return [
        f"trials ended {found.ended}", found.sentence,
        f"{found.plan.described}: {out}/refined/train.jsonl; {out}/refined/response_surface.json",
    ]  # fmt: skip
