"""The experiments of the results page: pools of tasks, targets and their `mix.yaml`, one folder a setting.

    python benchmarks/settings.py OUT                               # all but nlp
    python benchmarks/settings.py OUT --pool DIR --targets DIR      # and nlp, from your own JSON Lines files

demo is the demo's pool. skewed has 16 tasks, half of them in two families that repeat each other, sizes 30 to 1. fresh
and confirm share no generator with these two or each other: they are for confirming what was decided. further (the
generators of longer prompts), lookups (facts and conversions of libraries), codes (encodings and small computations)
and words (definitions and translations of dictionaries) came last. nlp takes DIR/train/NAME.jsonl and, where there is
one, DIR/validation/NAME.jsonl as tasks and DIR/NAME.jsonl as targets, sampled down to the sizes below.

Targets are never trained on. Of each target, contexts choose the mixture and the other rows evaluate it. Files are the
same on every machine: generators are seeded by their name, and Python's hash seed, which some draw from, is 0.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from taskpgm.cli import demo
from taskpgm.files import atomic_file

BUDGET = "{examples: 288, max_epochs: 4}"
PROBES = "{{examples: 96, batch: 8, max_length: {length}, lora: {{last_layers: 8}}}}"
CONTEXTS = 12  # a set; of a target the rows beyond them are for evaluation
TARGET_ROWS = 64
VALIDATION_ROWS = 24  # a task, in a file of their own: a tenth of a small task would be a row or two
WORDS = 120  # the longest prompt of a generator
LENGTH, LONG = 256, 512  # tokens
NLP_ROWS = 900  # of a task at most

SUMS = ("chain_sum", "basic_arithmetic", "decimal_chain_sum", "decimal_arithmetic")
LISTS = ("word_sorting", "sentence_reordering", "number_filtering", "word_sequence_reversal")
# From the largest to the smallest; the families are spread over the sizes.
SKEWED = (
    SUMS[0], LISTS[0], "letter_counting", SUMS[1], LISTS[1], "syllogism", "leg_counting", SUMS[2],
    "simple_equations", LISTS[2], "ransom_note", "time_intervals", SUMS[3], "gcd", LISTS[3], "base_conversion",
)  # fmt: skip
SKEWED_SIZES = (900, 30)
SKEWED_TARGETS = (
    "products", "complex_arithmetic",  # sums
    "word_ladder", "number_format",  # lists
    "spell_backward", "isomorphic_strings", "lcm", "calendar_arithmetic",  # letters, ransom notes, divisors, times
)  # fmt: skip
FRESH = (
    "prime_factorization", "caesar_cipher", "family_relationships", "fraction_simplification", "knights_knaves",
    "bitwise_arithmetic", "number_sequence", "simple_geometry", "color_cube_rotation", "count_primes", "coin_flip",
    "binary_alternation",
)  # fmt: skip
FRESH_SIZES = (600, 50)
FRESH_TARGETS = ("count_bits", "letter_jumble", "aiw", "dice", "advanced_geometry", "power_function")
# What was left of generators whose rows fit, when the settings above had decided.
CONFIRM = (
    "gsm_symbolic", "binary_matrix", "countdown", "palindrome_generation", "maze", "simple_integration",
    "course_schedule", "quantum_lock", "bf", "mini_sudoku", "survo", "largest_island",
)  # fmt: skip
CONFIRM_SIZES = (600, 50)
CONFIRM_TARGETS = (
    "puzzle24", "cryptarithm", "manipulate_matrix", "self_reference", "ab", "figlet_font",
)  # fmt: skip
# What was left of generators when those above had been used: prompts are longer.
FURTHER = (
    "number_sorting", "group_anagrams", "polynomial_multiplication", "game_of_life_halting", "spiral_matrix",
    "list_functions", "circuit_logic", "path_star", "string_insertion", "acre", "kakurasu", "pool_matrix",
)  # fmt: skip
FURTHER_TARGETS = (
    "polynomial_equations", "rotate_matrix", "string_synthesis", "string_manipulation", "intermediate_integration",
    "shortest_path",
)  # fmt: skip
FURTHER_WORDS = 300
LOOKUPS = (
    "number_words", "pronunciation", "units", "french_numbers", "emoji", "dates", "roman_numerals", "derivatives",
    "languages_in_german", "capitals", "country_codes", "elements",
)  # fmt: skip
LOOKUPS_TARGETS = (
    "spanish_numbers", "french_dates", "currencies", "countries_in_german", "from_roman", "syllables", "symbols",
    "colours",
)  # fmt: skip
CODES = (
    "base64", "fraction_sums", "url_quoting", "unions", "later_dates", "characters", "json_values", "rot13",
    "expansions", "last_addresses", "hexadecimal", "capitalised",
)  # fmt: skip
CODES_TARGETS = ("base64_decoding", "octal", "entities", "netmasks", "weekdays", "intersections", "factors")
LEXICON = (
    "noun_definitions", "french", "kinds", "verbs", "opposites", "spanish", "gaps", "base_forms", "parts",
    "verb_synonyms", "adjective_definitions", "singulars",
)  # fmt: skip
LEXICON_TARGETS = ("nouns", "verb_definitions", "wholes", "italian", "from_french", "noun_synonyms", "positives")


def spread(names, sizes):
    """Rows by name, geometric from the first size to the last."""
    first, last = sizes
    return {name: round(first * (last / first) ** (i / (len(names) - 1))) for i, name in enumerate(names)}


def generated(name, rows, words=WORDS):
    """Lines of a generator, with prompts of at most so many words."""
    lines = demo.generate(name, rows, words)
    if len(lines) < rows:
        sys.exit(
            f"The generator {name} gave {len(lines)} distinct rows of at most {words} words, but {rows} are needed."
        )
    return lines


def looked_up(name, rows):
    """Lines of a table or a conversion."""
    import lookups  # beside this file, and its libraries

    return lookups.lines(name, rows)


def encoded(name, rows):
    """Lines of an encoding or a small computation."""
    import codes  # beside this file, and its libraries

    return codes.lines(name, rows)


def defined(name, rows):
    """Lines of dictionaries."""
    import words  # beside this file; needs the dictionaries

    return words.lines(name, rows)


class Setting(NamedTuple):
    """Tasks with their rows, targets, the longest row in tokens, and what makes their lines."""

    tasks: dict
    targets: tuple
    length: int = LENGTH
    lines: Callable = generated


SETTINGS = {
    "demo": Setting(demo.ROWS, demo.TARGETS),
    "skewed": Setting(spread(SKEWED, SKEWED_SIZES), SKEWED_TARGETS),
    "fresh": Setting(spread(FRESH, FRESH_SIZES), FRESH_TARGETS),
    "confirm": Setting(spread(CONFIRM, CONFIRM_SIZES), CONFIRM_TARGETS),
    "further": Setting(
        spread(FURTHER, CONFIRM_SIZES), FURTHER_TARGETS, LONG, partial(generated, words=FURTHER_WORDS)
    ),
    "lookups": Setting(spread(LOOKUPS, CONFIRM_SIZES), LOOKUPS_TARGETS, lines=looked_up),
    "codes": Setting(spread(CODES, CONFIRM_SIZES), CODES_TARGETS, lines=encoded),
    "words": Setting(spread(LEXICON, CONFIRM_SIZES), LEXICON_TARGETS, lines=defined),
}  # fmt: skip


def write_setting(folder, setting):
    """A setting's data and its mix.yaml."""
    for name, rows in setting.tasks.items():
        lines = setting.lines(name, rows + VALIDATION_ROWS)
        write(folder / f"data/{name}.jsonl", lines[:rows])
        write(folder / f"data/{name}.validation.jsonl", lines[rows:])
    for name in setting.targets:
        write(folder / f"data/{name}.jsonl", setting.lines(name, TARGET_ROWS))
    write(folder / "mix.yaml", [mix(setting.tasks, setting.targets, setting.length, setting.tasks)])


