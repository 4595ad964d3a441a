"""`refine` on a run directory, or on results that a user has: writes `refined/`; the run's own mixture stays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskpgm.config import Config
from taskpgm.evaluation.refine import Refinement, RefineOptions, run_features, run_kappa, run_limits, run_refinement
from taskpgm.files import write_json
from taskpgm.mixture.bounds import Bounds, simplex
from taskpgm.mixture.energies import PRIOR
from taskpgm.mixture.limits import Limit
from taskpgm.mixture.optimum import nearest_to_uniform
from taskpgm.mixture.refinement import choose, fitted_prior
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.mixture.surrogate import Features, fit_surrogate
from taskpgm.mixture.trials import Metric, Trials, describe_surface, read_trials
from taskpgm.pipeline.directory import RunDirectory
from taskpgm.pipeline.run import run_session, solved
from taskpgm.pipeline.session import Session, open_session
from taskpgm.pipeline.stages import finished_run, keep_apart
from taskpgm.pool.plan import plan_rows
from taskpgm.progress import Progress

FOLDER, SURFACE = "refined", "response_surface.json"


def refine_run(session: Session, options: RefineOptions) -> Refinement:
    """The run, brought up to date; trials, the mixture that they choose with its training set, and the confirmation."""
    result = run_session(session)
    found = run_refinement(finished_run(session, result), options)
    chosen = replace(result, mixture=found.mixture, plan=found.plan)
    keep_apart(session, FOLDER, {SURFACE: found.surface()}, chosen)
    return found


def refine(
    config: Config, out: Path | str, options: RefineOptions | None = None, progress: Progress | None = None
) -> Refinement:
    """A refinement on the run directory `out`, as `taskpgm refine` makes it.

    Args:
        config: the experiment.
        out: run directory, made if missing.
        options: eight trials of the budget, three fresh seeds, if left out.
        progress: as of `run`.

    Raises:
        UserError: as `run` raises, fewer than two trials, or a set with a single row to evaluate.
    """
    with open_session(config, out, progress) as session:
        return refine_run(session, options or RefineOptions())


def refine_results(
    file: Path, metrics: tuple[Metric, ...], session: Session | None, out: Path
) -> tuple[dict[str, Any], Mixture]:
    """The response surface of results that are there already, and the mixture of its least loss; nothing is trained.

    Args:
        session: of a finished run, for its probes and bounds, and for the rows of the mixture, which are written too;
            without one the results alone are used.
        out: where `refined/` is written.

    Raises:
        UserError: results that cannot be read, scores that are not there, or without a session a run's directory.
    """
    if session is None:
        trials = read_trials(file, metrics)
        features, bounds = Features(trials.tasks), simplex(trials.tasks)
        with RunDirectory(out) as directory:
            directory.check_no_run(FOLDER)
            (directory / FOLDER).mkdir(exist_ok=True)
            surface, mixture = surface_of(trials, features, bounds, PRIOR["likelihood"])
            write_json(directory / FOLDER / SURFACE, surface)
            write_json(directory / FOLDER / "mixture.json", mixture.to_dict())
        return surface, mixture
    result = solved(session)
    features = run_features(session.config, result)
    trials = read_trials(file, metrics, features.tasks)
    kappa, limits = run_kappa(session.config, result), run_limits(session.config, result)
    surface, mixture = surface_of(trials, features, result.mixture.bounds, kappa, limits)
    plan = plan_rows(result.pool, mixture.shares, session.config)
    keep_apart(session, FOLDER, {SURFACE: surface}, replace(result, mixture=mixture, plan=plan))
    return surface, mixture


def surface_of(
    trials: Trials, features: Features, bounds: Bounds, kappa: float, limits: Sequence[Limit] = ()
) -> tuple[dict[str, Any], Mixture]:
    """The response surface of trials in any unit, and the mixture of its least loss."""
    prior, noise = fitted_prior(features, trials.mixtures, trials.losses, kappa)
    surrogate = fit_surrogate(features, trials.mixtures, trials.losses, noise, prior)
    choice = choose(surrogate, bounds, limits)
    mixture = solve_mixture(choice.energy, bounds, {"uniform": None})
    return describe_surface(trials, surrogate, prior, choice, nearest_to_uniform(bounds)), mixture
