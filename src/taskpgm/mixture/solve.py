"""`Mixture`: the weights of the tasks, how sure they are, and the proof that they minimise the energy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from taskpgm.frames import frame
from taskpgm.mixture import jackknife
from taskpgm.mixture.bounds import Bounds, Group, simplex
from taskpgm.mixture.certificate import Certificate, certify
from taskpgm.mixture.doubts import few_contexts
from taskpgm.mixture.energy import KNOBS, Energy
from taskpgm.mixture.expected import Expected
from taskpgm.mixture.linalg import normalised
from taskpgm.mixture.optimum import minimise
from taskpgm.types import Floats

# A weight closer to its bound than this is at it.
AT_BOUND = 1e-9
LEVEL = 0.95  # of the intervals of the weights


@dataclass(frozen=True)
class Verdict:
    """Whether the mixture beats a reference mixture on contexts that it was not chosen on.

    gain is the mean over groups b of E_b(r) − E_b(p without b), by data alone: energies without prior, repetition,
    limits and the user's utility. p_value is one-sided, by a t-test over groups, and no less than 2^−groups: what the
    exact test by signs gives if all of them agree, and so the least that so few show unless gains are taken for
    normal. Below six groups nothing is `better`. It covers the choice of contexts only, not other probe seeds or
    another training run. If r is optimal, the gain is a degenerate U-statistic with a heavier right tail than
    Student's: measured on synthetic nulls, p < 0.05 happens in up to a tenth of the draws (strong prior), so `better`
    asks for p < 0.025.
    """

    reference: str
    gain: float
    standard_error: float
    p_value: float
    groups: int

    @property
    def better(self) -> bool:
        """Whether the two-sided 95 % interval of the gain lies above zero."""
        return self.p_value < 0.025


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """Weights of `tasks` that minimise an energy within bounds, with their certificate.

    Attributes:
        weights: (n,) non-negative, sum to one.
        standard_error: (n,) jackknife over contexts, plus over probe seeds if there are several; None without.
        interval: (n, 2) 95 % interval by Student's t, cut to the bounds; meaningless if `at_bound`.
        at_bound: (n,) whether the weight sits at one of its bounds, where the jackknife is not valid.
        frequency: (n,) share of the re-solves in which the weight was off its bounds.
        replicates: (B, n) the weights without each group of contexts.
        seeds: of the probes that the errors cover, if they cover those.
        expected: of a training on it, against uniform; None without targets and for other energies.
    """

    tasks: tuple[str, ...]
    weights: Floats
    bounds: Bounds
    energy: Mapping[str, Any]  # kind, value, loss and settings
    certificate: Certificate
    at_bound: NDArray[np.bool_]
    references: Mapping[str, Floats] = field(default_factory=dict)
    standard_error: Floats | None = None
    interval: Floats | None = None
    frequency: Floats | None = None
    replicates: Floats | None = None
    verdicts: tuple[Verdict, ...] = ()
    seeds: int = 0
    expected: Expected | None = None

    def __repr__(self) -> str:
        heaviest = sorted(self.shares.items(), key=lambda item: -item[1])[:4]
        shares = ", ".join(f"{task} {weight:.1%}" for task, weight in heaviest)
        more = f" and {len(self.tasks) - 4} more" if len(self.tasks) > 4 else ""
        return f"Mixture({shares}{more}; gap {self.certificate.gap:.1e})"

    @property
    def shares(self) -> dict[str, float]:
        """Weights by name."""
        return {task: float(weight) for task, weight in zip(self.tasks, self.weights, strict=True)}

    @property
    def shadow_prices(self) -> dict[str, float]:
        """What one more hundredth of the budget at a binding bound would lower the energy by, by the bound's name.

        `a.max_share` or `a.supply`: if the bound rose; `a.min_share`: if it fell; groups as `group.max_share`.
        `a.max_loss`: if task a, or all tasks, might lose one hundredth of uniform's loss more.
        """
        certificate, bounds = self.certificate, self.bounds
        reasons = bounds.hi_reason or ("max_share",) * len(self.tasks)
        prices = {f"{t}.{why}": z for t, why, z in zip(self.tasks, reasons, certificate.upper, strict=True) if z > 0}
        # A share that falls to zero is not a bound that the user set.
        floors = zip(self.tasks, certificate.lower, bounds.lo, strict=True)
        prices |= {f"{t}.min_share": z for t, z, lo in floors if z > 0 and lo > 0}
        for group, z in zip(bounds.groups, certificate.group, strict=True):
            if z != 0:
                prices[f"{group.name}.{'max_share' if z > 0 else 'min_share'}"] = abs(z)
        # A limit that rose by a hundredth of uniform's loss.
        limits = self.energy["settings"].get("limits", ())
        prices |= {f"{one['name']}.max_loss": one["price"] * abs(one["uniform"]) for one in limits if one["price"] > 0}
        return {name: 0.01 * float(z) for name, z in prices.items()}

    def frame(self) -> Any:
        """One row a task: weight, error, interval, references; a pandas table, without pandas lists by column."""
        rows = [self._task(i) for i in range(len(self.tasks))]
        kept = ("name", "weight", "standard_error", "at_bound", "min_share", "max_share")
        columns: dict[str, list[Any]] = {"task" if key == "name" else key: [row[key] for row in rows] for key in kept}
        for k, side in enumerate(("low", "high")):
            columns[side] = [row["interval"][k] if row["interval"] else None for row in rows]
        return frame(columns | {name: r.tolist() for name, r in self.references.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything, arrays as lists; infinities (the curvature of a single task) as null."""
        certificate = self.certificate
        numbers = {
            name: _finite(getattr(certificate, name))
            for name in ("stationarity", "feasibility", "complementarity", "gap", "relative_gap", "tolerance", "nu",
                         "curvature", "shift")
        }  # fmt: skip
        return {
            "tasks": [self._task(i) for i in range(len(self.tasks))],
            "energy": dict(self.energy),
            "certificate": {**numbers, "absolute": certificate.absolute, "passed": certificate.passed},
            "prices": self.shadow_prices,
            "groups": [
                {"name": g.name, "tasks": list(g.tasks), "min_share": g.lo, "max_share": g.hi, "multiplier": float(z)}
                for g, z in zip(self.bounds.groups, certificate.group, strict=True)
            ],
            "intervals": self._intervals(),
            "expected": self.expected.to_dict() if self.expected else None,
            "verdicts": [
                {"reference": v.reference, "gain": v.gain, "standard_error": _finite(v.standard_error),
                 "p_value": v.p_value, "least_p_value": least_p_value(v.groups), "groups": v.groups,
                 "better": v.better}
                for v in self.verdicts
            ],
            "replicates": None if self.replicates is None else self.replicates.tolist(),
        }  # fmt: skip

    def _intervals(self) -> dict[str, Any] | None:
        """What the tasks' intervals are: their level, what they cover, and why they may be worth little."""
        if self.replicates is None:
            return None
        groups = len(self.replicates)
        covers = ["contexts", "probe seeds"] if self.seeds else ["contexts"]
        sizes = {"groups": groups, "seeds": self.seeds or 1, "few": few_contexts(groups)}
        return {"level": LEVEL, "by": "jackknife over groups of contexts, Student's t", "covers": covers, **sizes}

    def _task(self, i: int) -> dict[str, Any]:
        sampled = self.standard_error is not None and self.interval is not None and self.frequency is not None
        row: dict[str, Any] = {"name": self.tasks[i], "weight": float(self.weights[i])}
        row["min_share"], row["max_share"] = float(self.bounds.lo[i]), float(self.bounds.hi[i])
        if self.bounds.hi_reason:
            row["max_share_from"] = self.bounds.hi_reason[i]
        row["standard_error"] = float(self.standard_error[i]) if sampled else None  # type: ignore[index]
        row["at_bound"] = bool(self.at_bound[i])
        inside = sampled and not self.at_bound[i]
        row["interval"] = [float(x) for x in self.interval[i]] if inside else None  # type: ignore[index]
        row["off_bound_frequency"] = float(self.frequency[i]) if sampled else None  # type: ignore[index]
        row["multiplier_lower"] = float(self.certificate.lower[i])
        row["multiplier_upper"] = float(self.certificate.upper[i])
        row["references"] = {name: float(r[i]) for name, r in self.references.items()}
        return row

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Mixture":
        """Mixture from what `to_dict` wrote; keys that others added are ignored."""
        return _read(data)


