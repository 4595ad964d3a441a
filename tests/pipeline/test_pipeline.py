"""The whole job on a tiny random Llama: outputs, determinism, resuming, invalidation, crashes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from peft import PeftModel
from support.heard import Heard
from support.runs import TASKS, experiment, write_rows
from transformers import AutoModelForCausalLM

from taskpgm import Affinity, Scores, TaskPool, UserError, load_config, load_run, run
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config_file import parse_config
from taskpgm.data.messages import conversation
from taskpgm.evaluation.full_finetuning import under
from taskpgm.evaluation.likelihood import response_logp
from taskpgm.files import SCRATCH
from taskpgm.lm.checkpoint import load_tokenizer
from taskpgm.lm.engine import Engine
from taskpgm.lm.loading import load_model
from taskpgm.pipeline.directory import RunDirectory
from taskpgm.pipeline.run import explain_run, sample_run, select_run, solve_run
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import make_pool, make_scores
from taskpgm.pool.task_pool import load_tasks
from taskpgm.probes.cache import WARM
from taskpgm.probes.joining import join
from taskpgm.probes.probe import load_probe
from taskpgm.probes.schedule import probe_schedule, warm_start_schedule
from taskpgm.probes.scoring import score_contexts
from taskpgm.probes.training import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folders):
    """One finished run, its configuration file, and what it said; tests copy it before they change it."""
    root = tmp_path_factory.mktemp("finished")
    config = experiment(root, model_folders["llama"])
    heard = Heard()
    result = run(load_config(config), root / "out", progress=heard)
    return root, result, heard.said


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def files(out: Path) -> dict[str, bytes]:
    return {
        name: (out / name).read_bytes()
        for name in ("train.jsonl", "mixture.json", "scores.npz", "affinity.npz", "overlap.json")
    }


def times(out: Path, pattern: str) -> dict[str, int]:
    found = [path for path in out.glob(pattern) if SCRATCH not in str(path)]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}


def test_everything_that_comes_out(finished, model_folders):
    root, result, said = finished
    out = root / "out"
    assert said == []
    mixture = json.loads((out / "mixture.json").read_text())
    names = [task["name"] for task in mixture["tasks"]]
    assert sorted(names) == sorted(TASKS)
    assert abs(sum(task["weight"] for task in mixture["tasks"]) - 1) < 1e-9
    assert mixture["certificate"]["passed"]
    for task in mixture["tasks"]:
        assert {"standard_error", "interval", "at_bound", "count", "rows", "epochs", "row_share", "token_share"} <= set(
            task
        )
        assert task["references"]["uniform"] == pytest.approx(1 / 3)
    assert {v["reference"] for v in mixture["verdicts"]} == {"uniform", "size-proportional"}

    train = load_dataset("json", data_files=str(out / "train.jsonl"), split="train", cache_dir=str(root / "cache"))
    assert len(train) == 50
    assert set(train.column_names) == {"messages", "task"}
    held = {row.conversation for s in result.pool.all for row in (*s.contexts, *s.validation)}
    rows = [conversation(*((m["role"], m["content"]) for m in row["messages"])) for row in train]
    assert not held & set(rows)
    for task in mixture["tasks"]:
        assert sum(t == task["name"] for t in train["task"]) == task["count"]
        assert task["count"] <= 4 * task["rows"]

    for name in TASKS:
        base = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
        PeftModel.from_pretrained(base, out / "adapters" / name)
    scores = Scores.load(out / "scores.npz")
    np.testing.assert_array_equal(scores.logp, result.scores.logp)
    affinity = Affinity.load(out / "affinity.npz")
    assert {"M", "G", "pmi_own", "pmi_base", "ratio"} == set(affinity.matrices) == set(affinity.errors)
    manifest = json.loads((out / "manifest.json").read_text())
    stages = manifest["stages"]
    assert set(stages) == {"pool", "probe", "score", "solve", "sample"}
    assert all(stage["seconds"] >= 0 and stage["peak_memory"] > 10**7 for stage in stages.values())
    used = [load_probe(out / "adapters" / name, name).trained_tokens for name in TASKS]
    assert stages["probe"]["trained_tokens"] == sum(used) > 0
    assert stages["score"]["scored_tokens"] == stages["score"]["context_tokens"] * 4
    assert {"torch", "transformers", "peft"} <= set(manifest["versions"])


def test_scores_in_memory_are_those_of_the_run(finished):
    root, result, _ = finished
    config = load_config(root / "mix.yaml")
    lm = load_model(config.model)
    probes = [load_probe(root / "out" / "adapters" / name, name) for name in TASKS]
    scores = score_contexts(Engine.of(lm), result.pool, probes, config)
    np.testing.assert_array_equal(scores.logp, result.scores.logp)
    np.testing.assert_array_equal(scores.context_group, result.scores.context_group)


def test_the_same_again_and_nothing_is_done_twice(finished, copied, tmp_path):
    root = finished[0]
    run(load_config(root / "mix.yaml"), tmp_path / "other")
    assert files(tmp_path / "other") == files(root / "out")
    before = (
        times(copied / "out", "adapters/*/*") | times(copied / "out", "blocks/*") | times(copied / "out", "scores.npz")
    )
    heard = Heard()
    result = run(load_config(root / "mix.yaml"), copied / "out", progress=heard)
    assert heard.said == []
    assert (
        times(copied / "out", "adapters/*/*") | times(copied / "out", "blocks/*") | times(copied / "out", "scores.npz")
        == before
    )
    assert files(copied / "out") == files(root / "out")
    assert result.mixture.shares == finished[1].mixture.shares


def test_a_loss_per_token_solves_again_and_trains_nothing(copied, model_folders):
    out = copied / "out"
    before = times(out, "adapters/*/*") | times(out, "blocks/*") | times(out, "scores.npz")
    config = load_config(experiment(copied, model_folders["llama"], energy={"loss": "per_token"}))
    per_row = load_run(out).mixture.shares
    result = run(config, out)
    assert times(out, "adapters/*/*") | times(out, "blocks/*") | times(out, "scores.npz") == before
    assert result.mixture.shares != per_row
    assert load_run(out).scores.loss == "per_token"
    target = load_run(out).affinity.matrices["M"][:, -1]
    columns = result.scores.context_set[result.scores.context] == len(result.scores.tasks)
    np.testing.assert_allclose(target, result.scores.logp[:, columns].mean(axis=1), rtol=1e-9)


@pytest.mark.parametrize("alone", [True, False])
def test_a_new_task_trains_its_own_probe_and_scores_its_own_row_and_column(alone, copied, model_folders, tmp_path):
    # A name after which sets are not joined with those before it, or one that is joined with all.
    cut = next(name for name in (f"new{i}" for i in range(100)) if len(join({name: 1, "sums": 1})) == 2)
    new = cut if alone else "more"
    out = copied / "out"
    before = times(out, "adapters/*/*")
    with np.load(out / "blocks" / "sums.npz") as z:
        old = {name: z[name] for name in z.files if name.endswith("logp")}
    config = experiment(copied, model_folders["llama"], (new, *TASKS) if alone else (*TASKS, new))
    heard = Heard()
    run(load_config(config), out, progress=heard)
    assert {k: v for k, v in times(out, "adapters/*/*").items() if f"/{new}/" not in k} == before
    assert heard.totals["training probes"] == 3  # 12 examples in batches of 4, for one task
    # Six contexts a set: all five models on the new one, and the new probe, or all models, on the four old ones.
    assert heard.totals["scoring"] == 6 * (5 + 4 if alone else 5 * 5)
    assert heard.done == heard.totals
    assert all(finished for _, finished in heard.ended)
    with np.load(out / "blocks" / "sums.npz") as z:
        assert all(np.array_equal(z[name], logp) for name, logp in old.items()) if alone else not {*old} & {*z.files}
    run(load_config(config), tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_a_change_invalidates_what_depends_on_it_and_says_so(copied, model_folders):
    out = copied / "out"
    config = copied / "mix.yaml"
    before = times(out, "adapters/*/*")
    with (copied / "sky.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a new row?", "completion": "yes"}) + "\n")
    heard = Heard()
    run(load_config(config), out, progress=heard)
    assert "pool is made again: data of 'sky' changed" in heard.said
    changed = {k.split("/")[1] for k, v in times(out, "adapters/*/*").items() if before[k] != v}
    assert changed == {"sky"}
    assert "the probe of 'sky' is made again: training rows changed" in heard.said
    heard.said.clear()
    settings = json.loads(config.read_text())
    settings["probes"]["learning_rate"] = 0.02
    config.write_text(json.dumps(settings))
    with (
        open_session(load_config(config), out) as session,
        pytest.raises(UserError, match=r"probe of task 'sums' .* not up to date \(probes\)"),
    ):
        solve_run(session)
    run(load_config(config), out, progress=heard)
    assert sum("is made again: probes changed" in sentence for sentence in heard.said) == 3


def test_solve_and_sample_take_other_settings_without_the_model(copied, model_folders):
    settings = json.loads((copied / "mix.yaml").read_text())
    settings |= {"energy": {"kind": "affinity", "t": 1.0}, "targets": [], "budget": {"examples": 30}}
    settings["tasks"][0]["min_share"] = 0.5
    settings["targets"] = json.loads((copied / "mix.yaml").read_text())["targets"]
    settings["energy"] = {"kind": "likelihood", "prior": 0.5}
    (copied / "mix.yaml").write_text(json.dumps(settings))
    code = (
        "import sys; from taskpgm import load_config; from taskpgm.pipeline.run import sample_run\n"
        "from taskpgm.pipeline.session import open_session\n"
        "with open_session(load_config('mix.yaml'), 'out') as session: r = sample_run(session)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(r.mixture.shares['sums'], len(r.plan))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=copied, capture_output=True, text=True, check=True)
    share, rows = done.stdout.split()
    assert float(share) >= 0.5 - 1e-9
    assert rows == "30"
    assert len((copied / "out" / "train.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize("unit", ["examples", "tokens"])
@pytest.mark.parametrize("kind", ["ratio", "jsd", "pmi"])
def test_kinds_units_and_seeds(unit, kind, model_folders, tmp_path):
    config = experiment(
        tmp_path, model_folders["qwen2"], budget={unit: 60}, probes={unit: 20, "batch": 8, "seeds": 2, "lora": {"r": 2}},
        affinity={"kind": kind, "jsd_positions": 20}, targets=[], energy={"kind": "affinity", "t": 1.2, "ridge": 0.1},
    )  # fmt: skip
    result = run(load_config(config), tmp_path / "out")
    assert result.mixture.certificate.passed
    assert (tmp_path / "out" / "adapters.1" / "sums" / "adapter_model.safetensors").exists()
    assert set(np.unique(result.scores.seed)) == {0, 1}
    total = sum(task.tokens if unit == "tokens" else task.count for task in result.plan.tasks)
    assert abs(total - 60) <= (0 if unit == "examples" else 10)
    matrices = result.affinity.matrices
    np.testing.assert_allclose(matrices["pmi_own"], matrices["pmi_own"].T, atol=1e-12)
    np.testing.assert_allclose(np.diag(matrices["pmi_base"]), np.diag(matrices["G"][:, :3]), atol=1e-12)
    if kind == "jsd":
        d = matrices["jsd"]
        assert ((d >= 0) & (d <= np.log(2))).all()
        assert np.linalg.eigvalsh(np.log(2) - d).min() > -1e-9


def test_divergences_asked_for_later_keep_the_scores(copied, model_folders):
    settings = json.loads((copied / "mix.yaml").read_text())
    (copied / "mix.yaml").write_text(json.dumps(settings | {"affinity": {"kind": "jsd"}}))
    config = load_config(copied / "mix.yaml")
    logp = Scores.load(copied / "out" / "scores.npz").logp
    with (
        open_session(config, copied / "out") as session,
        pytest.raises(UserError, match="affinity.jsd_positions"),
    ):
        solve_run(session)
    result = run(config, copied / "out")
    np.testing.assert_allclose(result.scores.logp, logp, atol=1e-6)
    assert "jsd" in result.affinity.matrices
    before = times(copied / "out", "blocks/*")
    (copied / "mix.yaml").write_text(json.dumps(settings | {"affinity": {"kind": "jsd", "jsd_positions": 12}}))
    run(load_config(copied / "mix.yaml"), copied / "out")
    assert times(copied / "out", "blocks/*") == before  # a smaller sample is part of the larger one


def test_a_brought_adapter_takes_the_place_of_a_probe(finished, tmp_path, model_folders):
    root = finished[0]
    tasks = [{"name": n, "path": f"{n}.jsonl"} for n in TASKS]
    tasks[1]["adapter"] = str(root / "out" / "adapters" / "sky")
    config = experiment(tmp_path, model_folders["llama"], tasks=TASKS)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tasks": tasks}))
    heard = Heard()
    result = run(load_config(config), tmp_path / "out", progress=heard)
    assert heard.totals["training probes"] == 2 * 3
    assert result.mixture.shares == pytest.approx(finished[1].mixture.shares, abs=1e-12)


def test_two_processes_on_one_directory(copied):
    with RunDirectory(copied / "out"), pytest.raises(UserError, match="Another process is working on"):
        run(load_config(copied / "mix.yaml"), copied / "out")


@pytest.mark.parametrize("until", ["pool/key.json", "adapters/*/key.json", "blocks/*.npz", "train.jsonl"])
def test_killed_and_started_again(until, finished, tmp_path, model_folders):
    root = finished[0]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "taskpgm", "run", str(root / "mix.yaml"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob(until)):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = times(out, "adapters/*/key.json")
    run(load_config(root / "mix.yaml"), out)
    assert {name: t for name, t in times(out, "adapters/*/key.json").items() if name in kept} == kept
    assert files(out) == files(root / "out")
    assert not list(out.glob(f"**/{SCRATCH}*"))


def test_a_disk_that_fills_up_keeps_finished_work(copied, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(copied / "out", out)
    shutil.rmtree(out / "blocks")
    (out / "scores.npz").unlink()
    before = times(out, "adapters/*/*")
    command = [sys.executable, "-m", "taskpgm", "run", str(copied / "mix.yaml"), "--out", str(out)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=limit, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Finished work is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert times(out, "adapters/*/*") == before
    run(load_config(copied / "mix.yaml"), out)
    assert files(out) == files(copied / "out")


def test_rows_shared_by_tasks_never_leak(tmp_path, model_folders):
    experiment(tmp_path, model_folders["llama"])
    shared = (tmp_path / "sums.jsonl").read_text().splitlines()[:20]
    with (tmp_path / "sky.jsonl").open("a") as file:
        file.write("\n".join(shared) + "\n")
    config = load_config(tmp_path / "mix.yaml")
    pool = load_tasks(config, ChatEncoder(load_tokenizer(config.model), 256).lengths)
    held = {row.key for s in pool.all for row in (*s.contexts, *s.validation)}
    assert not held & {row.key for s in pool.tasks for row in s.train}
    table = pool.overlap_table()
    i, j = table["sets"].index("sums"), table["sets"].index("sky")
    assert table["rows"][i][j] == 20


@pytest.mark.parametrize("layout", ["messages", "prompt_completion"])
def test_trl_trains_on_the_file_as_it_is(layout, copied, finished, model_folders, tmp_path):
    from trl import SFTConfig, SFTTrainer

    settings = json.loads((copied / "mix.yaml").read_text())
    (copied / "mix.yaml").write_text(json.dumps(settings | {"export": {"format": layout}}))
    run(load_config(copied / "mix.yaml"), copied / "out")
    path = str(copied / "out" / "train.jsonl")
    rows = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    arguments = SFTConfig(output_dir=str(tmp_path / "trained"), max_steps=1, report_to=[], use_cpu=True, bf16=False)
    done = SFTTrainer(str(model_folders["llama"]), args=arguments, train_dataset=rows).train()
    assert np.isfinite(done.training_loss)


def warm(folder, model, tasks=TASKS, **probes):
    """The experiment with a warm start."""
    plain = {"examples": 12, "batch": 4, "learning_rate": 0.01, "lora": {"r": 4, "last_layers": 2}}
    return load_config(experiment(folder, model, tasks, probes={**plain, **probes}))


def test_probes_continue_the_warm_start_and_gains_are_over_it(tmp_path, model_folders):
    config = warm(tmp_path, model_folders["llama"], seeds=2)
    result = run(config, tmp_path / "out")
    pool, lm = result.pool, load_model(config.model)
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    rows = [row for task in pool.tasks for row in task.train]
    contexts = [one for s in pool.all for one in encoder.encode([row.conversation for row in s.contexts])]
    for seed, folder in ((0, "warm"), (1, "warm.1")):
        start = load_probe(tmp_path / "out" / folder, WARM, seed)
        order = warm_start_schedule([[row.response_tokens for row in task.train] for task in pool.tasks], config, seed)
        steps = [encoder.encode([rows[i].conversation for i in step]) for step in order]
        again = Trainer(lm, config, seed).train("again", steps)
        assert all(torch.equal(again.weights[key], start.weights[key]) for key in start.weights)
        # The first step of a probe has the loss of the warm start on its rows.
        task = pool.tasks[0]
        first = probe_schedule([row.response_tokens for row in task.train], config, task.name, seed)[0]
        with under(lm, start):
            logp = np.concatenate(response_logp(lm, encoder.encode([task.train[i].conversation for i in first])))
            base = np.concatenate(response_logp(lm, contexts))
        probe = load_probe(tmp_path / "out" / ("adapters.1" if seed else "adapters") / task.name, task.name, seed)
        np.testing.assert_allclose(probe.losses[0], -logp.mean(), rtol=1e-4)
        np.testing.assert_allclose(result.scores.logp[0][result.scores.seed == seed], base, atol=1e-4)


def test_a_warm_start_is_kept_and_if_not_frozen_made_again_when_a_task_comes_in(tmp_path, model_folders):
    config = warm(tmp_path, model_folders["llama"])
    run(config, tmp_path / "out")
    before = times(tmp_path / "out", "*/**/*.safetensors") | times(tmp_path / "out", "warm/*.safetensors")
    assert run(config, tmp_path / "out").mixture.certificate.passed
    assert times(tmp_path / "out", "*/**/*.safetensors") | times(tmp_path / "out", "warm/*.safetensors") == before
    write_rows(tmp_path / "more.jsonl", "more", 40)
    heard = Heard()
    again = warm(tmp_path, model_folders["llama"], (*TASKS, "more"), freeze_warm_start=False)
    run(again, tmp_path / "out", progress=heard)
    assert "the warm start is made again: training rows of 'more' changed" in heard.said
    assert "the probe of 'sums' is made again: warm start changed" in heard.said


@pytest.mark.parametrize("budget", [30, 1000])
@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_a_warm_start_takes_as_much_of_every_task(unit, budget):
    """Three probes in all, whatever the budget."""
    data = {
        "tasks": [{"name": n, "path": n} for n in "abc"],
        "budget": {unit: budget},
        "probes": {unit: 20, "batch": 10},
    }
    config = parse_config(data)
    rng = np.random.default_rng(0)
    costs = [rng.integers(1, 9, count).tolist() for count in (3, 30, 200)]
    order = warm_start_schedule(costs, config, 0)
    flat, offsets = np.concatenate(order), (0, 3, 33)
    spent = [0.0, 0.0, 0.0]
    for i in flat:
        task = 2 if i >= 33 else 1 if i >= 3 else 0
        spent[task] += costs[task][i - offsets[task]] if unit == "tokens" else 1
    assert len(order) == 60 / 10
    assert 60 <= sum(spent) < 60 + (9 if unit == "tokens" else 1)
    assert max(spent) - min(spent) <= (9 if unit == "tokens" else 0)
    assert max(np.bincount(flat)[:3]) - min(np.bincount(flat)[:3]) <= 1  # whole epochs of a small task


def test_scores_ask_for_the_warm_start_that_belongs_to_them(tmp_path, model_folders):
    config = warm(tmp_path, model_folders["llama"])
    run(config, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "warm")
    with (
        open_session(config, tmp_path / "out") as session,
        pytest.raises(UserError, match=r"The warm start in .* is not up to date \(missing\); run `taskpgm probe`"),
    ):
        make_scores(session, make_pool(session))
    again = run(config, tmp_path / "out")
    assert again.mixture.certificate.passed


def test_no_warm_start_beside_a_brought_adapter(tmp_path, model_folders):
    run(warm(tmp_path, model_folders["llama"], warm_start=False), tmp_path / "cold")
    plain = warm(tmp_path, model_folders["llama"])
    tasks = [
        one.model_copy(update={"adapter": str(tmp_path / "cold/adapters/sky")}) if one.name == "sky" else one
        for one in plain.tasks
    ]
    run(plain.model_copy(update={"tasks": tuple(tasks)}), tmp_path / "out")
    assert not (tmp_path / "out" / "warm").exists()


def test_a_model_that_is_run_whole_is_told(model_folders, tmp_path):
    folder = tmp_path / "capped"
    shutil.copytree(model_folders["llama"], folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"final_logit_softcapping": 30.0}))
    said = {}
    for model in (model_folders["llama"], folder):
        said[model] = Heard()
        config = load_config(experiment(tmp_path, model))
        with open_session(config, tmp_path / f"run-{model.name}", progress=said[model]) as session:
            lm = session.engine.lm
        assert lm.plain_head == (not said[model].said)
    assert "run whole and padded" in said[folder].said[0]


def test_a_command_that_reads_leaves_the_mixture_as_it_is(copied):
    config, out = load_config(copied / "mix.yaml"), copied / "out"
    before = times(out, "*.json*") | times(out, "*.npz")
    with open_session(config, out) as session:
        explain_run(session)
        result, selection, folder = select_run(session, 2, sample=True)
    after = times(out, "*.json*") | times(out, "*.npz")
    assert {name: t for name, t in after.items() if name != "explanation.json"} == before
    assert folder == out / "selections" / "k2"
    with open_session(config, out) as session:
        best, searched, _ = select_run(session, 2, exhaustive=True)
    assert searched.exhaustive
    assert {name for name, share in best.mixture.shares.items() if share > 0} == set(searched.chosen)
    assert json.loads((folder / "selection.json").read_text())["exhaustive"]
    assert sum(w > 0 for w in result.mixture.weights) == len(selection.chosen) == 2
    chosen = {json.loads(line)["task"] for line in (folder / "train.jsonl").read_text().splitlines()}
    assert chosen == set(selection.chosen)
    with open_session(config, out) as session:
        sample_run(session)
    assert times(out, "mixture.json") == {"mixture.json": before["mixture.json"]}
    assert files(out)["train.jsonl"] == (copied / "out" / "train.jsonl").read_bytes()
    with open_session(
        config.model_copy(update={"budget": config.budget.model_copy(update={"examples": 20})}), out
    ) as s:
        assert len(sample_run(s).plan) == 20
        select_run(s, 2)  # of a training set that is there already, none stays that is another mixture's
    assert len((folder / "train.jsonl").read_text().splitlines()) == 20
    assert times(out, "mixture.json") != {"mixture.json": before["mixture.json"]}


def test_a_finished_directory_is_opened_without_its_yaml(finished, tmp_path):
    root, result, _ = finished
    found = load_run(root / "out")
    assert found.mixture.shares == result.mixture.shares
    np.testing.assert_array_equal(found.scores.logp, result.scores.logp)
    np.testing.assert_array_equal(found.affinity.matrices["G"], result.affinity.matrices["G"])
    assert found.pool.sets == result.pool.sets
    np.testing.assert_array_equal(found.plan.row, result.plan.row)
    assert len(repr(found)) < 200
    assert len(repr(found.gains)) < 200
    texts = (TaskPool.load(str(root / "out/pool")).sets, Scores.load(str(root / "out/scores.npz")).sets)
    assert texts == (found.pool.sets, found.scores.sets)  # a path may be text
    with pytest.raises(UserError, match=r"has no comparison.json; `taskpgm compare` writes it"):
        _ = found.comparison
    with pytest.raises(UserError, match=r"has no manifest.json"):
        load_run(tmp_path)
