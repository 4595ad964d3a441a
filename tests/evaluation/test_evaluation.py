"""Losses, options and what the model writes, against plain loops of transformers: a row, an option, a prompt a time."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.heard import Heard
from support.models import ARCHITECTURES, CHATML
from support.probing import config_for, loaded
from transformers import AutoModelForCausalLM

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.data.messages import conversation
from taskpgm.errors import UserError
from taskpgm.evaluation.answers import same_answer, written_answers
from taskpgm.evaluation.full_finetuning import under
from taskpgm.evaluation.likelihood import Questions
from taskpgm.evaluation.loss import Evaluator
from taskpgm.lm.engine import Engine
from taskpgm.pool.task_pool import Row
from taskpgm.probes.training import train_probes
from taskpgm.progress import QUIET

CHOICES = ("7", "The answer is 42.", "yes", "a much longer answer than the question")


def prepared(folder, tmp_path):
    """The model, rows by set, a probe far from the base, and the same model and adapter as plain PEFT loads them."""
    lm, encoder, rows = loaded(folder)
    config = config_for(folder, lora={"r": 4, "alpha": 8, "last_layers": 1}, learning_rate=0.02)
    (probe,) = train_probes(Engine.of(lm), {"sums": rows["sums"]}, config)
    (tmp_path / "a").mkdir()
    probe.save(tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return lm, encoder, rows, config, probe, PeftModel.from_pretrained(base, tmp_path / "a").eval()


def with_choices(rows):
    return [dataclasses.replace(row, choices=(*CHOICES, row.conversation.answer)) for row in rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_a_plain_loop(architecture, model_folders, tmp_path):
    lm, encoder, rows, config, probe, plain = prepared(model_folders[architecture], tmp_path)
    for adapter in (probe, None):
        found = Evaluator(lm, rows, config).evaluate(adapter, generate=False)
        for name, of_set in rows.items():
            sums, tokens = [], []
            for row in encoder.encode([row.conversation for row in of_set]):
                ids = torch.tensor(row.ids[None].astype(np.int64))
                labels = torch.where(torch.tensor(row.response)[None], ids, -100)
                with torch.no_grad():
                    if adapter:
                        loss = plain(input_ids=ids, labels=labels).loss
                    else:
                        with plain.disable_adapter():
                            loss = plain(input_ids=ids, labels=labels).loss
                tokens.append(row.response.sum())
                sums.append(float(loss) * tokens[-1])
            one = found.sets[name]
            assert (one.rows, one.tokens) == (len(of_set), sum(tokens))
            np.testing.assert_allclose(one.token_loss, sum(sums) / sum(tokens), rtol=1e-4)
            np.testing.assert_allclose(one.row_loss, np.mean(np.array(sums) / tokens), rtol=1e-4)
            assert (one.measure, one.accuracy) == (None, None)
    assert not [name for name, _ in lm.model.named_parameters() if "lora" in name]


WITH_CALLS = CHATML.replace(
    "message['content'] + '<|im_end|>",
    "message['content'] ~ (message.tool_calls | tojson if message.tool_calls) ~ '<|im_end|>",
)


def test_answers_that_are_calls_or_hold_thoughts_are_not_marked(model_folders, tmp_path):
    lm, _, rows, config, _, _ = prepared(model_folders["llama"], tmp_path)
    lm.tokenizer.chat_template = WITH_CALLS
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}

    def changed(row, **said):
        *before, last = row.conversation.messages
        turns = (*before, dataclasses.replace(last, **said))
        return dataclasses.replace(row, conversation=dataclasses.replace(row.conversation, messages=turns))

    given = with_choices(rows["sums"])
    calls = [changed(row, tool_calls=(call,)) for row in given]
    thoughts = [changed(row, reasoning_content="hm") for row in given]
    found = Evaluator(lm, {"calls": calls, "thoughts": thoughts, "mixed": [*calls, *given[:2]]}, config).evaluate(None)
    assert [one.measure for one in found.sets.values()] == [None, None, "choices"]
    assert [one.marked for one in found.sets.values()] == [0, 0, 2]
    assert found.sets["mixed"].rows == len(calls) + 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_options_are_those_of_one_at_a_time(architecture, model_folders, tmp_path):
    lm, encoder, rows, config, probe, plain = prepared(model_folders[architecture], tmp_path)
    rows = with_choices([*rows["sums"], rows["sky"][0]])
    right, right_norm = [], []
    first = probe.first_layer(len(lm.layers))
    assert first > 0
    kept = Questions(lm, encoder, rows, first)
    kept.fill(QUIET)
    assert bool(kept.trunks) == lm.plain_head
    with under(lm, probe):
        found = Questions(lm, encoder, rows).logp()
        ways = [kept.logp(), kept.logp(), Questions(lm, encoder, rows, first, memory=20_000).logp()]  # all or some kept
    for other in ways:
        for logp, expected in zip(other, found, strict=True):
            np.testing.assert_allclose(logp, expected, rtol=1e-4)
    for row, logp in zip(rows, found, strict=True):
        expected = []
        for choice in row.choices:
            chat = row.conversation.until_answer(choice).to_dicts()
            text = lm.tokenizer.apply_chat_template(chat, tokenize=False)
            before = lm.tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
            ids = lm.tokenizer(text, add_special_tokens=False).input_ids
            start = len(lm.tokenizer(before, add_special_tokens=False).input_ids)
            end = max(i for i, token in enumerate(ids) if token == lm.tokenizer.convert_tokens_to_ids("<|im_end|>"))
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected.append(sum(float(logits[t - 1, ids[t]]) for t in range(start, end + 1)))
        np.testing.assert_allclose(logp, expected, rtol=1e-4)
        answer = row.conversation.answer
        right.append(row.choices[int(np.argmax(expected))] == answer)
        right_norm.append(row.choices[int(np.argmax(np.array(expected) / [len(c) for c in row.choices]))] == answer)
    one = Evaluator(lm, {"a": rows}, config).evaluate(probe).sets["a"]
    assert (one.measure, one.marked, one.score) == ("choices", len(rows), None)
    assert (one.accuracy, one.accuracy_norm) == (np.mean(right), np.mean(right_norm))


def test_options_that_cut_their_prompt_and_options_that_do_not_fit(model_folders):
    lm, encoder, rows = loaded(model_folders["llama"])
    rows = with_choices(rows["sums"])
    whole = Questions(lm, encoder, rows).logp()
    lengths = [encoder.lengths([row.conversation.until_answer(CHOICES[-1])])[0].tokens for row in rows]
    short = ChatEncoder(lm.tokenizer, lengths[1] - 2)  # cuts the second row's prompt where the option is the longest
    found = Questions(lm, short, rows).logp()
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-4)
    np.testing.assert_allclose(np.delete(found[1], 3), np.delete(whole[1], 3), rtol=1e-4)
    assert abs(found[1][3] - whole[1][3]) > 1e-3
    assert Questions(lm, ChatEncoder(lm.tokenizer, 10), rows).logp()[0] is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_writing_is_that_of_one_prompt_at_a_time(architecture, model_folders, tmp_path):
    lm, encoder, rows, _, probe, plain = prepared(model_folders[architecture], tmp_path)
    rows = [*rows["sums"], rows["sky"][0]]
    with under(lm, probe):
        found = written_answers(lm, encoder, rows)
    limit = max(one.last_turn.response.sum() for one in encoder.encode([row.conversation for row in rows])) + 4
    for row, said in zip(rows, found, strict=True):
        chat = row.conversation.to_dicts()[:-1]
        text = lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = lm.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        for _ in range(limit):  # no cache, no padding, no generate()
            with torch.no_grad():
                token = plain(input_ids=ids).logits[0, -1].argmax()
            if token == lm.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token.reshape(1, 1)], 1)
        start = len(lm.tokenizer(text, add_special_tokens=False).input_ids)
        assert said == lm.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert len(set(found)) > 1


def test_a_row_that_fills_the_models_positions_is_still_written_to(model_folders):
    lm, encoder, rows = loaded(model_folders["gpt2"])
    encoder = ChatEncoder(lm.tokenizer, 512, lm.limits)
    long = conversation(("user", "Is the sky blue? " * 300), ("assistant", "3"))
    (length,) = encoder.lengths([long])
    assert length.tokens == 512
    short = rows["sums"][0]
    found = written_answers(lm, encoder, [Row(long, *length[:3], key=""), short])
    assert len(found) == 2
    assert found[1] == written_answers(lm, encoder, [short])[0]


def test_what_marks_a_set(model_folders):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    lm, _, rows = loaded(model_folders["llama"])
    # Trained until it gives every answer by heart: grades must then be full.
    config = config_for(model_folders["llama"], examples=300, batch=3, learning_rate=0.02)
    learned = [*rows["sums"], rows["sky"][0]]
    (probe,) = train_probes(Engine.of(lm), {"sums": learned}, config)
    item = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]
    verified = [
        dataclasses.replace(row, verifier={"dataset": "chain_sum", "answer": answer, "metadata": item["metadata"]})
        for row, answer in zip(learned, ("7", "41", "11", "no"), strict=True)
    ]
    mixed = [*with_choices(learned[:2]), *learned[2:]]
    sets = {"exact": learned, "verified": verified, "mixed": mixed, "few": [*mixed[1:]], "long": rows["sky"]}
    found = Evaluator(lm, sets, config).evaluate(probe).sets
    assert {n: (s.measure, s.marked) for n, s in found.items()} == {
        "exact": ("exact", 4), "verified": ("verifier", 4), "mixed": ("choices", 2), "few": ("exact", 3),
        "long": (None, 0),
    }  # fmt: skip
    assert (found["exact"].accuracy, found["few"].accuracy, found["mixed"].accuracy) == (1.0, 1.0, 1.0)
    score = reasoning_gym.get_score_answer_fn("chain_sum")
    expected = [score(answer=row.conversation.answer, entry={"question": "", **row.verifier}) for row in verified]
    assert found["verified"].score == np.mean(expected)
    assert found["verified"].accuracy == np.mean([one == 1 for one in expected]) == 0.5
    silent = Evaluator(lm, sets, config).evaluate(probe, generate=False)
    assert {n: s.measure for n, s in silent.sets.items()} == {**dict.fromkeys(sets), "mixed": "choices"}
    assert silent == Evaluator(lm, sets, config).evaluate(probe, generate=False)
    base = Evaluator(lm, sets, config).evaluate(None)
    assert base.sets["exact"].accuracy < 1
    assert base.sets["exact"].token_loss > found["exact"].token_loss


def test_progress_and_what_cannot_be_evaluated(model_folders):
    lm, _, rows = loaded(model_folders["llama"])
    config, heard = config_for(model_folders["llama"]), Heard()
    with heard.stage("evaluating", 2):
        Evaluator(lm, rows, config).evaluate(None, generate=False, progress=heard)
    assert heard.done == {"evaluating": 2}
    with pytest.raises(UserError, match="'b' has no rows to evaluate"):
        Evaluator(lm, {**rows, "b": []}, config).evaluate(None, generate=False)


def test_same_answers():
    for written, reference, same in [
        (" Yes.\n", "yes", True), ("yes", "no", False), ("1.5", "15", False), ("a..", "a.", False), ("a.", "A", True),
    ]:  # fmt: skip
        assert same_answer(written, reference) is same
