"""The energies that a configuration may ask for, built from scores and affinities."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from taskpgm.config import EnergyConfig
from taskpgm.errors import UserError
from taskpgm.mixture import jackknife
from taskpgm.mixture.affinity import Affinity, mean_logp
from taskpgm.mixture.energy import Energy, _field
from taskpgm.mixture.jackknife import EVERYTHING, Fold
from taskpgm.mixture.linalg import convexity_shift, mean_curvature, named_vector, normalised
from taskpgm.scores import Scores
from taskpgm.types import Floats

PRIOR = {"likelihood": 0.1, "gain": 0.3}  # κ if none is given; docs/decisions.md has what they are chosen by
WITHOUT_TARGETS = 0.2  # κ of a likelihood if the tasks themselves are served, for which uniform is hard to beat
REPETITION = 0.05  # cost of a unit of R in a training, in parts of uniform's loss, at MOST_TIMES the budget or more
MOST_TIMES = 16  # below, the cost is in proportion


@dataclass(frozen=True)
class Budget:
    """What the budget asks of the tasks' rows."""

    once: Mapping[str, float]  # by task, the share of the budget that its rows fill when each is seen once
    times: float  # the budget in trainings of three times a probe's size, at least 1

    @property
    def fade(self) -> float:
        """What is left, in a training, of what probes say of a difference between mixtures: 1/√times."""
        return float(self.times**-0.5)

    def repetition(self, rate: float | None = None) -> float:
        """Cost of a unit of R in a training, in parts of uniform's loss: rate · min(times/16, 1)."""
        return (REPETITION if rate is None else rate) * min(self.times / MOST_TIMES, 1.0)


def build_energy(
    scores: Scores | None,
    affinity: Affinity | None,
    config: EnergyConfig,
    weights: Mapping[str, float] | None = None,
    reference: Mapping[str, float] | None = None,
    budget: Budget | None = None,
) -> Energy:
    """Energy of `config.kind` over the tasks of `scores` or `affinity`, with its jackknife replicates.

    likelihood: F(p) = −E_ω log Σ_i p_i P_i(y_t) + κ KL(p‖r), and with targets + λ R(p), λ what R costs the targets in
    training over what is left of F there (`Budget`), less as far as the tasks themselves count. gain:
    −Σ_i p_i Σ_j w_j G_ij + κ KL(p‖r). affinity: ψ = t·S w, K = S.

    Args:
        weights: by name, of the target sets, or of the tasks if there are none; equal if left out.
        reference: by name, the prior's r (likelihood, gain); uniform if left out.
        budget: of a likelihood with targets, for the price of rows that are seen again; none if left out.

    Raises:
        UserError: scores are missing for a kind that needs them, targets with `affinity`, no t if none is default.
    """
    energy = _of_kind(scores, affinity, config, weights or {}, reference, budget)
    return energy if scores is None else replace(energy, settings={**energy.settings, "loss": scores.loss})


def _of_kind(
    scores: Scores | None,
    affinity: Affinity | None,
    config: EnergyConfig,
    weights: Mapping[str, float],
    reference: Mapping[str, float] | None,
    budget: Budget | None,
) -> Energy:
    if config.kind == "affinity":
        if affinity is None:
            raise UserError(
                "energy.kind 'affinity' needs an affinity; measure one from scores or read one from a file."
            )
        if len(affinity.sets) > len(affinity.tasks):
            raise UserError(
                "energy.kind 'affinity' takes no targets (affinities have no such columns); use likelihood or gain."
            )
        return _affinity_energy(affinity, config, weights)
    if scores is None:
        raise UserError(
            f"energy.kind {config.kind!r} needs scores; a given affinity serves energy.kind 'affinity' only."
        )
    match config.kind:
        case "gain":
            return _gain_energy(scores, config, weights, reference)
        case "likelihood":
            return _likelihood_energy(scores, config, weights, reference, budget)
    assert_never(config.kind)


