"""Reading and splitting: against plain recomputation, `datasets` itself, and what a user may get wrong."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.files import GOOD, bad, configure, lengths_of, load, one_sentence, pair, pairs, prompts, read, write
from support.heard import Heard

from taskpgm.config import Config
from taskpgm.data.messages import Conversation, conversation
from taskpgm.errors import UserError
from taskpgm.pool.task_pool import Length, TaskPool, load_tasks, row_key

# Formats


# What answers are graded by


def test_gradings_reach_the_pool_and_move_nothing(tmp_path: Path) -> None:
    plain = pairs(*range(30))
    marked = [{**row, "choices": ["yes", "no"]} for row in plain]
    again = [*marked, {**plain[3], "choices": ["no", "yes"]}, plain[4]]  # equal rows, other grading
    before = load(configure({"a": write(tmp_path / "a.jsonl", plain)}))["a"]
    pool = load(configure({"a": write(tmp_path / "b.jsonl", again), "b": write(tmp_path / "a.jsonl", plain)}))
    after = pool["a"]
    assert [after.train_key, after.context_key] == [before.train_key, before.context_key]
    rows = [*after.train, *after.contexts, *after.validation]
    assert {row.choices for row in rows} == {("yes", "no"), ("no", "yes")}
    assert [row.choices for row in rows if row.conversation == pair("3")] == [
        ("no", "yes")
    ]  # whatever the file's order
    assert {row.choices for row in pool["b"].train} == {None}
    pool.save(tmp_path / "pool")
    assert TaskPool.load(tmp_path / "pool").tasks == pool.tasks


def test_the_verifier_of_every_demo_generator_marks_what_was_read(tmp_path: Path) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    from taskpgm.cli.demo import ROWS, TARGETS, generate

    for name in (*ROWS, *TARGETS):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(generate(name, 30)))
        pool = load_tasks(
            configure({"a": tmp_path / f"{name}.jsonl"}), lambda rows: [Length(2, 1, False) for _ in rows]
        )
        pool.save(tmp_path / "pool")
        for row in TaskPool.load(tmp_path / "pool")["a"].train:
            assert row.verifier is not None
            assert row.verifier["dataset"] == name
            score = reasoning_gym.get_score_answer_fn(name)
            entry = {"question": row.conversation.messages[0].content, **row.verifier}
            assert score(answer=row.conversation.answer, entry=entry) == 1.0
            assert score(answer="no such answer", entry=entry) < 1.0


# Splits


@st.composite
def pools(draw: st.DrawFn) -> dict[str, list[int]]:
    """Row contents of up to four sets from a small universe, so that they repeat themselves and each other."""
    names = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "t"], ["b", "a", "t", "u"]]))
    rows = st.lists(st.integers(0, 60), min_size=5, max_size=40, unique=True)
    again = st.lists(st.integers(0, 3), max_size=5)
    return {name: (own := draw(rows)) + [own[i] for i in draw(again)] for name in names}


def pool_config(folder: Path, sets: dict[str, list[int]], **more: Any) -> Config:
    paths = {name: write(folder / f"{name}.jsonl", pairs(*rows)) for name, rows in sets.items()}
    tasks = {name: path for name, path in paths.items() if name in "ab"}
    return configure(tasks, {name: path for name, path in paths.items() if name in "tu"}, **more)


common = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@common
@given(sets=pools(), seed=st.integers(0, 3), held=st.integers(0, 5))
def test_splits_against_a_plain_recomputation(tmp_path: Path, sets: dict[str, list[int]], seed: int, held: int) -> None:
    config = pool_config(tmp_path, sets, seed=seed, validation=held)
    ranked = {s: sorted({str(i) for i in rows}, key=lambda p: row_key(seed, pair(p))) for s, rows in sets.items()}
    contexts = {name: rows[:2] for name, rows in ranked.items()}
    all_contexts = {p for rows in contexts.values() for p in rows}
    cut = {name: 2 + min(held, (len(rows) - 2) // 10) if name in "ab" else len(rows) for name, rows in ranked.items()}
    validation = {name: [p for p in rows[2 : cut[name]] if p not in all_contexts] for name, rows in ranked.items()}
    held_out = all_contexts.union(*validation.values())
    train = {name: [p for p in rows[cut[name] :] if p not in held_out] for name, rows in ranked.items()}
    event(f"leaks use up a task: {not all(train[name] for name in sets if name in 'ab')}")
    if not all(train[name] for name in sets if name in "ab"):
        with pytest.raises(UserError, match="has no training row left"):
            load(config)
        return
    pool = load(config)
    for one in pool.all:
        assert prompts(one.contexts) == contexts[one.name]
        assert prompts(one.validation) == validation[one.name]
        assert prompts(one.train) == train[one.name]
        c = one.counts
        kept = len(one.train) + len(one.contexts) + len(one.validation)
        assert c.read + c.validation_read == c.duplicates + c.too_long + c.validation_dropped + c.train_dropped + kept
        assert c.read == len(sets[one.name])
        assert c.duplicates == len(sets[one.name]) - len(set(sets[one.name]))
    assert pool.overlap.tolist() == [[len(set(sets[a]) & set(sets[b])) for b in pool.sets] for a in pool.sets]


@common
@given(sets=pools(), order=st.randoms(use_true_random=False))
def test_neither_file_order_nor_other_sets_move_contexts(
    tmp_path: Path, sets: dict[str, list[int]], order: Any
) -> None:
    try:
        before = load(pool_config(tmp_path, sets))
    except UserError:
        return
    shuffled = {name: order.sample(rows, len(rows)) for name, rows in order.sample(list(sets.items()), len(sets))}
    after = load(pool_config(tmp_path, shuffled))
    assert {one.name: one for one in before.all} == {one.name: one for one in after.all}
    alone = load(pool_config(tmp_path, {"a": sets["a"]}))
    assert alone["a"].contexts == before["a"].contexts
    assert alone["a"].context_key == before["a"].context_key
    kept = set(prompts(before["a"].train))
    assert [p for p in prompts(alone["a"].train) if p in kept] == prompts(before["a"].train)


def test_shared_rows_fall_on_the_same_side(tmp_path: Path) -> None:
    pool = load(
        configure(
            {"a": write(tmp_path / "a.jsonl", pairs(*range(50))), "b": write(tmp_path / "b.jsonl", pairs(*range(50)))}
        )
    )
    assert pool["a"].train == pool["b"].train
    assert pool["a"].contexts == pool["b"].contexts
    assert pool["a"].counts.train_dropped == 0
    table = pool.overlap_table()
    assert (table["sets"], table["rows"]) == (["a", "b"], [[50, 50], [50, 50]])
    assert table["contamination"] == []


def test_the_seed_moves_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(*range(200)))
    first, second = (load(configure({"a": path}, seed=seed))["a"] for seed in (0, 1))
    assert first.context_key != second.context_key
    assert set(prompts(first.contexts)) != set(prompts(second.contexts))


def test_rows_that_differ_in_any_part_are_distinct() -> None:
    rows: list[Conversation] = [
        pair("ab", "c"),
        pair("a", "bc"),
        conversation(("system", "ab"), ("assistant", "c")),
        conversation(*[("user", "ab"), ("assistant", "c")] * 2),
    ]
    assert len({row_key(seed, row) for row in rows for seed in (0, 1)}) == 8


def test_every_row_is_as_likely_a_context(tmp_path: Path) -> None:
    # 400 seeds, 2 of 20 rows: each row is a context 40 times, standard deviation 6.
    chosen = np.zeros(20)
    path = write(tmp_path / "a.jsonl", pairs(*range(20)))
    for seed in range(400):
        for prompt in prompts(load(configure({"a": path}, seed=seed))["a"].contexts):
            chosen[int(prompt)] += 1
    assert chosen.sum() == 800
    assert abs(chosen - 40).max() < 5 * 6


def test_validation_file(tmp_path: Path) -> None:
    own = write(tmp_path / "a.jsonl", pairs(*range(50)))
    contexts = prompts(load(configure({"a": own}))["a"].contexts)
    file = write(tmp_path / "v.jsonl", pairs(contexts[0], 48, 49, 49, "new", "long " * 50))
    a = load(configure({"a": {"path": own, "validation": file}}))["a"]
    expected = ({"48", "49", "new"} | {"long " * 50}) - set(contexts)
    assert set(prompts(a.validation)) == expected
    assert prompts(a.contexts) == contexts
    assert not expected & set(prompts(a.train))
    assert len(a.train) == 48 - len(expected & set(map(str, range(50))))
    assert (a.counts.validation_read, a.counts.duplicates, a.counts.validation_dropped) == (6, 1, 1)
    assert a.counts.truncated == 1


def test_lengths_are_counted(tmp_path: Path) -> None:
    rows = [*pairs(*range(20)), {"prompt": "p " * 40, "completion": "cut"}, {"prompt": "q", "completion": "w " * 40}]
    heard = Heard()
    pool = load_tasks(configure({"a": write(tmp_path / "a.jsonl", rows)}), lengths_of, heard)
    a = pool["a"]
    assert (a.counts.too_long, a.counts.truncated) == (1, 1)
    assert a.response_tokens == 2 * len(a.train)
    assert all(row.tokens == lengths_of([row.conversation])[0].tokens for row in a.train)  # type: ignore[union-attr]
    assert heard.done == heard.totals == {"reading": 1, "tokenising": 22}


def test_a_shared_row_is_measured_once(tmp_path: Path) -> None:
    sizes: list[int] = []

    def counting(batch: Sequence[Conversation]) -> list[Length | None]:
        sizes.append(len(batch))
        return lengths_of(batch)

    a, b = write(tmp_path / "a.jsonl", pairs(*range(600))), write(tmp_path / "b.jsonl", pairs(*range(300, 900)))
    load_tasks(configure({"a": a, "b": b}), counting)
    assert sum(sizes) == 900
    assert max(sizes) <= 512


def test_saved_pool_comes_back(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": "system", "content": "ü\u2028"},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "x"},
        ]
    }
    rows = [{"messages": [*chat["messages"], {"role": "user", "content": str(i)}]} for i in range(9)]
    pool = load(
        configure({"a": write(tmp_path / "a.jsonl", pairs(*range(9)))}, {"t": write(tmp_path / "t.jsonl", rows)})
    )
    pool.save(tmp_path / "pool")
    back = TaskPool.load(tmp_path / "pool")
    assert (back.tasks, back.targets) == (pool.tasks, pool.targets)
    assert back.overlap.tolist() == pool.overlap.tolist()
    assert [s.train_key for s in back.all] == [s.train_key for s in pool.all]


def test_loading_plain_files_needs_neither_datasets_nor_torch(tmp_path: Path) -> None:
    import subprocess

    path = write(tmp_path / "a.jsonl", pairs(*range(20)))
    data = {"tasks": [{"name": "a", "path": path}], "budget": {"examples": 1}, "contexts": {"per_set": 2}}
    code = (
        "import sys, taskpgm.export.train_file\n"
        "from taskpgm.config_file import parse_config\n"
        "from taskpgm.pool.task_pool import Length, load_tasks\n"
        f"load_tasks(parse_config({data!r}), lambda rows: [Length(2, 1, False) for _ in rows])\n"
        "assert not {'torch', 'datasets', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What a user may get wrong: one sentence with value, reason and remedy


BAD_FILES = [
    ("a.jsonl", '{"question": "p", "answer": "c"}\n', "has the columns question, answer; a task needs"),
    ("a.jsonl", '{"prompt": "p", "output": "c"}\n', "has the columns prompt, output; a task needs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "says"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        read(bad(tmp_path / name, text))
    one_sentence(error)
    assert "a." in str(error.value)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": "question"}, "`columns` reads prompt from 'question', but .* has prompt, completion"),
        ({"prompt": "prompt", "output": "completion"}, "and `columns` maps prompt, output; a task needs"),
    ],
)
def test_bad_columns(tmp_path: Path, columns: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(bad(tmp_path / "a.jsonl", GOOD), columns=columns)


def test_too_few_rows(tmp_path: Path) -> None:
    two, three = write(tmp_path / "two.jsonl", pairs(1, 2, 2)), write(tmp_path / "three.jsonl", pairs(1, 2, 3))
    with pytest.raises(
        UserError,
        match=r"Task 'a' has 2 usable rows \(3 read, 1 duplicate\), but 2 contexts and one training row need 3",
    ):
        load(configure({"a": two}))
    assert len(load(configure({"a": three}))["a"].train) == 1
    assert (
        len(load(configure({"a": three}, {"t": two}, seed=next(s for s in range(99) if shares(s))))["t"].contexts) == 2
    )
    with pytest.raises(UserError, match="Target 't' has 1 usable row, but 2 contexts need 2; lower contexts"):
        load(configure({"a": three}, {"t": write(tmp_path / "one.jsonl", pairs(1))}))
    with pytest.raises(UserError, match="Task 'a' has no training row left: all 1 copy held-out rows") as error:
        load(configure({"a": three}, {"t": three}))
    one_sentence(error)
    long = write(tmp_path / "long.jsonl", [{"prompt": str(i), "completion": "w " * 40} for i in range(9)])
    with pytest.raises(UserError, match=r"has 0 usable rows \(9 read, 9 longer than probes.max_length allows\)"):
        load(configure({"a": long}))


def shares(seed: int) -> bool:
    """Whether row 3 ranks last, so that the target's rows 1 and 2 take no training row away."""
    return max("123", key=lambda p: row_key(seed, pair(p))) == "3"


