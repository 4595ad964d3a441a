"""`Trials`: mixtures that were trained and what each of them reached; read from CSV, and described by a surrogate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskpgm.errors import UserError
from taskpgm.mixture.refinement import Choice, left_out
from taskpgm.mixture.sheets import not_a_number, number, read_sheet
from taskpgm.mixture.surrogate import SCALE, Features, Prior, Surrogate
from taskpgm.types import Brief, Floats

LEAST_RUNS = 3  # fewer tell nothing without a known noise
EVEN = 0.02  # by how much the sums of weights may differ, rounded as people write them
EXACT = 1e-9  # by how much they differ where they are not rounded, and losses that are one
APART = 1e-3  # mixtures whose shares differ by less are the same
LARGEST = 1e100  # squares of what is larger overflow
NO_TASK = " A column that is no task and no metric has to go; one that names the runs is called name."
NAMES = ("start", "ensemble", "gain", "divergence")
HELD = "more was promised far from all trials, and is not believed"  # of a choice that is held back


@dataclass(frozen=True, eq=False, repr=False)
class Trials(Brief):
    """Mixtures of `tasks`, each (n,) and summing to one, and the loss of each; lower is better."""

    tasks: tuple[str, ...]
    names: tuple[str, ...]
    mixtures: tuple[Floats, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Metric:
    """A column of results; `sign` is −1 if more is better."""

    column: str
    sign: float = 1.0
    weight: float = 1.0


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """Metrics from 'loss', 'accuracy:max' or 'loss:min:2,accuracy:max:0.5': column, which end is good, weight.

    Raises:
        UserError: another word than min and max, a weight that is no positive number, a column twice.
    """
    metrics = tuple(_metric(part) for part in text.split(",") if part.strip())
    columns = [metric.column for metric in metrics]
    if not metrics or len(set(columns)) < len(columns):
        raise UserError(f"--metric {text!r} names no column, or one twice; give loss, or accuracy:max,loss:min:2.")
    return metrics


def _metric(part: str) -> Metric:
    column, _, rest = part.strip().partition(":")
    end, _, weight = rest.partition(":")
    number = float(weight) if weight.replace(".", "", 1).isdigit() else math.nan if weight else 1.0
    if end not in ("", "min", "max") or not number > 0:
        raise UserError(
            f"--metric {part.strip()!r} is not COLUMN, COLUMN:min or COLUMN:max, with a positive weight behind it if "
            "there are several, such as accuracy:max:0.5."
        )
    return Metric(column, -1.0 if end == "max" else 1.0, number)


def read_trials(path: Path, metrics: Sequence[Metric], tasks: Sequence[str] = ()) -> Trials:
    """Trials from a CSV file with a column a task, its weight, and the columns of the metrics.

    The loss of a row is Σ weight · sign · metric. Weights are scaled to sum to one. A column `name` names the rows.

    Args:
        tasks: all of them, in order; without any, every column that is no metric is a task.

    Raises:
        UserError: unreadable, a column that is missing or of no use, a cell that is no number, negative weights, sums
            that differ from row to row, too few rows, or one mixture or one loss in all of them.
    """
    try:
        (_, header), *rows = read_sheet(path) or [(1, [])]
    except OSError as error:
        raise UserError(f"Cannot read results from {path}: {error}.") from error
    columns = [metric.column for metric in metrics]
    names = tuple(tasks) or tuple(name for name in header if name not in (*columns, "name"))
    _check_header(path, header, columns, names)
    if len(rows) < LEAST_RUNS:
        raise UserError(f"{path} has {len(rows)} rows; a fit takes at least {LEAST_RUNS} trained mixtures.")
    records = [(line, _record(path, line, header, cells)) for line, cells in rows]
    weights = np.array([[_number(path, line, row, name, NO_TASK) for name in names] for line, row in records])
    losses = [sum(m.weight * m.sign * _number(path, line, row, m.column) for m in metrics) for line, row in records]
    lines = [line for line, _ in records]
    if not tasks:
        _check_tasks(path, names, weights)
    if np.ptp(losses) <= EXACT * np.abs(losses).max():
        raise UserError(
            f"{path}: {', '.join(columns)} is the same in all {len(rows)} runs, which tells no mixture from another; "
            "name a finer metric with --metric, such as a loss."
        )
    labels = tuple(row.get("name") or f"row {line}" for line, row in records)
    return Trials(names, labels, tuple(_scaled(path, lines, weights)), tuple(losses))


def _check_header(path: Path, header: Sequence[str], metrics: Sequence[str], tasks: Sequence[str]) -> None:
    shown = ", ".join(name or "''" for name in header)
    if "" in header:
        raise UserError(
            f"Column {header.index('') + 1} of {path} has no name; name it, or take it out (pandas' index; "
            f"index=False leaves it out). The columns are {shown}."
        )
    for column in (*metrics, *tasks):
        if header.count(column) != 1:
            what = "metric; name it with --metric" if column in metrics else "task; give it one"
            times = "no column" if column not in header else "several columns"
            raise UserError(f"{path} has {times} {column!r}, which is a {what}. The columns are {shown}.")
    if unused := [name for name in header if name not in (*metrics, *tasks, "name")]:
        raise UserError(
            f"{path} has columns that are neither tasks nor metrics: {', '.join(unused)}; take them out, or name the "
            "metrics among them with --metric."
        )
    if len(tasks) < 2:
        raise UserError(f"{path} has weights of too few tasks ({len(tasks)}); a mixture takes at least two tasks.")


def _record(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise UserError(f"{path}, line {line} has {len(cells)} cells where the header names {len(header)}; correct it.")
    return dict(zip(header, cells, strict=True))


def _number(path: Path, line: int, row: Mapping[str, str], column: str, hint: str = "") -> float:
    value = number(row[column])
    if value is None:
        raise UserError(f"{path}, line {line}: {column} {not_a_number(row[column])}.{hint}")
    if not abs(value) < LARGEST:
        raise UserError(
            f"{path}, line {line}: {column} is {row[column]}; take that run out, or give it a finite value."
        )
    return value


def _check_tasks(path: Path, names: Sequence[str], weights: Floats) -> None:
    """Names a column that is no task: without it every row sums to one, or to a hundred, and with it not.

    Raises:
        UserError: there is such a column.
    """
    sums = weights.sum(axis=1)
    if (with_all := _off(sums)) < EXACT:
        return
    for name, column in zip(names, weights.T, strict=True):
        if (without := _off(sums - column)) < EVEN and without < 0.1 * with_all:
            raise UserError(
                f"{path}: weights sum to {(sums - column)[0]:g} without the column {name!r}, and to {sums[0]:g} with "
                "it; it seems to be no task: take it out, or name it with --metric."
            )


def _off(sums: Floats) -> float:
    """How far sums are from one, or from a hundred, at most, as a part of it."""
    return min(float(np.abs(sums / whole - 1).max()) for whole in (1.0, 100.0))


def _scaled(path: Path, lines: Sequence[int], weights: Floats) -> Floats:
    sums = weights.sum(axis=1)
    if (weights < 0).any() or not (sums > 0).all():
        k = int(np.flatnonzero((weights < 0).any(axis=1) | (sums <= 0))[0])
        raise UserError(f"{path}, line {lines[k]}: weights are negative or all zero; they must be shares.")
    if sums.max() > (1 + EVEN) * sums.min():
        low, high = int(sums.argmin()), int(sums.argmax())
        raise UserError(
            f"{path}: the weights of line {lines[low]} sum to {sums[low]:g}, those of line {lines[high]} to "
            f"{sums[high]:g}; they must be shares. If a column is no task, take it out or name it with --metric."
        )
    shares = np.asarray(weights / sums[:, None])
    if np.ptp(shares, axis=0).max() < APART:
        raise UserError(
            f"{path}: all {len(lines)} runs have the same mixture, which says nothing of others; add runs with others."
        )
    return shares


def describe_surface(
    trials: Trials, surrogate: Surrogate, prior: Prior, choice: Choice, uniform: Floats, there: Surrogate | None = None
) -> dict[str, Any]:
    """JSON-ready: what the surrogate says of mixtures, with its errors.

    Its coefficients; every trial as measured, fitted, and predicted by the others; losses from uniform to the choice
    and beyond; and what one hundredth more of a task, taken from all others alike, changes at the choice.

    Args:
        there: the surrogate at the budget of the choice, for all that is said of it; that of the trials if left out.
    """
    there = there or surrogate
    others = left_out(surrogate, trials.mixtures, trials.losses, prior) if len(trials.losses) > 2 else None
    tried = [
        {
            "name": name, "weights": _named(trials.tasks, p), "measured": loss, "fitted": surrogate.loss(p),
            "error": surrogate.error(p), "predicted by the others": None if others is None else float(others[k]),
        }
        for k, (name, p, loss) in enumerate(zip(trials.names, trials.mixtures, trials.losses, strict=True))
    ]  # fmt: skip
    return {
        "tasks": list(trials.tasks), "noise": surrogate.noise, "coefficients": _coefficients(surrogate, trials.tasks),
        "repetition": _repetition(there.features),
        "trials": tried,
        "choice": {
            "weights": _named(trials.tasks, choice.p), "uniform": choice.uniform, "loss": there.loss(choice.p),
            "gain over uniform": choice.gain, "error": choice.error, "held": choice.held,
        },
        "uniform": {"weights": _named(trials.tasks, uniform), "loss": there.loss(uniform)},
        "from uniform to choice": _line(there, uniform, choice.p),
        "one hundredth more": _steps(there, choice.p, trials.tasks),
    }  # fmt: skip


def _coefficients(surrogate: Surrogate, tasks: Sequence[str]) -> dict[str, Any]:
    errors = surrogate.draws.std(axis=0)
    pairs = [{"mean": float(m), "error": float(e)} for m, e in zip(surrogate.coefficients, errors, strict=True)]
    return {**dict(zip(NAMES, pairs, strict=False)), "tasks": dict(zip(tasks, pairs[SCALE:], strict=True))}


def _repetition(features: Features) -> dict[str, Any] | None:
    """λ, and the share that each task's rows fill once; None if rows that are seen again cost nothing."""
    if features.once is None or not features.repetition:
        return None
    return {"price": features.repetition, "once": _named(features.tasks, features.once)}


def _line(surrogate: Surrogate, u: Floats, p: Floats) -> list[dict[str, float]]:
    """L̂ and the error of its difference from uniform on the way from u to p."""
    points = []
    for part in np.linspace(0, 1, 11):
        q = u + part * (p - u)
        points.append({"part": float(part), "loss": surrogate.loss(q), "error": surrogate.error(q, u)})
    return points


def _steps(surrogate: Surrogate, p: Floats, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for i, task in enumerate(tasks):
        q = p * (1 - 0.01 / max(1 - p[i], 1e-3))
        q[i] = p[i] + 0.01
        q = np.maximum(q, 0.0) / np.maximum(q, 0.0).sum()
        found[task] = {"change": surrogate.loss(q) - surrogate.loss(p), "error": surrogate.error(q, p)}
    return found


def _named(tasks: Sequence[str], p: Floats) -> dict[str, float]:
    return dict(zip(tasks, p.tolist(), strict=True))