def usual_prior(kind: str, scores: Scores, balance: float | None = None) -> float:
    """κ if none is given: that of the kind, but more for a likelihood as far as it serves the tasks themselves."""
    if kind != "likelihood":
        return PRIOR[kind]
    tasks = (balance or 0.0) if len(scores.sets) > len(scores.tasks) else 1.0
    return (1 - tasks) * PRIOR[kind] + tasks * WITHOUT_TARGETS


def _reference(scores: Scores, given: Mapping[str, float] | None) -> Floats:
    """(n,) the prior's r, positive: a share that it does not expect at all would be infinitely dear."""
    r = normalised(scores.tasks, given, "the reference mixture")
    if none := [task for task, share in zip(scores.tasks, r, strict=True) if share == 0]:
        raise UserError(f"The reference mixture gives {none[0]!r} nothing; give every task a share, or leave it out.")
    return r


def wanted_sets(scores: Scores, weights: Mapping[str, float], balance: float | None) -> Floats:
    """(sets,) what each set counts, summing to one: (1 − balance) the targets', balance the tasks', all tasks alike."""
    tasks = balance or 0.0
    return (1 - tasks) * scores.target_weights(weights) + tasks * scores.task_weights()


def ensemble_loss(scores: Scores, set_weights: Floats, fold: Fold = EVERYTHING) -> Energy:
    """F(p) = −E_ω log Σ_i p_i P_i(y_t), the loss of the probes' ensemble on these sets, on one fold of the contexts.

    Args:
        set_weights: (sets,) non-negative, summing to one.

    Raises:
        UserError: a log-probability that is not finite.
    """
    used_T = scores.omega(set_weights) > 0
    logp_NT = scores.logp[1:, used_T]
    if not np.isfinite(logp_NT).all():
        raise UserError("The scores hold NaN or infinite log-probabilities; score the contexts again.")
    n, column_T = len(scores.tasks), logp_NT.max(axis=0)
    return Energy(
        "likelihood", scores.tasks, np.zeros(n), np.zeros(n), np.zeros((n, n)), np.exp(logp_NT - column_T),
        _position_weights(scores, set_weights, fold), column_T, np.full(n, 1 / n),
    )  # fmt: skip


def _position_weights(scores: Scores, set_weights: Floats, fold: Fold) -> Floats:
    """ω of a fold where the sets have weight: summing to one, but for a group alone, which keeps its part of ω."""
    omega_T = jackknife.omega_of(scores, set_weights, fold)[scores.omega(set_weights) > 0]
    return omega_T if fold.only_group is not None else omega_T / omega_T.sum()


def _affinity_energy(affinity: Affinity, config: EnergyConfig, weights: Mapping[str, float]) -> Energy:
    t = config.t if config.t is not None else 2.0 if affinity.kind == "ratio" else None
    if t is None:
        raise UserError(
            f"energy.t has no default for an affinity of kind {affinity.kind!r}; give one: 0 is least redundant, "
            "1 is uniform, 2 favours central tasks."
        )
    given = named_vector(affinity.tasks, weights, 1.0, "weights")
    w = normalised(affinity.tasks, dict(zip(affinity.tasks, given, strict=True)), "weights")
    utility = named_vector(affinity.tasks, config.utility, 0.0, "energy.utility")
    settings = {"affinity": affinity.kind, "t": t, "ridge": config.ridge, "utility": dict(config.utility)}

    def of(S: Floats, shift: float | None = None) -> Energy:
        least = None
        if shift is None:
            shift, least = convexity_shift(S)
        ridge = config.ridge * (mean_curvature(S) + shift)
        K = S + np.diag(np.full(len(S), shift + ridge))
        least = None if least is None else least + shift + ridge
        return _field("affinity", affinity.tasks, S @ w, utility, K, t=t, shift=shift, least=least, settings=settings)

    full = of(affinity.S)
    return replace(
        full,
        without=tuple(of(S) for S in affinity.without),
        # Held-out energies must be linear in the data to be unbiased, so they keep the shift of the full sample.
        only=tuple(of(S, full.shift) for S in affinity.only),
        seeds=tuple(of(S) for S in affinity.seeds),
    )


