"""What energies and trial runs would reach on the settings of docs/trainings.md, by emulators of their trainings.

    python benchmarks/emulated.py energies|refine OUT [--settings demo,…] [--repeats 8] [--runs 2,4,8]

Of every setting that was searched a Gaussian process on √p and p is fitted to all that evidence.py trained, once for
the targets and once for the tasks, in percent of uniform's loss. It interpolates well where the search was dense and
flatters what is smooth, so this chooses between energies; what is claimed of one is trained.
"""

import argparse
import contextlib
import warnings
from pathlib import Path

import numpy as np
from evidence import SETTINGS
from outcome import Outcome, parts, seed_noise, signed, table
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from taskpgm.config import EnergyConfig
from taskpgm.config_file import load_config
from taskpgm.evaluation.refine import USUAL_NOISE, WORTH, run_features
from taskpgm.mixture import refinement
from taskpgm.mixture.energies import PRIOR, build_energy
from taskpgm.mixture.limits import keep_tasks
from taskpgm.mixture.optimum import minimise, nearest_to_uniform
from taskpgm.mixture.refinement import choose, hoped_for, likely_noise, next_trial, usual_prior
from taskpgm.mixture.surrogate import fit_surrogate
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import allowed_shares


class Emulated:
    """Changes of the losses against uniform, in percent, of any mixture of one setting."""

    def __init__(self, one):
        self.one, self.bounds = one, allowed_shares(one.pool, one.finished.config)
        self.uniform = nearest_to_uniform(self.bounds)
        mixtures, counts, changes = one.all_trained
        self.loss = parts(one, "targets")[1]
        self.noise = {what: 100 * seed_noise(one, what) for what in changes}
        self.models = {}
        for what, change in changes.items():
            y = 100 * change
            kernel = ConstantKernel(9.0, (0.1, 1e4)) * Matern(1.0, (0.1, 20), nu=2.5)
            kernel += ConstantKernel(1.0, (1e-3, 1e4)) * DotProduct(1.0, (1e-3, 1e2))
            model = GaussianProcessRegressor(kernel, alpha=self.noise[what] ** 2 / counts, random_state=0)
            self.models[what] = model.fit(np.sqrt(mixtures), y - y.mean()), y.mean()
        self.best = min(self.change(p, "targets") for p in mixtures)

    def change(self, p, what):
        model, mean = self.models[what]
        points = np.sqrt(np.array([p, self.uniform]))
        here, zero = model.predict(points) + mean
        return float(here - zero)


# Balance, prior and limit on each task's loss: a grid, the defaults, and those before them.
ENERGIES = (
    *((b, k, None) for b in (0, 0.25, 0.5, 1) for k in (0.05, 0.1, 0.2, 0.3, 0.5)),
    (0.25, 0.275, None), (0.45, 0.145, None), *((0.2, 0.12, limit) for limit in (None, 0.05, 0.06, 0.08)),
)  # fmt: skip


def energies(worlds):
    """Mixtures of several balances, priors and limits."""
    rows = {}
    for balance, prior, limit in ENERGIES:
        found = [solved(world, balance, prior, limit) for world in worlds]
        kept = f", limit {limit:.0%}" if limit else ""
        changes = [world.change(p, "targets") for world, p in zip(worlds, found, strict=True)]
        shares = [change / world.best for change, world in zip(changes, worlds, strict=True)]
        name = f"balance {balance:g}, prior {prior:g}{kept} (median share {np.median(shares):.2f}): targets / tasks"
        rows[name] = [
            f"{signed(change)} / {signed(w.change(p, 'tasks'))}"
            for w, p, change in zip(worlds, found, changes, strict=True)
        ]
    return rows


def solved(world, balance, prior, limit=None):
    result, config = world.one.finished.result, world.one.finished.config
    wanted = EnergyConfig(prior=prior, balance=balance, max_task_loss=limit)
    energy = build_energy(result.scores, result.affinity, wanted, config.target_weights)
    return minimise(keep_tasks(energy, result.scores, wanted, world.bounds), world.bounds).p


def refine(worlds, runs, repeats):
    """Mean gain of the choice after so many trials, and its share of the best mixture's that was trained."""
    rows = {}
    for count in runs:
        found = [[refined(world, count, repeat) for repeat in range(repeats)] for world in worlds]
        rows[f"refine, {count} runs"] = [signed(np.mean(of)) for of in found]
        shares = [np.mean(of) / world.best for of, world in zip(found, worlds, strict=True)]
        print(f"refine {count}: median share {np.median(shares):.2f}, worst {max(map(max, found)):+.1f} %", flush=True)
    return rows


def refined(world, count, repeat):
    """Change on the targets of what `refine` would choose with the targets alone served."""
    result = world.one.finished.result
    alone = world.one.finished.config.model_copy(update={"energy": EnergyConfig(balance=0.0)})
    features, loss = run_features(alone, result), world.loss
    prior, random = usual_prior(features, PRIOR["likelihood"]), np.random.default_rng([repeat, 5])

    def measured(p):
        return loss * (1 + (world.change(p, "targets") + random.normal() * world.noise["targets"]) / 100)

    mixtures = [world.uniform, solved(world, 0.0, PRIOR["likelihood"])]
    losses = [loss, measured(mixtures[1])]  # with uniform's own noise taken into every other's
    while True:
        noise = likely_noise(features, mixtures, losses, USUAL_NOISE * loss, prior)
        fit = fit_surrogate(features, mixtures, losses, noise, prior, repeat)
        improvement, error = hoped_for(fit, world.bounds)
        if len(mixtures) == count or improvement < WORTH * error:
            return world.change(choose(fit, world.bounds).p, "targets")
        mixtures.append(next_trial(fit, world.bounds, len(mixtures)))
        losses.append(measured(mixtures[-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("energies", "refine"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--runs", default="2,4,8")
    parser.add_argument("--divergence", type=float, default=refinement.DIVERGENCE_ERROR, help="refine's error of it")
    args = parser.parse_args()
    refinement.DIVERGENCE_ERROR = args.divergence
    warnings.simplefilter("ignore")
    names, worlds = args.settings.split(","), []
    with contextlib.ExitStack() as opened:
        names = [name for name in names if (args.out / name / "ceiling.json").exists()]
        for name in names:
            folder = args.out.resolve() / name
            with contextlib.chdir(folder):
                session = opened.enter_context(open_session(load_config(folder / "mix.yaml"), folder / "run"))
                worlds.append(Emulated(Outcome(folder, session)))
        print("best that was trained:", {n: signed(world.best) for n, world in zip(names, worlds, strict=True)})
        runs = [int(count) for count in args.runs.split(",")]
        rows = energies(worlds) if args.what == "energies" else refine(worlds, runs, args.repeats)
        print(table(names, rows))


if __name__ == "__main__":
    main()