def test_contexts_of_tasks_and_of_targets_are_counted_apart(tmp_path):
    """A pool of seven contexts gives three tasks two each; the lowest by hash stay contexts, however many there are."""
    tasks = {name: write(tmp_path / f"{name}.jsonl", pairs(*(f"{name} {i}" for i in range(40)))) for name in "abc"}
    targets = {"t": write(tmp_path / "t.jsonl", pairs(*(f"t {i}" for i in range(40))))}
    plain = load(configure(tasks, targets, per_set=12))
    apart = load(configure(tasks, targets, per_set=5, per_target=9))
    shared = load(configure(tasks, targets, per_set=32, per_target=9, total=7))
    assert [len(s.contexts) for s in apart.all] == [5, 5, 5, 9]
    assert [len(s.contexts) for s in shared.all] == [2, 2, 2, 9]
    for few, many in zip((*apart.all, *shared.all), (*plain.all, *plain.all), strict=True):
        assert few.contexts == many.contexts[: len(few.contexts)]
    assert [len(s.contexts) for s in load(configure(tasks, targets, per_set=6, total=6)).all] == [2, 2, 2, 6]


@pytest.mark.parametrize(
    ("contexts", "said"),
    [
        ({"per_set": 32, "total": 5}, "gives 3 tasks 1 each; every task needs two: give 6 or more"),
        ({"per_set": 8, "total": 9, "per_target": 4}, "both say how many contexts a task has"),
        ({"per_set": 39, "per_target": 41}, "lower contexts.per_target or add data"),
        ({"per_set": 32, "per_target": 9, "total": 120}, "lower contexts.total or add data"),
    ],
)
def test_contexts_that_cannot_be_had_are_refused(tmp_path, contexts, said):
    tasks = {name: write(tmp_path / f"{name}.jsonl", pairs(*(f"{name} {i}" for i in range(40)))) for name in "abc"}
    targets = {"t": write(tmp_path / "t.jsonl", pairs(*(f"t {i}" for i in range(40))))}
    with pytest.raises((UserError, ValueError), match=said):
        load(configure(tasks, targets, **contexts))


def test_contexts_of_targets_need_targets(tmp_path):
    tasks = {"a": write(tmp_path / "a.jsonl", pairs(*range(40)))}
    with pytest.raises((UserError, ValueError), match="there are no targets; use contexts.per_set"):
        load(configure(tasks, per_set=4, per_target=4))
