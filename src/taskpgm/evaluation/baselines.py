"""Mixtures to compare with, as functions from a pool to weights.

| spec | weights |
|---|---|
| `uniform` | the same for every task |
| `size`, `size:K` | proportional to a task's size, cut at K |
| `temperature:T` | proportional to size^(1/T) |
| `random` | one draw a seed, uniform on the simplex |
| `smart`, `smart:facility_location` | SMART's task weights, by graph cut or facility location |
| a path ending in .json, .yaml or .yml | task: weight, or a mixture.json |

Sizes count what the budget counts: training rows, or their response tokens.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.bounds import make_bounds
from taskpgm.mixture.linalg import normalised
from taskpgm.paths import local_path
from taskpgm.pool.plan import uniform_mixture
from taskpgm.pool.task_pool import TaskPool
from taskpgm.types import Floats
from taskpgm.yamls import read_yaml

Objective = Literal["graph_cut", "facility_location"]
GRAPH_CUT = 0.4  # λ in the authors' code, for tasks and for rows
FILES = (".json", ".yaml", ".yml")
OURS = "taskpgm"
BENT = 0.005  # what a share may be smaller than asked for before it is said
KNOWN = (
    f"{OURS}, uniform, size, size:K, temperature:T, random, smart, smart:facility_location, or a .json or .yaml file"
)


class Spec(NamedTuple):
    """A mixture's name, taken apart: what comes before the colon, and the number or word behind it."""

    kind: str  # taskpgm, uniform, size, temperature, random, smart or file
    argument: str = ""

    @property
    def number(self) -> float:
        """The argument as a number; infinite if there is none."""
        return float(self.argument) if self.argument else math.inf