def write_nlp(folder, pool, targets):
    """The setting of a user's own files, sampled to what a small machine can train and evaluate."""
    files = sorted((pool / "train").glob("*.jsonl"))
    held = {file.stem: pool / "validation" / file.name for file in files}
    held = {name: file for name, file in held.items() if file.is_file()}
    goals = sorted(targets.glob("*.jsonl"))
    if not files or not goals:
        sys.exit(f"{pool}/train/*.jsonl are {len(files)} tasks and {targets}/*.jsonl {len(goals)} targets; give some.")
    both = {file.stem for file in files} & {file.stem for file in goals}
    if both:
        sys.exit(f"{', '.join(sorted(both))} is a task and a target; rename one of the files.")
    for file in files:
        write(folder / f"data/{file.name}", sampled(file, NLP_ROWS))
    for name, file in held.items():
        write(folder / f"data/{name}.validation.jsonl", sampled(file, VALIDATION_ROWS))
    for file in goals:
        write(folder / f"data/{file.name}", sampled(file, TARGET_ROWS))
    names = [file.stem for file in files]
    write(folder / "mix.yaml", [mix(names, [file.stem for file in goals], LONG, held)])


def mix(tasks, targets, length, held):
    """The mix.yaml of a setting; tasks in `held` have a file of validation rows."""
    lines = ["# Written by benchmarks/settings.py. Every field is described by `taskpgm init`.", "tasks:"]
    for name in tasks:
        validation = f", validation: data/{name}.validation.jsonl" if name in held else ""
        lines.append(f"  - {{name: {name}, path: data/{name}.jsonl{validation}}}")
    lines += ["targets:", *(f"  - {{name: {name}, path: data/{name}.jsonl}}" for name in targets)]
    lines += [f"budget: {BUDGET}", f"probes: {PROBES.format(length=length)}"]
    lines += [f"contexts: {{per_set: {CONTEXTS}, validation: {VALIDATION_ROWS}}}", "seed: 0"]
    return "\n".join(lines) + "\n"


def sampled(file, rows):
    """So many distinct lines of the file, those of lowest hash, whatever their order."""
    lines = {line + "\n" for line in file.read_text(encoding="utf-8").split("\n") if line.strip()}
    return sorted(lines, key=lambda line: hashlib.blake2b(line.encode()).digest())[:rows]


def write(path, lines):
    """The lines as a file, in one piece or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text("".join(lines), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--pool", type=Path, metavar="DIR", help="tasks of nlp: DIR/train and DIR/validation")
    parser.add_argument("--targets", type=Path, metavar="DIR", help="targets of nlp")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    given = parser.parse_args()
    if (given.pool is None) != (given.targets is None):
        parser.error("nlp needs both --pool and --targets")
    names = [name for name in given.settings.split(",") if name != "nlp" or not given.pool]
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"there is no setting {unknown[0]!r}: {', '.join(SETTINGS)}, and nlp with --pool and --targets")
    if os.environ.get("PYTHONHASHSEED") != "0":
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, "PYTHONHASHSEED": "0"}).returncode)
    for name in names:
        setting = SETTINGS[name]
        write_setting(given.out / name, setting)
        print(f"{given.out / name}/mix.yaml: {len(setting.tasks)} tasks, {len(setting.targets)} targets", flush=True)
    if given.pool:
        write_nlp(given.out / "nlp", given.pool, given.targets)
        print(f"{given.out}/nlp/mix.yaml")


if __name__ == "__main__":
    main()
