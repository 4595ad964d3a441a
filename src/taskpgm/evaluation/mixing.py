"""`Mixing`: trainings of mixtures, each evaluated, as work that any worker can do."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskpgm.chat.encoder import Encoded
from taskpgm.config import Config
from taskpgm.evaluation import trl
from taskpgm.evaluation.full_finetuning import Finetuned, train_full
from taskpgm.evaluation.harness import run_harness
from taskpgm.evaluation.loss import Evaluator
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.lm.memory import training_memory
from taskpgm.lm.model import LanguageModel
from taskpgm.lm.trunk import Trunk
from taskpgm.pool.task_pool import Row
from taskpgm.probes.probe import Probe
from taskpgm.probes.training import Trainer
from taskpgm.progress import Progress
from taskpgm.system import Clock
from taskpgm.workers.dispatch import Do

TRUNK_MEMORY = 4 << 30  # bytes of activations of training rows that runs share: a guess, small beside a model
Key = tuple[int, int]  # a row: number of its task, number in the task


class Mixed(NamedTuple):
    """One training: a mixture's rows, step by step."""

    key: str  # of the measurement
    name: str
    config: Config
    steps: Sequence[Sequence[Key]]


class Measured(NamedTuple):
    """What it gave."""

    key: str
    record: dict[str, Any]
    trained: Probe | Finetuned | None  # if it is to be kept


@dataclass(frozen=True)
class Mixing:
    """Trainings that share rows and evaluation; what lies below the adapters is run once a worker."""

    options: CompareOptions
    config: Config
    sets: Mapping[str, Sequence[Row]]  # to evaluate
    rows: Mapping[Key, Encoded]  # to train on
    largest: Sequence[Sequence[Key]]  # steps of the training that takes most memory
    # Evaluator and activations below the adapters of a model in this process, for trainings that are asked for later.
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has a model of its own."""
        return {**vars(self), "kept": {}}

    @property
    def alone(self) -> bool:
        """Other trainers, benchmarks, and every weight at once have the machine to themselves."""
        options = self.options
        return options.trainer != "engine" or options.method != "lora" or bool(options.harness)

    @contextlib.contextmanager
    def opened(self, lm: LanguageModel, progress: Progress) -> Iterator[Do]:
        """Within, what trains and measures a mixture."""
        if self.kept.get("model") is not lm.model:
            self.kept.clear()
            self.kept.update(model=lm.model, evaluator=Evaluator(lm, self.sets, self.config))
        evaluator, trunk = self.kept["evaluator"], None
        if not self.alone:  # now, so that forked processes have it
            trunk = self._trunk(lm)
            trunk.fill(list(self.rows.values()), progress)
            evaluator.fill(trunk.first, progress, bool(self.options.accuracy))

        def do(job: Mixed, progress: Progress) -> Measured:
            clock = Clock()
            steps = [[self.rows[key] for key in step] for step in job.steps]
            trained = train_mixture(lm, self.options, job, steps, progress, trunk)
            seconds = clock.seconds
            graded = self.options.accuracy
            found = evaluator.evaluate(trained, generate=graded is True, grade=bool(graded), progress=progress)
            record = {
                "trained_tokens": trained.trained_tokens,
                "seconds": {"train": seconds, "evaluate": clock.seconds - seconds}, **found.to_dict(),
            }  # fmt: skip
            if self.options.harness:
                record["harness"] = run_harness(
                    lm, trained, self.options.harness, self.options.include, self.options.rows
                )
            return Measured(job.key, record, trained if self.options.keep else None)

        yield do

    def _trunk(self, lm: LanguageModel) -> Trunk:
        """The one that is kept, unless further rows begin otherwise."""
        first, shared = self.config.probes.lora.first_layer(len(lm.layers)), lm.shared_prefix(list(self.rows.values()))
        kept: Trunk | None = self.kept.get("trunk")
        if kept is None or (kept.first, kept.shared) != (first, shared):
            kept = self.kept["trunk"] = Trunk(lm, first, shared, TRUNK_MEMORY)
        return kept

    def memory(self, lm: LanguageModel) -> float:
        """Bytes, roughly, of a training or an evaluation."""
        steps = [[self.rows[key] for key in step] for step in self.largest]
        first = self.config.probes.lora.first_layer(len(lm.layers))
        return max(training_memory(lm, [steps], first), Evaluator(lm, self.sets, self.config).memory)


def train_mixture(
    lm: LanguageModel, options: "CompareOptions", job: Mixed, steps: list[list[Encoded]], progress: Progress,
    trunk: Trunk | None,
) -> Probe | Finetuned:  # fmt: skip
    """The adapter of a training, or its model."""
    if options.trainer == "trl":
        train = trl.train_full_with_trl if options.method == "full" else trl.train_with_trl
        return train(lm, job.name, steps, job.config, progress=progress)
    if options.method == "full":
        return train_full(lm, job.name, steps, job.config, progress)
    return Trainer(lm, job.config, progress=progress).train(job.name, steps, trunk=trunk)
