"""Refining a mixture by trial runs of a tiny random model, and what is said of the outcome."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from support.models import make_model
from support.runs import choosing, experiment

from taskpgm import UserError, load_config
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import BALANCE, OPTIONS_PRIOR
from taskpgm.evaluation.compare import Trainings, evaluation_rows, run_comparison, training_run
from taskpgm.evaluation.full_finetuning import under
from taskpgm.evaluation.likelihood import Questions
from taskpgm.evaluation.refine import (
    USUAL_NOISE,
    RefineOptions,
    _Worker,
    confirmed_sentence,
    priced,
    run_features,
    run_kappa,
    run_refinement,
    run_shares,
)
from taskpgm.evaluation.settings import CompareOptions
from taskpgm.evaluation.statistics import Measurement, compare_measurements
from taskpgm.mixture.refinement import choose, likely_noise, usual_prior
from taskpgm.mixture.surrogate import fit_surrogate
from taskpgm.mixture.trials import parse_metrics
from taskpgm.pipeline.refine import refine_results, refine_run
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run
from taskpgm.pool.plan import budget_of, plan_rows
from taskpgm.probes.probe import load_probe
from taskpgm.probes.training import Trainer

OPTIONS = RefineOptions(runs=3, seeds=2)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    root = tmp_path_factory.mktemp("refine")
    config = load_config(experiment(root, make_model(root / "model")))
    with open_session(config, root / "run") as session:
        finished = finished_run(session, run_session(session))
        yield session, finished, run_refinement(finished, OPTIONS)


def records(finished):
    return {path: json.loads(path.read_text()) for path in (finished.folder / "compare").glob("*.json")}


def test_trials_begin_with_uniform_and_the_default_and_are_judged_by_half_of_the_rows(refined):
    _, finished, found = refined
    assert found.trials.names[:2] == ("uniform", "taskpgm")
    np.testing.assert_array_equal(found.trials.mixtures[1], finished.result.mixture.weights)
    by_name = {r["mixture"]: r for r in records(finished).values() if r["seed"] == 0}
    shares = run_shares(finished.config, finished.result)
    rest = BALANCE / 3
    assert shares == pytest.approx({"target": 1 - BALANCE, "sums": rest, "sky": rest, "words": rest})
    for name, loss in zip(found.trials.names, found.trials.losses, strict=True):
        halves = {one: by_name[name]["sets"][one]["halves"][0] for one in shares}
        np.testing.assert_allclose(loss, sum(share * halves[one] for one, share in shares.items()))


def test_the_choice_is_that_of_the_surrogate_of_these_trials(refined):
    _, finished, found = refined
    budget = budget_of(finished.result.pool, finished.config)
    features = priced(run_features(finished.config, finished.result), finished.config, finished.result, budget)
    assert features.repetition == pytest.approx(finished.result.energy.repetition * budget.fade)
    assert features.repetition > 0
    prior = usual_prior(features, run_kappa(finished.config, finished.result)).scaled(budget.fade)
    trials = found.trials.mixtures, found.trials.losses
    noise = likely_noise(features, *trials, USUAL_NOISE * np.mean(found.trials.losses), prior)
    fit = fit_surrogate(features, *trials, noise, prior, finished.config.seed)
    np.testing.assert_allclose(found.mixture.weights, choose(fit, finished.result.mixture.bounds).p)
    assert found.mixture.certificate.passed


def test_it_is_confirmed_with_fresh_seeds_on_the_other_rows(refined):
    _, finished, found = refined
    if found.choice.uniform:
        assert found.comparison is None
        assert "uniform is chosen" in found.sentence
        return
    assert {m.seed for m in found.comparison.measurements} == {1, 2}
    kept = {(r["mixture"], r["seed"]): r for r in records(finished).values()}
    for one in found.comparison.measurements:
        assert one.loss["target"] == kept[one.mixture, one.seed]["sets"]["target"]["halves"][1]


def test_it_goes_on_where_it_was_and_compare_uses_its_runs(refined, monkeypatch):
    _, finished, found = refined
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = run_refinement(finished, OPTIONS)
    np.testing.assert_array_equal(again.mixture.weights, found.mixture.weights)
    assert again.sentence == found.sentence
    run_comparison(finished, CompareOptions(("taskpgm", "uniform"), seeds=1, accuracy=False))


def test_measurements_without_halves_are_made_again(refined, monkeypatch):
    _, finished, _ = refined
    path, record = next((p, r) for p, r in records(finished).items() if r["mixture"] == "uniform" and r["seed"] == 0)
    old = {**record, "sets": {n: {**one, "halves": None} for n, one in record["sets"].items()}}
    path.write_text(json.dumps(old))
    run_comparison(finished, CompareOptions(("uniform",), seeds=1, accuracy=False))  # has no use for them
    assert json.loads(path.read_text()) == old
    run_refinement(finished, OPTIONS)
    again = json.loads(path.read_text())["sets"]
    assert again.keys() == record["sets"].keys()
    for name, one in record["sets"].items():  # the same but for how the rows were batched
        assert again[name]["token_loss"] == pytest.approx(one["token_loss"], rel=1e-5)
        assert again[name]["halves"] is not None


def test_trials_of_another_size_are_trained_on_so_many_rows(refined):
    _, finished, found = refined
    small = run_refinement(finished, replace(OPTIONS, runs=2, size=20, seeds=1))
    assert {r["rows"] for r in records(finished).values()} == {20, 50}
    assert small.plan.budget == found.plan.budget == 50  # of the training set that is written
    # The choice is for that budget: what trials of 20 rows say fades, and rows are seen again as 50 would.
    pool, settings = finished.result.pool, finished.config
    there, here = budget_of(pool, settings), budget_of(pool, with_rows(settings, 20))
    features = priced(run_features(settings, finished.result), settings, finished.result, there)
    by = there.fade / here.fade
    fit = small.surrogate
    scaled = replace(fit, features=features, coefficients=by * fit.coefficients, draws=by * fit.draws)
    np.testing.assert_allclose(small.choice.p, choose(scaled, finished.result.mixture.bounds).p, atol=1e-9)
    # What is written of it too: from uniform's loss in the trials, also where uniform was chosen.
    u, p = np.full(3, 1 / 3), np.array([0.5, 0.3, 0.2])
    surface = replace(small, choice=replace(small.choice, p=p, uniform=False)).surface()
    assert surface["budget"] == {"unit": "examples", "trials": 20, "choice": 50}
    assert surface["uniform"]["loss"] == pytest.approx(fit.loss(u))
    way = [one["loss"] for one in surface["from uniform to choice"]]
    assert way[-1] - way[0] == pytest.approx(scaled.loss(p) - scaled.loss(u))
    assert abs(scaled.loss(p) - scaled.loss(u) - fit.loss(p) + fit.loss(u)) > 1e-4
    assert surface["choice"]["loss"] == way[-1]
    assert surface["from uniform to choice"][-1]["error"] == pytest.approx(by * fit.error(p, u))
    more = p - 0.01 * p / 0.5 * (np.arange(3) > 0) + 0.01 * (np.arange(3) == 0)
    assert surface["one hundredth more"]["sums"]["change"] == pytest.approx(scaled.loss(more) - scaled.loss(p))
    assert [t["fitted"] for t in surface["trials"]] == [fit.loss(q) for q in small.trials.mixtures]
    assert there.once["sums"] == pytest.approx(0.4 * here.once["sums"])


def with_rows(config, rows):
    return config.model_copy(update={"budget": config.budget.model_copy(update={"examples": rows})})


def test_rows_that_were_trained_on_are_no_second_trial(refined):
    _, finished, _ = refined
    found = run_refinement(finished, RefineOptions(runs=9, size=4, seeds=1))
    pool, config = finished.result.pool, with_rows(finished.config, 4)
    shares = [dict(zip(pool.names, p.tolist(), strict=True)) for p in found.trials.mixtures[2:]]
    counts = [tuple(task.count for task in plan_rows(pool, one, config).tasks) for one in shares]
    assert len(set(counts)) == len(counts)
    assert f"after {len(found.trials.losses)} of 9 runs: " in found.ended


def test_what_is_written_can_be_compared_and_read_again(refined):
    session, finished, _ = refined
    before = (finished.folder / "mixture.json").read_bytes()
    found = refine_run(session, OPTIONS)
    folder = finished.folder / "refined"
    assert (finished.folder / "mixture.json").read_bytes() == before
    assert len((folder / "train.jsonl").read_text().splitlines()) == 50
    surface = json.loads((folder / "response_surface.json").read_text())
    assert [t["measured"] for t in surface["trials"]] == list(found.trials.losses)
    rows = [{"name": t["name"], **t["weights"], "loss": t["measured"]} for t in surface["trials"]]
    lines = [",".join(map(str, row.values())) for row in (*rows, *rows)]
    (finished.folder / "mine.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    again, mixture = refine_results(finished.folder / "mine.csv", parse_metrics("loss"), session, finished.folder)
    assert mixture.certificate.passed
    assert len(again["trials"]) == 2 * len(rows)
    assert again["coefficients"].keys() == surface["coefficients"].keys()


@pytest.fixture(scope="module")
def refined_by_options(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    config = choosing(root, make_model(root / "model"), "options")
    with open_session(config, root / "run") as session:
        finished = finished_run(session, run_session(session))
        lm = finished.engine.lm
        kept = RefineOptions(runs=2, seeds=2)
        yield config, lm, finished, run_refinement(finished, kept)


def test_targets_of_options_are_judged_by_them(refined_by_options):
    """Against the adapters of the trials, trained again, on one question after another."""
    config, lm, finished, found = refined_by_options
    rows = evaluation_rows(finished.result.pool)["target"]
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    uniform, ours = (dict(zip(finished.result.pool.names, p, strict=True)) for p in found.trials.mixtures)
    options = CompareOptions(accuracy="options", keep=True)
    trainings = Trainings(replace(finished, folder=finished.folder / "again"), options)
    (finished.folder / "again").mkdir()
    runs = [training_run(finished, name, shares, 0) for name, shares in (("uniform", uniform), ("taskpgm", ours))]
    for run, loss in zip(runs, found.trials.losses, strict=True):
        trainings.measurements([run], "again")
        with under(lm, load_probe(trainings.path(run).with_suffix(""), "kept", 0)):
            logp = [Questions(lm, encoder, [row]).logp()[0] for row in rows]
        right = [row.choices.index(row.conversation.answer) for row in rows]
        losses = [logsumexp(one) - one[k] for one, k in zip(logp, right, strict=True)]
        assert loss == pytest.approx(np.mean(losses[::2]), rel=1e-4)
    assert found.prior.mean[3] == OPTIONS_PRIOR * budget_of(finished.result.pool, config).fade
    if found.comparison:
        record = {(r["mixture"], r["seed"]): r["sets"]["target"] for r in records(finished).values()}
        for one in found.comparison.measurements:
            assert one.loss["target"] == record[one.mixture, one.seed]["option_halves"][1]
        assert "uniform on the targets' options" in found.sentence


def test_a_confirmation_is_by_the_other_rows_alone(refined_by_options):
    """Accuracies are of all rows, those that chose too."""
    *_, finished, _ = refined_by_options
    found = _Worker(finished, finished.result).confirm(np.array([0.5, 0.3, 0.2]), 1)
    record = {(r["mixture"], r["seed"]): r["sets"]["target"] for r in records(finished).values()}
    assert record["refined", 1]["accuracy"] is not None
    for one in found.measurements:
        assert one.accuracy == one.option_loss == {}
        assert one.loss["target"] == record[one.mixture, one.seed]["option_halves"][1]
    assert {d.quantity for d in found.differences} == {"targets", "tasks"}


def test_measurements_without_halves_of_options_are_made_again(refined_by_options):
    *_, finished, found = refined_by_options
    path, record = next((p, r) for p, r in records(finished).items() if r["mixture"] == "uniform" and r["seed"] == 0)
    path.write_text(json.dumps(record | {"sets": {n: {**o, "option_halves": None} for n, o in record["sets"].items()}}))
    again = run_refinement(finished, RefineOptions(runs=2, seeds=2))
    np.testing.assert_allclose(again.trials.losses, found.trials.losses, rtol=1e-5)
    assert json.loads(path.read_text())["sets"]["target"]["option_halves"] is not None


@pytest.mark.parametrize("options", [RefineOptions(runs=1), RefineOptions(seeds=0)])
def test_too_few_runs_are_told(refined, options):
    with pytest.raises(UserError, match="at least 2 runs"):
        run_refinement(refined[1], options)


@pytest.mark.parametrize(
    ("uniform", "ours", "said"),
    [
        ([2.0, 2.1, 2.05], [1.9, 2.0, 1.96], "measured with 3 fresh seeds and fresh rows: 4.7 % below uniform"),
        ([2.0, 2.1, 2.05], [2.1, 2.2, 2.16], "measured with 3 fresh seeds and fresh rows: 5.0 % above uniform"),
        ([2.0, 2.1, 2.05], [1.9, 2.3, 2.0], "cannot be told from uniform; measured"),
        ([2.0], [1.9], "1 fresh seed and fresh rows, without an interval: 5.0 % below uniform on the targets"),
    ],
)
def test_what_was_confirmed_is_said(uniform, ours, said):
    runs = [Measurement("refined", k, {"x": y}) for k, y in enumerate(ours)]
    runs += [Measurement("uniform", k, {"x": y}) for k, y in enumerate(uniform)]
    found = compare_measurements(runs, [], ["x"])
    assert said in confirmed_sentence(found)
    assert "uniform on the targets' options" in confirmed_sentence(found, ["x"])
