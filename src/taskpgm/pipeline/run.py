"""`run`: from task files to a training set; and the commands that do a part of it, or read what it left.

from taskpgm import load_config, run, load_run

run(load_config("mix.yaml"), "runs/first")
load_run("runs/first").mixture.shares
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from taskpgm.config import Config, EnergyConfig, parse_config
from taskpgm.data.plan import RowPlan, copies, plan_rows
from taskpgm.data.pool import TaskPool
from taskpgm.errors import UserError
from taskpgm.evaluation.compare import run_comparison
from taskpgm.evaluation.predict import Prediction, run_prediction
from taskpgm.evaluation.result import Result
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.evaluation.statistics import Comparison
from taskpgm.export.handover import By, Handover, trainers_model
from taskpgm.export.write import Export, export_plan
from taskpgm.files import KEY_FILE, Parts, loaded, read_json, write_json
from taskpgm.mixture.affinity import Affinity, Gains, measure_affinity
from taskpgm.mixture.balance import BalanceCurve, balanced, trace_balance
from taskpgm.mixture.doubts import few_contexts, more_contexts, unfinished_probes
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.explanation import Explanation
from taskpgm.mixture.explanation import explain as explain_mixture
from taskpgm.mixture.selection import Selection, select_tasks
from taskpgm.mixture.solve import Mixture, solve_mixture
from taskpgm.pipeline.directory import RunDirectory, differing
from taskpgm.pipeline.inspection import late_lengths
from taskpgm.pipeline.keys import mixture_parts, other_scores
from taskpgm.pipeline.session import Session, open_session
from taskpgm.pipeline.stages import (
    allowed_shares,
    choose_energy,
    counted,
    finished_run,
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
from taskpgm.probes.cache import TRAINING, read_training
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
        sample: also write the training set of the selection.
    """
    settings = session.config.model_copy(update={"selection": session.config.selection.model_copy(update={"k": k})})
    pool = recorded_pool(session)
    result = solve(pool, recorded_scores(session, pool), settings, exhaustive)
    selection = result.selection
    assert selection is not None, "k is given"
    artifacts, folder = session.artifacts, f"selections/k{k}"
    (artifacts / folder / KEY_FILE).unlink(missing_ok=True)
    artifacts.write_json(f"{folder}/selection.json", selection.to_dict())
    artifacts.write_json(f"{folder}/mixture.json", counted(result.mixture, result.plan))
    artifacts.write_json(f"{folder}/{KEY_FILE}", mixture_parts(session.config, artifacts.manifest["stages"]))
    if sample:
        keep_training_set(session, result, Clock(), f"{folder}/train.jsonl")
    return result, selection, artifacts / folder


def explain_run(session: Session) -> Explanation:
    """Why the mixture is what it is, written to `explanation.json`."""
    result = solved(session)
    alike, progress = copies(result.pool), session.progress
    explanation = explain_mixture(result.energy, result.mixture, copies=alike, progress=progress)
    session.artifacts.write_json("explanation.json", explanation.to_dict())
    return explanation


def compare_run(session: Session, options: CompareOptions) -> tuple[Comparison, dict[str, Any]]:
    """The run, brought up to date, then its mixture trained and compared with others; see `run_comparison`."""
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


OF_MIXTURES = ("mixture.json", "selection.json", "train.jsonl")  # what a selection has of its own


