"""All trainings that docs/trainings.md reports, of one setting or several side by side on a GPU.

    python benchmarks/settings.py OUT …            # data; then of each
    taskpgm run OUT/NAME/mix.yaml --out OUT/NAME/run
    python benchmarks/evidence.py mixtures OUT     # other mixtures from the same probes, as OUT/NAME/mixtures/*.json
    python benchmarks/evidence.py train OUT [--settings …] [--seconds N] [--plain]   # trainings, kept in OUT/NAME/run
    python benchmarks/evidence.py named|ceiling|peers|refined|budgets|priced|chosen|probed OUT …   # one part alone
    python benchmarks/outcome.py OUT               # the tables of docs/trainings.md

Parts: named mixtures with six seeds; the ceiling (ceiling.py); what peers choose from its draws, at once, twice and
four times the tokens of our probes, with three fresh seeds; `refine` with 2 and 8 runs; mixtures at 4 and 16 times the
budget, and such as are chosen at those, for the targets alone and by the default; what peers choose that read our
probes. --plain trains one by one, as `compare` does, on a machine without a GPU: days. After --seconds no further part
begins.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
from ceiling import Search, confirmed, draws, search_mixtures, uniform
from peers import probes, regressions
from stacked import StackedTrainings

from taskpgm.config import AffinityConfig, EnergyConfig
from taskpgm.config_file import load_config
from taskpgm.evaluation import refine
from taskpgm.evaluation.baselines import within_supply
from taskpgm.evaluation.compare import TrainingRun, Trainings, _seeded, mixture_weights
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.files import write_json
from taskpgm.mixture.affinity import measure_affinity
from taskpgm.mixture.energies import build_energy
from taskpgm.mixture.solve import solve_mixture
from taskpgm.pipeline.run import run_session, solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import allowed_shares, finished_run, solve
from taskpgm.pool.plan import plan_rows, supply_bounds

SETTINGS = "demo,skewed,nlp,fresh,confirm,further,lookups,codes,words"
BASELINES = ("uniform", "size", "taskpgm", "temperature:2", "random")
SEEDS, FRESH, PEER_SEEDS, BUDGET_SEEDS = range(6), range(1, 6), range(1, 4), range(3)
TIMES = (0.5, 2, 4, 16)  # the budget
PRIOR = 0.2  # of mixtures for the targets alone that are trained at other budgets
DRAWN = 32  # mixtures that Merge-to-Mix picks from, beside uniform: each takes a pass over the contexts
REPLICATES = 2  # disjoint sets of draws that a peer chooses from
WAYS = {"regmix": regressions.regmix, "olmix": regressions.olmix, "gp": regressions.gaussian_process}
# Beside balance0, the default's energy on the targets alone. Name: serves (targets or tasks), energy, affinity.
# balance0.25 and prior0.2 were the defaults, with targets and for them alone, until revision 81e1e46.
VARIANTS = {
    **{f"prior{k}": ("targets", {"prior": k}, {}) for k in (0.05, 0.2)},
    "balance0.25": ("targets", {"balance": 0.25, "prior": 0.275}, {}),
    "balance0.5": ("targets", {"balance": 0.5, "prior": 0.35}, {}),
    "gain": ("targets", {"kind": "gain"}, {}),
    **{f"pool-prior{k}": ("tasks", {"prior": k}, {}) for k in (0.1, 0.2, 0.5)},
    "paper-pmi": ("tasks", {"kind": "affinity", "t": 2.0}, {"kind": "pmi"}),
}


def targets_alone(config, prior=None):
    """The same settings, the tasks themselves counting nothing."""
    energy = config.energy.model_copy(update={"balance": 0.0, "prior": prior, "max_task_loss": None})
    return config.model_copy(update={"energy": energy})


def write_mixtures(folder):
    """Mixtures of the setting's own probes by other energies."""
    with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
        result, config = solved(session), session.config
        (folder / "mixtures").mkdir(exist_ok=True)
        alone = solve(result.pool, result.scores, targets_alone(config)).mixture
        write_json(folder / "mixtures" / "balance0.json", dict(alone.shares))
        for name, (served, energy, affinity) in VARIANTS.items():  # copies count as tasks here
            scores = result.scores.without_targets() if served == "tasks" else result.scores
            weights = {} if served == "tasks" else config.target_weights
            found = measure_affinity(scores, AffinityConfig.model_validate(affinity))
            built = build_energy(scores, found, EnergyConfig.model_validate(energy), weights)
            mixture = solve_mixture(built, allowed_shares(result.pool, config))
            write_json(folder / "mixtures" / f"{name}.json", dict(mixture.shares))
            print(folder.name, name, {n: round(p, 3) for n, p in mixture.shares.items()})