def parse_mixtures(text: str) -> tuple[str, ...]:
    """Names of mixtures from 'taskpgm,uniform,temperature:2,my.json', each known and none twice.

    Raises:
        UserError: an unknown name, a wrong argument, a file that is missing, or the same mixture twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError(f"{text!r} names no mixture; give some with commas between: {KNOWN}.")
    seen: dict[tuple[str, object], str] = {}
    for name in names:
        spec = parse_spec(name)
        same: object = spec.number if spec.kind in ("size", "temperature") else spec.argument
        if (spec.kind, same) in seen:
            first = seen[spec.kind, same]
            twice = f"The mixture {name!r} is given twice" if name == first else f"{first!r} and {name!r} are the same"
            raise UserError(f"{twice}; name every mixture once.")
        seen[spec.kind, same] = name
    return names


def parse_spec(name: str) -> Spec:
    """Spec of one mixture's name.

    Raises:
        UserError: an unknown name, a wrong argument, or a file that is missing.
    """
    if name.endswith(FILES):
        path = local_path(name)
        if not path.is_file():
            raise UserError(f"The mixture {name!r} is not a file; give the path of a JSON or YAML file of weights.")
        return Spec("file", str(path))
    kind, colon, argument = name.partition(":")
    if kind in ("size", "temperature") and (colon or kind == "temperature"):
        _check_number(name, kind, argument)
        return Spec(kind, argument)
    if kind == "smart" and colon and argument in get_args(Objective):
        return Spec(kind, "" if argument == "graph_cut" else argument)
    if kind not in (OURS, "uniform", "size", "random", "smart") or colon:
        raise UserError(f"Unknown mixture {name!r}; known are {KNOWN}.")
    return Spec(kind)


def baseline_mixture(
    spec: str, pool: TaskPool, config: Config, seed: int = 0, affinity: Affinity | None = None
) -> dict[str, float]:
    """Weights of every task by name, summing to one, of the mixture that `spec` names (see the table above).

    The supply is not looked at: see `within_supply`.

    Args:
        spec: any name that `parse_spec` knows, but for taskpgm's own mixture.
        pool: its tasks and their sizes.
        config: its budget's unit counts here.
        seed: of `random`.
        affinity: of the pool's tasks, for `smart`.

    Raises:
        UserError: an unknown name, a wrong argument, weights that are none, or `smart` without an affinity.
    """
    kind, argument = parsed = parse_spec(spec)
    if kind == OURS:
        raise UserError(f"{spec!r} is not a baseline; its weights come from `taskpgm solve`.")
    makers: dict[str, Callable[[], dict[str, float]]] = {
        "uniform": lambda: uniform_mixture(pool),
        "size": lambda: capped_mixture(pool, config, parsed.number),
        "temperature": lambda: temperature_mixture(pool, config, parsed.number),
        "random": lambda: random_mixture(pool, seed),
        "smart": lambda: smart_mixture(pool, affinity, argument),
        "file": lambda: read_weights(Path(argument), pool.names),
    }
    return makers[kind]()


def capped_mixture(pool: TaskPool, config: Config, most: float = math.inf) -> dict[str, float]:
    """Examples-proportional mixing with an artificial limit: p_i ∝ min(N_i, K), K in the unit of the budget.

    Source: T5, arXiv 1910.10683, section 3.5.2. Counting response tokens if the budget does is ours.
    """
    return _shares({name: min(size, most) for name, size in _sizes(pool, config).items()})


def temperature_mixture(pool: TaskPool, config: Config, temperature: float) -> dict[str, float]:
    """Temperature-scaled mixing: p_i ∝ N_i^(1/T); T = 1 is size-proportional, T → ∞ uniform.

    Source: T5, arXiv 1910.10683, section 3.5.2, after multilingual BERT; without T5's limit K.
    """
    logs = {name: math.log(size) / temperature for name, size in _sizes(pool, config).items()}
    return _shares({name: math.exp(log - max(logs.values())) for name, log in logs.items()})


def random_mixture(pool: TaskPool, seed: int) -> dict[str, float]:
    """One draw from the Dirichlet distribution with all parameters 1: uniform on the simplex.

    Made of one exponential draw a task, seeded by (seed, its name): the order of the tasks changes nothing.
    """
    draws = {name: np.random.default_rng([seed, *name.encode()]).exponential() for name in pool.names}
    return _shares(draws)


def smart_mixture(pool: TaskPool, affinity: Affinity | None, objective: str = "") -> dict[str, float]:
    """SMART's task weights: Taylor-softmax of the gains with which greedy takes the tasks.

        p_i ∝ 1 + g_i + ½g_i²,   g_i = f(A ∪ {i}) − f(A) when greedy takes i.

    Source: Renduchintala, Bhatia and Ramakrishnan, arXiv 2403.08370, and their public code: f is the graph cut with
    λ = 0.4 (their choice for tasks) or facility location, on cosines between tasks; gains enter the Taylor-softmax of
    second order at temperature 1. Ours: cosines are S_ij/√(S_ii S_jj) of a measured affinity (theirs are between means
    of prompt embeddings); greedy takes all tasks, while they may stop at a subset; supply is met by `within_supply`
    instead of by handing out what is over row by row; and rows are drawn at random, as for every mixture compared
    here, where their second stage selects them by facility location.

    Args:
        affinity: its S if that is a Gram matrix (ratio, jsd) or given by the user; its ratio matrix if S is pmi,
            whose diagonal is zero or of either sign.
        objective: graph_cut if empty, or facility_location.

    Raises:
        UserError: no affinity, one of other tasks, or one whose diagonal is not positive.
    """
    if affinity is None:
        raise UserError("The mixture 'smart' needs the affinities of the tasks; run `taskpgm solve` first.")
    if set(affinity.tasks) != set(pool.names):
        raise UserError("The affinities are not of this pool's tasks; run `taskpgm solve` again.")
    S = affinity.matrices["ratio"] if affinity.kind.startswith("pmi") else affinity.S
    order, gains = greedy_gains(_cosines(S, affinity.tasks), "facility_location" if objective else "graph_cut")
    return _shares({affinity.tasks[i]: float(1 + g + g * g / 2) for i, g in zip(order, gains, strict=True)})


def greedy_gains(S: Floats, objective: Objective) -> tuple[list[int], list[float]]:
    """All tasks in greedy's order and the gain of each when it is taken; ties go to the first.

    Graph cut: f(A) = Σ_{i∈V, j∈A} s_ij − λ Σ_{i,j∈A} s_ij; facility location: f(A) = Σ_{i∈V} max_{j∈A} s_ij, f(∅) = 0.

    Args:
        S: (n, n) symmetric similarities.
        objective: which f.
    """
    order: list[int] = []
    gains: list[float] = []
    left = list(range(len(S)))
    covered = np.zeros(len(S))  # facility location: max_{j∈A} s_ij
    while left:
        if objective == "graph_cut":
            gain = S.sum(axis=0) - GRAPH_CUT * (np.diag(S) + 2 * S[order].sum(axis=0))
        else:
            # The first task's gain is Σ_i s_ij whatever its sign; later ones count what lies above the cover.
            gain = (np.maximum(S - covered[:, None], 0.0) if order else S).sum(axis=0)
        best = max(left, key=lambda i: (gain[i], -i))
        covered = np.maximum(covered, S[:, best]) if order else S[:, best]
        order.append(best)
        gains.append(float(gain[best]))
        left.remove(best)
    return order, gains


def read_weights(path: Path, names: tuple[str, ...]) -> dict[str, float]:
    """Weights by task from JSON or YAML, scaled to sum to one: {task: weight}, or a mixture.json of this project.

    Raises:
        UserError: unreadable, not such a mapping, a task that is unknown or left out, or weights that are not numbers,
            are NaN, infinite or negative, or are all zero.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else read_yaml(text, str(path))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read weights from {path}: {' '.join(str(error).split())}.") from error
    weights = _weights_of(data, path)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(
                f"{path} gives task {name!r} the weight {weight!r}, which is no number; write one, such as "
                "0.4, or 40: they are scaled to sum to one."
            )
    for name in names:
        if name not in weights:
            raise UserError(f"{path} gives no weight for task {name!r}; add it, with 0 if it is to have no share.")
    shares = normalised(names, weights, f"The weights in {path}")
    return {name: float(share) for name, share in zip(names, shares, strict=True)}


