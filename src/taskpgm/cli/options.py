"""Options that belong together, as dataclasses: `bundled` gives a command one option for each of their fields."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from taskpgm.config import EnergyConfig
from taskpgm.errors import UserError

if TYPE_CHECKING:
    from taskpgm.evaluation.refine import RefineOptions
    from taskpgm.evaluation.settings import CompareOptions
    from taskpgm.mixture.trials import Metric

ConfigFile = Annotated[
    Path, typer.Argument(help="The experiment's YAML file; `taskpgm init` writes one.", metavar="MIX.YAML")
]
OptionalConfig = Annotated[
    Path | None,
    typer.Argument(
        help="The experiment's YAML file; not needed with a matrix or results of your own.",
        metavar="[MIX.YAML]",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run directory; made if missing, resumed if not.", metavar="DIR")
]
All = Annotated[bool, typer.Option("--all", help="Show every task, however many there are.")]
Mixtures = Annotated[
    str,
    typer.Option(
        help="The first is judged against the others: taskpgm, uniform, size, size:CAP, temperature:T, random, smart, "
        "or a weights file (.json, .yaml).",
        metavar="LIST",
    ),
]


@dataclass(frozen=True)
class Matrix:
    """An affinity matrix of one's own, and what becomes of it."""

    affinity: Annotated[
        Path | None, typer.Option(help="A symmetric affinity matrix: .csv with names, .npy or .npz.", metavar="FILE")
    ] = None
    t: Annotated[
        float | None,
        typer.Option("--t", help="With --affinity: utility against redundancy (0 least redundant, 1 uniform).", min=0),
    ] = None
    ridge: Annotated[
        float | None,
        typer.Option(
            help="With --affinity: adds this times K's mean curvature on the simplex to its diagonal (0).", min=0
        ),
    ] = None

    @property
    def energy(self) -> EnergyConfig:
        """The energy of the matrix.

        Raises:
            UserError: no t, or one that is infinite.
        """
        if self.t is None:
            raise UserError(
                "An affinity matrix needs --t: utility against redundancy, such as 2; see docs/how-to-choose.md."
            )
        for option, value in (("--t", self.t), ("--ridge", self.ridge or 0.0)):
            if not math.isfinite(value):
                raise UserError(f"{option} {value:g} is no finite number; give one such as 2.")
        return EnergyConfig(kind="affinity", t=self.t, ridge=self.ridge or 0.0)

    def check_unused(self) -> None:
        """
        Raises:
            UserError: settings for a matrix, where none is given.
        """
        for option, value, setting in (("--t", self.t, "energy.t"), ("--ridge", self.ridge, "energy.ridge")):
            if value is not None:
                raise UserError(f"{option} is for --affinity; of a run, set {setting} in its YAML file.")


@dataclass(frozen=True)
class Choice:
    """How tasks are selected."""

    k: Annotated[int, typer.Option("-k", help="Use at most so many tasks.", min=1)]
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Look at every set; at most 20 tasks.")] = False
    sample: Annotated[bool, typer.Option("--sample", help="Also write the selection's training set.")] = False


@dataclass(frozen=True)
class Comparing:
    """What `compare` compares, and how."""

    mixtures: Mixtures = "taskpgm,uniform,size"
    seeds: Annotated[int, typer.Option(help="Trainings of each mixture.", min=1, metavar="N")] = 3
    budgets: Annotated[
        str,
        typer.Option(
            help="Also train uniform at these multiples of the budget: 0.5,2,4; gives the equivalence.", metavar="LIST"
        ),
    ] = ""
    trainer: Annotated[str, typer.Option(help="engine (this project's) or trl (SFTTrainer).", metavar="NAME")] = (
        "engine"
    )
    method: Annotated[str, typer.Option(help="lora, or full to train every weight of the model.", metavar="NAME")] = (
        "lora"
    )
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak of the schedule; as the probes', or 5e-5 for full.", min=0, metavar="RATE"),
    ] = None
    accuracy: Annotated[bool, typer.Option(help="Mark answers too: options, verifiers, exact match.")] = True
    rows: Annotated[int | None, typer.Option(help="Rows a set to evaluate at most.", min=1, metavar="N")] = None
    keep: Annotated[bool, typer.Option("--keep", help="Keep the adapters, or with --method full the models.")] = False
    harness: Annotated[
        str, typer.Option(help="Also run these tasks of lm-evaluation-harness on every adapter.", metavar="TASKS")
    ] = ""
    include: Annotated[
        Path | None, typer.Option(help="Folder or file of the harness's local tasks.", metavar="PATH")
    ] = None

    @property
    def options(self) -> "CompareOptions":
        """The same, parsed.

        Raises:
            UserError: a mixture, a trainer, a method, a rate or a budget that is none.
        """
        from taskpgm.evaluation.baselines import parse_mixtures
        from taskpgm.evaluation.settings import CompareOptions

        if self.trainer not in ("engine", "trl"):
            raise UserError(f"--trainer is engine or trl, not {self.trainer!r}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate {self.learning_rate:g} is none; give one above 0, or leave it out.")
        if self.method not in ("lora", "full"):
            raise UserError(f"--method is lora or full, not {self.method!r}.")
        if self.include and not self.harness:
            raise UserError(f"--include {self.include} is for --harness, which was not given; add --harness TASK.")
        budgets = tuple(numbers(self.budgets, "--budgets")) if self.budgets else ()
        return CompareOptions(
            parse_mixtures(self.mixtures), self.seeds, budgets, self.trainer, self.method, self.learning_rate,
            self.accuracy, self.keep, self.rows, tuple(task for task in self.harness.split(",") if task), self.include,
        )  # fmt: skip