def solve_mixture(
    energy: Energy,
    bounds: Bounds | None = None,
    references: Mapping[str, Mapping[str, float] | None] | None = None,
    chosen: Sequence[str] | None = None,
) -> Mixture:
    """Mixture that minimises `energy` over `bounds`, certified, with jackknife errors if it has replicates.

    Args:
        bounds: the plain simplex if left out.
        references: mixtures by name to be judged against (None: uniform), each as weights by task name.
        chosen: names of the only tasks to use; all if left out.

    Raises:
        UserError: no mixture meets the bounds.
        NotCertifiedError: the solver failed its certificate.
    """
    bounds = bounds or simplex(energy.tasks)
    assert bounds.tasks == energy.tasks, "bounds and energy must name the same tasks in the same order"
    if chosen is not None:
        bounds = bounds.with_others_at_zero(chosen)
    optimum = minimise(energy, bounds)
    certificate = certify(energy, bounds, optimum)
    without = [minimise(replicate, bounds, optimum) for replicate in energy.without]
    seeds = [minimise(replicate, bounds, optimum).p for replicate in energy.seeds]
    mixtures = {name: normalised(energy.tasks, r, f"reference {name!r}") for name, r in (references or {}).items()}
    replicates = [one.p for one in without]
    sampling: Mapping[str, Any] = _sampling(optimum.p, replicates, seeds, bounds) if without else {}
    return Mixture(
        energy.tasks,
        optimum.p,
        bounds,
        _describe(energy, optimum.p),
        certificate,
        _at_bound(optimum.p, bounds),
        references=mixtures,
        verdicts=tuple(judge(energy, replicates, name, r) for name, r in mixtures.items() if without),
        seeds=len(seeds),
        **sampling,
    )


