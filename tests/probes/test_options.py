"""Contexts scored by their options: against every option scored on its own, and what asks for it."""

import json
import shutil

import numpy as np
import pytest
from scipy.special import softmax
from support.runs import choosing

from taskpgm import UserError, load_run
from taskpgm.chat.encoder import ChatEncoder
from taskpgm.evaluation.likelihood import Questions
from taskpgm.evaluation.loss import Evaluator
from taskpgm.evaluation.predict import predict_losses, run_prediction
from taskpgm.pipeline.run import run_session
from taskpgm.pipeline.session import open_session
from taskpgm.pipeline.stages import finished_run, load_probes, make_pool
from taskpgm.probes.options import Options, encode_options
from taskpgm.probes.probe import installed


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("options")
    config = choosing(root, model_folders["llama"], "options")
    with open_session(config, root / "run") as session:
        result = run_session(session)
        yield session, result, root


def test_a_context_is_one_position_whose_label_is_the_right_option(scored):
    session, result, _ = scored
    scores, pool = result.scores, result.pool
    target = scores.sets.index("target")
    columns = scores.context_set[scores.context] == target
    assert columns.sum() == len(pool["target"].contexts)
    rows = list(pool["target"].contexts)
    lm = session.engine.lm
    encoder = ChatEncoder(lm.tokenizer, session.config.probes.max_length)
    for k, probe in enumerate([None, *load_probes(session)]):
        with installed(lm, [probe] if probe else []) as use, use(probe):
            found = Questions(lm, encoder, rows).logp()  # by another way: prompts once, options on copies of the cache
        right = [softmax(one)[row.choices.index(row.conversation.answer)] for one, row in zip(found, rows, strict=True)]
        np.testing.assert_allclose(scores.logp[k, columns], np.log(right), atol=2e-4)
        evaluated = Evaluator(lm, {"target": rows}, session.config).evaluate(probe).sets["target"]
        assert evaluated.option_loss == pytest.approx(-np.log(right).mean(), abs=1e-5)


def test_the_mixture_is_certified_and_other_sets_stay_as_they_are(scored, tmp_path, model_folders):
    _, result, root = scored
    assert result.mixture.certificate.passed
    config = choosing(root, model_folders["llama"], "tokens")
    plain = load_run(root / "run").scores
    shutil.copytree(root / "run", tmp_path / "run", ignore=shutil.ignore_patterns(".*"))
    with open_session(config, tmp_path / "run") as session:  # the tasks' blocks are used again
        again = run_session(session).scores
    tasks = plain.context_set[plain.context] < len(plain.tasks)
    others = again.context_set[again.context] < len(again.tasks)
    np.testing.assert_allclose(plain.logp[:, tasks], again.logp[:, others], atol=1e-5)  # in other batches
    assert (~others).sum() > (~tasks).sum()


def test_merged_probes_are_judged_by_options_too(scored):
    session, result, _ = scored
    finished = finished_run(session, result)
    alone = {f"only {task}": {t: float(t == task) for t in result.pool.names} for task in result.pool.names}
    found = {one.mixture: one for one in predict_losses(finished, alone)}
    for i, task in enumerate(result.pool.names):  # a merge of one probe is that probe
        columns = result.scores.context_set[result.scores.context] == result.scores.sets.index("target")
        assert found[f"only {task}"].merged == pytest.approx(-result.scores.logp[1 + i, columns].mean(), abs=1e-4)


def test_predictions_of_options_are_held_against_measured_options(scored):
    session, result, _ = scored
    finished = finished_run(session, result)
    weights = result.mixture.shares
    record = {"setting": "s", "rows": session.config.budget.size, "mixture": "taskpgm", "seed": 0, "weights": weights}
    (finished.folder / "compare").mkdir(exist_ok=True)
    for seed, losses in enumerate([{"token_loss": 9.0, "option_loss": 0.5}, {"token_loss": 9.0, "option_loss": None}]):
        path = finished.folder / "compare" / f"{seed}.json"
        path.write_text(json.dumps(record | {"seed": seed, "sets": {"target": losses}}))
    (finished.folder / "comparison.json").write_text(json.dumps({"setting": "s"}))
    (found,), _ = run_prediction(finished, ("taskpgm",), merged=False)
    assert found.measured == 0.5


def test_form_that_all_options_share_counts_for_nothing():
    options = Options([_row(2), _row(1), _row(1), _row(3)], [2, 2], [1, 0])
    logp = np.array([-1.0, -2.0, -2.5, -4.0, -1.0, -1.0, -1.0])
    q = softmax([-3.0, -2.5])[1], softmax([-4.0, -3.0])[0]
    np.testing.assert_allclose(options.logp(logp), np.log(q))
    starts = np.array([0, 0, 1, 2, 3, 3, 3])
    shared = np.array([5.0, 5.0, 5.0, 5.0])[starts] / np.array([2, 1, 1, 3])[starts]  # 5 nats on every option
    np.testing.assert_allclose(options.logp(logp + shared), np.log(q))


def _row(tokens):
    from taskpgm.chat.encoder import Encoded

    return Encoded(np.arange(tokens + 1, dtype=np.int32), np.arange(tokens + 1) > 0, False)


@pytest.mark.parametrize("choices", [None, ["yes"]])
def test_contexts_without_options_are_told_before_anything_is_trained(tmp_path, model_folders, choices):
    config = choosing(tmp_path, model_folders["llama"], "options")
    rows = [{"prompt": f"{i}?", "completion": "yes", **({"choices": choices} if choices else {})} for i in range(40)]
    (tmp_path / "target.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_session(config, tmp_path / "run") as session, pytest.raises(UserError, match="no choices to tell apart"):
        run_session(session)
    assert not (tmp_path / "run" / "adapters").exists()


def test_options_that_do_not_fit_leave_no_context(tmp_path, model_folders):
    config = choosing(tmp_path, model_folders["llama"], "options")
    with open_session(config, tmp_path / "run") as session:
        pool = make_pool(session)
        with pytest.raises(UserError, match="fits with all its options"):
            encode_options(ChatEncoder(session.engine.tokenizer, 3), pool, config)