class FinishedDirectory:
    """What a finished run directory holds, read when it is first asked for; nothing is written, nothing computed.

    A selection's folder, `selections/kK` of a run, is its run with the selection's mixture and rows.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        selected = self.path.parent.name == "selections" and not (self.path / "manifest.json").exists()
        self.run = self.path.parents[1] if selected else self.path
        self.manifest: dict[str, Any] = self.read_json("manifest.json")

    def __repr__(self) -> str:
        return f"FinishedDirectory({str(self.path)!r}, stages={list(self.manifest.get('stages', {}))})"

    @cached_property
    def config(self) -> Config:
        """The experiment, as the manifest has it."""
        return parse_config(self.manifest["settings"], str(self.run / "manifest.json"))

    @cached_property
    def pool(self) -> TaskPool:
        """Rows of all sets, split."""
        return loaded(TaskPool.load, self._there("pool"), *late_lengths(self.config))

    @cached_property
    def scores(self) -> Scores:
        """What every probe says on the shared contexts.

        Raises:
            UserError: none, or rows, probes or settings were others when they were made.
        """
        if why := other_scores(self._parts("score"), self.config, self.pool, self._parts("probe")):
            raise UserError(f"The scores in {self.run} are not up to date ({why}); run `taskpgm run`.")
        return loaded(Scores.load, self._there("scores.npz"), self.config.energy.loss)

    @cached_property
    def affinity(self) -> Affinity:
        """Gains, and how alike tasks are.

        Raises:
            UserError: as `mixture`, of the run's own.
        """
        self._check_chosen(self.run, self._parts("solve"))
        return loaded(Affinity.load, self._there("affinity.npz"))

    @property
    def gains(self) -> Gains:
        """What each probe gains on each set, against what it started from."""
        return self.affinity.gains

    @cached_property
    def mixture(self) -> Mixture:
        """The run's mixture.

        Raises:
            UserError: none, or the directory was last used with other rows, probes, scores or settings.
        """
        data, key = self.read_json("mixture.json"), self.path / KEY_FILE
        own = self.path == self.run
        self._check_chosen(self.path, self._parts("solve") if own else loaded(read_json, key) if key.exists() else {})
        return Mixture.from_dict(data)

    @cached_property
    def plan(self) -> RowPlan:
        """The rows of the training set.

        Raises:
            UserError: as `mixture`.
        """
        return plan_rows(self.pool, self.mixture.shares, self.config)

    @cached_property
    def doubts(self) -> list[str]:
        """Why the mixture may be less sure than its errors say, and what more would buy: contexts, probes."""
        contexts = few_contexts(self.scores.groups, more_contexts(self.config))
        records = [read_training(path.parent) for path in sorted(self.run.glob(f"adapters/*/{TRAINING}"))]
        names = {task.name for task in self.config.tasks}
        losses = {one["task"]: one["losses"] for one in records if one["losses"] and one["task"] in names}
        seconds = sum(record["seconds"] for record in records)
        setting = f"probes.{self.config.budget.unit}"
        probes = unfinished_probes(losses, setting, self.config.probe_size, seconds)
        return [doubt for doubt in (contexts, probes) if doubt]

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """What `taskpgm compare` measured, as plain data."""
        return loaded(read_json, self._there("comparison.json"), by="compare")

    def _parts(self, stage: str) -> Parts:
        """What the manifest says that a stage depends on; nothing if it is not finished."""
        return dict(self.manifest.get("stages", {}).get(stage, {}).get("parts", {}))

    def _check_chosen(self, folder: Path, found: Parts) -> None:
        """Errors if a mixture was chosen by something else than the run has now."""
        wanted = mixture_parts(self.config, self.manifest.get("stages", {}))
        known = {name: value for name, value in wanted.items() if name in found}  # earlier versions kept less
        if why := differing(found, known) if found else "not finished":
            command = "run" if folder == self.run else "select"
            raise UserError(
                f"The mixture in {folder} is not up to date ({why}); run `taskpgm {command}` to choose it anew."
            )

    def _there(self, name: str) -> Path:
        own = self.path if name in OF_MIXTURES else self.run
        if not (own / name).exists():
            raise UserError(f"{own} has no {name}; it is no run directory, or its run has not come so far.")
        return own / name

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the directory as plain data."""
        return loaded(read_json, self._there(name))


def load_run(path: Path | str) -> FinishedDirectory:
    """A finished run directory without its YAML: `.mixture`, `.affinity`, `.scores`, `.pool`, `.plan`, `.comparison`.

    The folder of a selection, `selections/kK`, opens as its run with the selection's mixture.

    Raises:
        UserError: no run directory there, or it lacks what is asked for.
    """
    return FinishedDirectory(path)


def export_run(
    path: Path | str, to: str, out: Path | str, by: By = "rows", lossy: bool = False, force: bool = False
) -> Export:
    """A finished run's training set in the form of a trainer, in the folder `out`; see `export_plan`.

    Raises:
        UserError: no finished run there, no such target, rows that it cannot carry, or `out` is there already.
    """
    run = load_run(path)
    settings = run.config
    handover = Handover(
        run.pool, run.plan, by, trainers_model(settings.model.path), settings.probes.max_length, settings.seed,
        run.manifest["stages"]["pool"]["chat_template"], quantization=settings.model.quantization,
    )  # fmt: skip
    return export_plan(handover, to, Path(out), lossy, force)


def solve_affinity(
    affinity: Affinity, config: EnergyConfig, out: Path | str, k: int | None = None, exhaustive: bool = False
) -> tuple[Mixture, Selection | None]:
    """Mixture, and selection of at most k tasks, from a matrix, written to `out`: no model, no rows, no counts.

    Raises:
        UserError: a k that the tasks do not allow, or no value of `config.t`.
    """
    with RunDirectory(out) as directory:
        energy = build_energy(None, affinity, config)
        selection = select_tasks(energy, None, k, exhaustive) if k else None
        mixture = solve_mixture(energy, None, {"uniform": None}, selection.chosen if selection else None)
        if selection:
            write_json(directory / "selection.json", selection.to_dict())
        write_json(directory / "mixture.json", mixture.to_dict())
        return mixture, selection