def _gain_energy(
    scores: Scores, config: EnergyConfig, weights: Mapping[str, float], reference: Mapping[str, float] | None
) -> Energy:
    """ψ_i = Σ_j w_j G_ij, what a unit of task i does for the targets, against κ KL(p‖r).

    By Jensen's inequality −ψᵀp bounds F(p) less the loss that probes start from: the ensemble's loss when the wrong
    probes count as much as the right ones, so that it sees interference, which F does not. Without a prior all weight
    goes to one task.
    """
    prior = config.prior if config.prior is not None else usual_prior("gain", scores)
    w = wanted_sets(scores, weights, config.balance)
    r = _reference(scores, reference)
    utility = named_vector(scores.tasks, config.utility, 0.0, "energy.utility")
    settings = {
        "prior": prior, "reference": {name: float(v) for name, v in zip(scores.tasks, r, strict=True)},
        "utility": dict(config.utility),
        "weights": {name: float(v) for name, v in zip(scores.sets, w, strict=True) if v > 0},
    }  # fmt: skip
    logp_TN = np.ascontiguousarray(scores.logp.T)
    none = np.zeros((len(scores.tasks), len(scores.tasks)))

    def of(fold: Fold) -> Energy:
        M = mean_logp(scores, fold, logp_TN)
        field = _field("gain", scores.tasks, (M[1:] - M[0]) @ w, utility, none, settings=settings)
        return replace(field, reference=r, prior=prior)

    return replace(
        of(EVERYTHING),
        without=tuple(map(of, jackknife.without_folds(scores))),
        only=tuple(map(of, jackknife.only_folds(scores))),
        seeds=tuple(map(of, jackknife.seed_folds(scores))),
    )


def repetition_price(scores: Scores, config: EnergyConfig, weights: Mapping[str, float], budget: Budget) -> float:
    """What a unit of R costs the targets in a training, in nats, as far as they count."""
    n, targets = len(scores.tasks), scores.target_weights(weights)
    loss = ensemble_loss(scores, targets).loss(np.full(n, 1 / n))
    return budget.repetition(config.repetition) * (1 - (config.balance or 0.0)) * loss


def _likelihood_energy(
    scores: Scores,
    config: EnergyConfig,
    weights: Mapping[str, float],
    reference: Mapping[str, float] | None,
    budget: Budget | None,
) -> Energy:
    prior = config.prior if config.prior is not None else usual_prior("likelihood", scores, config.balance)
    w = wanted_sets(scores, weights, config.balance)
    r = _reference(scores, reference)
    settings = {
        "prior": prior, "reference": {name: float(v) for name, v in zip(scores.tasks, r, strict=True)},
        "utility": dict(config.utility),
        "weights": {name: float(v) for name, v in zip(scores.sets, w, strict=True) if v > 0},
    }  # fmt: skip
    utility = named_vector(scores.tasks, config.utility, 0.0, "energy.utility")
    ensemble = ensemble_loss(scores, w)
    price, once = 0.0, np.empty(0)
    if budget and len(scores.sets) > len(scores.tasks):
        price = repetition_price(scores, config, weights, budget) / budget.fade
        once = np.array([budget.once[task] for task in scores.tasks])
        settings["repetition_price"] = price

    def of(fold: Fold) -> Energy:
        omega_T = _position_weights(scores, w, fold)
        return replace(
            ensemble, utility=utility, omega=omega_T, reference=r, prior=prior, once=once, repetition=price,
            settings=settings,
        )  # fmt: skip

    return replace(
        of(EVERYTHING),
        without=tuple(map(of, jackknife.without_folds(scores))),
        only=tuple(map(of, jackknife.only_folds(scores))),
        seeds=tuple(map(of, jackknife.seed_folds(scores))),
    )
