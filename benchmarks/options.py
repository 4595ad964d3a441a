"""Do mixtures chosen by options get more answers right than mixtures chosen by the loss of tokens?

    python benchmarks/options.py OUT --pool DIR --targets DIR [--seeds 3]

DIR/train/NAME.jsonl are sets of questions and word problems, with choices where
one may choose; the second DIR/NAME.jsonl are BIG-Bench Hard's. Four sets of the pool are held out (HELD) and served in
turn, in their own form (the answer is a number or a letter) and as text (the question alone, the answer in words), and
the shortest of BIG-Bench Hard with choices together. Of every one a mixture is chosen by the loss of tokens and one by
options, from the same probes, both with energy.balance 0. Trained like `compare`, with uniform; then all adapters are
scored on the options of the rows that evaluate, as probes are. What is kept is used again. Prints differences on what
was served, paired by seed: of the loss of answers, which is that of options and that of form, and of right answers.
"""

import argparse
import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
from outcome import cell
from scipy.special import logsumexp
from settings import LONG, NLP_ROWS, sampled, write

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config_file import load_config
from taskpgm.evaluation.compare import Trainings, mixture_weights, training_run
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.files import digest
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run, solve
from taskpgm.pool.drawing import first
from taskpgm.probes.cache import BlockCache
from taskpgm.probes.options import options_of
from taskpgm.probes.probe import load_probe
from taskpgm.probes.scoring import make_blocks

HELD = ("arc_easy", "openbookqa", "commonsense_qa", "piqa")
BBH = (
    "boolean_expressions", "date_understanding", "disambiguation_qa", "hyperbaton", "movie_recommendation", "navigate",
    "ruin_names", "snarks", "sports_understanding", "web_of_lies",
)  # fmt: skip
CONTEXTS, HELD_ROWS, BBH_ROWS = 24, 128, 64
ROWS = 32  # of a set that are evaluated
OPTION = re.compile(r"(?:Answer|Solution)\d+: |\([A-E]\) ")
END = re.compile(r"\n+(?:Answer format|Answer with one letter)")
# Served together or alone: name of the group and its targets.
GROUPS = {**{n: (n,) for held in HELD for n in (held, f"{held}_text")}, "bbh": BBH}


def as_text(line):
    """The question alone, its answer in words, its choices in words."""
    row = json.loads(line)
    stem, *options = OPTION.split(END.split(row["prompt"])[0])
    options = [option.strip() for option in options]
    answer = options[row["choices"].index(row["completion"])]
    stem = re.sub(r"^Please choose the correct (answer|solution) to the question: ", "", stem).strip()
    return json.dumps({"prompt": stem, "completion": answer, "choices": options}) + "\n"


def write_setting(folder, pool, targets):
    """Data, mix.yaml (targets scored by tokens) and options.yaml (by options)."""
    tasks = [file for file in sorted((pool / "train").glob("*.jsonl")) if file.stem not in HELD]
    for file in tasks:
        write(folder / f"data/{file.name}", sampled(file, NLP_ROWS))
    for name in HELD:
        lines = sampled(pool / "train" / f"{name}.jsonl", HELD_ROWS)
        write(folder / f"data/{name}.jsonl", lines)
        write(folder / f"data/{name}_text.jsonl", [as_text(line) for line in lines])
    for name in BBH:
        lines = [line for line in sampled(targets / f"{name}.jsonl", 2 * BBH_ROWS) if json.loads(line).get("choices")]
        write(folder / f"data/{name}.jsonl", lines[:BBH_ROWS])
    names = [name for group in GROUPS.values() for name in group]
    for file, score in (("mix.yaml", "tokens"), ("options.yaml", "options")):
        lines = ["tasks:", *(f"  - {{name: {t.stem}, path: data/{t.name}}}" for t in tasks), "targets:"]
        lines += [f"  - {{name: {name}, path: data/{name}.jsonl, score: {score}}}" for name in names]
        lines += ["budget: {examples: 288, max_epochs: 4}", "energy: {balance: 0, prior: 0.2}", "seed: 0"]
        lines += [f"probes: {{examples: 96, batch: 8, max_length: {LONG}, lora: {{last_layers: 8}}}}"]
        lines += [f"contexts: {{per_set: {CONTEXTS}, validation: 24}}"]
        write(folder / file, ["\n".join(lines) + "\n"])


def chosen(session):
    """Mixtures by group, as its targets alone ask for."""
    result, found = solved(session), {}
    for group, served in GROUPS.items():
        targets = [t.model_copy(update={"weight": float(t.name in served)}) for t in session.config.targets]
        config = session.config.model_copy(update={"targets": targets})
        found[group] = solve(result.pool, result.scores, config).mixture.shares
    return found


