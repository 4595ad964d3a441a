"""How much a mixture could gain at all: a search over mixtures of a setting that costs far more than any method may.

    python benchmarks/settings.py OUT
    python benchmarks/ceiling.py OUT [--settings demo,fresh,confirm,skewed] [--draws 64] [--guided 24] [--stacked]

Of every setting: uniform and the default; `--draws` mixtures around uniform, Dirichlet of several concentrations;
`--guided` more, each where a Gaussian process on all before expects the largest improvement; one seed each. Then the
best three, uniform and the default with five fresh seeds, which are what OUT/NAME/ceiling.json reports. --stacked
trains many at once, for a GPU (stacked.py); the guided ones then come eight at a time.

Every training is kept in OUT/NAME/run/compare as it is done, as `compare` keeps its own; a stopped search goes on
where it was. OUT/NAME/search.jsonl has a line a training.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from stacked import StackedTrainings

from taskpgm.config_file import load_config
from taskpgm.evaluation.baselines import within_supply
from taskpgm.evaluation.compare import Trainings, training_run
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.files import write_json
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run
from taskpgm.pool.plan import supply_bounds

CONCENTRATIONS = (0.7, 1.5, 4.0, 12.0)  # of each task: from sparse to close to uniform
FRESH_SEEDS = range(1, 6)
CANDIDATES = 4000  # mixtures that the acquisition is maximised over


class Search:
    """Trains mixtures of one finished run and remembers their macro loss on the targets."""

    def __init__(self, finished, trainings, log):
        self.finished, self.trainings, self.log = finished, trainings, log
        self.pool, self.config = finished.result.pool, finished.config
        shares = self.config.target_weights or dict.fromkeys(self.pool.names, 1.0)
        self.shares = {name: weight / sum(shares.values()) for name, weight in shares.items()}

    def allowed(self, p):
        """The mixture within the supply that is nearest to p."""
        weights = dict(zip(self.pool.names, p.tolist(), strict=True))
        return np.array(list(within_supply(weights, *supply_bounds(self.pool, self.config)).values()))

    def losses(self, mixtures, seeds=(0,), what="searching"):
        """Macro losses on the targets by mixture, a list over seeds, after training on each."""
        tasks = self.pool.names
        runs = [
            training_run(self.finished, name, dict(zip(tasks, p.tolist(), strict=True)), seed)
            for name, p in mixtures.items()
            for seed in seeds
        ]
        losses = {name: [] for name in mixtures}
        for run, found in zip(runs, self.trainings.measurements(runs, what), strict=True):
            loss = sum(share * found.loss[s] for s, share in self.shares.items())
            losses[run.name].append(loss)
            line = {"mixture": run.name, "seed": run.seed, "targets": loss, "weights": dict(run.weights)}
            with self.log.open("a") as file:
                file.write(json.dumps({**line, "loss": dict(found.loss)}) + "\n")
            print(f"{self.log.parent.name} {run.name} seed {run.seed}: {loss:.4f}", flush=True)
        return losses


def draws(search, count):
    """Mixtures around uniform, the concentrations in turn, so that a search that stops early has all of them."""
    found = {}
    for k in range(count):
        alpha = CONCENTRATIONS[k % len(CONCENTRATIONS)]
        p = np.random.default_rng([k, 11]).dirichlet(np.full(len(search.pool.names), alpha))
        found[f"dirichlet {alpha:g} #{k // len(CONCENTRATIONS)}"] = search.allowed(p)
    return found


def proposals(search, tried, losses, k, count):
    """Mixtures of largest expected improvement by a Gaussian process on √p (so that distances are Hellinger's).

    Each after the first takes the losses of those before it to be what is expected of them.
    """
    x, y = np.sqrt(np.array(tried)), np.array(losses)
    kernel = ConstantKernel(1.0, (0.1, 30)) * Matern(0.5, (0.1, 5), nu=2.5) + WhiteKernel(0.1, (1e-3, 1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=k).fit(x, y)
    random = np.random.default_rng([k, 13])
    best = np.array(tried)[np.argsort(model.predict(x))[:8]]
    near = [random.dirichlet(best[i % 8] * c + 0.02) for i, c in enumerate(random.uniform(10, 200, CANDIDATES // 2))]
    far = random.dirichlet(np.ones(x.shape[1]), CANDIDATES // 2)
    candidates = np.array([search.allowed(p) for p in (*near, *far)])
    noise, found = np.sqrt(model.kernel_.k2.noise_level) * y.std(), []
    for _ in range(count):
        mean, error = model.predict(np.sqrt(candidates), return_std=True)
        error = np.sqrt(np.maximum(error**2 - noise**2, 1e-12))  # of the loss itself, not of another training
        z = (model.predict(x).min() - mean) / error
        at = np.argmax(error * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))
        found.append(candidates[at])
        x, y = np.vstack([x, np.sqrt(candidates[at])]), np.append(y, mean[at])
        model = GaussianProcessRegressor(model.kernel_, optimizer=None, normalize_y=True).fit(x, y)
    return found


def search_mixtures(search, number, guided, at_once=1):
    """(mixtures, losses of seed 0) of uniform, the default, the draws and the guided ones."""
    tried = {"uniform": uniform(search), "taskpgm": search.finished.result.mixture.weights, **draws(search, number)}
    losses = search.losses(tried)
    for k in range(0, guided, at_once):
        known = [loss for (loss,) in losses.values()]
        found = proposals(search, list(tried.values()), known, k, min(at_once, guided - k))
        new = {f"guided #{k + i}": p for i, p in enumerate(found)}
        tried |= new
        losses |= search.losses(new)
    return tried, {name: loss for name, (loss,) in losses.items()}


def uniform(search):
    return search.allowed(np.full(len(search.pool.names), 1 / len(search.pool.names)))


def confirmed(search, tried, losses):
    """The best three, uniform and the default, with fresh seeds."""
    names = dict.fromkeys(("uniform", "taskpgm", *sorted(losses, key=losses.get)[:3]))
    fresh = search.losses({name: tried[name] for name in names}, FRESH_SEEDS, "confirming")
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
    parser.add_argument("--stacked", action="store_true")
    args = parser.parse_args()
    for name in args.settings.split(","):
        folder = args.out.resolve() / name
        if not (folder / "run" / "scores.npz").exists():
            sys.exit(f"{folder} has no run; `taskpgm run {folder}/mix.yaml --out {folder}/run` first.")
        with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
            (folder / "search.jsonl").unlink(missing_ok=True)  # written again from what is kept
            finished = finished_run(session, solved(session))
            kind = StackedTrainings if args.stacked else Trainings
            trainings = kind(finished, CompareOptions(accuracy=False))
            search = Search(finished, trainings, folder / "search.jsonl")
            tried, losses = search_mixtures(search, args.draws, args.guided, 8 if args.stacked else 1)
            found = confirmed(search, tried, losses)
        write_json(folder / "ceiling.json", found)
        for mixture, facts in found.items():
            low, high = facts["interval"]
            print(f"{name} {mixture}: {facts['percent below uniform']:.2f} % ({low:.2f} to {high:.2f}) below uniform")


if __name__ == "__main__":
    main()
