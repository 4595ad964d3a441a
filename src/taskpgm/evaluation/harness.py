"""Named benchmarks and local task files, by lm-evaluation-harness, on the model under an adapter.

The harness (https://github.com/EleutherAI/lm-evaluation-harness) gets the model that is loaded already, with the
adapter in it. Named benchmarks fetch their data from the hub; a local task file needs nothing but the data that it
names.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskpgm.errors import UserError, first_line
from taskpgm.evaluation.full_finetuning import Finetuned, under
from taskpgm.lm.model import LanguageModel
from taskpgm.probes.probe import Probe

ROWS_AT_ONCE = 8  # the harness counts rows, not tokens, and keeps all their logits


def run_harness(
    lm: LanguageModel,
    probe: Probe | Finetuned | None,
    tasks: Sequence[str],
    include: Path | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics by task (acc, acc_norm, exact_match, …, and their standard errors as acc_stderr), groups included.

    Examples before questions are as many as the task says, and questions stand in the chat template if there is one.

    Args:
        lm: the base model; unchanged afterwards.
        probe: None for the base model.
        tasks: names of benchmarks, groups or local tasks (what their files call `task`).
        include: a YAML file or a folder of them; a task in it goes before the harness's own of that name.
        limit: at most so many rows a task; all when None.

    Raises:
        UserError: lm-eval is not installed, a task is unknown, or its data cannot be read.
    """
    manager = find_tasks(tasks, include)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with under(lm, probe), _quiet(), _padding_kept(lm.tokenizer):
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=ROWS_AT_ONCE), tasks=list(tasks),
            limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=1000,
            apply_chat_template=bool(lm.tokenizer.chat_template),
            random_seed=None, numpy_random_seed=None, torch_random_seed=None, fewshot_random_seed=0,
        )  # fmt: skip
    return {task: _metrics(values) for task, values in found["results"].items()}


def find_tasks(tasks: Sequence[str], include: Path | None) -> Any:
    """Manager that has all the tasks; the harness's own thousands of files are read only if they are asked for.

    Raises:
        UserError: as `run_harness`, before any model is run.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401 (as needed later as the tasks are)
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"Benchmarks need {error.name}, which is not installed; pip install 'taskpgm[harness]'."
        ) from error
    if include is not None and not include.exists():
        raise UserError(f"The task file or folder {include} does not exist; check its path.")
    folder = include if include is None or include.is_dir() else include.parent
    with _quiet():
        for own in (False, True) if folder else (True,):
            manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=own)
            unknown = [task for task in tasks if task not in manager.all_tasks]
            if not unknown:
                _check_loads(manager, tasks)
                return manager
    where = f" or in {folder}" if folder else ""
    raise UserError(
        f"lm-evaluation-harness has no task {unknown[0]!r}{where}; `lm-eval ls tasks` lists its own, and a local "
        "file's name is what it calls `task`."
    )


def _check_loads(manager: Any, tasks: Sequence[str]) -> None:
    """Raise UserError if a task's file or data is wrong, before the model runs; data come from the cache later."""
    for task in tasks:
        try:
            manager.load([task])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a task file makes it do
            raise UserError(
                f"lm-evaluation-harness cannot load the task {task!r} ({first_line(error)}); check its file, its data "
                "and the connection."
            ) from error


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Numbers by metric; 'acc,none' is acc, and 'exact_match,strict' stays apart as exact_match,strict."""
    numbers = {key: value for key, value in values.items() if "," in key and isinstance(value, int | float)}
    return {key.removesuffix(",none"): float(value) for key, value in numbers.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _padding_kept(tokenizer: Any) -> Iterator[None]:
    """Afterwards the tokenizer pads as before: the harness sets the side and the token."""
    side, token = tokenizer.padding_side, tokenizer.pad_token
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.pad_token = side, token
