"""How much of what is to be had a handful of trial runs gets, in worlds whose best mixture is known.

    python benchmarks/refine_simulation.py [--worlds 60] [--runs 2,4,8,16] [--no-peers]

A world has 12 tasks and 6 targets of 20 positions each. A position's loss after training on p is a mixing law,
c + k exp(−Σ_i t_i p_i) (arXiv 2403.16952); and every target loses by tasks that are left out: γ KL(u‖p).
In the kind worlds the default is better than uniform in nearly all, in the harsh ones worse in half.
Probes are what the law says of training on one task from a uniform start, their gains off by 40 %. A training's loss
has a noise of 0.4 %. The share of the gain over uniform that the best mixture of the law has is what counts.

Peers at the same number of runs: random search, a Gaussian process on √p with expected improvement, and a linear
regression of the loss on random mixtures whose least predicted loss is taken.
"""

import argparse
import warnings

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LinearRegression

from taskpgm.mixture.bounds import simplex
from taskpgm.mixture.energy import Energy
from taskpgm.mixture.refinement import choose, default_coefficients, least, likely_noise, next_trial, usual_prior
from taskpgm.mixture.surrogate import Features, fit_surrogate, surrogate_energy

TASKS, TARGETS, POSITIONS = 12, 6, 20
NOISE, GAIN_NOISE = 0.004, 0.4
KAPPA = 0.2  # the default's
WORLDS = {"kind": (0.05, 0.5), "harsh": (0.4, 3.0)}  # γ, drawn evenly in its logarithm
U = np.full(TASKS, 1 / TASKS)


class World:
    """A mixing law, and what probes see of it."""

    def __init__(self, number, least, most):
        random = np.random.default_rng([number, 3])
        self.random = np.random.default_rng([number, 5])  # of the trainings' noise
        useful = random.gamma(0.4, 2.0, (TASKS, TARGETS)) - 0.3  # few tasks help a target much, many harm it a little
        self.t = (useful[:, :, None] + random.normal(0, 0.6, (TASKS, TARGETS, POSITIONS))).reshape(TASKS, -1)
        self.k = random.gamma(2.0, 0.5, TARGETS * POSITIONS)
        self.c = random.gamma(2.0, 0.5, TARGETS * POSITIONS)
        self.gamma = float(np.exp(random.uniform(np.log(least), np.log(most))))
        start = self.positions(U)
        gains = start - np.array([self.positions(0.5 * U + 0.5 * e) for e in np.eye(TASKS)])
        gains *= 1 + GAIN_NOISE * random.standard_normal((TASKS, TARGETS)).repeat(POSITIONS, axis=1)
        logp = gains - start
        column, omega = logp.max(axis=0), np.full(TARGETS * POSITIONS, 1 / (TARGETS * POSITIONS))
        tasks, none = tuple("abcdefghijkl"), np.zeros(TASKS)
        energy = Energy(
            "likelihood", tasks, none, none, np.zeros((TASKS, TASKS)), np.exp(logp - column), omega, column, U
        )
        self.features = Features(tasks, energy, gains.mean(axis=1))
        self.uniform = self.loss(U)
        self.best = self._best()

    def positions(self, p):
        return self.c + self.k * np.exp(-p @ self.t)

    def loss(self, p):
        return float(self.positions(p).mean() - self.gamma * np.log(np.maximum(p * TASKS, 1e-9)).mean())

    def trained(self, p):
        """What one training on p measures."""
        return self.loss(p) * (1 + NOISE * self.random.standard_normal())

    def share(self, p):
        """Of the gain that the best mixture has over uniform."""
        return (self.uniform - self.loss(p)) / (self.uniform - self.best)

    def _best(self):
        def value(z):
            p = np.exp(z - z.max())
            return self.loss(p / p.sum())

        return min(optimize.minimize(value, start, method="L-BFGS-B").fun for start in (np.zeros(TASKS), self._lean()))

    def _lean(self):
        return 3 * self.features.gains / np.abs(self.features.gains).max()


def refined(world, runs):
    bounds, prior = simplex(world.features.tasks), usual_prior(world.features, KAPPA)
    mixtures = [U, default(world)]
    losses = [world.trained(p) for p in mixtures]

    def fit():
        noise = likely_noise(world.features, mixtures, losses, NOISE * losses[0], prior)
        return fit_surrogate(world.features, mixtures, losses, noise, prior)

    while len(mixtures) < runs:
        mixtures.append(next_trial(fit(), bounds, len(mixtures)))
        losses.append(world.trained(mixtures[-1]))
    return choose(fit(), bounds).p


def default(world):
    energy = surrogate_energy(world.features, default_coefficients(world.features, KAPPA))
    return least(energy, simplex(world.features.tasks))


def random_search(world, runs):
    tried = [U, *world.random.dirichlet(np.ones(TASKS), runs - 1)]
    return tried[int(np.argmin([world.trained(p) for p in tried]))]


def gaussian_process(world, runs):
    tried = [U, *world.random.dirichlet(np.ones(TASKS), min(3, runs - 1))]
    losses = [world.trained(p) for p in tried]
    while len(tried) < runs:
        model, candidates = _process(world, tried, losses)
        mean, error = model.predict(np.sqrt(candidates), return_std=True)
        z = (min(losses) - mean) / error
        tried.append(candidates[np.argmax(error * (z * stats.norm.cdf(z) + stats.norm.pdf(z)))])
        losses.append(world.trained(tried[-1]))
    model, _ = _process(world, tried, losses)
    return tried[int(np.argmin(model.predict(np.sqrt(np.array(tried)))))]


def _process(world, tried, losses):
    kernel = ConstantKernel(1.0, (0.1, 30)) * Matern(0.5, (0.1, 5), nu=2.5) + WhiteKernel(0.05, (1e-3, 1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    model.fit(np.sqrt(np.array(tried)), losses)
    candidates = world.random.dirichlet(np.ones(TASKS), 1500)
    best = tried[int(np.argmin(losses))]
    return model, np.vstack([candidates, world.random.dirichlet(30 * best + 0.1, 500)])


def linear(world, runs):
    tried = [U, *world.random.dirichlet(np.ones(TASKS), runs - 1)]
    model = LinearRegression().fit(np.array(tried), [world.trained(p) for p in tried])
    candidates = world.random.dirichlet(np.ones(TASKS), 20000)
    return candidates[np.argmin(model.predict(candidates))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--runs", default="2,4,8,16")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    ways = {"default, untested": (lambda w, _: default(w), (0,)), "refine": (refined, None)}
    if args.peers:
        ways |= {"random search": (random_search, None), "Gaussian process": (gaussian_process, None)}
        ways |= {"linear regression": (linear, None)}
    runs = [int(r) for r in args.runs.split(",")]
    table = Table(
        "way", "runs", *(f"{kind}: share" for kind in WORLDS), *(f"{kind}: worse" for kind in WORLDS), box=None
    )
    for name, (way, counts) in ways.items():
        for m in counts or runs:
            shares = [shares_of(way, m, args.worlds, kind) for kind in WORLDS]
            medians, worse = (
                [f"{np.median(one):.2f}" for one in shares],
                [f"{(one < -1e-9).mean():.0%}" for one in shares],
            )
            table.add_row(name, str(m), *medians, *worse)
    Console().print(table)


def shares_of(way, runs, worlds, kind):
    """Share of the best gain that a way has, by world."""
    made = [World(k, *WORLDS[kind]) for k in range(worlds)]
    return np.array([world.share(way(world, runs)) for world in made])


if __name__ == "__main__":
    main()