class Evidence:
    """One setting's trainings."""

    def __init__(self, folder, session, plain):
        self.folder = folder
        self.finished = finished_run(session, solved(session))
        trainings = (Trainings if plain else StackedTrainings)(self.finished, CompareOptions(accuracy=False))
        refine.Trainings = Trainings if plain else StackedTrainings
        self.search = Search(self.finished, trainings, folder / "search.jsonl")
        tasks = len(self.finished.result.pool.names)
        probes = self.finished.config.probes
        # Rows of all probes and the warm start, which is three times as long, in trainings of the budget.
        self.cost = max(3, round((tasks + 3) * probes.examples / self.finished.config.budget.size))

    def named(self):
        """Mixtures by name and seed: a file's is the same for all seeds."""
        files = sorted((self.folder / "mixtures").glob("*.json"))
        fixed = {f.stem: json.loads(f.read_text()) for f in files}
        for seed in SEEDS:
            config = _seeded(self.finished.config, seed)
            of_seed = mixture_weights(config, self.finished.result, BASELINES, seed)
            yield from ((name, seed, weights) for name, weights in (of_seed | fixed).items())

    def train_named(self):
        self.measure((name, seed, weights, 1) for name, seed, weights in self.named())

    def train_ceiling(self):
        write_json(self.folder / "ceiling.json", confirmed(self.search, *search_mixtures(self.search, 64, 24, 8)))

    def train_peers(self):
        """What peers pick of many candidates, knowing uniform and some of the draws."""
        drawn = draws(self.search, 64)
        mixtures = np.array([uniform(self.search), *drawn.values()])
        names = ["uniform", *drawn]
        losses = np.array([loss for (loss,) in self.search.losses(dict(zip(names, mixtures, strict=True))).values()])
        random = np.random.default_rng(17)
        alphas = random.choice((0.7, 1.5, 4.0, 12.0), 3000)
        candidates = np.array([self.search.allowed(random.dirichlet(np.full(mixtures.shape[1], a))) for a in alphas])
        picks = {}
        for runs in (self.cost, 2 * self.cost, 4 * self.cost):
            for j in range(REPLICATES):
                order = np.random.default_rng([runs, 23]).permutation(np.arange(1, 65))
                seen = np.r_[0, order[j * 32 :][: runs - 1]]
                picks[f"random search {runs} #{j}"] = mixtures[seen[np.argmin(losses[seen])]]
                for way, predict in WAYS.items():
                    predicted = predict(mixtures[seen], losses[seen], candidates, j)
                    picks[f"{way} {runs} #{j}"] = candidates[np.argmin(predicted)]
        write_json(self.folder / "peers.json", {name: p.tolist() for name, p in picks.items()})
        self.search.losses(picks, PEER_SEEDS, "peers")

    def train_probed(self):
        """What Merge-to-Mix picks of uniform and the draws, and the paper's mixture by JSD."""
        path = self.folder / "probed.json"
        if not path.exists():
            drawn = np.array([uniform(self.search), *draws(self.search, DRAWN).values()])
            merged = drawn[np.argmin(probes.merge_to_mix(self.finished, drawn))]
            write_json(path, {"merge-to-mix": merged.tolist(), "paper-jsd": self.by_divergence().tolist()})
        picks = {name: np.array(p) for name, p in json.loads(path.read_text()).items()}
        self.search.losses({"uniform": uniform(self.search), **picks}, PEER_SEEDS, "peers that read probes")

    def by_divergence(self):
        """The paper's mixture, on a copy of the run whose contexts are scored again for it."""
        if not (self.folder / "run-jsd").exists():
            shutil.copytree(self.folder / "run", self.folder / "run-jsd", ignore=shutil.ignore_patterns("compare"))
        update = {"affinity": AffinityConfig(kind="jsd")}
        config = load_config(self.folder / "mix.yaml").model_copy(update=update)
        with open_session(config, "run-jsd") as session:
            return probes.paper(run_session(session), "jsd")

    def train_refined(self):
        """`refine` from the same run, the targets alone served."""
        found, config = self.finished.result, targets_alone(self.finished.config)
        alone = replace(self.finished, config=config, result=solve(found.pool, found.scores, config))
        for runs in (2, 8):
            found = refine.run_refinement(alone, refine.RefineOptions(runs, seeds=5))
            write_json(self.folder / f"refine-{runs}.json", found.surface())
            print(self.folder.name, "refine", runs, found.sentence, "|", found.ended, flush=True)

    def train_priced(self):
        """Mixtures for the targets alone that are chosen at other budgets, where rows seen again have a price."""
        for times in (t for t in TIMES if t > 2):
            if (weights := self.priced(times)) is not None:
                self.measure(("priced", seed, weights, times) for seed in BUDGET_SEEDS)

    def priced(self, times):
        """Shares of the mixture for the targets alone that is chosen at so many budgets; None beyond the supply."""
        return self.shares(targets_alone(self.at(times), PRIOR))

    def train_chosen(self):
        """What the default chooses at other budgets, uniform and by size there."""
        named = {(name, seed): weights for name, seed, weights in self.named()}
        for times in (t for t in TIMES if t > 2):
            weights = self.chosen(times)
            for seed in BUDGET_SEEDS if weights else ():
                others = [(name, seed, named[name, seed], times) for name in ("uniform", "size")]
                self.measure([("chosen", seed, weights, times), *others])

    def chosen(self, times):
        """The same of the default."""
        return self.shares(self.at(times))

    def shares(self, config):
        found = self.finished.result
        return solve(found.pool, found.scores, config).mixture.shares if self.supplied(config) else None

    def at(self, times, seed=0):
        """The settings of a seed at so many budgets."""
        config = _seeded(self.finished.config, seed)
        budget = config.budget.model_copy(update={config.budget.unit: round(config.budget.size * times)})
        return config.model_copy(update={"budget": budget})

    def supplied(self, config):
        """Whether the tasks have the rows; said if not."""
        supply = sum(task.rows for task in self.finished.result.pool.tasks) * config.budget.max_epochs
        if supply < config.budget.size:
            print(f"{self.folder.name}: {config.budget.size} rows are more than the {supply} of the tasks", flush=True)
        return supply >= config.budget.size

    def train_budgets(self):
        """Uniform, by size and the default at other budgets, within what the tasks then supply."""
        for times in TIMES:
            names = ("uniform", "size", f"prior{PRIOR}") if times > 2 else ("uniform",)
            self.measure(
                (name, seed, weights, times) for name, seed, weights in self.named()
                if name in names and seed in (BUDGET_SEEDS if times > 4 else SEEDS[:5])
            )  # fmt: skip

    def measure(self, asked):
        """Train mixtures by name, seed, weights and multiple of the budget."""
        runs = []
        for name, seed, weights, times in asked:
            config = self.at(times, seed)
            if not self.supplied(config):
                return
            weights = within_supply(weights, *supply_bounds(self.finished.result.pool, config))
            plan = plan_rows(self.finished.result.pool, weights, config)
            runs.append(TrainingRun(name if times == 1 else f"{name}@{times:g}", seed, weights, config, plan))
        self.search.trainings.measurements(runs, "evidence")


