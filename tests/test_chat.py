"""The response mask says exactly which text the assistant spoke, for every kind of template."""

from dataclasses import replace

import pytest
from conftest import CHATML, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from taskpgm.chat import ChatEncoder, load_tokenizer
from taskpgm.config import ModelConfig
from taskpgm.errors import UserError
from taskpgm.messages import conversation

GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{{ ('[A]' if m['role'] == 'assistant' else '[U]') + m['content'].strip() }}"
    "{{ '<|im_end|>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)
# Earlier assistant turns lose their thoughts, the last one gets empty ones: the generation prompt is no prefix.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think></think>' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
ROW = conversation(
    ("system", "Be brief."), ("user", "3 and 4?"), ("assistant", "7"), ("user", "yes?"), ("assistant", "yes 7")
)


def encoder(folder, template=CHATML, max_length=200, bos=False):
    make_tokenizer(folder, template, bos)
    return ChatEncoder(load_tokenizer(ModelConfig(path=str(folder))), max_length)


def spoken(enc, row):
    """Text of the whole row, and of its response tokens."""
    (found,) = enc.encode([row])
    return enc.tokenizer.decode(found.ids), enc.tokenizer.decode(found.ids[found.response])


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_assistant_turns_and_their_ends_are_the_response(template, tmp_path):
    text, response = spoken(encoder(tmp_path, template), ROW)
    assert response == "7<|im_end|>yes 7<|im_end|>"
    assert text.count("<|im_start|>") == 5
    assert text.endswith("yes 7<|im_end|>\n")  # the newline behind the turn is the template's, not the assistant's


def test_a_template_without_system_turn_reads_it_with_the_first_user_turn(tmp_path):
    text, response = spoken(encoder(tmp_path, NO_SYSTEM), ROW)
    assert text.startswith("[U]Be brief.\n3 and 4?")
    assert response == "7<|im_end|>yes 7<|im_end|>"


def test_empty_thoughts_are_the_models_own_words_where_the_prompt_would_open_them(tmp_path):
    text, response = spoken(encoder(tmp_path, THINKING), replace(ROW, messages=ROW.messages[1:]))
    assert "assistant\n7<|im_end|>" in text
    assert response == "7<|im_end|><think></think>yes 7<|im_end|>"


@pytest.mark.parametrize("bos", [False, True])
def test_the_plain_template(bos, tmp_path):
    text, response = spoken(encoder(tmp_path, None, bos=bos), ROW)
    end = "<|endoftext|>"
    assert text == "<s>" * bos + f"Be brief.\n3 and 4?\n7{end}yes?\nyes 7{end}"
    assert response == f"7{end}yes 7{end}"


def test_a_tokenizer_without_pad_token_gets_one(tmp_path):
    make_tokenizer(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token is None
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).pad_token is not None


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.text("abc 3\n", min_size=1, max_size=60).filter(str.strip),
    completion=st.text("abc 3\n", min_size=1, max_size=30).filter(str.strip),
    room=st.integers(2, 60),
)
def test_a_long_row_loses_the_left_of_its_prompt_and_never_its_completion(prompt, completion, room, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "chatml"
    if not folder.exists():
        folder.mkdir()
        make_tokenizer(folder)
    whole_encoder = ChatEncoder(load_tokenizer(ModelConfig(path=str(folder))), 10_000)
    row = conversation(("user", prompt), ("assistant", completion))
    (whole,) = whole_encoder.encode([row])
    (cut,) = ChatEncoder(whole_encoder.tokenizer, room).encode([row])
    start = int(whole.response.argmax())
    if len(whole.ids) - start + 1 > room:
        assert cut is None
        return
    assert cut.truncated == (len(whole.ids) > room)
    assert cut.ids.tolist() == whole.ids[-room:].tolist()
    assert cut.response.tolist() == whole.response[-room:].tolist()
    assert cut.response.sum() == whole.response.sum()


def test_a_kept_bos_takes_a_place(tmp_path):
    enc = encoder(tmp_path, None, max_length=12, bos=True)
    (row,) = enc.encode([conversation(("user", "x" * 50), ("assistant", "yes"))])
    assert len(row.ids) == 12
    assert enc.tokenizer.decode(row.ids[:1]) == "<s>"
    assert enc.tokenizer.decode(row.ids[row.response]) == "yes<|endoftext|>"


def test_a_turn_that_the_cut_runs_through_is_not_scored(tmp_path):
    enc = encoder(tmp_path, None)
    row = conversation(("user", "x"), ("assistant", "7 " * 40), ("user", "y"), ("assistant", "yes"))
    (cut,) = ChatEncoder(enc.tokenizer, 30).encode([row])
    assert enc.tokenizer.decode(cut.ids[cut.response]) == "yes<|endoftext|>"
    assert "7 7" in enc.tokenizer.decode(cut.ids)


def test_lengths_are_those_of_the_encoded_rows(tmp_path):
    enc = encoder(tmp_path, max_length=40)
    rows = [
        replace(ROW, messages=ROW.messages[1:3]),
        conversation(("user", "x " * 60), ("assistant", "no")),
        conversation(("user", "x"), ("assistant", "no " * 60)),
    ]
    encoded, lengths = enc.encode(rows), enc.lengths(rows)
    assert lengths[2] is None
    assert [(x.tokens, x.response_tokens, x.truncated) for x in lengths[:2]] == [
        (len(e.ids), e.response.sum(), e.truncated) for e in encoded[:2]
    ]
    assert [x.truncated for x in lengths[:2]] == [False, True]


def test_a_refused_row_is_one_sentence(tmp_path):
    enc = encoder(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"template refuses the row .*roles must alternate"):
        enc.encode([ROW])
