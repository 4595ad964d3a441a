"""The tables of docs/trainings.md, in Markdown, from the trainings of evidence.py. Trains nothing.

    python benchmarks/outcome.py OUT [--settings demo,skewed,nlp,fresh,confirm,further,lookups,codes,words]

Differences are in percent of the reference's loss, paired by seed, with 95 % intervals of Student's t over seeds; bold
where they exclude zero. What was not trained is left out; a setting without a search has the first tables alone.
"""

import argparse
import contextlib
import json
import re
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from evidence import BUDGET_SEEDS, FRESH, PEER_SEEDS, PRIOR, SEEDS, SETTINGS, TIMES, Evidence
from scipy import optimize, stats
from scipy.special import rel_entr

from taskpgm.config_file import load_config
from taskpgm.evaluation.baselines import within_supply
from taskpgm.evaluation.compare import _seeded
from taskpgm.mixture.affinity import mean_logp
from taskpgm.mixture.energies import ensemble_loss
from taskpgm.mixture.energy import repeated
from taskpgm.mixture.expected import LEVEL, expected_change
from taskpgm.mixture.surrogate import Features
from taskpgm.pipeline.session import open_session
from taskpgm.pool.plan import budget_of, supply_bounds

BUDGETED = f"prior{PRIOR}"  # what was trained at other budgets
RANDOM = {"uniform", "size", "temperature:2", "random"}  # baselines, of which some are drawn again for every seed


class Outcome:
    """What was trained of one setting."""

    def __init__(self, folder, session):
        self.folder = folder
        self.evidence = Evidence(folder, session, plain=True)
        self.finished = self.evidence.finished
        self.pool = self.finished.result.pool
        self.sets = {"targets": [s.name for s in self.pool.targets], "tasks": list(self.pool.names)}
        self.shares = {(name, seed): weights for name, seed, weights in self.evidence.named()}

    @cached_property
    def records(self):
        """(weights (m, n), records) by seed and rows."""
        found = {}
        for path in sorted((self.finished.folder / "compare").glob("*.json")):
            record = json.loads(path.read_text())
            found.setdefault((record["seed"], record["rows"]), []).append(record)
        return {key: (np.array([list(r["weights"].values()) for r in of]), of) for key, of in found.items()}

    def record(self, weights, seed, times=1):
        """What the training on that mixture measured; None if none was made. Solvers agree to far less than a row."""
        config = _seeded(self.finished.config, seed)
        rows = round(config.budget.size * times)
        config = config.model_copy(update={"budget": config.budget.model_copy(update={config.budget.unit: rows})})
        mixtures, records = self.records.get((seed, rows), (np.zeros((0, len(weights))), []))
        if not records:
            return None
        p = np.array(list(within_supply(weights, *supply_bounds(self.pool, config)).values()))
        far = abs(mixtures - p).sum(1)
        return records[int(far.argmin())] if far.min() < 1e-3 else None

    def losses(self, weights_by_seed, what, times=1):
        """Macro loss on the targets or tasks by seed."""
        found = {seed: self.record(weights, seed, times) for seed, weights in weights_by_seed.items()}
        return {
            seed: float(np.mean([record["sets"][name]["token_loss"] for name in self.sets[what]]))
            for seed, record in found.items() if record
        }  # fmt: skip

    def named(self, name, seeds=SEEDS):
        return {seed: self.shares[name, seed] for seed in seeds if (name, seed) in self.shares}

    def against(self, weights_by_seed, reference, what, times=1):
        """Percent by which losses are above a named mixture's, by seed."""
        found = self.losses(weights_by_seed, what, times)
        other = self.losses(self.named(reference, weights_by_seed), what, times)
        return np.array([100 * (found[seed] / other[seed] - 1) for seed in sorted(found.keys() & other.keys())])

    @cached_property
    def all_trained(self):
        """(mixtures (m, n), trainings of each (m,), changes in parts of uniform's loss by what is served (m,))."""
        uniform = {what: self.losses(self.named("uniform"), what) for what in self.sets}
        found = {}
        for (seed, rows), (_, records) in self.records.items():
            if rows != self.finished.config.budget.size or seed not in uniform["tasks"]:
                continue
            for record in records:
                found.setdefault(tuple(np.round(list(record["weights"].values()), 9)), {})[seed] = {
                    what: np.mean([record["sets"][n]["token_loss"] for n in names]) / uniform[what][seed] - 1
                    for what, names in self.sets.items()
                }
        means = {
            what: [np.mean([c[what] for c in by_seed.values()]) for by_seed in found.values()] for what in self.sets
        }
        changes = {what: np.array(of) for what, of in means.items()}
        return np.array(list(found)), np.array([len(v) for v in found.values()]), changes