def within_supply(weights: Mapping[str, float], lo: Mapping[str, float], hi: Mapping[str, float]) -> dict[str, float]:
    """Mixture inside the bounds that is nearest to the weights: p_i = min(max(c·w_i, lo_i), hi_i) with Σp = 1.

    That is the one of least KL(p‖w). Tasks without weight keep their least share, unless the others cannot hold the
    budget: then what is over fills them evenly. Bounds on groups of tasks do not enter.

    Args:
        weights: non-negative, not all zero.
        lo: least shares, such as those of `supply_bounds`.
        hi: largest shares.

    Raises:
        UserError: no mixture is inside the bounds.
    """
    names = tuple(weights)
    bounds = make_bounds(names, lo, hi)
    w = normalised(names, weights, "The weights")
    held = w > 0
    if bounds.hi[held].sum() + bounds.lo[~held].sum() < 1:
        full = np.where(held, bounds.hi, 0.0)
        p = np.where(held, full, _water(1 - full.sum(), (~held).astype(np.float64), bounds.lo, bounds.hi))
    else:
        p = np.where(held, _water(1 - bounds.lo[~held].sum(), w, bounds.lo, bounds.hi), bounds.lo)
    return {name: float(share) for name, share in zip(names, p, strict=True)}


def bent_by_supply(name: str, weights: Mapping[str, float], given: Mapping[str, float]) -> str | None:
    """A sentence if a mixture is another one than asked for, `given` within the supply for `weights`; else None."""
    task = max(weights, key=lambda one: weights[one] - given[one])
    if weights[task] - given[task] < BENT:
        return None
    return (
        f"{name} is not as asked for: {task} has {given[task]:.1%} instead of {weights[task]:.1%}, all that its rows "
        "allow (budget.max_epochs); what is over goes to other tasks"
    )


def _water(total: float, w: Floats, lo: Floats, hi: Floats) -> Floats:
    """(n,) clip(c·w, lo, hi), zero where w is, summing to `total`; the sum rises with c, linearly between bounds."""
    held = w > 0
    v, least, most = w[held], lo[held], hi[held]

    def filled(c: float) -> Floats:
        return np.clip(c * v, least, most)

    levels = np.unique(np.concatenate([[0.0], least / v, most / v]))
    sums = np.array([filled(c).sum() for c in levels])
    k = int(np.searchsorted(sums, total))
    if k in (0, len(levels)):
        p = filled(levels[min(k, len(levels) - 1)])
    else:
        part = (total - sums[k - 1]) / (sums[k] - sums[k - 1])
        p = filled(levels[k - 1] + part * (levels[k] - levels[k - 1]))
    out = np.zeros(len(w))
    out[held] = p
    return out


def _cosines(S: Floats, tasks: tuple[str, ...]) -> Floats:
    diagonal = np.diag(S)
    for i in np.flatnonzero(diagonal <= 0):
        raise UserError(
            f"The affinity of task {tasks[i]!r} with itself is {diagonal[i]:g}; 'smart' needs positive ones to scale "
            "by. Use affinity.kind: ratio or jsd."
        )
    return np.asarray(S / np.sqrt(np.outer(diagonal, diagonal)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose keys stands twice."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} stands twice")
    return dict(pairs)


def _weights_of(data: Any, path: Path) -> dict[str, Any]:
    if isinstance(data, dict) and isinstance(data.get("tasks"), list):
        rows = data["tasks"]
        if all(isinstance(row, dict) and {"name", "weight"} <= set(row) for row in rows):
            return {str(row["name"]): row["weight"] for row in rows}
    elif isinstance(data, dict) and data:
        return {str(name): weight for name, weight in data.items()}
    raise UserError(f"{path} holds no weights; write {{task: weight, ...}}, or give a mixture.json.")


def _sizes(pool: TaskPool, config: Config) -> dict[str, int]:
    examples = config.budget.unit == "examples"
    return {task.name: task.rows if examples else task.response_tokens for task in pool.tasks}


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()}


def _check_number(name: str, kind: str, argument: str) -> None:
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        what = "the rows or tokens that count of a task at most" if kind == "size" else "the temperature"
        raise UserError(f"The mixture {name!r} needs a positive number behind the colon: {what}, such as {kind}:2.")
