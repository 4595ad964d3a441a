"""Three hundred tasks: generated, run with the embedded model, and checked against what was planted among them.

    python benchmarks/many.py write FOLDER [--tasks 316]     # FOLDER/data/*.jsonl, FOLDER/mix.yaml, FOLDER/planted.json
    python benchmarks/many.py run FOLDER                     # taskpgm estimate, then run --out FOLDER/run; resumable
    python benchmarks/many.py check FOLDER                   # takes a finished run and no model

Tasks are reasoning-gym's generators under many settings (families), from 5,000 to 30 rows. Every twentieth is a copy:
the file of another task once more. One is harmful: questions as the targets ask them, answered by their own words in
reverse. `check` says whether every copy is named as redundant and what it gets with its original beside what the
original gets alone, where the harmful task stands, and what the best 40 reach.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

# By generator: values of its settings, all combinations of which are tasks; "terms" stands for min_terms and max_terms.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "chain_sum": {"terms": [2, 3, 4, 5, 6], "digits": [1, 2, 3, 4], "allow_negation": [False, True]},
    "basic_arithmetic": {"terms": [2, 3, 4, 5, 6], "digits": [1, 2, 3, 4], "allow_parentheses": [False, True]},
    "decimal_chain_sum": {"terms": [2, 3, 4, 5], "digits": [1, 2, 3]},
    "products": {"terms": [2, 3], "digits": [2, 3, 4, 5]},
    "gcd": {"numbers": [2, 3, 4], "max_value": [50, 200, 1000, 5000]},
    "lcm": {"numbers": [2, 3], "max_value": [30, 100, 300, 1000]},
    "base_conversion": {"max_base": [3, 6, 9, 12, 16], "max_value": [200, 1000, 5000, 20_000]},
    "calendar_arithmetic": {"year": [1990, 2000, 2010, 2022], "offset_upper_bound": [10, 100, 400]},
    "count_bits": {"max_n": [1000, 100_000, 10_000_000, 2_147_483_647]},
    "count_primes": {"max_n": [100, 1000, 5000, 20_000]},
    "coin_flip": {"trials": [3, 5, 8, 12]},
    "caesar_cipher": {"words": [3, 4, 5, 6, 8], "max_rotation": [3, 13, 25]},
    "dice": {"num_dice": [2, 3, 4, 5], "max_dice_size": [6, 12, 20]},
    "letter_counting": {"words": [4, 5, 6, 7, 8, 10, 12, 15]},
    "number_filtering": {"numbers": [3, 5, 7, 9], "max_decimals": [0, 2, 4]},
    "number_sequence": {"terms": [4, 5, 6], "max_complexity": [1, 2, 3]},
    "prime_factorization": {"max_value": [100, 300, 1000, 5000, 20_000]},
    "sentence_reordering": {"words_in_sentence": [4, 6, 8, 10, 12]},
    "spell_backward": {"word_len": [3, 4, 5, 6, 7, 8, 9, 10]},
    "syllogism": {"invalid_ratio": [0.1, 0.5, 0.9], "inversion_probability": [0.0, 0.3, 0.9]},
    "time_intervals": {"max_time_difference_seconds": [600, 7200, 86_400], "max_date_difference_days": [5, 100, 1000]},
    "aiw": {"max_entities": [4, 6, 8, 12]},
    "power_function": {"max_exponent": [2, 3, 4, 6]},
    "simple_geometry": {"sides": [3, 4, 5, 6, 7]},
    "ransom_note": {"max_note_length": [4, 8, 12], "max_magazine_length": [15, 20, 30]},
    "rotate_matrix": {"n": [2, 3, 4], "max_rotations": [1, 3, 6]},
    "number_format": {"num_candidates": [2, 3, 4, 5], "max_n": [10_000, 1_000_000]},
    "bitwise_arithmetic": {"difficulty": [1, 2, 3]},
    "word_sorting": {"words": [3, 5, 7, 9]},
    "manipulate_matrix": {"max_rows": [2, 3], "max_transforms": [1, 2, 3]},
}
TARGETS = (
    "leg_counting", "complex_arithmetic", "word_sequence_reversal", "isomorphic_strings", "simple_equations",
    "fraction_simplification", "family_relationships", "number_sorting",
)  # fmt: skip
TARGET_ROWS, LARGEST, SMALLEST = 60, 5000, 30
COPY_EVERY, HARMFUL = 20, "harmful"
WORDS = 60  # of a question: with long ones scoring alone would take hours


def settings_of(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The generator's own settings: "terms" becomes min_terms and max_terms where it knows only those."""
    from reasoning_gym.factory import DATASETS

    known = {field.name for field in fields(DATASETS[name][1])}
    found: dict[str, Any] = {}
    for key, value in values.items():
        for one in [key] if key in known else [f"min_{key}", f"max_{key}"]:
            assert one in known, f"{name} has no setting {one}"
            found[one] = value
    return found


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every generator under every combination of its settings."""
    found = []
    for name, grid in GRIDS.items():
        grid = {key: values for key, values in grid.items() if values}
        for values in itertools.product(*grid.values()):
            found.append((name, dict(zip(grid, values, strict=True))))
    return found


def generate(name: str, settings: dict[str, Any], rows: int, seed: int, words: int = WORDS) -> list[dict[str, str]]:
    """Distinct rows, fewer if four times as many draws do not yield them."""
    import reasoning_gym

    found: dict[str, str] = {}
    data = reasoning_gym.create_dataset(name, size=4 * rows, seed=seed, **settings)
    for item in data:
        if len(found) == rows:
            break
        answer = "" if item["answer"] is None else str(item["answer"])
        if answer.strip() and len(item["question"].split()) <= words:
            found.setdefault(item["question"], answer)
    return [{"prompt": question, "completion": answer} for question, answer in found.items()]


def distinct_tasks() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Names and rows, in random order; those that yield fewer rows than the smallest may have are left out."""
    rng = random.Random(0)
    found = variants()
    rng.shuffle(found)
    for number, (name, values) in enumerate(found):
        size = round(LARGEST * (SMALLEST / LARGEST) ** rng.random())
        rows = generate(name, settings_of(name, values), size, number)
        if len(rows) >= SMALLEST:
            yield "_".join([name, *(f"{value}" for value in values.values())]), rows


