"""Task mixtures for fine-tuning language models, measured with probes.

    from taskpgm import load_config, run

    result = run(load_config("mix.yaml"), "runs/first")
    result.mixture.shares

Names are loaded when they are first used, so that importing the package loads neither torch nor SciPy.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Config": "config", "load_config": "config_file", "parse_config": "config_file", "UserError": "errors",
    "run": "pipeline.run", "load_run": "pipeline.finished", "plot": "report", "Result": "evaluation.result",
    "TaskPool": "pool.task_pool", "load_tasks": "pool.task_pool", "RowPlan": "pool.plan", "plan_rows": "pool.plan",
    "load_model": "lm.loading", "train_probes": "probes.training", "score_contexts": "probes.scoring",
    "Scores": "scores", "Progress": "progress",
    "Affinity": "mixture.affinity", "measure_affinity": "mixture.affinity", "read_affinity": "mixture.affinity",
    "Energy": "mixture.energy", "build_energy": "mixture.energies", "make_bounds": "mixture.bounds",
    "Mixture": "mixture.solve", "solve_mixture": "mixture.solve", "Selection": "mixture.selection",
    "select_tasks": "mixture.selection", "explain": "mixture.explanation", "verify": "mixture.verification",
    "CompareOptions": "evaluation.settings", "compare_mixtures": "pipeline.run",
    "Comparison": "evaluation.statistics", "predict_mixtures": "pipeline.run",
    "form_of_gain": "pipeline.form", "Form": "evaluation.form",
    "train": "pipeline.train", "TrainOptions": "pipeline.train", "Trained": "pipeline.train",
    "export_run": "pipeline.finished", "Export": "export.write",
    "refine": "pipeline.refine", "RefineOptions": "evaluation.refine", "Refinement": "evaluation.refine",
}  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'taskpgm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"taskpgm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
