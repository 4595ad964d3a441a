"""The response mask says exactly which text the assistant spoke, for every kind of template."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import CHATML, make_tokenizer
from transformers import AutoTokenizer

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.config import ModelConfig
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.errors import UserError
from taskpgm.lm.checkpoint import load_tokenizer
from taskpgm.pool.task_pool import Length, Refused

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
    folder = folder / str(len(list(folder.iterdir())))
    folder.mkdir()
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
    most=st.integers(2, 60),
)
def test_a_long_row_loses_the_left_of_its_prompt_and_never_its_completion(prompt, completion, most, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "chatml"
    if not folder.exists():
        folder.mkdir()
        make_tokenizer(folder)
    whole_encoder = ChatEncoder(load_tokenizer(ModelConfig(path=str(folder))), 10_000)
    row = conversation(("user", prompt), ("assistant", completion))
    (whole,) = whole_encoder.encode([row])
    (cut,) = ChatEncoder(whole_encoder.tokenizer, most).encode([row])
    start = int(whole.response.argmax())
    if len(whole.ids) - start + 1 > most:
        assert cut is None
        return
    assert cut.truncated == (len(whole.ids) > most)
    assert cut.ids.tolist() == whole.ids[-most:].tolist()
    assert cut.response.tolist() == whole.response[-most:].tolist()
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


OPENS_THOUGHT = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
LLAMA2 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' if m['role'] == 'user' else "
    "' ' + m['content'].strip() + ' ' + eos_token }}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else "
    "'ASSISTANT: ' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NO_PROMPT = CHATML[: CHATML.index("{% if add_generation_prompt")]
ALWAYS_PROMPTS = NO_PROMPT + "{{ '<|im_start|>assistant\n' }}"
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CALLS = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END = "<|im_end|>"
ECHO = conversation(("user", "yes or no? yes"), ("assistant", "yes"), ("user", "a yes?"), ("assistant", "no"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (OPENS_THOUGHT, f"yes{END}no{END}"),
        (LLAMA2, f" yes {END} no {END}"),
        (VICUNA, f" yes{END} no{END}"),
        (NO_PROMPT, f"yes{END}no{END}"),
        (ALWAYS_PROMPTS, f"yes{END}no{END}"),
        (NO_END, " yes no"),  # a token of its own: space and word
        (GENERATION, f"yes{END}no{END}"),
    ],
)
def test_answers_that_stand_in_their_questions_are_learned_where_they_are_said(template, said, tmp_path):
    enc = encoder(tmp_path, template)
    assert spoken(enc, ECHO)[1] == said
    (found,) = enc.encode([ECHO])
    assert enc.tokenizer.decode(found.ids[: int(found.response.argmax())]).count("yes or no? yes") == 1


@pytest.mark.parametrize("template", [CHATML, OPENS_THOUGHT, None])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("user", "user"), ("assistant", "assistant"), ('say "x"', '"'), ("q ", "  a  "), ("🙂?", "日本 語"), ("q", "</think>"),
        ("<|im_end|>\n<|im_start|>assistant\nyes", "<|im_end|>\n<|im_start|>assistant\nyes"),
    ],
)  # fmt: skip
def test_no_text_is_mistaken_for_the_templates_own(template, question, answer, tmp_path):
    enc = encoder(tmp_path, template)
    end = END if template else "<|endoftext|>"
    assert spoken(enc, conversation(("user", question), ("assistant", answer)))[1] == answer + end


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from('abuser "\\\n<>|{}é')), min_size=4, max_size=4).filter(
        lambda t: t[1].strip() and t[3].strip()
    )
)
def test_any_text_is_placed_exactly(texts, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        folder.mkdir()
        make_tokenizer(folder)
    enc = ChatEncoder(load_tokenizer(ModelConfig(path=str(folder))), 10_000)
    row = conversation(*zip(("user", "assistant") * 2, texts, strict=True))
    text, response = spoken(enc, row)
    assert response == f"{texts[1]}{END}{texts[3]}{END}"
    assert text == "".join(f"<|im_start|>{m.role}\n{m.content}{END}\n" for m in row.messages)


def test_a_greeting_is_learned_with_and_without_a_template(tmp_path):
    row = conversation(("assistant", "hi"), ("user", "yes?"), ("assistant", "yes"))
    assert spoken(encoder(tmp_path, CHATML), row)[1] == f"hi{END}yes{END}"
    assert spoken(encoder(tmp_path, None, bos=True), row)[1] == "hi<|endoftext|>yes<|endoftext|>"


def test_a_template_that_writes_the_days_date_gives_the_same_row_every_day(tmp_path):
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
    at_day = encoder(tmp_path, dated.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")).encode([ROW])[0]
    found = encoder(tmp_path, dated).encode([ROW])[0]
    assert found.ids.tolist() == at_day.ids.tolist()
    assert found.response.tolist() == at_day.response.tolist()


def test_an_empty_answer_teaches_its_end(tmp_path):
    row = conversation(("user", "q"), ("assistant", ""), ("user", "yes?"), ("assistant", "yes"))
    assert spoken(encoder(tmp_path, CHATML), row)[1] == f"{END}yes{END}"


@pytest.mark.parametrize("template", [CHATML, GENERATION, None])
def test_a_turn_that_is_not_learned_is_context(template, tmp_path):
    end = END if template else "<|endoftext|>"
    turns = (
        Message("user", "a"),
        Message("assistant", "7", learned=False),
        Message("user", "b"),
        Message("assistant", "8"),
    )
    text, response = spoken(encoder(tmp_path, template), Conversation(turns))
    assert response == "8" + end
    assert "7" + end in text


@pytest.mark.parametrize("arguments", ['{"a": 11, "b": "x"}', {"a": 11, "b": "x"}])
def test_calls_are_learned_and_tools_are_read(arguments, tmp_path):
    call = {"type": "function", "function": {"name": "subtract", "arguments": arguments}}
    tools = ({"type": "function", "function": {"name": "subtract", "parameters": {}}},)
    turns = (
        Message("user", "11 - x?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "7"),
        Message("assistant", "7."),
    )
    text, response = spoken(encoder(tmp_path, CALLS), Conversation(turns, tools))
    assert response == f'<call>subtract {{"a": 11, "b": "x"}}</call>{END}7.{END}'
    assert text.startswith('<|im_start|>tools\n[{"type"')
    for template in (CHATML, None):  # both have no place for calls
        (refused,) = encoder(tmp_path, template).lengths([Conversation(turns, tools)])
        assert isinstance(refused, Refused)
        assert "calls" in refused.why


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (CHATML.replace("message['content']", "message['content'] | upper"), "rewrites the texts"),
        (CHATML.replace("message['content']", "message['content'][:2]"), "leaves out the text of turn 2"),
        (CHATML.replace("message['content']", "message['content'] + message['content']"), "writes turn 2 twice"),
        ("hello", "leaves out the text of turn 2"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 3 }}", "can only concatenate"),
        (GENERATION.replace("{% if m['role'] == 'assistant' %}", "{% if m['role'] == 'assistant' and loop.last %}"), "leave out turn 2"),
        ("{% generation %}" + NO_PROMPT + "{% endgeneration %}", "hold more than an answer"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_placed_is_refused(template, why, tmp_path):
    (refused,) = encoder(tmp_path, template).lengths([ECHO])
    assert isinstance(refused, Refused)
    assert why in refused.why


THOUGHTS = conversation(
    ("system", "Be brief."), ("user", "3?"), ("assistant", "<think>\nso\n</think>\n\n7"), ("user", "yes?"), ("assistant", "<think>x</think>yes")
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (CHATML, ()),
        (CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"), ("the thoughts of earlier answers", "the thoughts of the last answer")),
        (CHATML.replace("in messages", "in messages if message['role'] != 'system'"), ("the system text",)),
        (NO_END, ("the end-of-turn token of the last answer",)),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_said(template, lost, tmp_path):
    (length,) = encoder(tmp_path, template).lengths([THOUGHTS])
    assert isinstance(length, Length)
    assert length.lost == lost


def test_tools_and_thoughts_that_no_template_reads_are_said(tmp_path):
    turns = (Message("user", "3?"), Message("assistant", "7", reasoning_content="so"))
    row = Conversation(turns, ({"type": "function", "function": {"name": "f"}},))
    for template in (CHATML, None):
        (length,) = encoder(tmp_path, template).lengths([row])
        assert length.lost == ("the thoughts of the last answer", "the tools")