@dataclass(frozen=True)
class Placing:
    """Where a run is to be, for its estimate."""

    workers: Annotated[
        int | None, typer.Option(help="As if so many worked side by side, like one of this machine.", min=1)
    ] = None
    device: Annotated[
        str | None,
        typer.Option(help="As if each had this device, by name: h100, a100-80g, l4 and others.", metavar="NAME"),
    ] = None
    price: Annotated[float | None, typer.Option(help="Of a device for an hour; gives the money.", min=0)] = None
    quick: Annotated[
        bool, typer.Option("--quick", help="Run nothing, read no weight: rates from a matrix product.")
    ] = False


@dataclass(frozen=True)
class Exporting:
    """To which trainer, and how."""

    to: Annotated[str, typer.Option(help="The trainer or format; --list has them.", metavar="TARGET")] = ""
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder that is not there yet.", metavar="DIR")] = None
    by: Annotated[
        str, typer.Option(help="rows: files hold the planned rows; counts, shares: the trainer draws them.")
    ] = "rows"
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave out parts of rows that the format has no place for.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False
    show: Annotated[bool, typer.Option("--list", help="List the targets.")] = False


@dataclass(frozen=True)
class Training:
    """How `train` trains."""

    full: Annotated[bool, typer.Option("--full", help="Train every weight instead of an adapter.")] = False
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule; 2e-4, or 2e-5 with --full.")] = None
    batch: Annotated[int, typer.Option(help="Rows of an optimiser step.")] = 16
    epochs: Annotated[int, typer.Option(help="Passes over train.jsonl; the plan's repeats are in it.")] = 1
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Do not keep the order of train.jsonl.")] = False


@dataclass(frozen=True)
class Refining:
    """How trials are spent, or which results take their place."""

    runs: Annotated[
        int | None, typer.Option(help="Trial runs: uniform, the default, then where it is least sure (8).")
    ] = None
    rows: Annotated[
        int | None,
        typer.Option(help="Size of a trial, in the unit of the budget; the budget itself if left out.", min=1),
    ] = None
    seeds: Annotated[int | None, typer.Option(help="Fresh seeds that confirm the choice against uniform (3).")] = None
    results: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Runs you have, CSV: a column a task, and metrics. Nothing is trained.", metavar="CSV"
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(help="With --from, columns: loss (default), or accuracy:max; several: a:max:2,b:min:1."),
    ] = None

    @property
    def options(self) -> "RefineOptions":
        """How trials are spent.

        Raises:
            UserError: a metric, which is for results.
        """
        from taskpgm.evaluation.refine import RefineOptions

        if self.metric is not None:
            raise UserError("--metric is for --from; trials are judged by their loss.")
        return RefineOptions(8 if self.runs is None else self.runs, self.rows, 3 if self.seeds is None else self.seeds)

    @property
    def metrics(self) -> "tuple[Metric, ...]":
        """What results are judged by.

        Raises:
            UserError: none that there is, or a number of trials, of which there are none.
        """
        from taskpgm.mixture.trials import parse_metrics

        if any(given is not None for given in (self.runs, self.rows, self.seeds)):
            raise UserError("--from trains nothing; leave out --runs, --rows and --seeds, or --from.")
        return parse_metrics(self.metric or "loss")


def numbers(text: str, option: str) -> list[float]:
    """Numbers with commas between.

    Raises:
        UserError: something else.
    """
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 0.1,1,10, not {text!r}.") from None


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each field of those of its parameters that are dataclasses."""
    hints = get_type_hints(command, include_extras=True)
    bundles: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in bundles:
            of_fields = get_type_hints(bundles[name], include_extras=True)
            flat += [_parameter(field, of_fields[field.name]) for field in fields(bundles[name])]
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def typed(**given: Any) -> None:
        for name, kind in bundles.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    vars(typed)["__signature__"] = inspect.Signature(flat)
    typed.__annotations__ = {one.name: one.annotation for one in flat}
    return typed


def _parameter(field: "Field[Any]", hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