def write(folder: Path, count: int) -> None:
    """Data, configuration, and what was planted."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    targets = {name: generate(name, {}, TARGET_ROWS, 7, 2 * WORDS) for name in TARGETS}
    tasks = {HARMFUL: harmful(targets)}
    copies: dict[str, str] = {}
    originals = distinct_tasks()
    while len(tasks) < count:
        if len(tasks) % COPY_EVERY == 0:
            original = random.Random(len(tasks)).choice([name for name in tasks if name not in (HARMFUL, *copies)])
            copies[f"{original}_copy{len(tasks)}"] = original
            tasks[f"{original}_copy{len(tasks)}"] = tasks[original]
            continue
        name, rows = next(originals, ("", []))
        if not rows:
            sys.exit(f"{len(tasks)} tasks are all that the settings yield, not {count}")
        tasks[name] = rows
    for name, rows in {**tasks, **targets}.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "mix.yaml").write_text(configuration(list(tasks)), encoding="utf-8")
    planted = {"copies": copies, "harmful": HARMFUL, "rows": {name: len(rows) for name, rows in tasks.items()}}
    (folder / "planted.json").write_text(json.dumps(planted, indent=1) + "\n", encoding="utf-8")
    print(f"{len(tasks)} tasks, {len(copies)} of them copies, {sum(map(len, tasks.values()))} rows: {folder}/mix.yaml")


def harmful(targets: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """Questions as the targets ask them, drawn anew, each answered by its own words from the last to the first.

    Answers of other targets would not do: they teach what answers look like, which lowers the loss.
    """
    drawn = [row for name in targets for row in generate(name, {}, 40, 1234, 2 * WORDS)]
    held = {row["prompt"] for rows in targets.values() for row in rows}
    drawn = [row for row in drawn if row["prompt"] not in held]
    return [{"prompt": row["prompt"], "completion": " ".join(row["prompt"].split()[::-1])} for row in drawn]


def configuration(tasks: list[str]) -> str:
    """mix.yaml: the embedded model, 64 rows a probe, the last 8 layers, two contexts a task."""
    lines = ["tasks:", *(f"  - {{name: {name}, path: data/{name}.jsonl}}" for name in tasks)]
    lines += ["targets:", *(f"  - {{name: {name}, path: data/{name}.jsonl}}" for name in TARGETS)]
    lines += [
        "budget: {examples: 10000, max_epochs: 4}",
        "probes: {examples: 64, batch: 8, max_length: 256, lora: {last_layers: 8}}",
        f"contexts: {{total: {2 * len(tasks)}, per_target: 12, validation: 12}}",
        "seed: 0",
    ]
    return "\n".join(lines) + "\n"


def run(folder: Path) -> None:
    """Estimate and run, each in a process of its own, as a user starts them; says what they took."""
    import resource

    mix, took = folder / "mix.yaml", {}
    for name, arguments in {
        "estimate": ["--json", folder / "estimate.json"],
        "run": ["--out", folder / "run"],
    }.items():
        if name == "estimate" and (folder / "estimate.json").exists():
            continue
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "taskpgm", name, mix, *map(str, arguments)], check=True)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        took[name] = {
            "seconds": time.perf_counter() - started, "cpu seconds so far": usage.ru_utime + usage.ru_stime,
            "largest process so far": 1024 * usage.ru_maxrss,
        }  # fmt: skip
        with (folder / "took.jsonl").open("a") as file:
            file.write(json.dumps(took) + "\n")
    print(json.dumps(took, indent=1))


def check(folder: Path) -> None:
    """What was planted against what the run found."""
    from taskpgm.config_file import load_config
    from taskpgm.mixture.affinity import measure_affinity
    from taskpgm.mixture.energies import build_energy
    from taskpgm.mixture.solve import solve_mixture
    from taskpgm.pipeline.finished import load_run

    planted = json.loads((folder / "planted.json").read_text())
    config, found = load_config(folder / "mix.yaml"), load_run(folder / "run")
    copies, shares = planted["copies"], found.mixture.shares
    command = [sys.executable, "-m", "taskpgm"]
    rest = [str(folder / "mix.yaml"), "--out", str(folder / "run")]
    for words in (["explain", *rest], ["select", *rest, "-k", "40"]):
        subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    clusters = json.loads((folder / "run" / "explanation.json").read_text())["clusters"]
    together = [any({copy, original} <= set(cluster) for cluster in clusters) for copy, original in copies.items()]
    S = found.affinity.S
    correlation = S / np.sqrt(np.outer(np.diag(S), np.diag(S)))
    np.fill_diagonal(correlation, -1)
    names = list(found.affinity.tasks)
    nearest = [names[int(correlation[names.index(copy)].argmax())] == original for copy, original in copies.items()]
    print(f"{sum(together)} of {len(copies)} copies named as interchangeable with their original")
    print(f"{sum(nearest)} of {len(copies)} have their original as the most similar task")

    kept = [i for i, name in enumerate(names) if name not in copies]
    part = without_tasks(found.scores, kept)
    energy = build_energy(part, measure_affinity(part, config.affinity), config.energy, config.target_weights)
    alone = solve_mixture(energy)  # no bounds: none is met by tasks of a thousandth each, which `check` says below
    ratios = []
    for original in sorted(set(copies.values())):
        both = shares[original] + sum(shares[copy] for copy, of in copies.items() if of == original)
        ratios.append(both / alone.shares[original])
        print(
            f"  {original}: {both:.4f} with its copies, {shares[original]:.4f} of it its own; "
            f"{alone.shares[original]:.4f} without them"
        )
    print(f"with copies / without: {min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}")
    ranked = sorted(shares, key=lambda name: shares[name])
    print(
        f"harmful task: place {ranked.index(planted['harmful']) + 1} of {len(ranked)} from below, share "
        f"{shares[planted['harmful']]:.6f}; the least is {ranked[0]} with {shares[ranked[0]]:.6f}"
    )
    gains = dict(zip(names, found.affinity.matrices["G"][:, len(names) :], strict=True))
    mean = {name: float(of_targets.mean()) for name, of_targets in gains.items()}
    harms = planted["harmful"]
    print(
        f"its gain on the targets: {mean[harms]:+.2f} nats in the mean, {gains[harms].min():+.2f} to "
        f"{gains[harms].max():+.2f}; place {sorted(mean, key=mean.__getitem__).index(harms) + 1} from below by the mean"
    )
    selection = json.loads((folder / "run" / "selections" / "k40" / "selection.json").read_text())
    print({key: selection[key] for key in selection if not isinstance(selection[key], list | dict)})
    mixtures = f"taskpgm,{folder / 'run' / 'selections' / 'k40' / 'mixture.json'},uniform"
    subprocess.run([*command, "predict", *rest, "--mixtures", mixtures, "--no-merged"], check=True)
    stages = json.loads((folder / "run" / "manifest.json").read_text())["stages"]
    for name, stage in stages.items():
        print(name, {key: stage[key] for key in ("seconds", "peak_memory") if key in stage})


def without_tasks(scores: Any, kept: list[int]) -> Any:
    """The scores of these probes only, on the contexts of theirs and of the targets."""
    n = len(scores.tasks)
    sets = [*kept, *range(n, len(scores.sets))]
    number = {old: new for new, old in enumerate(sets)}
    kept_C = np.isin(scores.context_set, sets)
    kept_T = kept_C[scores.context]
    context = np.cumsum(kept_C) - 1
    return replace(
        scores, tasks=tuple(scores.tasks[i] for i in kept), sets=tuple(scores.sets[i] for i in sets),
        logp=scores.logp[[0, *(i + 1 for i in kept)]][:, kept_T], context=context[scores.context[kept_T]],
        position=scores.position[kept_T], seed=scores.seed[kept_T],
        context_set=np.array([number[int(old)] for old in scores.context_set[kept_C]]),
        context_group=scores.context_group[kept_C],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "run", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=316)
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # some generators draw from sets of strings
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    if args.what == "write":
        write(args.folder, args.tasks)
    else:
        {"run": run, "check": check}[args.what](args.folder)


if __name__ == "__main__":
    main()