def train(folder, seeds):
    """{mixture: {seed: {set: (quantities,)}}} of every target, with the names of the quantities in QUANTITIES."""
    with open_session(load_config(folder / "mix.yaml"), "run") as session:
        by_tokens = chosen(session)
    if not (folder / "run-options").exists():
        shutil.copytree(folder / "run", folder / "run-options")  # the same probes
    with open_session(load_config(folder / "options.yaml"), "run-options") as session:
        by_options = chosen(session)
    mixtures = {f"{g}/tokens": p for g, p in by_tokens.items()} | {f"{g}/options": p for g, p in by_options.items()}
    for name, shares in sorted(mixtures.items()):
        print(name, {n: round(p, 2) for n, p in sorted(shares.items(), key=lambda x: -x[1])[:5]}, flush=True)
    with open_session(load_config(folder / "mix.yaml"), "run") as session:
        finished = finished_run(session, solved(session))
        uniform = mixture_weights(session.config, finished.result, ("uniform",), 0)
        trainings = Trainings(finished, CompareOptions(accuracy=False, keep=True, rows=ROWS))
        runs = [
            training_run(finished, name, p, seed) for seed in range(seeds) for name, p in (uniform | mixtures).items()
        ]
        trainings.measurements(runs, "training")
        return evaluated(session, finished, trainings, runs)


def evaluated(session, finished, trainings, runs):
    """Every trained adapter on the options of every target's evaluation rows, scored like contexts under probes."""
    encoder = ChatEncoder(session.engine.tokenizer, session.config.probes.max_length)
    options = {t.name: options_of(encoder, t.name, first(t.validation, ROWS)) for t in finished.result.pool.targets}
    adapters = {(run.name, run.seed): trainings.path(run).with_suffix("") for run in runs}
    probes = {key: load_probe(path, path.name, 0) for key, path in adapters.items()}  # two mixtures may be the same
    rows = {name: one.rows for name, one in options.items()}
    text = {
        name: digest([[row.ids.tolist(), row.response.tolist()] for row in of_set]) for name, of_set in rows.items()
    }
    keys = {name: {p.name: digest([p.name, text[name]]) for p in probes.values()} for name in rows}
    (kept := finished.folder / "blocks-trained").mkdir(exist_ok=True)
    unique = list({p.name: p for p in probes.values()}.values())
    cache, columns = BlockCache(keys, kept), dict.fromkeys(rows)
    blocks, _ = make_blocks(session.engine, rows, [[name] for name in rows], unique, False, columns, cache)
    found = {}
    for (name, seed), probe in probes.items():
        found.setdefault(name, {})[seed] = {s: quantities(options[s], blocks[probe.name, s].logp) for s in options}
    return found


QUANTITIES = ("loss of answers", "loss of options", "form", "right, %")


def quantities(options, of_tokens):
    """Means over questions: −log P(right), its two parts in nats (see `taskpgm.evaluation.form`), and right answers."""
    sums = options.sums(of_tokens)
    whole = np.array([-one[k] for one, k in zip(sums, options.right, strict=True)])
    form = np.array([-logsumexp(one) for one in sums])
    right = np.array([100.0 * (one.argmax() == k) for one, k in zip(sums, options.right, strict=True)])
    return {key: values.mean() for key, values in zip(QUANTITIES, (whole, whole - form, form, right), strict=True)}


def mean_of(sets, served):
    """The same, a mean over the served sets."""
    return {key: np.mean([sets[name][key] for name in served]) for key in QUANTITIES}


def differences(found, group, way, other):
    """By quantity the differences of two mixtures on the sets of a group, (seeds,)."""
    a = [mean_of(sets, GROUPS[group]) for sets in found[f"{group}/{way}"].values()]
    b = [mean_of(sets, GROUPS[group]) for sets in found[other if other == "uniform" else f"{group}/{other}"].values()]
    return {key: np.array([x[key] - y[key] for x, y in zip(a, b, strict=True)]) for key in a[0]}


def report(found):
    """Tables in Markdown; the last row of each is the mean over the groups, its interval over seeds."""
    for way, other in (("tokens", "uniform"), ("options", "uniform"), ("options", "tokens")):
        rows = {group: differences(found, group, way, other) for group in GROUPS}
        rows["mean"] = {key: np.mean([row[key] for row in rows.values()], axis=0) for key in QUANTITIES}
        print(f"\n### Chosen by {way}, less {'uniform' if other == 'uniform' else 'chosen by ' + other}\n")
        print("| served | " + " | ".join(QUANTITIES) + " |\n" + "|---" * (len(QUANTITIES) + 1) + "|")
        for group, row in rows.items():
            print(
                f"| {group} | "
                + " | ".join(cell(row[key], 3 if "right" not in key else 1) for key in QUANTITIES)
                + " |"
            )
    print("\n### Uniform\n")
    for group, served in GROUPS.items():
        of = [mean_of(sets, served) for sets in found["uniform"].values()]
        print(group, {key: round(float(np.mean([one[key] for one in of])), 3) for key in of[0]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    folder = args.out.resolve() / "options"
    write_setting(folder, args.pool.resolve(), args.targets.resolve())
    with contextlib.chdir(folder):
        report(train(folder, args.seeds))


if __name__ == "__main__":
    main()
