"""Masks of the chat templates that people's models have, as TRL ships them.

Two oracles: TRL's own training template of a family, where it renders the same text, and expectations written by hand
where it has none or renders another text. A span of TRL may begin with the turn's header and end with the line break
behind the end-of-turn token; neither is the model's to write, and both are taken off.
"""

import importlib.util
import re
from datetime import datetime
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from taskpgm.chat.encoder import ChatEncoder
from taskpgm.chat.known_text import KnownText
from taskpgm.chat.template import Rendered, Template
from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.pool.task_pool import Length, Refused

SPEC = importlib.util.find_spec("trl")
if SPEC is None or SPEC.origin is None:
    pytest.skip("the templates come with TRL", allow_module_level=True)
FOLDER = Path(SPEC.origin).parent / "chat_templates"
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
MARK = re.compile(
    r"<[|｜][^<>\s|｜'{}]{1,40}[|｜]>|<(?:start|end)_of_\w+>|</?s>|<\|\w+>|<\w+\|>|\[gMASK\]|<sop>|\[/?INST\]|</?tool_call>"
)

# The answers stand in the questions too: text alone does not tell them apart.
Q1, A1, T1 = "Is 7 odd? Say yes or no.", "yes", "Seven is odd."
Q2, A2, T2 = "Is 8 odd? yes or no?", "no", "Eight is even, so no."
CALL = {"type": "function", "id": "c1", "function": {"name": "odd", "arguments": {"n": 7, "how": "by yes"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "odd",
        "description": "Says whether a number is odd: yes or no.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}, "how": {"type": "string"}}},
    },
}
TOOLS = Conversation(
    (
        Message("user", Q1), Message("assistant", tool_calls=(CALL,)),
        Message("tool", "yes", tool_call_id="c1", name="odd"), Message("assistant", A2),
    ),
    (TOOL,),
)  # fmt: skip
SHAPES = {
    "one turn": conversation(("user", Q1), ("assistant", A1)),
    "several turns": conversation(("user", Q1), ("assistant", A1), ("user", Q2), ("assistant", A2)),
    "system": conversation(("system", "Say yes."), ("user", Q1), ("assistant", A1)),
    "inline thoughts": conversation(
        ("user", Q1), ("assistant", f"<think>\n{T1}\n</think>\n\n{A1}"),
        ("user", Q2), ("assistant", f"<think>\n{T2}\n</think>\n\n{A2}"),
    ),
    "thoughts": Conversation(
        (
            Message("user", Q1), Message("assistant", A1, reasoning_content=T1),
            Message("user", Q2), Message("assistant", A2, reasoning_content=T2),
        )
    ),
    "tools": TOOLS,
    "assistant first": conversation(("assistant", "yes?"), ("user", Q1), ("assistant", A1)),
    "two users": conversation(("user", Q2), ("user", Q1), ("assistant", A1)),
}  # fmt: skip

# Headers that TRL marks as said; the generation prompt has them, so the model never writes them.
HEADERS = {
    "deepseekv3": ("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"),
    "deepseek_r1_distill": ("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"),
    "gptoss": ("<|start|>assistant",),
    "muse_glimmer": ("<|start|>assistant",),
    "qwen2_5": ("\n",),
}
EMPTY = "<think>\n\n</think>\n\n"  # Qwen's thoughts of an answer without thoughts
INLINE = [f"<think>\n{T1}\n</think>\n\n{A1}", f"<think>\n{T2}\n</think>\n\n{A2}"]
GEMMA_CALL = '<|tool_call>call:odd{how:<|"|>by yes<|"|>,n:7}<tool_call|>'
GLM_CALL = "<tool_call>odd\n<arg_key>n</arg_key>\n<arg_value>7</arg_value>\n<arg_key>how</arg_key>\n<arg_value>by yes</arg_value>\n</tool_call>"
LFM_CALL = "<|tool_call_start|>[odd(n=7, how='by yes')]<|tool_call_end|>"
LLAMA_CALL = '{"name": "odd", "parameters": {"n": 7, "how": "by yes"}}'


def plain(end, **rest):
    """Answers as they stand, thoughts of their own field left out."""
    return {
        "one turn": [A1 + end], "several turns": [A1 + end, A2 + end], "system": [A1 + end],
        "inline thoughts": [text + end for text in INLINE], "thoughts": [A1 + end, A2 + end],
        "assistant first": ["yes?" + end, A1 + end], "two users": [A1 + end],
    } | {shape.replace("_", " "): said for shape, said in rest.items()}  # fmt: skip


def late_thoughts(end, before, **rest):
    """Thoughts of the last answer alone, and empty ones in front of it where it has none."""
    said = [A1 + end, f"<think>\n{T2}\n</think>\n\n{A2}" + end]
    return plain(
        end, one_turn=[before + A1 + end], several_turns=[A1 + end, before + A2 + end], system=[before + A1 + end],
        inline_thoughts=said, thoughts=said, assistant_first=["yes?" + end, before + A1 + end],
        two_users=[before + A1 + end], **rest,
    )  # fmt: skip


# By hand: what is said where TRL has no training template or one that renders another text; None: refused.
GEMMA4 = plain("<turn|>", tools=[GEMMA_CALL + "<|tool_response>", A2 + "<turn|>"])
LFM25 = plain(
    "<|im_end|>\n", tools=[LFM_CALL + "<|im_end|>\n", A2 + "<|im_end|>\n"],
    inline_thoughts=[A1 + "<|im_end|>\n", INLINE[1] + "<|im_end|>\n"],
    thoughts=[A1 + "<|im_end|>\n", f"<think>{T2}</think>{A2}<|im_end|>\n"],
)  # fmt: skip
LLAMA31 = plain("<|eot_id|>", tools=[LLAMA_CALL + "<|eot_id|>", A2 + "<|eot_id|>"])
QWEN = late_thoughts("<|im_end|>", EMPTY)
GLM = "\n<think></think>\n"  # the template writes no end behind the last answer; before that, the next role is the end
BY_HAND = {
    "gemma": {"system": [A1 + "<end_of_turn>"]},  # merged with the question
    "gemma4": GEMMA4, "gemma4_v3": GEMMA4, "gemma4_v4": GEMMA4,
    "gemma4_v2": GEMMA4 | {"tools": [GEMMA_CALL + "<turn|>", A2 + "<turn|>"]},
    "gemma4_v5": GEMMA4 | {"thoughts": [A1 + "<turn|>", f"<|channel>thought\n{T2}\n<channel|>{A2}<turn|>"]},
    # TRL leaves out the token at which the model stops for the result; its own parser takes it for the end of a call.
    "diffusion_gemma": {"tools": [GEMMA_CALL + "<|tool_response>", A2 + "<turn|>"]},
    "llava_next": {"assistant first": ["yes?</s>", f" {A1}</s>"]},  # no prompt goes before a greeting: its text alone
    "lfm2_2_5": LFM25, "lfm2_2_5_v2": LFM25, "lfm2_2_5_vl": LFM25,
    "llama3_1": LLAMA31, "llama3_2": LLAMA31,
    "deepseek_r1_distill": {
        "inline thoughts": [f"\n\n{A1}<｜end▁of▁sentence｜>", f"\n\n{A2}<｜end▁of▁sentence｜>"], "tools": None
    },
    "glm4moe": {
        "one turn": [GLM + A1], "several turns": [GLM + A1 + "<|user|>", GLM + A2], "system": [GLM + A1],
        "inline thoughts": [GLM + A1 + "<|user|>", f"\n<think>{T2}</think>\n{A2}"],
        "thoughts": [GLM + A1 + "<|user|>", f"\n<think>{T2}</think>\n{A2}"],
        "tools": [GLM + GLM_CALL + "<|observation|>", GLM + A2],
        "assistant first": [GLM + "yes?<|user|>", GLM + A1], "two users": [GLM + A1],
    },
    "qwen3": QWEN | {
        "tools": [
            '<tool_call>\n{"name": "odd", "arguments": {"n": 7, "how": "by yes"}}\n</tool_call><|im_end|>',
            EMPTY + A2 + "<|im_end|>",
        ]
    },
    "qwen3_5_nothink": QWEN, "qwen3_5_think": QWEN, "qwen3_6": QWEN,
}  # fmt: skip
SILENT = {"deepseek_r1_distill", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm"}


@pytest.fixture(autouse=True)
def on_that_day(monkeypatch):
    """Templates that write the day's date write that of our rows."""
    clock = type("Clock", (datetime,), {"now": classmethod(lambda cls: cls(2024, 7, 26, 13, 5))})
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


@cache
def tokenizer():
    """A token a byte, and every special token of every template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytewise = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(sorted({m for name in NAMES for m in MARK.findall(source(name))} | {"<s>", "</s>"}))
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>")


def source(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def encoder(name):
    made = tokenizer()
    made.chat_template = source(name)
    return ChatEncoder(made, 100_000)


def render(template, row, blocks, masks=False):
    """Text, and the marks of {% generation %} blocks where asked for; None where the template refuses the row."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = row.to_dicts()
    if blocks:
        messages = [{**given, "content": [{"type": "text", "text": given["content"]}]} for given in messages]
    try:
        texts, marks = render_jinja_template(
            [messages], tools=list(row.tools) or None, chat_template=template, return_assistant_tokens_mask=masks,
            bos_token="<s>", eos_token="</s>",
        )  # fmt: skip
    except Exception:  # whatever a template may raise
        return None
    return texts[0], marks and marks[0]


def said_by_trl(name, row, text):
    """What TRL's training template marks in that very text, header and line break taken off; None without one."""
    path = FOLDER / f"{name}_training.jinja"
    if not path.exists():
        return None
    for blocks in (False, True):
        found = render(path.read_text(encoding="utf-8"), row, blocks, masks=True)
        if found and found[0] == text:
            spans = []
            for a, b in found[1]:
                if spans and spans[-1][1] == a:
                    a = spans.pop()[0]
                spans += [(a, b)] * (a < b)
            return [_without_header(name, text[a:b].rstrip()) for a, b in spans]
    return None


def _without_header(name, said):
    return next((said.removeprefix(header) for header in HEADERS.get(name, ()) if said.startswith(header)), said)


def spoken(enc, row):
    """Text of the row, and its stretches of response tokens; they may touch."""
    (found,) = enc.encode([row])
    text = enc.tokenizer.decode(found.ids)
    return text, enc.tokenizer.decode(found.ids[found.response])


@pytest.mark.parametrize(("name", "shape"), [*product(NAMES, SHAPES)])
def test_the_loss_is_on_the_answers_and_their_ends_alone(name, shape):
    enc, row = encoder(name), SHAPES[shape]
    (length,) = enc.lengths([row])
    by_hand = BY_HAND.get(name, {}).get(shape, ())
    if isinstance(length, Refused):
        refused = render(source(name), row, False) is None or (shape == "tools" and name in SILENT)
        assert refused, length.why
        assert not by_hand
        return
    text, said = spoken(enc, row)
    expected = by_hand or said_by_trl(name, row, text)
    assert expected, "no oracle"
    assert said == "".join(expected)
    assert length.response_tokens == len(enc.tokenizer(said, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_sees_what_its_own_template_writes(name):
    enc, row = encoder(name), SHAPES["several turns"]
    texts = [found[0] for blocks in (False, True) if (found := render(source(name), row, blocks))]
    assert spoken(enc, row)[0] in texts


@pytest.mark.parametrize("name", NAMES)
def test_turns_that_are_not_learned_are_context(name):
    enc, row = encoder(name), SHAPES["several turns"]
    first, last = row.messages[1], row.messages[3]
    texts, parts = [], []
    for learned in ((True, False), (False, True), (True, True)):
        turns = [Message("user", Q1), Message("assistant", first.content, learned=learned[0])]
        turns += [Message("user", Q2), Message("assistant", last.content, learned=learned[1])]
        text, said = spoken(enc, Conversation(tuple(turns)))
        texts.append(text)
        parts.append(said)
    assert len(set(texts)) == 1
    assert parts[0] + parts[1] == parts[2]
    assert A1 in parts[0]
    assert A2 in parts[1]


@pytest.mark.parametrize(("name", "shape"), [*product(NAMES, ("several turns", "assistant first", "inline thoughts"))])
def test_what_rows_were_seen_before_changes_no_mask(name, shape):
    enc = encoder(name)
    rows = [row for row in SHAPES.values() if isinstance(enc.lengths([row])[0], Length)]
    if SHAPES[shape] in rows:
        assert spoken(enc, SHAPES[shape]) == spoken(encoder(name), SHAPES[shape])


ODD = [
    "user", '"', "  yes  ", "no\n", "\n\nyes", '{"a": 1}', "a\\\"b", "<|im_end|>", "</s>", "[INST] yes [/INST]", "<tool_call>",
    "</think>yes", "a</think>b</think>yes", "<think></think>yes", "<think>user</think>\nno", "Assistant: yes",
    "<|channel>thought\nso<channel|>yes", "<think>\n\n</think>\n\nyes", "日本 🙂",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_known_form_are_placed_as_if_they_were_traced(name):
    made = encoder(name).tokenizer
    known, traced = KnownText(Template(made)), Template(made)
    usual = [("user", "One, or two?"), ("assistant", "Three four."), ("user", "Why so?"), ("assistant", "It is five.")]
    first = known.write(conversation(*usual))
    assert first == traced.write(conversation(*usual))
    for place, odd in product(range(4), [*ODD, "six", "yes", "Why so?", "x" * 3000, "\x00six", "it\u2028", "\u00a0"]):
        row = [(role, odd if i == place else text) for i, (role, text) in enumerate(usual)]
        assert known.write(conversation(*row)) == traced.write(conversation(*row))
    assert known.forms == (isinstance(first, Rendered) and not traced.marks(conversation(*usual)))


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma3"])
def test_texts_of_any_length_are_placed(name):
    enc = encoder(name)
    short = conversation(("user", "Why? " * 9), ("assistant", f"{A1}. " * 9), ("user", Q2), ("assistant", A2))
    long = conversation(("user", "Why? " * 300_000), ("assistant", f"{A1}. " * 9), ("user", Q2), ("assistant", A2))
    assert spoken(enc, long)[1] == spoken(enc, short)[1]
    long = conversation(("user", Q1), ("assistant", f"{A1}. " * 2_000), ("user", Q2), ("assistant", A2))
    _, said = spoken(enc, long)
    assert said.count(A1) == 2_000


def test_long_texts_of_many_turns_are_placed():
    letters = "ab cd " * 440
    turns = [(role, f"{role} {i} {letters}.") for i in range(170) for role in ("user", "assistant")]
    assert sum(len(text) for _, text in turns) > 655_360  # more letters than there are stand-ins
    found = Template(encoder("qwen3").tokenizer).write(conversation(*turns))
    assert isinstance(found, Rendered)
    expected = [f"{text}<|im_end|>" for role, text in turns if role == "assistant"]
    assert [found.text[a:b].removeprefix(EMPTY) for a, b in found.spans] == expected


def test_what_was_wrong_with_the_form_that_came_furthest_is_said():
    call = called({"n": 7}, then=(Message("assistant", A2),)).messages
    row = Conversation((*call[:3], *call[1:]), (TOOL,))
    (length,) = encoder("deepseekv3").lengths([row])
    assert isinstance(length, Refused)
    assert length.why == "its generation prompt does not stand in front of turn 4"


@pytest.mark.parametrize("name", ["lfm2_2_5", "lfm2_2_5_v2"])
@pytest.mark.parametrize(
    "texts", [["odd", "even"], ["it's"], ['say "x"', "a\\b"], ["\u00a0é\n日"], ["\\U00040001"], []]
)
def test_lists_are_learned_as_python_shows_them(name, texts):
    row = called({"names": texts, "n": {"deep": texts}}, then=(Message("assistant", A2),))
    text, said = spoken(encoder(name), row)
    assert said.startswith(f"<|tool_call_start|>[odd(names={texts}, n=")
    assert said.endswith(f"{A2}<|im_end|>\n")
    assert text.count(f"names={texts}") == 1


@pytest.mark.parametrize("name", NAMES)
def test_odd_answers_are_placed_as_trl_places_them_or_refused(name):
    enc, compared = encoder(name), 0
    for odd in ODD:
        row = conversation(("user", "yes"), ("assistant", INLINE[0]), ("user", 'say "no" </think>'), ("assistant", odd))
        (length,) = enc.lengths([row])
        if isinstance(length, Refused):
            assert odd in ("<tool_call>", "</s>", "<|im_end|>", "</think>yes"), length.why  # tags that thoughts hide
            continue
        text, said = spoken(enc, row)
        assert odd.rpartition("</think>")[2].rpartition("<channel|>")[2].strip() in said
        if expected := said_by_trl(name, row, text):
            assert said == "".join(expected)
            compared += 1
    differs = name.startswith(("qwen3", "glm", "deepseek_r1")) and name not in (
        "qwen3_8",
        "qwen3_vl",
        "qwen3_instruct_2507",
    )
    assert compared > 10 or differs or not (FOLDER / f"{name}_training.jinja").exists()


def called(*arguments, text="", thought=None, then=()):
    """A row with a call for each of the arguments, and what follows it."""
    calls = [
        {"type": "function", "id": f"c{i}", "function": {"name": "odd", "arguments": given}}
        for i, given in enumerate(arguments)
    ]
    turn = Message("assistant", text, reasoning_content=thought, tool_calls=tuple(calls))
    results = [Message("tool", "odd", tool_call_id=f"c{i}", name="odd") for i in range(len(calls))] if then else []
    return Conversation((Message("user", "odd"), turn, *results, *then), (TOOL,))


CALLED = {
    "numbers alone": called({"n": 7}, then=(Message("assistant", A2),)),
    "no arguments": called({}, then=(Message("assistant", A2),)),
    "two calls": called({"n": 7}, {"how": "odd"}, then=(Message("assistant", A2),)),
    "arguments as text": called('{"n": 7}', then=(Message("assistant", A2),)),
    "at the end": called({"how": 'say "x" \\ y'}),
    "lists of texts": called({"names": ["even", 'say "x"', "it's so"], "n": [1]}, then=(Message("assistant", A2),)),
    "with text": called({"n": 7}, text="Let me see."),
    "with thoughts": called({"n": 7}, thought=T1, then=(Message("assistant", A2), Message("user", Q2), Message("assistant", A1))),
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), [*product(NAMES, CALLED)])
def test_calls_are_learned_as_trl_learns_them_or_refused(name, shape):
    enc, row = encoder(name), CALLED[shape]
    (length,) = enc.lengths([row])
    if isinstance(length, Refused):
        assert name in SILENT or name.startswith(("cohere", "gemma", "gptoss", "llama3", "muse", "diffusion")), (
            length.why
        )
        return
    text, said = spoken(enc, row)
    calls = [{**c, "function": {"name": "odd", "arguments": {"n": 7}}} for c in row.messages[1].tool_calls]
    if shape == "arguments as text":  # TRL's templates want objects
        row = Conversation(
            (row.messages[0], Message("assistant", tool_calls=tuple(calls)), *row.messages[2:]), row.tools
        )
    if expected := said_by_trl(name, row, text):
        assert said.replace("<|tool_response>", "") == "".join(expected)
    else:
        assert (A2 in said) == (len(row.messages) > 2)
        assert said.count("odd") == len(calls) + (shape == "two calls")
        assert said.count("odd") < text.count("odd")
