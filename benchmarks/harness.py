"""BIG-Bench Hard and ARC-easy by lm-evaluation-harness, on models trained on the mixtures of the setting nlp.

    python benchmarks/harness.py OUT --pool DIR --targets DIR [--seeds 2] [--rows 32]

OUT as evidence.py left it. Questions are rows of DIR/validation/arc_easy.jsonl and of DIR/NAME.jsonl that neither chose
a mixture nor were trained on, without examples before them. Where there are choices the harness takes the likeliest
(acc), else what is written must match (exact_match). With a connection `taskpgm compare --harness bbh,arc_easy` runs
the harness's own. Kept in OUT/nlp/harness. Prints right answers in percent, and differences from uniform in points.
"""

import argparse
import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from full_finetuning import NAMES
from outcome import cell
from settings import TARGET_ROWS, sampled, write

from taskpgm.config_file import load_config
from taskpgm.evaluation.compare import Trainings, mixture_weights, training_run
from taskpgm.evaluation.harness import run_harness
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.files import write_json
from taskpgm.pipeline.run import solved
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run

ARC = "arc_easy"
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
target_delimiter: ""
"""
# What all options begin with is given: the rest is mostly one token, and the harness then runs a question once.
CHOICES = """\
gen_prefix: "{{prefix}}"
output_type: multiple_choice
doc_to_choice: "{{ends}}"
doc_to_target: label
metric_list: [{metric: acc}]
"""
WRITTEN = """\
output_type: generate_until
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 64, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def write_tasks(folder, pool, targets, rows):
    """Task files of the harness and their data; the tasks' names."""
    files = {ARC: sampled(pool / "validation" / f"{ARC}.jsonl", 8 * rows)}
    for file in sorted(targets.glob("*.jsonl")):  # the first TARGET_ROWS are the setting's own
        files[file.stem] = sampled(file, TARGET_ROWS + rows)[TARGET_ROWS:]
    names = []
    for name, lines in files.items():
        given = [json.loads(line) for line in lines]
        chosen = [row for row in given if row.get("choices")]  # a row or two of some sets have none
        given = chosen or given
        for row in chosen:
            row["label"] = row["choices"].index(row["completion"])
            row["prefix"], row["ends"] = parted(row.pop("choices"))
        task, data = f"local_{name}", folder / f"{name}.jsonl"
        write(data, [json.dumps(row) + "\n" for row in given])
        write(folder / f"{name}.yaml", [TASK.format(task=task, data=data), CHOICES if chosen else WRITTEN])
        names.append(task)
    return names


def parted(choices):
    """What all choices begin with, and how they go on; of (A) and (B) the letters."""
    prefix = "".join(of[0] for of in itertools.takewhile(lambda of: len(set(of)) == 1, zip(*choices, strict=False)))
    ends = [choice[len(prefix) :] for choice in choices]
    return prefix, [end.removesuffix(")") for end in ends] if all(end.endswith(")") for end in ends) else ends


def right(metrics):
    """(percent right of ARC-easy, mean over the sets of BIG-Bench Hard)."""
    accuracy = {task: 100 * of.get("acc", of.get("exact_match")) for task, of in metrics.items()}
    return accuracy.pop(f"local_{ARC}"), float(np.mean(list(accuracy.values())))


def measure(folder, tasks, seeds):
    """{mixture: (seeds, 2)} percent right, and of the model as it is (2,)."""
    include = folder / "harness" / "tasks"
    with contextlib.chdir(folder), open_session(load_config(folder / "mix.yaml"), "run") as session:
        finished = finished_run(session, solved(session))
        options = CompareOptions(accuracy=False, harness=tuple(tasks), include=include)
        trainings = Trainings(replace(finished, folder=folder / "harness"), options)
        given = mixture_weights(session.config, finished.result, NAMES, 0)
        runs = [training_run(finished, name, given[name], seed) for seed in range(seeds) for name in NAMES]
        trainings.measurements(runs, "training, with the harness")
        found = {name: [] for name in NAMES}
        for run in runs:
            found[run.name].append(right(json.loads(trainings.path(run).read_text())["harness"]))
        base = folder / "harness" / "base.json"
        if not base.exists():
            write_json(base, run_harness(session.engine.lm, None, tasks, include))
        return {name: np.array(of) for name, of in found.items()}, right(json.loads(base.read_text()))


def report(found, base):
    """One table in Markdown."""
    print("| | ARC-easy | against uniform | BIG-Bench Hard | against uniform |\n|---|---|---|---|---|")
    print(f"| untrained | {base[0]:.1f} | | {base[1]:.1f} | |")
    for name, of in found.items():
        cells = [c for k in (0, 1) for c in (f"{of[:, k].mean():.1f}", cell(of[:, k] - found["uniform"][:, k]))]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32, help="of a set of BIG-Bench Hard; eight times as many of ARC")
    args = parser.parse_args()
    folder = args.out.resolve() / "nlp"
    tasks = write_tasks(folder / "harness" / "tasks", args.pool.resolve(), args.targets.resolve(), args.rows)
    report(*measure(folder, tasks, args.seeds))


if __name__ == "__main__":
    main()