PARTS = ("named", "ceiling", "peers", "refined", "budgets", "priced", "chosen", "probed")


def train(folder, parts, seconds, plain):
    """Whether all parts that were begun came to their end; one that fails does not keep the others from theirs."""
    started, whole = time.perf_counter(), True
    with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
        (folder / "search.jsonl").unlink(missing_ok=True)
        evidence = Evidence(folder, session, plain)
        for part in parts:
            if (passed := time.perf_counter() - started) > seconds:
                print(f"{folder.name}: {part} left out after {passed:.0f} s", flush=True)
                break
            try:
                getattr(evidence, f"train_{part}")()
            except Exception:
                traceback.print_exc()
                whole = False
            print(f"== {folder.name} {part}: ended at {time.perf_counter() - started:.0f} s", flush=True)
    return whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mixtures", "train", *PARTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--tokens", type=int, default=StackedTrainings.tokens, help="of a step of a stack")
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    folders = [args.out.resolve() / name for name in args.settings.split(",")]
    if args.what == "mixtures":
        for folder in folders:
            write_mixtures(folder)
    elif len(folders) == 1:
        StackedTrainings.tokens = args.tokens
        parts = PARTS if args.what == "train" else (args.what,)
        sys.exit(not train(folders[0], parts, args.seconds, args.plain))
    else:  # a process each, side by side on the device
        given = [sys.executable, __file__, args.what, str(args.out), *(["--plain"] if args.plain else [])]
        given += ["--seconds", str(args.seconds), "--tokens", str(args.tokens)]
        working = [subprocess.Popen([*given, "--settings", f.name]) for f in folders]
        sys.exit(max(one.wait() for one in working))


if __name__ == "__main__":
    main()