def cell(differences, digits=1):
    """Mean and interval, bold where it excludes zero."""
    if len(differences) == 0:
        return "–"
    mean = differences.mean()
    if len(differences) == 1:
        return signed(mean, digits)
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    shown = f"**{signed(mean, digits)}**" if abs(mean) > half else signed(mean, digits)
    return f"{shown} ({signed(mean - half, digits)} to {signed(mean + half, digits)})"


def signed(x, digits=1):
    shown = f"{x:+.{digits}f}".replace("-", "−")
    return shown if float(f"{x:.{digits}f}") else shown[1:]


def table(settings, rows):
    lines = ["| | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join((name, *cells)) + " |" for name, cells in rows.items()])


def compared(outcomes, names, references=("uniform",), sets=("targets", "tasks")):
    """Rows of mixtures against references."""
    return {
        f"{name}, on the {what}, against {reference}": [
            cell(one.against(one.named(name), reference, what)) for one in outcomes
        ]
        for name in names for what in sets for reference in references
    }  # fmt: skip


def gain_of(one, weights, seeds):
    return -one.against(dict.fromkeys(seeds, weights), "uniform", "targets").mean()


def ceilings(outcomes):
    """Best of a search by fresh seeds, and what share of it the mixtures have."""
    rows, best = {}, []
    for one in outcomes:
        found = json.loads((one.folder / "ceiling.json").read_text())
        best.append(max(v["percent below uniform"] for k, v in found.items() if k not in ("uniform", "taskpgm")))
    rows["best of the search, percent below uniform"] = [f"{b:.1f}" for b in best]
    for name in ("taskpgm", "balance0", "balance0.25", "prior0.2"):
        gains = [gain_of(one, one.named(name)[1], FRESH) for one in outcomes]
        shares = np.array(gains) / best
        rows[f"{name}, share of it"] = [f"{share:.2f}" for share in shares]
        print(f"{name}: median share {np.median(shares):.2f}")
    return rows, best


def peers(outcomes, best):
    """What ways choose that see a few trainings, at multiples of the tokens that our probes take."""
    rows = {}
    for one in outcomes:
        picks = json.loads((one.folder / "peers.json").read_text())
        runs = sorted({int(re.search(r"(\d+) #", name).group(1)) for name in picks})
        for name, p in picks.items():
            way, count = re.match(r"(.*) (\d+) #", name).groups()
            times = 2 ** runs.index(int(count))
            weights = dict(zip(one.pool.names, p, strict=True))
            rows.setdefault((way, times), {}).setdefault(one.folder.name, []).append(-gain_of(one, weights, PEER_SEEDS))
    shown = {
        name: [signed(-gain_of(one, one.named(ours)[1], PEER_SEEDS)) for one in outcomes]
        for name, ours in (("the default, no run", "taskpgm"), ("targets alone, no run", "balance0"))
    }
    for name, what in (("merge-to-mix", "Merge-to-Mix, no run"), ("paper-jsd", "the paper's, by JSD, no run")):
        shown[what] = [probed(one, name) for one in outcomes]
    for (way, times), by_setting in sorted(rows.items(), key=lambda item: (item[0][1], item[0][0])):
        means = [float(np.mean(by_setting[one.folder.name])) for one in outcomes]
        shown[f"{way}, {times} × the tokens"] = [signed(mean) for mean in means]
        print(f"{way} {times}: median share of the ceiling {np.median(-np.array(means) / best):.2f}")
    return shown


def probed(one, name):
    """Percent of uniform's loss on the targets of what a peer chose that reads probes."""
    path = one.folder / "probed.json"
    if not path.exists():
        return "–"
    weights = dict(zip(one.pool.names, json.loads(path.read_text())[name], strict=True))
    return signed(-gain_of(one, weights, PEER_SEEDS))


def refined(outcomes, best):
    rows = {}
    for runs in (2, 8):
        gains, shown = [], []
        for one in outcomes:
            path = one.folder / f"refine-{runs}.json"
            if not path.exists():
                gains.append(np.nan)
                shown.append("–")
                continue
            found = json.loads(path.read_text())
            confirmed = found["confirmation"]
            difference = next(d for d in confirmed["differences"] if d["quantity"] == "targets") if confirmed else None
            gains.append(-100 * difference["relative"] if difference else 0.0)
            shown.append(f"{gains[-1]:.1f} ({len(found['trials'])})")
        rows[f"refine, {runs} runs: percent below uniform (runs made)"] = shown
        print(f"refine {runs}: median share {np.nanmedian(np.array(gains) / best):.2f}")
    return rows


def budgets(outcomes):
    rows = {}
    for times in (1, *(t for t in TIMES if t > 2)):
        seeds = SEEDS if times == 1 else SEEDS[:5] if times < 16 else BUDGET_SEEDS
        for what in ("targets", "tasks"):
            rows[f"targets alone, {288 * times} rows, on the {what}, against uniform"] = [
                cell(one.against(one.named(BUDGETED, seeds), "uniform", what, times)) for one in outcomes
            ]
        if times > 1:
            priced = [one.evidence.priced(times) for one in outcomes]
            for what in ("targets", "tasks"):
                for reference in ("uniform", BUDGETED, "size"):
                    rows[f"chosen for {288 * times} rows, targets alone, on the {what}, against {reference}"] = [
                        cell(one.against(dict.fromkeys(BUDGET_SEEDS, p), reference, what, times) if p else [])
                        for one, p in zip(outcomes, priced, strict=True)
                    ]
        rows[f"by size, {288 * times} rows, on the targets, against uniform"] = [
            cell(one.against(one.named("size", seeds), "uniform", "targets", times)) for one in outcomes
        ]
    for times in (0.5, 1, 2, 4, 16):
        means = [list(one.losses(one.named("uniform", SEEDS[:5]), "targets", times).values()) for one in outcomes]
        rows[f"uniform's loss on the targets, {288 * times:.0f} rows"] = [
            f"{np.mean(m):.3f}" if m else "–" for m in means
        ]
    return rows


def chosen(outcomes):
    """What the default chooses at 4 and 16 times the budget, trained there."""
    rows = {}
    for times in (t for t in TIMES if t > 2):
        found = [one.evidence.chosen(times) for one in outcomes]
        for what, reference in product(("targets", "tasks"), ("uniform", "size")):
            rows[f"chosen for {288 * times} rows, on the {what}, against {reference}"] = [
                cell(one.against(dict.fromkeys(BUDGET_SEEDS, p), reference, what, times) if p else [])
                for one, p in zip(outcomes, found, strict=True)
            ]
    return rows


def fading(outcomes):
    """Prints how the changes of prior0.2 and by size against uniform fit (θ₁ ΔF + θ₃ ΔKL) t^−a + θ₄ min(t/16, 1) ΔR."""
    rows = []
    for one in outcomes:
        scores, config = one.finished.result.scores, one.finished.config
        energy = ensemble_loss(scores, scores.target_weights(config.target_weights))
        u = np.full(len(scores.tasks), 1 / len(scores.tasks))
        for times in (1, *(t for t in TIMES if t > 2)):
            seeds = SEEDS if times == 1 else SEEDS[:5] if times < 16 else BUDGET_SEEDS
            budget = budget_of(one.pool, one.evidence.at(times))
            once = np.array([budget.once[name] for name in scores.tasks])
            for name in (BUDGETED, "size"):
                change = one.against(one.named(name, seeds), "uniform", "targets", times)
                if len(change):
                    supply = supply_bounds(one.pool, one.evidence.at(times))
                    p, q = (
                        np.array(list(within_supply(w, *supply).values()))
                        for w in (one.named(name)[0], dict(zip(scores.tasks, u, strict=True)))
                    )
                    measures = (energy.loss, lambda x, u=u: rel_entr(x, u).sum(), lambda x, o=once: repeated(x, o))
                    differences = [100 * (measure(p) - measure(q)) for measure in measures]
                    differences[0] /= energy.loss(u)
                    error = np.hypot(change.std(ddof=1) / np.sqrt(len(change)), FORM_ERROR)
                    rows.append((times, *differences, change.mean(), error))
    t, ensemble, divergence, again, change, error = np.array(rows).T

    def residuals(theta):
        expected = (theta[0] * ensemble + theta[1] * divergence) * t ** -theta[2]
        return (change - expected - theta[3] * np.minimum(t / 16, 1) * again) / error

    found = optimize.least_squares(residuals, [1.0, 0.1, 0.5, 0.05])
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    names = ("F", "KL", "a", "R")
    print("fading:", ", ".join(f"{n} {x:.3f} ± {e:.3f}" for n, x, e in zip(names, found.x, errors, strict=True)))


FORM_ERROR = 1.5  # percent: what the form of `fading` misses, a guess


def parts(one, what):
    """(features of all trained mixtures but θ₀'s, F(u), spread of F's slope)."""
    scores = one.finished.result.scores
    w = scores.target_weights(one.finished.config.target_weights) if what == "targets" else scores.task_weights()
    energy, M = ensemble_loss(scores, w), mean_logp(scores)
    of = Features(scores.tasks, energy, (M[1:] - M[0]) @ w)
    mixtures = one.all_trained[0]
    return np.array([of(p)[1:] for p in mixtures]), energy.loss(of.uniform), float(np.std(energy.gradient(of.uniform)))


def seed_noise(one, what):
    """Standard deviation of one training's change, from mixtures with several seeds."""
    spreads = [
        one.against(one.named(name), "uniform", what).var(ddof=1) for name in ("prior0.2", "balance0.25", "balance0.5")
    ]
    return float(np.sqrt(np.mean(spreads))) / 100


def likelihood(theta, data):
    """−log of all changes' likelihood under normal priors (θ, errors, ρ's spread, misfit), with weak hyperpriors."""
    total = sum(((a - b) / c) ** 2 / 2 for a, b, c in zip(theta, HYPER, HYPER_ERROR, strict=True))
    for X, loss, slope, noise, count, change in data:
        mean, error, misfit = moments(theta, X, loss, slope)
        root = np.linalg.cholesky((X * error) @ (X * error).T / loss**2 + np.diag(noise**2 / count + misfit**2))
        white = np.linalg.solve(root, change - mean)
        total += np.log(np.diag(root)).sum() + white @ white / 2
    return total


# Mixtures that some energy chose.
CHOSEN = (
    "taskpgm", "balance0", "balance0.25", "balance0.5", "prior0.2", "prior0.05", "gain", "pool-prior0.2",
    "pool-prior0.5",
)  # fmt: skip
HYPER = np.array([1, 0, 0.2, *np.log([0.5, 0.5, 0.1, 1.0, 0.01])])
HYPER_ERROR = np.array([0.5, 0.5, 0.2, 1, 1, 1, 1, 1])


def moments(theta, X, loss, slope):
    """(mean changes, errors of the coefficients, misfit)."""
    n = X.shape[1] - 3
    error = np.r_[np.exp(theta[3:6]), np.full(n, np.exp(theta[6]) * slope)]
    return X @ np.r_[theta[:3], np.zeros(n)] / loss, error, np.exp(theta[7])


def calibration(outcomes, what="targets"):
    """The priors by all settings, and how often intervals from all other settings held in the one left out."""
    data = [
        (*parts(one, what), seed_noise(one, what), one.all_trained[1], one.all_trained[2][what]) for one in outcomes
    ]

    def fitted(some):
        return optimize.minimize(likelihood, HYPER, (some,), "Nelder-Mead", options={"maxiter": 3000, "maxfev": 3000}).x

    def shown(theta):
        f, g, k, *rest = theta
        ef, eg, ek, spread, misfit = np.exp(rest)
        means = f"F {f:.2f} ± {ef:.2f}, gains {g:.2f} ± {eg:.2f}, KL {k:.2f} ± {ek:.2f}"
        return f"{means}, spread {spread:.1f}, misfit {misfit:.3f}"

    print(f"priors on the {what}, by all settings: {shown(fitted(data))}")
    rows = {"by the six others, 90 % interval": [], "measured": [], "of all trained, held": []}
    z, chosen = stats.norm.ppf((1 + LEVEL) / 2), []
    for one, (X, loss, slope, noise, count, change) in zip(outcomes, data, strict=True):
        theta = fitted([other for other in data if other[0] is not X])
        mean, error, misfit = moments(theta, X, loss, slope)
        half = z * np.sqrt(((X * error) ** 2).sum(1) / loss**2 + misfit**2 + noise**2 / count)
        at = [int(np.abs(one.all_trained[0] - list(one.named(name)[0].values())).sum(1).argmin()) for name in CHOSEN]
        held = np.abs(change - mean) <= half
        chosen += held[at].tolist()
        low, high = 100 * (mean - half)[at[0]], 100 * (mean + half)[at[0]]
        rows["by the six others, 90 % interval"].append(
            f"{signed(100 * mean[at[0]])} ({signed(low)} to {signed(high)})"
        )
        rows["measured"].append(signed(100 * change[at[0]]))
        rows["of all trained, held"].append(f"{held.mean():.2f} of {len(held)}")
    print(f"of the chosen mixtures' changes {sum(chosen)} of {len(chosen)} lay within")
    return rows


def printed(outcomes):
    """What `run` prints today, its constants chosen with these settings in sight, against what training gave."""
    for times in (1, *(t for t in TIMES if t > 2)):
        for what, names in (("chosen mixtures", CHOSEN), ("by size", ("size",))):
            held = [h for one in outcomes for name in names if (h := holds(one, name, times)) is not None]
            print(f"{times} times the budget, {what}: {sum(held)} of {len(held)} changes lay within what is printed")
    cells = []
    for one in outcomes:
        found = foreseen(one, one.named(CHOSEN[0])[0], 1)
        cells.append(f"{signed(100 * found.change)} ({signed(100 * found.low)} to {signed(100 * found.high)})")
    return {"printed, 90 % interval": cells}


def holds(one, name, times):
    """Whether the change that was measured lies within what is printed; None if it was not trained."""
    measured = one.against(one.named(name), "uniform", "targets", times)
    if not len(measured):
        return None
    found = foreseen(one, one.named(name)[0], times)
    return bool(100 * found.low <= measured.mean() <= 100 * found.high)


def foreseen(one, weights, times):
    """What the tool expects of a mixture at so many budgets."""
    config, scores = one.evidence.at(times), one.finished.result.scores
    supply, uniform = supply_bounds(one.pool, config), dict.fromkeys(one.pool.names, 1 / len(one.pool.names))
    p, u = (np.array(list(within_supply(w, *supply).values())) for w in (weights, uniform))
    return expected_change(scores, config.target_weights, p, u, budget_of(one.pool, config))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default=SETTINGS)
    names = (args := parser.parse_args()).settings.split(",")
    outcomes = []
    with contextlib.ExitStack() as opened:
        for name in names:
            folder = args.out.resolve() / name
            with contextlib.chdir(folder):
                session = opened.enter_context(open_session(load_config(folder / "mix.yaml"), folder / "run"))
                outcomes.append(Outcome(folder, session))
        report(names, outcomes)


