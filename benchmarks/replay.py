"""What each way of choosing a mixture would have picked of those that a ceiling search has trained. Trains nothing.

    python benchmarks/ceiling.py OUT --settings demo
    python benchmarks/replay.py OUT [--settings demo] [--runs 4,8,16] [--orders 20] [--merged]

From OUT/NAME/search.jsonl, losses of one seed. A way sees uniform and m − 1 of the Dirichlet draws (refine: uniform,
the default, and m − 2), in `--orders` random orders, and picks the mixture of least predicted loss among all that were
trained. Shown are that pick's measured gain over uniform, in the mean over orders, and the rank correlation of its
predictions with the losses that it had not seen. The best with hindsight is picked from noisy losses, so it flatters:
ceiling.json, with fresh seeds, is the ceiling. Tokens of probes are not counted: `refine` and the last rows need them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from peers import probes, regressions
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from taskpgm.config_file import load_config
from taskpgm.evaluation.refine import USUAL_NOISE, run_features, run_kappa
from taskpgm.mixture.refinement import likely_noise, usual_prior
from taskpgm.mixture.surrogate import fit_surrogate
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run

REGRESSIONS = {
    "RegMix": regressions.regmix,
    "olmix": regressions.olmix,
    "Gaussian process": regressions.gaussian_process,
}


class Trained:
    """The mixtures of a search, each with its loss of seed 0."""

    def __init__(self, path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        first = {line["mixture"]: line for line in lines if line["seed"] == 0}
        self.names = list(first)
        self.mixtures = np.array([list(line["weights"].values()) for line in first.values()])
        self.losses = np.array([line["targets"] for line in first.values()])
        self.draws = [i for i, name in enumerate(self.names) if name.startswith("dirichlet")]
        self.uniform, self.default = self.names.index("uniform"), self.names.index("taskpgm")

    def gain(self, i):
        """Percent below uniform."""
        return 100 * (1 - self.losses[i] / self.losses[self.uniform])


def replay(trained, way, runs, orders, needs_default=False):
    """(gains, ranks) of the picks of a way over random orders."""
    gains, ranks = [], []
    for k in range(orders):
        begin = [trained.uniform, *([trained.default] if needs_default else [])]
        drawn = np.random.default_rng([k, 19]).permutation(trained.draws)[: runs - len(begin)]
        seen = np.array([*begin, *drawn], dtype=int)
        predicted = way(trained.mixtures[seen], trained.losses[seen], trained.mixtures, k)
        gains.append(trained.gain(int(np.argmin(predicted))))
        rest = np.setdiff1d(np.arange(len(trained.losses)), seen)
        ranks.append(spearmanr(predicted[rest], trained.losses[rest]).statistic)
    return gains, ranks


def random_search(mixtures, losses, candidates, seed):
    """The best of what was trained; infinite for the rest."""
    seen = {p.tobytes(): loss for p, loss in zip(mixtures, losses, strict=True)}
    return np.array([seen.get(p.tobytes(), np.inf) for p in candidates])


def refine(features, kappa):
    """The surrogate of `taskpgm refine`, as a way."""
    prior = usual_prior(features, kappa)

    def way(mixtures, losses, candidates, seed):
        trials = list(mixtures), list(losses)
        noise = likely_noise(features, *trials, USUAL_NOISE * losses.mean(), prior)
        fit = fit_surrogate(features, *trials, noise, prior, seed)
        return np.array([fit.loss(p) for p in candidates])

    return way


def show(folder, args, screen):
    trained = Trained(folder / "search.jsonl")
    table = Table("way", "runs", "gain of the pick", "rank correlation", box=None)

    def row(name, runs, gains, ranks=None):
        shown = "" if ranks is None or np.isnan(ranks).all() else f"{np.nanmean(ranks):.2f}"
        table.add_row(name, str(runs), f"{np.mean(gains):+.1f} %", shown)

    with open_session(load_config(folder / "mix.yaml"), folder / "run") as session:
        result = solved(session)
        finished = finished_run(session, result)
        features, kappa = run_features(session.config, result), run_kappa(session.config, result)
        row("the default, untested", 0, [trained.gain(trained.default)])
        for m in (int(m) for m in args.runs.split(",")):
            row("refine", m, *replay(trained, refine(features, kappa), m, args.orders, needs_default=True))
            for name, way in REGRESSIONS.items():
                row(name, m, *replay(trained, way, m, args.orders))
            row("random search", m, *replay(trained, random_search, m, args.orders))
        ensemble = np.array([features(p) @ np.r_[0, 1, 0, kappa, np.zeros(len(p))] for p in trained.mixtures])
        ways = {"ensemble, no run": ensemble}
        if args.merged:
            ways["Merge-to-Mix, no run"] = probes.merge_to_mix(finished, trained.mixtures)
        for name, predicted in ways.items():
            rank = spearmanr(predicted, trained.losses).statistic
            row(name, 0, [trained.gain(int(np.argmin(predicted)))], [rank])
    best = int(np.argmin(trained.losses))
    screen.rule(f"{folder.name}: {len(trained.losses)} mixtures trained")
    screen.print(table)
    screen.print(f"the best with hindsight: {trained.names[best]}, {trained.gain(best):+.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="demo")
    parser.add_argument("--runs", default="4,8,16")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--merged", action="store_true", help="also Merge-to-Mix, which runs the model")
    args = parser.parse_args()
    for name in args.settings.split(","):
        show(args.out.resolve() / name, args, Console(width=100))


if __name__ == "__main__":
    main()
