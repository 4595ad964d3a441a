"""Other priors than κ KL(u‖p) for the ensemble's loss F: the mixtures they choose, and what those may reach.

    python benchmarks/settings.py OUT                          # and finished runs in OUT/NAME/run
    python benchmarks/priors.py OUT [--settings demo,fresh]

Writes OUT/NAME/PRIOR-KAPPA.json, weights for `taskpgm compare --mixtures`. Where benchmarks/ceiling.py has trained
mixtures of the setting (OUT/NAME/search.jsonl), a Gaussian process on those of seed 0 says what each may reach on the
targets and on the tasks, in percent of uniform's loss.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from taskpgm.config import EnergyConfig, load_config
from taskpgm.files import write_json
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.energy import Energy
from taskpgm.pipeline.run import load_run

PRIORS: dict[str, Callable[[np.ndarray], float]] = {
    "now": lambda p: float(rel_entr(1 / len(p), p).sum()),  # KL(u‖p): no share can vanish
    "entropy": lambda p: float(rel_entr(p, 1 / len(p)).sum()),  # KL(p‖u): none can take all
    "square": lambda p: float(len(p) * ((p - 1 / len(p)) ** 2).sum() / 2),  # χ²(p‖u)/2
}
KAPPAS = (0.05, 0.1, 0.2, 0.3, 0.5)


def least(energy: Energy, prior: Callable[[np.ndarray], float], kappa: float) -> np.ndarray:
    """Where F + κ·prior is least on the simplex: the best of four starts of L-BFGS on logits."""
    n = len(energy.tasks)

    def value(z: np.ndarray) -> float:
        p = np.maximum(softmax(z), 1e-12)
        return energy.loss(p) + kappa * prior(p)

    starts = [np.zeros(n), *(np.random.default_rng(seed).normal(size=n) for seed in range(3))]
    found = [minimize(value, z, method="L-BFGS-B", options={"maxfun": 200_000, "maxiter": 2000}) for z in starts]
    return softmax(min(found, key=lambda one: one.fun).x)


def processes(folder: Path, names: tuple[str, ...]) -> dict[str, Callable[[np.ndarray], tuple[float, float]]]:
    """By what is served, (percent of uniform's loss, its error) of a mixture, if mixtures were searched."""
    path = folder / "search.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line["seed"] == 0]
    if not lines:
        return {}
    x = np.sqrt([[line["weights"][name] for name in names] for line in lines])
    uniform = next(line for line in lines if line["mixture"] == "uniform")

    def fitted(loss: Callable[[dict], float]) -> Callable[[np.ndarray], tuple[float, float]]:
        kernel = ConstantKernel(1.0, (0.1, 300)) * Matern(0.5, (0.1, 20), nu=2.5) + WhiteKernel(0.1, (1e-4, 1))
        model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=0)
        model.fit(x, [loss(line) for line in lines])

        def percent(p: np.ndarray) -> tuple[float, float]:
            mean, error = model.predict(np.sqrt(p)[None], return_std=True)
            return 100 * (mean[0] / loss(uniform) - 1), 100 * error[0] / loss(uniform)

        return percent

    return {
        "targets": fitted(lambda line: line["targets"]),
        "tasks": fitted(lambda line: float(np.mean([line["loss"][name] for name in names]))),
    }


def compare_priors(folder: Path) -> None:
    """Write and print the mixtures of one setting."""
    run, config = load_run(folder / "run"), load_config(folder / "mix.yaml")
    names = run.pool.names
    energy = build_energy(run.scores, None, EnergyConfig(kind="likelihood", prior=0.0), config.target_weights)
    reach = processes(folder, names)
    print(f"{folder.name}: {', '.join(names)}")
    for name, prior in PRIORS.items():
        for kappa in KAPPAS:
            p = least(energy, prior, kappa)
            write_json(folder / f"{name}-{kappa:g}.json", dict(zip(names, p.tolist(), strict=True)))
            said = [f"{what} {mean:+.1f} ± {error:.1f} %" for what, of in reach.items() for mean, error in [of(p)]]
            print(f"  {name:8} {kappa:<5g}", *said, " ".join(f"{100 * share:.0f}" for share in p))


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="demo,skewed,fresh,confirm")
    given = parser.parse_args()
    for name in given.settings.split(","):
        compare_priors(given.out / name)


if __name__ == "__main__":
    main()