def report(names, outcomes):
    def show(title, rows):
        print(f"\n### {title}\n\n{table(names, rows)}\n", flush=True)

    show("The default", compared(outcomes, ["taskpgm"], ("uniform", "size")))
    show("Targets alone, and without targets", compared(outcomes, ["balance0", "pool-prior0.2"], ("uniform", "size")))
    others = [
        "prior0.2",
        "prior0.05",
        "balance0.25",
        "balance0.5",
        "gain",
        "pool-prior0.5",
        "pool-prior0.1",
        "paper-pmi",
        "temperature:2",
    ]
    show("Others", compared(outcomes, others))
    show("Promises, targets", printed(outcomes))
    show("What the default chooses at other budgets", chosen(outcomes))
    outcomes = [one for one in outcomes if (one.folder / "ceiling.json").exists()]
    names = [one.folder.name for one in outcomes]
    if not outcomes:
        return
    rows, best = ceilings(outcomes)
    show("Ceiling", rows | refined(outcomes, best))
    show("Peers", peers(outcomes, best))
    show("Budgets", budgets(outcomes))
    fading(outcomes)
    show("Expected and measured, targets", calibration(outcomes))
    show("Expected and measured, tasks", calibration(outcomes, "tasks"))


if __name__ == "__main__":
    main()
