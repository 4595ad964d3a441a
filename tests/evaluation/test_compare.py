"""Training, evaluating and predicting mixtures on a tiny random model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, xlogy
from support.models import make_model
from support.runs import CHOICES, choosing, experiment

from taskpgm import UserError, load_config, parse_config
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.evaluation.compare import (
    CompareOptions,
    Trainings,
    bent_mixtures,
    check_options,
    evaluation_rows,
    plan_steps,
    run_comparison,
    training_run,
)
from taskpgm.evaluation.full_finetuning import under
from taskpgm.evaluation.likelihood import Questions
from taskpgm.evaluation.loss import Evaluator
from taskpgm.evaluation.predict import Prediction, merged_probe, rank_correlations, run_prediction
from taskpgm.lm.loading import load_model
from taskpgm.lm.lora import KEY
from taskpgm.lm.model import LanguageModel
from taskpgm.pipeline.run import compare_mixtures, compare_run, run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run, make_pool
from taskpgm.pool.plan import plan_rows, uniform_mixture
from taskpgm.probes.probe import load_probe
from taskpgm.probes.training import Trainer
from taskpgm.workers.processes import possible

OPTIONS = CompareOptions(("taskpgm", "uniform", "random"), seeds=2, budgets=(0.5, 2), accuracy=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    config = load_config(experiment(root, make_model(root / "model")))
    with open_session(config, root / "run") as session:
        finished = finished_run(session, run_session(session))
        comparison, facts = run_comparison(finished, OPTIONS)
        yield config, finished, comparison, facts


def test_every_mixture_is_trained_with_every_seed_and_written(compared):
    config, finished, comparison, facts = compared
    assert {(m.mixture, m.seed) for m in comparison.measurements} == {
        (name, seed) for name in OPTIONS.mixtures for seed in range(2)
    }
    assert {m.rows for m in comparison.measurements} == {config.budget.size}
    written = json.loads((finished.folder / "comparison.json").read_text())
    assert written["budget equivalence"]["curve"].keys() == {"25", "50", "100"}
    assert "uniform needs" in facts["budget equivalence"]["sentence"]
    records = [json.loads(path.read_text()) for path in (finished.folder / "compare").glob("*.json")]
    assert len(records) == 2 * (3 + 2)
    random = [record["weights"] for record in records if record["mixture"] == "random"]
    assert random[0] != random[1]
    for record in records:
        np.testing.assert_allclose(sum(record["weights"].values()), 1)


@pytest.mark.parametrize("budgets", [(0.0,), (-1.0, 2.0), (float("nan"), 2.0), (0.001, 2.0), (1.0,), (1.0, 1.0)])
def test_budgets_of_which_no_curve_is_drawn_are_told_before_anything_is_trained(budgets, compared):
    config, session = compared[0], SimpleNamespace(config=compared[0])
    with pytest.raises(UserError, match="--budgets"):
        compare_run(session, replace(OPTIONS, budgets=budgets))
    with pytest.raises(UserError, match="two sizes at least"):
        check_options(config, replace(OPTIONS, mixtures=("taskpgm", "random"), budgets=(2.0,)))


def test_benchmarks_that_are_none_are_told_before_anything_is_trained(compared, tmp_path):
    with pytest.raises(UserError, match="has no task 'no_such_task'"):
        compare_run(SimpleNamespace(config=compared[0]), replace(OPTIONS, harness=("no_such_task",), include=tmp_path))


def test_a_weights_file_may_have_any_name(compared, tmp_path):
    _, finished, comparison, _ = compared
    file = tmp_path / "me@home 1.json"
    file.write_text(json.dumps({task.name: 5 for task in finished.result.pool.tasks}))  # uniform, which is measured
    kept = (finished.folder / "comparison.json").read_bytes()
    found, _ = run_comparison(finished, replace(OPTIONS, mixtures=("taskpgm", str(file)), budgets=()))
    (finished.folder / "comparison.json").write_bytes(kept)
    assert [one.mixture for one in found.summaries] == ["taskpgm", str(file)]
    uniform = next(one for one in comparison.summaries if one.mixture == "uniform")
    assert found.summaries[1].losses == uniform.losses


def test_a_mixture_that_the_supply_makes_another_one_is_named(compared, tmp_path):
    config, finished, *_ = compared
    rows = {task.name: task.rows for task in finished.result.pool.tasks}
    whole = config.budget.model_copy(update={"examples": sum(rows.values()), "max_epochs": 1})
    config = config.model_copy(update={"budget": whole})  # all rows once: any mixture is the one by size
    file = tmp_path / "sky.json"
    file.write_text(json.dumps({name: float(name == "sky") for name in rows}))
    (said,) = bent_mixtures(config, finished.result, ["taskpgm", "size", str(file), "random"])
    assert f"{file} is not as asked for: sky has {rows['sky'] / sum(rows.values()):.1%} instead of 100.0%" in said


def test_a_measurement_is_that_of_training_the_plan_and_the_plain_loss(compared):
    config, finished, comparison, _ = compared
    seeded = config.model_copy(update={"seed": _run_seed(config, 1)})
    encoder = ChatEncoder(finished.engine.lm.tokenizer, config.probes.max_length)
    uniform = dict.fromkeys((t.name for t in config.tasks), 1 / len(config.tasks))
    rows = {
        (t, r): encoder.encode([row.conversation])[0]
        for t, task in enumerate(finished.result.pool.tasks)
        for r, row in enumerate(task.train)
    }
    steps = plan_steps(rows, plan_rows(finished.result.pool, uniform, seeded), seeded)
    assert sum(map(len, steps)) == config.budget.size
    assert len(steps) == round(config.budget.size / 4)
    probe = Trainer(finished.engine.lm, seeded, 0).train("again", [[rows[key] for key in step] for step in steps])
    (found,) = [m for m in comparison.measurements if (m.mixture, m.seed) == ("uniform", 1)]
    for name, rows in evaluation_rows(finished.result.pool).items():
        losses = []
        with under(finished.engine.lm, probe), torch.no_grad():
            for row in encoder.encode([row.conversation for row in rows]):
                ids = torch.tensor(row.ids[None].astype(np.int64))
                logp = finished.engine.lm.model(input_ids=ids).logits[0].log_softmax(-1)
                at = np.flatnonzero(row.response)
                losses += [-float(logp[t - 1, ids[0, t]]) for t in at]
        np.testing.assert_allclose(found.loss[name], np.mean(losses), atol=1e-4)


def _run_seed(config, seed):
    from taskpgm.evaluation.compare import _seeded

    return _seeded(config, seed).seed


def test_a_second_comparison_trains_nothing_again(compared, monkeypatch):
    _, finished, comparison, _ = compared
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("trained again"))
    again, _ = run_comparison(finished, OPTIONS)
    assert again.to_dict()["differences"] == comparison.to_dict()["differences"]


def test_predictions_are_the_ensemble_and_the_merged_probes(compared):
    _, finished, comparison, _ = compared
    found, ranks = run_prediction(finished, ("taskpgm", "uniform", "size"))
    by_name = {one.mixture: one for one in found}
    assert by_name.keys() == {"taskpgm", "uniform", "size", "random, seed 0", "random, seed 1"}
    assert ranks["mixtures"] == 4
    scores = finished.result.scores
    target = scores.sets.index("target")
    columns = scores.context_set[scores.context] == target
    logp = scores.logp[1:, columns]
    omega = scores.omega(np.eye(len(scores.sets))[target])[columns]
    expected = -omega @ np.log(np.exp(logp).mean(0))
    np.testing.assert_allclose(by_name["uniform"].ensemble, expected, rtol=1e-6)
    start = -omega @ scores.logp[0, columns]
    gains = (scores.logp[1:, columns] - scores.logp[0, columns]) @ omega
    for one in found:
        p = np.array([one.weights[task.name] for task in finished.config.tasks])
        divergence = float(xlogy(p, 3 * p).sum())
        np.testing.assert_allclose(one.gain, start - gains @ p + 0.3 * divergence, rtol=1e-6)
        np.testing.assert_allclose(one.ensemble, -omega @ np.log(p @ np.exp(logp)) + 0.2 * divergence, rtol=1e-6)
    # The whole weight on one task merges to that probe alone.
    probes = finished.probes()
    one = merged_probe(probes, [0.0, 1.0, 0.0])
    assert all(torch.equal(one.weights[k], probes[1].weights[k]) for k in one.weights)
    measured = {m.mixture: [] for m in comparison.measurements}
    for m in comparison.measurements:
        measured[m.mixture].append(m.loss["target"])
    np.testing.assert_allclose(by_name["uniform"].measured, np.mean(measured["uniform"]))


def test_another_mixture_under_the_name_of_one_is_told_apart(compared):
    """`taskpgm` was trained with other weights once more, as after a change of the energy: both are predicted."""
    _, finished, *_ = compared
    folder = finished.folder / "compare"
    old = next(r for path in folder.glob("*.json") if (r := json.loads(path.read_text()))["mixture"] == "taskpgm")
    names = list(old["weights"])
    other = dict(zip(names, np.arange(1, len(names) + 1) / sum(range(1, len(names) + 1)), strict=True))
    for first in ("0", "z"):  # whichever is read first
        path = folder / f"{first}.json"
        path.write_text(json.dumps(old | {"weights": other}))
        try:
            found = {one.mixture: one for one in run_prediction(finished, ("taskpgm",), merged=False)[0]}
        finally:
            path.unlink()
        again = [one for name, one in found.items() if name.startswith("taskpgm (")]
        assert [dict(one.weights) for one in again] == [other]
        assert dict(found["taskpgm"].weights) == old["weights"]
        assert found["taskpgm"].measured is not None


def test_another_order_of_the_rows_is_another_measurement(compared, monkeypatch):
    _, finished, *_ = compared
    trainings = Trainings(finished, OPTIONS)
    run = training_run(finished, "uniform", uniform_mixture(finished.result.pool), 0)
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert len(trainings.measurements([run], "comparing")) == 1
    turned = replace(run.plan, task=run.plan.task[::-1], row=run.plan.row[::-1])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        trainings.measurements([replace(run, plan=turned)], "comparing")


@pytest.mark.skipif(not possible(), reason="processes are forked on Linux alone")
def test_what_is_measured_does_not_depend_on_what_is_measured_beside_it(compared, tmp_path):
    config, *_ = compared
    data = config.model_dump(exclude_none=True)
    data["model"]["processes"], data["probes"]["lora"]["last_layers"] = 2, 1
    config = parse_config(data)
    together, apart = replace(OPTIONS, budgets=(), keep=True), replace(OPTIONS, budgets=(), seeds=1)
    found = compare_mixtures(config, tmp_path / "together", together)
    compare_mixtures(config, tmp_path / "apart", replace(apart, mixtures=("uniform",)))
    again = compare_mixtures(config, tmp_path / "apart", replace(apart, mixtures=("random", "uniform")))
    by_run = {(m.mixture, m.seed): m.loss for m in found.measurements}
    assert len(by_run) == 6
    assert {(m.mixture, m.seed) for m in again.measurements} == {("random", 0), ("uniform", 0)}
    for m in again.measurements:  # which rows are run together below the adapters moves the last digits
        assert m.loss == pytest.approx(by_run[m.mixture, m.seed], rel=1e-5)
    assert len(list((tmp_path / "together" / "compare").glob("*/adapter_model.safetensors"))) == 6


def test_a_run_that_fails_beside_others_leaves_those_that_are_done(compared, tmp_path, monkeypatch):
    config, *_ = compared
    data = config.model_dump(exclude_none=True)
    data["model"]["processes"] = 2
    train = Trainer.train

    def failing(self, name, steps, *args, **kwargs):
        if name == "random":
            raise UserError("out of luck")
        return train(self, name, steps, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", failing)
    with pytest.raises(UserError, match="out of luck"):
        compare_mixtures(parse_config(data), tmp_path / "run", replace(OPTIONS, budgets=(), seeds=1))
    made = [json.loads(path.read_text())["mixture"] for path in (tmp_path / "run" / "compare").glob("*.json")]
    assert set(made) <= {"taskpgm", "uniform"}
    assert made


def test_the_merged_update_is_the_weighted_sum_of_updates(compared):
    _, finished, _, _ = compared
    probes, weights = finished.probes(), [0.2, 0.0, 0.8]
    merged = merged_probe(probes, weights)
    scale = merged.settings.lora_alpha / merged.settings.r
    for key in [k for k in merged.weights if k.endswith("lora_A.weight")]:
        stem = key.removeprefix(KEY).removesuffix(".lora_A.weight")
        b = key.replace("lora_A", "lora_B")
        found = scale * merged.weights[b] @ merged.weights[key]
        expected = sum(
            w * p.settings.lora_alpha / p.settings.r * p.weights[b] @ p.weights[key]
            for w, p in zip(weights, probes, strict=True)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=stem)


def test_rank_correlations_are_scipys_on_what_was_measured():
    found = [
        Prediction(str(i), {}, e, -e, m, x)
        for i, (e, m, x) in enumerate([(1, 3, 1), (2, 2, 2), (3, 1, 4), (9, 9, None)])
    ]
    assert rank_correlations(found) == {
        "mixtures": 3,
        "ensemble": pytest.approx(1),
        "gain": pytest.approx(-1),
        "merged": pytest.approx(-1),
    }
    assert rank_correlations(found[:2]) == {}


def test_a_set_without_rows_to_evaluate_is_an_error(tmp_path, model_folders):
    config = load_config(experiment(tmp_path, model_folders["llama"], contexts={"per_set": 6, "validation": 0}))
    with open_session(config, tmp_path / "run") as session, pytest.raises(UserError, match="no rows left to evaluate"):
        evaluation_rows(make_pool(session))


@pytest.mark.parametrize("layers", [1, None])
def test_losses_of_options_are_those_of_the_kept_adapters(layers, tmp_path, model_folders):
    config = choosing(tmp_path, model_folders["llama"])
    lora = config.probes.lora.model_copy(update={"last_layers": layers})
    config = config.model_copy(update={"probes": config.probes.model_copy(update={"lora": lora})})
    with open_session(config, tmp_path / "run") as session:
        finished = finished_run(session, run_session(session))
        comparison, _ = run_comparison(finished, CompareOptions(("taskpgm", "uniform"), seeds=1, keep=True))
    assert "target option loss" in comparison.quantities
    lm, rows = finished.engine.lm, evaluation_rows(finished.result.pool)["target"]
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    answers = [row.choices.index(row.conversation.answer) for row in rows]
    expected = []
    for path in (finished.folder / "compare").glob("*.json"):
        probe = load_probe(path.with_suffix(""), "kept", 0)
        with under(lm, probe):
            logp = Questions(lm, encoder, rows).logp()
        expected.append(np.mean([logsumexp(one) - one[k] for one, k in zip(logp, answers, strict=True)]))
    found = [m.option_loss["target"] for m in comparison.measurements]
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-4)
    assert found[0] != found[1]


def test_rows_with_other_options_are_measured_again(tmp_path, model_folders):
    """In the folder of an earlier comparison as in a folder of its own."""
    options = CompareOptions(("taskpgm", "uniform"), seeds=1, accuracy="options")
    before = compare_mixtures(choosing(tmp_path, model_folders["llama"]), tmp_path / "run", options)
    more = choosing(tmp_path, model_folders["llama"], choices=[*CHOICES, "another one", "a third one", "42"])
    after = compare_mixtures(more, tmp_path / "run", options)
    fresh = compare_mixtures(more, tmp_path / "fresh", options)
    losses = [[m.option_loss["target"] for m in found.measurements] for found in (before, after, fresh)]
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_adapters_that_were_not_kept_are_kept_when_asked_for(tmp_path, model_folders):
    config, options = choosing(tmp_path, model_folders["llama"]), CompareOptions(("taskpgm", "uniform"), seeds=1)

    def adapters():
        return {path.parent.name for path in (tmp_path / "run").glob("compare/*/adapter_model.safetensors")}

    compare_mixtures(config, tmp_path / "run", options)
    assert not adapters()
    compare_mixtures(config, tmp_path / "run", replace(options, keep=True))
    assert adapters() == {path.stem for path in (tmp_path / "run" / "compare").glob("*.json")}
    assert len(adapters()) == 2


def test_measurements_by_other_task_files_of_the_harness_are_others(compared, tmp_path):
    """As those by another file that the task names beside it; without files the setting is what it was."""
    _, finished, *_ = compared
    local = replace(OPTIONS, harness=("mine",), include=tmp_path)
    settings = []
    for name, text in (("mine.yaml", "task: mine"), ("mine.yaml", "task: mine\nnum_fewshot: 2"), ("mine.py", "x = 1")):
        (tmp_path / name).write_text(text)
        settings += [Trainings(finished, local).setting, Trainings(finished, local).setting]
    assert settings[::2] == settings[1::2]
    assert len(set(settings)) == 3


def test_benchmarks_stand_beside_sets_of_their_name_and_give_accuracies_alone(compared, monkeypatch):
    _, finished, *_ = compared
    found = {
        "sums": {"acc": 0.25, "acc_stderr": 0.1}, "target": {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.2},
        "stories": {"perplexity": 31.0, "acc_stderr": 0.3}, "facts": {"acc_norm": 0.125, "acc": 0.75},
    }  # fmt: skip
    monkeypatch.setattr("taskpgm.evaluation.mixing.run_harness", lambda *_: found)
    said = []
    monkeypatch.setattr(type(finished.engine.progress), "say", lambda _, text: said.append(text))
    options = replace(OPTIONS, mixtures=("uniform",), seeds=1, budgets=(), accuracy=True)
    (own,) = run_comparison(finished, options)[0].measurements
    (both,) = run_comparison(finished, replace(options, harness=tuple(found)))[0].measurements
    beside = {"sums (harness)": 0.25, "target (harness)": 0.5, "facts": 0.75}
    assert {"sums", "target"} <= own.accuracy.keys()
    assert both.accuracy == {**own.accuracy, **beside}
    assert [text for text in said if "stories" in text and "no accuracy" in text]


@pytest.mark.parametrize("trainer", ["engine", "trl"])
def test_whole_models_are_compared_and_kept(compared, trainer):
    pytest.importorskip("trl")
    _, finished, lora, _ = compared
    options = replace(OPTIONS, mixtures=("taskpgm", "uniform"), seeds=1, budgets=(), method="full", trainer=trainer)
    comparison, _ = run_comparison(finished, replace(options, keep=True))
    losses = {m.mixture: m.loss["target"] for m in comparison.measurements}
    assert losses.keys() == {"taskpgm", "uniform"}
    for m in lora.measurements:
        assert m.loss["target"] not in losses.values()
    folders = {path.parent for path in (finished.folder / "compare").glob("*/model.safetensors")}
    records = {f: json.loads(f.with_suffix(".json").read_text()) for f in folders}
    (folder,) = [f for f, r in records.items() if r["sets"]["target"]["token_loss"] == losses["uniform"]]
    saved = load_model(finished.config.model.model_copy(update={"path": str(folder)}))
    rows = {"target": evaluation_rows(finished.result.pool)["target"]}
    again = Evaluator(saved, rows, finished.config).evaluate(None, generate=False)
    np.testing.assert_allclose(again.sets["target"].token_loss, losses["uniform"], rtol=1e-6)


def test_trainings_one_after_another_run_the_shared_layers_once(compared, monkeypatch):
    _, finished, _, _ = compared
    trainings = Trainings(finished, replace(OPTIONS, learning_rate=0.002))
    tasks = finished.result.pool.names
    one, other = (
        training_run(finished, name, dict(zip(tasks, p, strict=True)), 5)
        for name, p in (("one", (0.2, 0.3, 0.5)), ("other", (0.6, 0.2, 0.2)))
    )
    trainings.measurements([one], "comparing")
    known, ran = set(map(id, trainings.rows.values())), []
    usual = LanguageModel.trunk
    monkeypatch.setattr(
        LanguageModel, "trunk", lambda lm, packed, first: ran.extend(packed.rows) or usual(lm, packed, first)
    )
    (found,) = trainings.measurements([other], "comparing")
    monkeypatch.undo()
    new = set(map(id, trainings.rows.values())) - known
    assert new
    assert {id(row) for row in ran} == new
    trainings.path(other).unlink()
    (alone,) = Trainings(finished, replace(OPTIONS, learning_rate=0.002)).measurements([other], "comparing")
    assert alone.loss == pytest.approx(found.loss, rel=1e-5)
