"""`run`: from task files to a training set; and the commands that do a part of it, or read what it left.

from taskpgm import load_config, run, load_run

run(load_config("mix.yaml"), "runs/first")
load_run("runs/first").mixture.shares
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskpgm.config import Config, EnergyConfig
from taskpgm.evaluation.compare import check_options, run_comparison
from taskpgm.evaluation.predict import Prediction, run_prediction
from taskpgm.evaluation.result import Result
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.evaluation.statistics import Comparison
from taskpgm.files import write_json
from taskpgm.mixture.affinity import Affinity, measure_affinity
from taskpgm.mixture.balance import BalanceCurve, balanced, trace_balance
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.explanation import Explanation
from taskpgm.mixture.explanation import explain as explain_mixture
from taskpgm.mixture.selection import Selection, select_tasks
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.pipeline.directory import RunDirectory
from taskpgm.pipeline.session import Session, open_session
from taskpgm.pipeline.stages import (
    allowed_shares,
    choose_energy,
    finished_run,
    keep_apart,
    keep_mixture,
    keep_training_set,
    make_pool,
    make_probes,
    make_scores,
    mixture_is_there,
    recorded_pool,
    recorded_scores,
    solve,
)
from taskpgm.pool.plan import copies
from taskpgm.pool.task_pool import TaskPool
from taskpgm.progress import Progress
from taskpgm.scores import Scores
from taskpgm.system import Clock


def run(config: Config, out: Path | str, progress: Progress | None = None) -> Result:
    """From task files to `train.jsonl` in the run directory `out`; what is done already is not done again.

    Args:
        config: the experiment.
        out: run directory, made if missing.
        progress: shows stages, and says what is made again and why; left out, as plain lines on standard error, in a
            notebook among its output. `Progress()` is silent, and its sentences are warnings.

    Raises:
        UserError: wrong input or settings, or another process on `out`; finished work is kept.
    """
    with open_session(config, out, progress) as session:
        return run_session(session)


def run_session(session: Session) -> Result:
    """The same on a directory that is open."""
    pool = make_pool(session)
    make_probes(session, pool)
    scores = make_scores(session, pool)
    clock = Clock()
    result = solve(pool, scores, session.config)
    keep_mixture(session, result, clock)
    keep_training_set(session, result, Clock())
    return result


def solved(session: Session) -> Result:
    """The mixture from what the run directory holds, without the model; nothing is written.

    Raises:
        UserError: no scores, or scores of other data or probes.
    """
    pool = recorded_pool(session)
    return solve(pool, recorded_scores(session, pool), session.config)


def solve_run(session: Session) -> Result:
    """The same, written as the run's mixture."""
    clock = Clock()
    result = solved(session)
    keep_mixture(session, result, clock)
    return result


def balance_run(session: Session, values: Sequence[float]) -> BalanceCurve:
    """Mixtures at these balances of targets and tasks, by the scores that the run holds, written to `balance.json`.

    Raises:
        UserError: no targets, a value outside of 0 to 1, or no scores.
    """
    pool = recorded_pool(session)
    curve = balance_curve(pool, recorded_scores(session, pool), session.config, values)
    session.artifacts.write_json("balance.json", curve.to_dict())
    return curve


def balance_curve(pool: TaskPool, scores: Scores, config: Config, values: Sequence[float]) -> BalanceCurve:
    """The same from what is at hand; nothing is written."""
    affinity, energies = measure_affinity(scores, config.affinity), []
    for value in values:
        energies.append((value, choose_energy(scores, affinity, pool, balanced(config, value))))
    return trace_balance(scores, energies, allowed_shares(pool, config), scores.target_weights(config.target_weights))


def sample_run(session: Session) -> Result:
    """The run's training set; its mixture is written again only if it is another one than the directory holds."""
    clock = Clock()
    result = solved(session)
    if not mixture_is_there(session, result):
        keep_mixture(session, result, clock)
    keep_training_set(session, result, Clock())
    return result


def select_run(
    session: Session, k: int, exhaustive: bool = False, sample: bool = False
) -> tuple[Result, Selection, Path]:
    """At most k tasks and their mixture, in a folder of its own below the run: the run's mixture stays as it is.

    Args:
        exhaustive: look at every set of tasks.
        sample: also write the training set of the selection; one that is there already is always brought up to date.
    """
    settings = session.config.model_copy(update={"selection": session.config.selection.model_copy(update={"k": k})})
    pool = recorded_pool(session)
    result = solve(pool, recorded_scores(session, pool), settings, exhaustive)
    selection = result.selection
    assert selection is not None, "k is given"
    folder = f"selections/k{k}"
    keep_apart(session, folder, {"selection.json": selection.to_dict()}, result, sample)
    return result, selection, session.artifacts / folder


def explain_run(session: Session) -> Explanation:
    """Why the mixture is what it is, written to `explanation.json`."""
    result = solved(session)
    alike, progress = copies(result.pool), session.progress
    explanation = explain_mixture(result.energy, result.mixture, copies=alike, progress=progress)
    session.artifacts.write_json("explanation.json", explanation.to_dict())
    return explanation


def compare_run(session: Session, options: CompareOptions) -> tuple[Comparison, dict[str, Any]]:
    """The run, brought up to date, then its mixture trained and compared with others; see `run_comparison`.

    Raises:
        UserError: as `run` raises, and what `check_options` finds before it.
    """
    check_options(session.config, options)
    return run_comparison(finished_run(session, run_session(session)), options)


def predict_run(
    session: Session, mixtures: Sequence[str], merged: bool = True
) -> tuple[list[Prediction], dict[str, Any]]:
    """Predictions for mixtures without training; see `run_prediction`."""
    return run_prediction(finished_run(session, solved(session)), mixtures, merged)


def compare_mixtures(
    config: Config, out: Path | str, options: CompareOptions | None = None, progress: Progress | None = None
) -> Comparison:
    """Comparison of mixtures on the run directory `out`, as `taskpgm compare` makes it."""
    with open_session(config, out, progress) as session:
        return compare_run(session, options or CompareOptions())[0]


def predict_mixtures(
    config: Config, out: Path | str, mixtures: Sequence[str], merged: bool = True, progress: Progress | None = None
) -> list[Prediction]:
    """Predictions for mixtures on the run directory `out`, as `taskpgm predict` makes them."""
    with open_session(config, out, progress) as session:
        return predict_run(session, mixtures, merged)[0]


def solve_affinity(
    affinity: Affinity, config: EnergyConfig, out: Path | str, k: int | None = None, exhaustive: bool = False
) -> tuple[Mixture, Selection | None]:
    """Mixture, and selection of at most k tasks, from a matrix, written to `out`: no model, no rows, no counts.

    Raises:
        UserError: a k that the tasks do not allow, no value of `config.t`, or the directory of a run in `out`.
    """
    with RunDirectory(out) as directory:
        directory.check_no_run("mixture.json")
        energy = build_energy(None, affinity, config)
        selection = select_tasks(energy, None, k, exhaustive) if k else None
        mixture = solve_mixture(energy, None, {"uniform": None}, selection.chosen if selection else None)
        if selection:
            write_json(directory / "selection.json", selection.to_dict())
        write_json(directory / "mixture.json", mixture.to_dict())
        return mixture, selection
