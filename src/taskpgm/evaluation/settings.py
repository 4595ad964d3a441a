"""What a comparison trains, and how it evaluates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OURS = "taskpgm"  # the run's own mixture, by name


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how runs are trained and evaluated."""

    mixtures: tuple[str, ...] = (OURS, "uniform", "size")
    seeds: int = 3
    budgets: tuple[float, ...] = ()  # multiples of the budget at which uniform is trained too, for the equivalence
    trainer: str = "engine"  # or trl
    method: str = "lora"  # or full: every weight of the model
    learning_rate: float | None = None  # probes.learning_rate if left out; of full fine-tuning FULL_LEARNING_RATE
    accuracy: bool | Literal["options"] = True  # grade answers too: by options alone, or by writing as well
    keep: bool = False  # adapters stay in the run directory; a training whose adapter did not is made again
    rows: int | None = None  # rows a set that are evaluated, at most
    harness: tuple[str, ...] = ()  # benchmarks of lm-evaluation-harness, run on every adapter
    include: Path | None = None  # folder or file of the harness's local tasks
