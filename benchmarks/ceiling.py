"""How much a mixture could gain at all: a search over mixtures of a setting that costs far more than any method may.

    python benchmarks/settings.py OUT
    python benchmarks/ceiling.py OUT [--settings demo,fresh,confirm,skewed] [--draws 64] [--guided 24]

Of every setting: uniform and the default; `--draws` mixtures around uniform, Dirichlet of several concentrations;
`--guided` more, each where a Gaussian process on all before expects the largest improvement; one seed each. Then the
best three, uniform and the default with five fresh seeds, which are what OUT/NAME/ceiling.json reports.

Every training is kept in OUT/NAME/run/compare as it is done, as `compare` keeps its own; a stopped search goes on
where it was. OUT/NAME/search.jsonl has a line a training.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from taskpgm.config import load_config
from taskpgm.data.plan import supply_bounds
from taskpgm.evaluation.baselines import within_supply
from taskpgm.evaluation.compare import CompareOptions, Trainings, training_run
from taskpgm.files import write_json
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.stages import finished_run, open_session

CONCENTRATIONS = (0.7, 1.5, 4.0, 12.0)  # of each task: from sparse to close to uniform
FRESH_SEEDS = range(1, 6)
CANDIDATES = 4000  # mixtures that the acquisition is maximised over


class Search:
    """Trains mixtures of one finished run and remembers their macro loss on the targets."""

    def __init__(self, finished, log):
        self.finished, self.log = finished, log
        self.pool, self.config = finished.result.pool, finished.config
        self.trainings = Trainings(finished, CompareOptions(accuracy=False))
        shares = self.config.target_weights or dict.fromkeys(self.pool.names, 1.0)
        self.shares = {name: weight / sum(shares.values()) for name, weight in shares.items()}

    def allowed(self, p):
        """The mixture within the supply that is nearest to p."""
        weights = dict(zip(self.pool.names, p.tolist(), strict=True))
        return np.array(list(within_supply(weights, *supply_bounds(self.pool, self.config)).values()))

    def loss(self, name, p, seed):
        """Macro loss on the targets after training on p."""
        weights = dict(zip(self.pool.names, p.tolist(), strict=True))
        start = time.perf_counter()
        (found,) = self.trainings.measurements([training_run(self.finished, name, weights, seed)], "searching")
        loss = sum(share * found.loss[s] for s, share in self.shares.items())
        line = {"mixture": name, "seed": seed, "targets": loss, "weights": weights, "loss": dict(found.loss)}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{self.log.parent.name} {name} seed {seed}: {loss:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
        return loss


def draws(search, count):
    """Mixtures around uniform, the concentrations in turn, so that a search that stops early has all of them."""
    for k in range(count):
        alpha = CONCENTRATIONS[k % len(CONCENTRATIONS)]
        p = np.random.default_rng([k, 11]).dirichlet(np.full(len(search.pool.names), alpha))
        yield f"dirichlet {alpha:g} #{k // len(CONCENTRATIONS)}", search.allowed(p)


def proposal(search, tried, losses, k):
    """The mixture of largest expected improvement by a Gaussian process on √p (so that distances are Hellinger's)."""
    x, y = np.sqrt(np.array(tried)), np.array(losses)
    kernel = ConstantKernel(1.0, (0.1, 30)) * Matern(0.5, (0.1, 5), nu=2.5) + WhiteKernel(0.1, (1e-3, 1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=k).fit(x, y)
    random = np.random.default_rng([k, 13])
    best = np.array(tried)[np.argsort(model.predict(x))[:8]]
    near = [random.dirichlet(best[i % 8] * c + 0.02) for i, c in enumerate(random.uniform(10, 200, CANDIDATES // 2))]
    far = random.dirichlet(np.ones(x.shape[1]), CANDIDATES // 2)
    candidates = np.array([search.allowed(p) for p in (*near, *far)])
    mean, error = model.predict(np.sqrt(candidates), return_std=True)
    noise = np.sqrt(model.kernel_.k2.noise_level) * y.std()
    error = np.sqrt(np.maximum(error**2 - noise**2, 1e-12))  # of the loss itself, not of another training
    z = (model.predict(x).min() - mean) / error
    return candidates[np.argmax(error * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))]


def run(search, args):
    default = search.finished.result.mixture.weights
    uniform = search.allowed(np.full(len(search.pool.names), 1 / len(search.pool.names)))
    tried = {"uniform": uniform, "taskpgm": default, **dict(draws(search, args.draws))}
    losses = {name: search.loss(name, p, 0) for name, p in tried.items()}
    for k in range(args.guided):
        name = f"guided #{k}"
        tried[name] = proposal(search, list(tried.values()), list(losses.values()), k)
        losses[name] = search.loss(name, tried[name], 0)
    best = sorted(losses, key=losses.get)[:3]
    names = dict.fromkeys(("uniform", "taskpgm", *best))
    fresh = {name: [search.loss(name, tried[name], seed) for seed in FRESH_SEEDS] for name in names}
    return {name: summary(fresh[name], fresh["uniform"], tried[name], losses[name]) for name in names}


def summary(losses, uniform, p, searched):
    """Percent below uniform, paired by seed, with the 95 % interval of Student's t."""
    gains = 100 * (1 - np.array(losses) / np.array(uniform))
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return {
        "percent below uniform": gains.mean(), "interval": [gains.mean() - half, gains.mean() + half],
        "losses": losses, "loss when searched": searched, "weights": p.tolist(),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="demo,fresh,confirm,skewed")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--guided", type=int, default=24)
    args = parser.parse_args()
    for name in args.settings.split(","):
        folder = args.out.resolve() / name
        if not (folder / "mix.yaml").exists():
            sys.exit(f"{folder} has no mix.yaml; run benchmarks/settings.py {args.out} first.")
        config = load_config(folder / "mix.yaml")
        with contextlib.chdir(folder), open_session(config, "run") as session:
            (folder / "search.jsonl").unlink(missing_ok=True)  # written again from what is kept
            search = Search(finished_run(session, run_session(session)), folder / "search.jsonl")
            found = run(search, args)
        write_json(folder / "ceiling.json", found)
        for mixture, facts in found.items():
            low, high = facts["interval"]
            print(f"{name} {mixture}: {facts['percent below uniform']:.2f} % ({low:.2f} to {high:.2f}) below uniform")


if __name__ == "__main__":
    main()
