"""How much of a predicted gain is form: against every answer scored on its own, and by what it should say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from support.runs import choosing

from taskpgm import UserError, form_of_gain
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.evaluation.form import form_sentence, measure_form, questions
from taskpgm.evaluation.likelihood import Questions
from taskpgm.pipeline.form import form_run
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import load_probes
from taskpgm.probes.options import Options
from taskpgm.probes.probe import installed


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("form")
    config = choosing(root, model_folders["llama"])
    with open_session(config, root / "run") as session:
        result = run_session(session)
        yield session, result, form_run(session)


def test_changes_are_those_of_answers_scored_one_by_one(run):
    """By another way of scoring: prompts once, options on copies of the cache."""
    session, result, form = run
    lm, config = session.engine.lm, session.config
    encoder = ChatEncoder(lm.tokenizer, config.probes.max_length)
    rows, by_probe = list(result.pool["target"].contexts), []
    for probe in load_probes(session):
        with installed(lm, [probe]) as use, use(probe):
            by_probe.append(np.array(Questions(lm, encoder, rows).logp()))
    likely = np.exp(np.array(by_probe))  # (n, questions, options)
    p, right = result.mixture.weights, [row.choices.index(row.conversation.answer) for row in rows]

    def losses(q):
        of_options = np.einsum("n,nqo->qo", q, likely)
        return -np.log(of_options[np.arange(len(rows)), right]), -np.log(of_options.sum(1))

    whole, shape = (a - b for a, b in zip(losses(p), losses(np.full(len(p), 1 / len(p))), strict=True))
    choice = whole - shape
    assert form.right == pytest.approx(whole.mean(), abs=2e-5)
    assert form.form == pytest.approx(shape.mean(), abs=2e-5)
    assert form.choice == pytest.approx(choice.mean(), abs=2e-5)
    assert form.error == pytest.approx(choice.std(ddof=1) / np.sqrt(len(choice)), rel=1e-2)
    assert (form.targets[0].name, form.targets[0].questions) == ("target", len(rows))
    assert form.mixture == result.mixture.shares
    assert json.loads((session.artifacts / "form.json").read_text()) == json.loads(json.dumps(form.to_dict()))


def test_it_is_not_scored_twice(run):
    session, _, form = run
    path = session.artifacts / "blocks" / "~target.npz"
    before = path.stat().st_mtime_ns
    assert form_run(session).to_dict() == form.to_dict()
    assert path.stat().st_mtime_ns == before


def test_what_all_options_share_is_form_and_the_rest_is_choice():
    """Two questions of two and three options, an answer of one token or two; two probes."""
    options = Options([SimpleNamespace(response_tokens=t) for t in (2, 1, 1, 1, 2)], [2, 3], [1, 0])
    logp = np.log(np.random.default_rng(0).uniform(0.01, 0.3, (1, 7)))
    first = [0, 2, 3, 4, 5]  # tokens that answers begin with
    more = logp.copy()
    more[0, first] += 0.7
    u, only = np.array([1.0, 0.0]), {"a": 0.0, "b": 1.0}
    shared = measure_form({"t": (options, [np.vstack([logp, more])])}, {}, only, u)
    assert (shared.right, shared.form) == pytest.approx((-0.7, -0.7))
    assert shared.choice == pytest.approx(0, abs=1e-12)
    moved = logp.copy()  # from wrong options to the right one, the sum of each question kept
    totals = np.exp([logp[0, 0] + logp[0, 1], logp[0, 2], logp[0, 3], logp[0, 4], logp[0, 5] + logp[0, 6]])
    moved[0, 2] = np.log(totals[1] + totals[0] / 2)
    moved[0, 0] += np.log(0.5)
    chosen = measure_form({"t": (options, [np.vstack([logp, moved])])}, {}, only, u)
    assert chosen.form == pytest.approx(0, abs=1e-12)
    assert chosen.right == pytest.approx(-np.log(1 + totals[0] / totals[1] / 2) / 2)
    assert chosen.choice == pytest.approx(chosen.right)
    both = measure_form(
        {"t": (options, [np.vstack([logp, more])]), "s": (options, [np.vstack([logp, moved])])}, {"t": 3.0}, only, u
    )
    assert both.right == pytest.approx(0.75 * shared.right + 0.25 * chosen.right)
    assert both.error == pytest.approx(np.hypot(0.75 * shared.error, 0.25 * chosen.error))
    seeds = measure_form({"t": (options, [np.vstack([logp, more]), np.vstack([logp, moved])])}, {}, only, u)
    assert (seeds.right, seeds.form) == pytest.approx(
        ((shared.right + chosen.right) / 2, (shared.form + chosen.form) / 2)
    )
    assert seeds.error == pytest.approx(chosen.error / 2)  # what is shared changes no choice
    single = Options(options.rows[:2], [2], [1])
    assert measure_form({"t": (single, [np.vstack([logp, more])[:, :3]])}, {}, only, u).error is None
    assert "-0." not in form_sentence({"right": -0.02, "form": -0.01, "choice": -0.01, "error": 0.002})


def test_targets_without_choices_are_told(tmp_path, model_folders):
    config = choosing(tmp_path, model_folders["llama"], choices=None)
    with open_session(config, tmp_path / "run") as session:
        result = run_session(session)
        assert not questions(result.pool, config)
        with pytest.raises(UserError, match="columns: {choices: COLUMN}"):
            form_run(session)
    other = choosing(tmp_path, model_folders["llama"], choices=None, energy={"kind": "gain"})
    with pytest.raises(UserError, match="needs likelihood"):
        form_of_gain(other, tmp_path / "run")
