"""The experiments of docs/results.md: every setting's mixtures trained, evaluated, compared and predicted.

    python benchmarks/results.py OUT [--settings demo,skewed,nlp,fresh,confirm] [--mixtures …] [--seeds 5]
        [--random 10] [--spread] [--pool DIR --targets DIR]

A stopped run goes on where it was. Each setting gets OUT/NAME/run (comparison.json, report.html, prediction.json),
OUT/NAME/results.md the tables. Variants are other mixtures from the same probes, trained like the rest.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from taskpgm.cli.tables import comparison_view, prediction_table
from taskpgm.config import AffinityConfig, EnergyConfig, load_config
from taskpgm.evaluation.compare import CompareOptions, run_comparison
from taskpgm.evaluation.predict import run_prediction
from taskpgm.files import write_json
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.optimum import minimise
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.stages import (
    allowed_shares,
    choose_energy,
    finished_run,
    make_pool,
    make_probes,
    make_scores,
    open_session,
)

BASELINES = ("uniform", "size", "temperature:2", "random", "smart")
# Mixtures that are chosen without the targets, as the paper does, and other ways with them.
VARIANTS = {
    "pool-likelihood": ("tasks", {"kind": "likelihood"}, {}),
    "pool-ratio-t2": ("tasks", {"kind": "affinity", "t": 2.0}, {"kind": "ratio"}),
    "pool-pmi-t2": ("tasks", {"kind": "affinity", "t": 2.0}, {"kind": "pmi"}),
    "gain": ("targets", {"kind": "gain"}, {}),
    "pool-gain": ("tasks", {"kind": "gain"}, {}),
    "likelihood-prior0.05": ("targets", {"kind": "likelihood", "prior": 0.05}, {}),
    "likelihood-prior0.5": ("targets", {"kind": "likelihood", "prior": 0.5}, {}),
    "pool-likelihood-prior0.2": ("tasks", {"kind": "likelihood", "prior": 0.2}, {}),
    "pool-likelihood-prior0.05": ("tasks", {"kind": "likelihood", "prior": 0.05}, {}),
}
screen = Console(width=110)


def variants(finished, folder, wanted_names):
    """Paths of weights files of these variants, by the run's own scores."""
    pool, scores = finished.result.pool, finished.result.scores
    paths = []
    for name in wanted_names:
        wanted, energy, affinity = VARIANTS[name]
        own = scores.without_targets() if wanted == "tasks" else scores
        config = EnergyConfig.model_validate(energy)
        found = measure_affinity(own, AffinityConfig.model_validate(affinity))
        weights = {} if wanted == "tasks" else finished.config.target_weights
        mixture = solve_mixture(build_energy(own, found, config, weights), allowed_shares(pool, finished.config))
        write_json(folder / f"{name}.json", dict(mixture.shares))
        paths.append(f"{name}.json")
    return tuple(paths)


def randoms(finished, folder, count):
    """Paths of weights files of random mixtures, to see how predictions rank them: Dirichlet draws, a little uneven."""
    tasks = finished.result.pool.names
    for k in range(count):
        weights = np.random.default_rng([k, 7]).dirichlet(np.full(len(tasks), 0.7))
        write_json(folder / f"random-{k}.json", dict(zip(tasks, weights.tolist(), strict=True)))
    return tuple(f"random-{k}.json" for k in range(count))


def probe_spread(finished):
    """How far apart the default's mixtures are by two probes a task, each seed alone, in total variation."""
    kept = Path("run-seeds")
    if not kept.exists():
        shutil.rmtree("run-seeds.part", ignore_errors=True)
        shutil.copytree("run", "run-seeds.part", ignore=shutil.ignore_patterns("compare", ".*"))
        Path("run-seeds.part").rename(kept)
    probes = finished.config.probes.model_copy(update={"seeds": 2})
    config = finished.config.model_copy(update={"probes": probes})
    with open_session(config, kept) as session:
        pool = make_pool(session)
        make_probes(session, pool)
        scores = make_scores(session, pool)
    energy = choose_energy(scores, measure_affinity(scores, config.affinity), pool, config)
    bounds = allowed_shares(pool, config)
    one, other = (minimise(replicate, bounds).p for replicate in energy.seeds)
    return float(abs(one - other).sum() / 2)


def run(folder, args, report):
    names = args.mixtures.split(",")
    budgets = tuple(float(b) for b in args.budgets.split(",")) if args.budgets else ()
    config = load_config(folder / "mix.yaml")
    with contextlib.chdir(folder), open_session(config, "run") as session:
        finished = finished_run(session, run_session(session))
        files = variants(finished, Path(), [name for name in names if name in VARIANTS])
        mixtures = ("taskpgm", *(name for name in names if name not in VARIANTS), *files)
        options = CompareOptions(mixtures, args.seeds, budgets, accuracy=False, rows=args.rows)
        if drawn := randoms(finished, Path(), args.random):
            run_comparison(finished, CompareOptions(("taskpgm", *drawn), 1, (), accuracy=False, rows=args.rows))
        unseen = None
        if "pool-likelihood.json" in files:  # chosen without the targets, as the paper does
            blind = replace(options, mixtures=("pool-likelihood.json", "uniform", "size"), budgets=())
            unseen, _ = run_comparison(finished, blind)
        comparison, facts = run_comparison(finished, options)
        predictions, ranks = run_prediction(finished, mixtures)
        with contextlib.suppress(ImportError):
            from taskpgm.report.build import write_report

            write_report(Path("run"))
        moved = probe_spread(finished) if args.spread else None
    paper = Console(width=110, file=report, color_system=None)
    report.write(f"\n## {folder.name}\n\n```\n")
    views = [comparison_view(one) for one in (comparison, unseen) if one]
    for part in (*views, prediction_table(predictions)):
        paper.print(part)
    report.write(json.dumps(ranks) + "\n")
    if facts:
        report.write(facts["budget equivalence"]["sentence"] + "\n")
    if moved is not None:
        report.write(f"the mixture from another draw of probes: {moved:.3f} away in total variation\n")
    report.write("```\n")
    report.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="demo,skewed,fresh,confirm")
    parser.add_argument("--mixtures", default=",".join((*BASELINES, *VARIANTS)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", default="0.5,2,4")
    parser.add_argument("--random", type=int, default=10, help="random mixtures, one seed each, for the predictions")
    parser.add_argument("--spread", action="store_true", help="the mixture from another draw of probes too")
    parser.add_argument("--rows", type=int, default=None, help="rows a set to evaluate at most")
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--targets", type=Path)
    args = parser.parse_args()
    command = [sys.executable, str(Path(__file__).with_name("settings.py")), str(args.out)]
    if args.pool:
        command += ["--pool", str(args.pool), "--targets", str(args.targets)]
    subprocess.run(command, check=True)
    for name in args.settings.split(","):
        screen.rule(name)
        with (args.out / name / "results.md").open("w") as report:
            run(args.out / name, args, report)


if __name__ == "__main__":
    main()
