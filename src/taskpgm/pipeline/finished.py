"""`FinishedDirectory`: a finished run as it lies on disk, opened without its YAML, and handed to a trainer."""

from functools import cached_property
from pathlib import Path
from typing import Any

from taskpgm.config import Config
from taskpgm.config_file import parse_config
from taskpgm.errors import UserError
from taskpgm.export.handover import By, Handover, trainers_model
from taskpgm.export.write import Export, export_plan
from taskpgm.files import KEY_FILE, Parts, loaded, read_json
from taskpgm.mixture.affinity import Affinity, Gains
from taskpgm.mixture.doubts import few_contexts, more_contexts, unfinished_probes
from taskpgm.mixture.solve import Mixture
from taskpgm.pipeline.directory import differing
from taskpgm.pipeline.inspection import late_lengths
from taskpgm.pipeline.keys import mixture_parts, other_scores
from taskpgm.pool.plan import RowPlan, plan_rows
from taskpgm.pool.task_pool import TaskPool
from taskpgm.probes.cache import TRAINING, read_training
from taskpgm.scores import Scores

OF_MIXTURES = ("mixture.json", "selection.json", "train.jsonl")  # what a selection has of its own
COMMANDS = {"comparison": "compare", "prediction": "predict", "form": "form", "explanation": "explain"}  # by their file


class FinishedDirectory:
    """What a finished run directory holds, read when it is first asked for; nothing is written, nothing computed.

    A selection's folder, `selections/kK` of a run, is its run with the selection's mixture and rows; so is `refined`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        folder, parts = self.path.absolute(), self.path.absolute().parts
        below = 2 if parts[-2:-1] == ("selections",) else 1 if parts[-1:] == ("refined",) else 0
        within = below > 0 and not (self.path / "manifest.json").exists()
        self.run = folder.parents[below - 1] if within else self.path
        self.manifest: dict[str, Any] = self.read_json("manifest.json")

    def __repr__(self) -> str:
        return f"FinishedDirectory({str(self.path)!r}, stages={list(self.manifest.get('stages', {}))})"

    @cached_property
    def config(self) -> Config:
        """The experiment, as the manifest has it."""
        return loaded(lambda path: parse_config(self.manifest["settings"], str(path)), self.run / "manifest.json")

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
            command = "run" if folder == self.run else "refine" if folder.name == "refined" else "select"
            raise UserError(
                f"The mixture in {folder} is not up to date ({why}); run `taskpgm {command}` to choose it anew."
            )

    def _there(self, name: str) -> Path:
        own = self.path if name in OF_MIXTURES else self.run
        if not (own / name).exists():
            if command := COMMANDS.get(name.removesuffix(".json")):
                raise UserError(f"{own} has no {name}; `taskpgm {command}` writes it.")
            raise UserError(f"{own} has no {name}; it is no run directory, or its run has not come so far.")
        return own / name

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the directory as plain data."""
        return loaded(read_json, self._there(name))


def load_run(path: Path | str) -> FinishedDirectory:
    """A finished run directory without its YAML: `.mixture`, `.affinity`, `.scores`, `.pool`, `.plan`, `.comparison`.

    The folder of a selection, `selections/kK`, and `refined` open as their run with the mixture that is there.

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
        format=settings.export.format,
    )  # fmt: skip
    return export_plan(handover, to, Path(out), lossy, force)