def judge(energy: Energy, without: Sequence[Floats], name: str, r: Floats) -> Verdict:
    """Verdict on the mixtures that were chosen without each group, against the reference r, on that group."""
    gains = np.array([only.loss(r) - only.loss(p) for only, p in zip(energy.only, without, strict=True)])
    B = len(gains)
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(B))
    if not math.isfinite(gain):  # the reference, or the mixture, gives a label no probability at all
        p_value = float(gain <= 0)
    else:
        p_value = float(stats.t.sf(gain / error, B - 1)) if error > 0 else float(gain <= 0)
    return Verdict(name, gain, error, max(p_value, least_p_value(B)), B)


def least_p_value(groups: int) -> float:
    """The one-sided p-value of the exact test by signs if all groups agree: 2^−groups."""
    return float(0.5**groups)


def _sampling(p: Floats, without: list[Floats], seeds: list[Floats], bounds: Bounds) -> dict[str, Floats]:
    error = jackknife.standard_error(without, seeds)
    half = jackknife.t_quantile(without, seeds, LEVEL) * error
    interval = np.clip(np.column_stack([p - half, p + half]), bounds.lo[:, None], bounds.hi[:, None])
    off_bound = np.mean([~_at_bound(one, bounds) for one in without], axis=0)
    return {"standard_error": error, "interval": interval, "frequency": off_bound, "replicates": np.array(without)}


def _at_bound(p: Floats, bounds: Bounds) -> NDArray[np.bool_]:
    return np.asarray((p <= bounds.lo + AT_BOUND) | (p >= bounds.hi - AT_BOUND))


def _describe(energy: Energy, p: Floats) -> dict[str, Any]:
    value = {"value": energy.value(p), "loss": energy.loss(p)}
    return {"kind": energy.kind, "knob": KNOBS[energy.kind], **value, "settings": dict(energy.settings)}


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _read(data: Mapping[str, Any]) -> Mixture:
    rows, c = data["tasks"], data["certificate"]
    tasks = tuple(row["name"] for row in rows)

    def column(name: str) -> Floats:
        return np.array([row[name] for row in rows], dtype=np.float64)

    groups = tuple(Group(g["name"], tuple(g["tasks"]), g["min_share"], g["max_share"]) for g in data["groups"])
    reasons = tuple(row["max_share_from"] for row in rows) if "max_share_from" in rows[0] else ()
    certificate = Certificate(
        **{name: c[name] for name in ("stationarity", "feasibility", "complementarity", "gap", "relative_gap",
                                      "absolute", "tolerance", "nu", "shift")},
        lower=column("multiplier_lower"), upper=column("multiplier_upper"),
        group=np.array([g["multiplier"] for g in data["groups"]]),
        curvature=math.inf if c["curvature"] is None else c["curvature"],
    )  # fmt: skip
    sampled = rows[0]["standard_error"] is not None
    return Mixture(
        tasks, column("weight"), Bounds(tasks, column("min_share"), column("max_share"), groups, reasons),
        data["energy"], certificate, np.array([row["at_bound"] for row in rows]),
        references={name: np.array([row["references"][name] for row in rows]) for name in rows[0]["references"]},
        standard_error=column("standard_error") if sampled else None,
        interval=np.array([row["interval"] or [row["weight"]] * 2 for row in rows]) if sampled else None,
        frequency=column("off_bound_frequency") if sampled else None,
        replicates=None if data["replicates"] is None else np.array(data["replicates"]),
        verdicts=tuple(
            Verdict(v["reference"], v["gain"], math.nan if v["standard_error"] is None else v["standard_error"],
                    v["p_value"], v["groups"])
            for v in data["verdicts"]
        ),
        seeds=_seeds(data), expected=Expected(**data["expected"]) if data.get("expected") else None,
    )  # fmt: skip


def _seeds(data: Mapping[str, Any]) -> int:
    covered = data.get("intervals") or {}
    return int(covered["seeds"]) if "probe seeds" in covered.get("covers", ()) else 0
