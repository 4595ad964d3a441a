"""Task mixtures for fine-tuning language models, measured with probes.

    from taskpgm import load_config, run

    result = run(load_config("mix.yaml"), "runs/first")
    result.mixture.shares

Names are loaded when they are first used, so that importing the package loads neither torch nor SciPy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Config": "config", "load_config": "config", "parse_config": "config",
    "UserError": "errors",
    "TaskPool": "tasks", "load_tasks": "tasks",
    "ChatEncoder": "chat", "load_tokenizer": "chat",
    "LanguageModel": "lm", "load_model": "lm",
    "Probe": "probes", "load_probe": "probes",
    "train_probes": "training", "train_warm_start": "training",
    "Scores": "scores",
    "score_contexts": "scoring",
    "Affinity": "affinity", "measure_affinity": "affinity", "read_affinity": "affinity",
    "Energy": "energy", "build_energy": "energy",
    "Bounds": "bounds", "Group": "bounds", "make_bounds": "bounds",
    "Mixture": "mixture", "solve_mixture": "mixture",
    "Selection": "selection", "select_tasks": "selection",
    "Explanation": "explanation", "explain": "explanation",
    "KnobPath": "path", "trace_path": "path",
    "verify": "verification",
    "RowPlan": "plan", "plan_rows": "plan",
    "baseline_mixture": "baselines", "within_supply": "baselines",
    "write_train_jsonl": "export",
    "Comparison": "comparison", "Measurement": "comparison", "compare_measurements": "comparison",
    "budget_equivalence": "comparison",
    "Result": "pipeline", "run": "pipeline",
    "RunEstimate": "estimate", "estimate_run": "estimate",
    "Evaluation": "evaluate", "evaluate_probe": "evaluate", "run_harness": "harness", "train_with_trl": "trl_backend",
    "CompareOptions": "compare", "compare_mixtures": "compare",
    "Prediction": "predict", "predict_mixtures": "predict",
}  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'taskpgm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"taskpgm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
