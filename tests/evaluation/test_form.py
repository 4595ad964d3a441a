"""How much of a predicted gain is form: against every answer scored on its own, and by what it should say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from support.numerics import synthetic_scores
from support.runs import experiment

from taskpgm import UserError, form_of_gain, load_config
from taskpgm.data.chat import ChatEncoder
from taskpgm.evaluation.answers import response_logp
from taskpgm.evaluation.form import WrongAnswers, form_sentence, has_form, measure_form, wrong_answers
from taskpgm.pipeline.form import form_run
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.stages import load_probes, open_session
from taskpgm.probes.probe import installed

CHOICES = ["yes", "no", "apple apple", "perhaps"]


def asked(folder, model, choices=CHOICES, **settings):
    config = experiment(folder, model)
    rows = [
        {"prompt": f"Is {i} more than {i % 7}?", "completion": CHOICES[i % 4]}
        | ({"choices": choices} if choices else {})
        for i in range(40)
    ]
    (folder / "target.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return load_config(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("form")
    config = asked(root, model_folders["llama"])
    with open_session(config, root / "run") as session:
        result = run_session(session)
        yield session, result, form_run(session)


def answer_logp(lm, probe, encoded):
    """Log-probabilities of each row's answer tokens under one probe."""
    with installed(lm, [probe]) as use, use(probe):
        return [np.asarray(one, dtype=np.float64) for one in response_logp(lm, encoded)]


def test_changes_are_those_of_answers_scored_one_by_one(run):
    session, result, form = run
    lm, config = session.engine.lm, session.config
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    rows = list(result.pool["target"].contexts)
    wrong = wrong_answers(encoder, result.pool, config).rows
    right = encoder.encode([row.conversation for row in rows])
    p, probes = result.mixture.weights, load_probes(session)
    changes = []
    for encoded in (right, wrong):
        by_probe = [answer_logp(lm, probe, encoded) for probe in probes]
        of_rows = []
        for r in range(len(rows)):
            likely = np.exp(np.array([one[r] for one in by_probe]))
            of_rows.append(np.mean(np.log(likely.mean(0)) - np.log(p @ likely)))
        changes.append(np.array(of_rows))
    assert form.right == pytest.approx(changes[0].mean(), abs=2e-5)
    assert form.wrong == pytest.approx(changes[1].mean(), abs=2e-5)
    told = changes[0] - changes[1]
    assert form.error == pytest.approx(told.std(ddof=1) / np.sqrt(len(told)), rel=1e-2)
    assert (form.targets[0].name, form.targets[0].contexts) == ("target", len(rows))
    assert form.mixture == result.mixture.shares
    assert json.loads((session.artifacts / "form.json").read_text()) == json.loads(json.dumps(form.to_dict()))


def test_wrong_answers_are_options_but_the_right_one(run):
    session, result, _ = run
    encoder = ChatEncoder(session.engine.tokenizer, session.config.probes.max_length)
    rows = list(result.pool["target"].contexts)
    wrong = wrong_answers(encoder, result.pool, session.config)
    of_target = np.flatnonzero(result.scores.context_set == result.scores.sets.index("target"))
    np.testing.assert_array_equal(wrong.of, of_target)
    for row, encoded in zip(rows, wrong.rows, strict=True):
        text = session.engine.tokenizer.decode(encoded.ids)
        assert any(choice in text for choice in CHOICES if choice != row.conversation.answer)
    assert wrong_answers(encoder, result.pool, session.config).rows[0].ids.tolist() == wrong.rows[0].ids.tolist()


def test_it_is_not_scored_twice(run):
    session, _, form = run
    path = session.artifacts / "blocks" / "~wrong.npz"
    before = path.stat().st_mtime_ns
    assert form_run(session).to_dict() == form.to_dict()
    assert path.stat().st_mtime_ns == before


def test_what_all_options_share_is_form_and_what_tells_them_apart_is_not():
    scores = synthetic_scores(np.random.default_rng(5), targets=1, longest=1)
    of = np.flatnonzero(scores.context_set == 4)
    columns = np.isin(scores.context, of)
    rows = [SimpleNamespace(response_tokens=1)] * len(of)
    p, u = np.array([0.7, 0.1, 0.1, 0.1]), np.full(4, 0.25)
    same = measure_form(scores, scores.logp[1:, columns], WrongAnswers(rows, of), {}, p, u)
    assert same.right == pytest.approx(same.wrong, abs=1e-12)
    assert same.error == pytest.approx(0, abs=1e-12)
    flat = measure_form(scores, np.full((4, len(of)), -2.0), WrongAnswers(rows, of), {}, p, u)
    assert flat.wrong == pytest.approx(0, abs=1e-12)
    assert flat.right == same.right
    assert "-0." not in form_sentence({"right": -0.02, "wrong": -0.01, "error": 0.002})


def test_targets_without_choices_are_told(tmp_path, model_folders):
    config = asked(tmp_path, model_folders["llama"], choices=None)
    with open_session(config, tmp_path / "run") as session:
        result = run_session(session)
        assert not has_form(result.pool, config)
        with pytest.raises(UserError, match="columns: {choices: COLUMN}"):
            form_run(session)
    other = asked(tmp_path, model_folders["llama"], choices=None, energy={"kind": "gain"})
    with pytest.raises(UserError, match="needs likelihood"):
        form_of_gain(other, tmp_path / "run")
