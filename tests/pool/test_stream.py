"""Rows that stay on disk: the stream, its parts and its draws against plain lists in memory."""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.files import LONGEST, configure, lengths_of, pairs, read, write

from taskpgm.config import Config
from taskpgm.data import parts, texts
from taskpgm.data.columns import LAYOUTS, Layout, Way
from taskpgm.data.making import conversation_of, quick_data, text_of_data
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.export.train_file import write_train_jsonl
from taskpgm.pool import gathering, ranking
from taskpgm.pool.alike import coarse, normal_data
from taskpgm.pool.drawing import Joined, taken, which_fit
from taskpgm.pool.plan import RowPlan, _nearest_drawn, _planned, plan_rows, uniform_mixture
from taskpgm.pool.remembered import LengthFile
from taskpgm.pool.rows import Rows
from taskpgm.pool.task_pool import Length, Measured, Row, TaskPool, load_tasks, row_key

common = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in stretches of some lines, by two processes; of a set five rows are measured."""
    for module in (parts, texts, gathering):
        monkeypatch.setattr(module, "PART", 256)
    monkeypatch.setattr(texts, "BLOCK", 64)
    monkeypatch.setattr(gathering, "ENOUGH", 0)
    monkeypatch.setattr(ranking, "SAMPLE", 5)


def pool_of(config: Config, **options: Any) -> TaskPool:
    return load_tasks(config, lengths_of, **options)


def processes(config: Config, count: int) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"processes": count})})


# What is read

TEXTS = st.text("ab .,!?'\"\\/\n\r\t 1²é…\u2028\x1f\x85ß", max_size=12)


@common
@given(given=st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=3, max_size=30), blank=st.integers(0, 3))
def test_parts_are_the_lines_of_the_file(
    tmp_path: Path, small_parts: None, given: list[tuple[str, str]], blank: int
) -> None:
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=i % 2 == 0) for i, (p, c) in enumerate(given)]
    between = "\n" * blank + ("\r\n" if blank else "\n")
    path = tmp_path / "rows.jsonl"
    path.write_bytes((between.join(lines) + "\n" * (blank % 2)).encode())
    numbers = [1 + i * (blank + 1) for i in range(len(lines))]
    stream = gathering.SourceStream(configure({"a": path}).tasks[0])
    found = [(number, record) for part in stream.parts for number, record in part.records()]
    assert found == [(n, json.loads(line)) for n, line in zip(numbers, lines, strict=True)]
    assert len(stream.parts) > 1 or path.stat().st_size <= 256 + 2 * max(len(line.encode()) + 8 for line in lines)


def packed(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


def zstandard(path: Path, text: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(text.encode())


def columnar(path: Path, text: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()]).to_parquet(path)


WAYS: dict[str, tuple[str, Callable[[Path, str], Any]]] = {
    "plain": ("jsonl", lambda path, text: path.write_bytes(text.encode())),
    "windows": ("jsonl", lambda path, text: path.write_bytes(text.replace("\n", "\r\n").encode())),
    "old mac": ("jsonl", lambda path, text: path.write_bytes(text.replace("\n", "\r").encode())),
    "mark": ("jsonl", lambda path, text: path.write_bytes(text.encode("utf-8-sig"))),
    "utf-16": ("jsonl", lambda path, text: path.write_bytes(text.encode("utf-16"))),
    "blank lines": ("jsonl", lambda path, text: path.write_bytes(("\n \n" + text.replace("\n", "\n\n\n")).encode())),
    "no end": ("jsonl", lambda path, text: path.write_bytes(text.rstrip("\n").encode())),
    "a list": ("json", lambda path, text: path.write_text(f"[{','.join(text.splitlines())}]", encoding="utf-8")),
    "gzip": ("jsonl.gz", packed),
    "zstd": ("jsonl.zst", zstandard),
    "parquet": ("parquet", columnar),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_rows_in_any_file(tmp_path: Path, small_parts: None, way: str) -> None:
    rows = [{"prompt": f"é {i} " + "x " * (i % 7), "completion": f"yes {i}"} for i in range(40)]
    rows[7]["prompt"] = "long " * 5000
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    plain = pool_of(configure({"a": write(tmp_path / "a.jsonl", rows)}, validation=2))
    ending, make = WAYS[way]
    make(tmp_path / f"b.{ending}", text)
    odd = pool_of(configure({"a": tmp_path / f"b.{ending}"}, validation=2))
    for side in ("train", "contexts", "validation"):
        assert [row.key for row in getattr(odd["a"], side)] == [row.key for row in getattr(plain["a"], side)]
    assert odd["a"].counts == plain["a"].counts


def test_one_row_and_none_left_out(tmp_path: Path, small_parts: None) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}')
    with pytest.raises(UserError, match="has 1 usable row, but 2 contexts"):
        pool_of(configure({"a": tmp_path / "a.jsonl"}))
    assert len(read(tmp_path / "a.jsonl")) == 1


def test_the_place_of_a_bad_row_behind_the_first_parts(tmp_path: Path, small_parts: None) -> None:
    path = Path(write(tmp_path / "a.jsonl", pairs(*range(60))))
    path.write_text(path.read_text() + '\n{"prompt": "p", "completion": " "}\n')
    with pytest.raises(UserError, match=r"line 62 of a\.jsonl has an empty answer"):
        pool_of(configure({"a": path}))


RECORDS = st.dictionaries(
    st.sampled_from(["prompt", "completion", "instruction", "input", "output", "system", "messages"]),
    st.one_of(
        TEXTS,
        st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "gpt"]), "content": TEXTS}),
            max_size=4,
        ),
    ),
)
LAYOUT_COLUMNS: list[tuple[Layout, tuple[str, ...]]] = [
    *((layout, fields) for layout, fields in LAYOUTS.items()),
    ("instruction_output", ("instruction", "output")),
    ("instruction_output", ("instruction", "output", "system")),
    ("prompt_completion", ("prompt", "completion", "system")),
]


@given(record=RECORDS, shape=st.sampled_from(LAYOUT_COLUMNS))
def test_plain_texts_are_read_as_all_rows_are(record: dict[str, Any], shape: tuple[Layout, tuple[str, ...]]) -> None:
    way = Way(shape[0], {field: field for field in shape[1]}, {}, False)
    quick = quick_data(way, record)
    if quick is not None and text_of_data(quick):
        assert quick == conversation_of(way, record, "here", {}, []).to_data()


TURNS = st.lists(
    st.one_of(
        st.tuples(st.just("user"), TEXTS).map(list),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}, optional={"reasoning_content": TEXTS}),
    ),
    min_size=1,
    max_size=2,
)
NOISE = st.sampled_from([
    str.upper, str.lower, lambda text: text + " .", lambda text: text.replace(" ", "\n"), lambda text: f"\t{text}",
    lambda text: text.replace("'", "’"), lambda text: text.replace('"', "“"), lambda text: text.replace("...", "…"),
])  # fmt: skip


def with_texts(turns: list[Any], change: Callable[[str], str]) -> list[Any]:
    return [[t[0], change(t[1])] if isinstance(t, list) else {**t, "content": change(t["content"])} for t in turns]


@settings(max_examples=300)
@given(turns=TURNS, noise=NOISE)
def test_copies_have_the_same_coarse_hash(turns: list[Any], noise: Callable[[str], str]) -> None:
    a, b = [turns], [with_texts(turns, noise)]
    if normal_data(a) == normal_data(b):
        hashes = {coarse(one, text_of_data(one)) for one in (a, b)}
        assert len(hashes) == 1


# Where rows go


@st.composite
def messy_sets(draw: st.DrawFn) -> dict[str, list[dict[str, str]]]:
    """Rows of two tasks, a validation file and a target that repeat themselves and each other, but for noise."""
    noise = (str, str.upper, lambda text: text + " .", lambda text: text.replace(" ", "  "))

    def rows() -> list[dict[str, str]]:
        chosen = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=12, max_size=40))
        return [
            {"prompt": noise[k](f"how much is {i}"), "completion": "it is " + "so " * (i if i % 9 == 0 else i % 4)}
            for i, k in chosen
        ]

    return {name: rows() for name in ("a", "b", "given", "t")}


def plainly(config: Config, sense: str, within: bool) -> dict[str, dict[str, list[Conversation]]]:
    """The sides of every set by the definitions, all in memory, every row compared with every other."""
    sides: dict[str, dict[str, list[Conversation]]] = {}
    identity: Callable[[Conversation], Any] = (
        (lambda r: r) if sense == "exact" else (lambda r: normal_data(r.to_data()))
    )

    def ranked(path: str) -> list[Conversation]:
        rows = set(read(path))
        return sorted(
            (row for row in rows if lengths_of([row])[0] is not None), key=lambda row: row_key(config.seed, row)
        )

    for one in (*config.tasks, *config.targets):
        rows, per_set = ranked(one.path), config.contexts.per_set
        head, rest = rows[:per_set], rows[per_set:]
        given = getattr(one, "validation", None)
        held = len(rest) if one in config.targets else min(config.contexts.validation, len(rest) // 10)
        validation = ranked(given) if given else rest[:held]
        sides[one.name] = {"train": rest if given else rest[held:], "contexts": head, "validation": validation}
    contexts = [identity(row) for s in sides.values() for row in s["contexts"]]
    held_out = contexts + [identity(row) for s in sides.values() for row in s["validation"]]
    for s in sides.values():
        s["validation"] = [row for row in s["validation"] if identity(row) not in contexts]
        train = [row for row in s["train"] if identity(row) not in held_out]
        first = [row for i, row in enumerate(train) if identity(row) not in map(identity, train[:i])]
        s["train"] = first if within else train
    return sides


@common
@given(sets=messy_sets(), seed=st.integers(0, 2), sense=st.sampled_from(["exact", "normalised"]), within=st.booleans())
def test_splits_and_copies_against_lists_in_memory(
    tmp_path: Path, small_parts: None, sets: dict[str, list[dict[str, str]]], seed: int, sense: str, within: bool
) -> None:
    paths = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in sets.items()}
    tasks = {"a": paths["a"], "b": {"path": paths["b"], "validation": paths["given"]}}
    config = configure(tasks, {"t": paths["t"]}, seed=seed, validation=2)
    data = config.data.model_copy(update={"duplicates": sense, "within_tasks": within})
    config = config.model_copy(update={"data": data})
    want = plainly(config, sense, within)
    try:
        pool = pool_of(config, exact=True)
    except UserError:
        assert min(len(want[name]["train"]) for name in "ab") == 0 or min(len(s["contexts"]) for s in want.values()) < 2
        return
    for one in pool.all:
        for side, rows in want[one.name].items():
            found = getattr(one, side)
            assert [row.conversation for row in found] == rows
            lengths = [(row.tokens, row.response_tokens, row.truncated) for row in found]
            assert lengths == [length[:3] for length in lengths_of(rows) if length]
        c = one.counts
        kept = len(one.train) + len(one.contexts) + len(one.validation)
        gone = c.duplicates + c.too_long + c.refused + c.validation_dropped + c.train_dropped + c.repeats
        assert c.read + c.validation_read == kept + gone
        assert c.truncated == sum(row.truncated for side in want[one.name] for row in getattr(one, side))


def test_processes_change_nothing(tmp_path: Path, small_parts: None) -> None:
    config = configure({n: write(tmp_path / f"{n}.jsonl", pairs(*range(i, i + 90))) for i, n in enumerate("abc")})
    alone, beside = (pool_of(processes(config, count)) for count in (1, 2))
    assert alone.all == beside.all
    assert alone.overlap.tolist() == beside.overlap.tolist()


# What is drawn


def long_and_short(number: int) -> list[dict[str, str]]:
    """Rows of which a third is too long, and the others have 2 to 8 response tokens."""
    return [
        {"prompt": f"row {i}", "completion": "word " * (LONGEST + 5) if i % 3 == 0 else "word " * (1 + i % 7)}
        for i in range(number)
    ]


def sampled(tmp_path: Path, order: Sequence[int] = range(300), **budget: Any) -> tuple[Config, TaskPool]:
    rows = long_and_short(300)
    config = configure({"a": write(tmp_path / "a.jsonl", [rows[i] for i in order])}, validation=0)
    config = config.model_copy(update={"budget": config.budget.model_validate(budget)}) if budget else config
    return config, pool_of(config)


def test_a_sample_is_said_to_be_one(tmp_path: Path, small_parts: None) -> None:
    _, pool = sampled(tmp_path)
    (task,) = pool.tasks
    assert task.estimate is not None
    measured = ranking.SAMPLE
    while measured < len(task.train) and (task.train.costs["tokens"][:3] == -1).any():  # type: ignore[attr-defined]
        measured += 1
    sample = task.estimate.sample
    everything = sorted(read(tmp_path / "a.jsonl"), key=lambda row: row_key(0, row))
    lengths = [length for length in lengths_of(everything[: sample.measured]) if length]
    assert (sample.fitting, sample.response_tokens) == (len(lengths), sum(one.response_tokens for one in lengths))
    assert len(lengths) >= 2
    known = [row for row in lengths_of(everything[: sample.measured])[2:] if row]
    unknown = len(everything) - sample.measured
    assert task.rows <= len(task.train)
    assert abs(task.rows - (len(known) + unknown * len(lengths) / sample.measured)) <= 2
    exact = pool_of(configure({"a": tmp_path / "a.jsonl"}, validation=0), exact=True)["a"]
    assert exact.estimate is None
    assert len(exact.train) == exact.rows == 198  # 200 fit


def test_a_row_that_does_not_fit_gives_its_place_to_the_next(tmp_path: Path, small_parts: None) -> None:
    _, pool = sampled(tmp_path)
    train = pool["a"].train
    assert isinstance(train, Rows)
    order = np.random.default_rng(0).permutation(len(train))
    fits = [lengths_of([train.peek(i).conversation])[0] is not None for i in order.tolist()]
    for number in (1, 7, 50, len(order)):
        found, over = taken(train, order, number)
        want = [i for i, good in zip(order.tolist(), fits, strict=True) if good][:number]
        assert found.tolist() == want
        assert over == order.tolist().index(want[-1]) + 1 - len(want)
    assert which_fit(train).tolist() == sorted(i for i, good in zip(order.tolist(), fits, strict=True) if good)


def planned_rows(pool: TaskPool, plan: RowPlan) -> list[tuple[Conversation, int]]:
    return [(pool.tasks[t].train[r].conversation, k) for t, r, k in zip(plan.task, plan.row, plan.repeat, strict=True)]


@pytest.mark.parametrize("budget", [{"examples": 60}, {"examples": 350, "max_epochs": 2}, {"tokens": 333}])
def test_a_plan_of_measured_where_drawn_rows(tmp_path: Path, small_parts: None, budget: dict[str, int]) -> None:
    """It holds rows that fit alone, counts those it passed over, and does not know in what order the file came."""
    config, pool = sampled(tmp_path, **budget)
    plan = plan_rows(pool, uniform_mixture(pool), config)
    rows = planned_rows(pool, plan)
    lengths = [lengths_of([row])[0] for row, _ in rows]
    assert all(lengths)
    assert plan["a"].tokens == sum(one.response_tokens for one in lengths if one)
    assert plan["a"].replaced > 0
    if "tokens" in budget:
        assert abs(plan["a"].tokens - budget["tokens"]) <= 4  # half of the longest row
    else:
        assert len(rows) == budget["examples"]
    assert len(set(rows)) == len(rows)  # no row twice in a pass
    other, again = sampled(tmp_path, np.random.default_rng(1).permutation(300).tolist(), **budget)
    assert planned_rows(again, plan_rows(again, uniform_mixture(again), other)) == rows


@pytest.mark.parametrize("epochs", [0.25, 0.5, 1.0, 1.7])
def test_rows_that_are_shorter_than_estimated_are_no_reason_for_another_pass(
    tmp_path: Path, small_parts: None, epochs: float
) -> None:
    config, pool = sampled(tmp_path, tokens=1, max_epochs=epochs)
    count, tokens = _nearest_drawn(pool["a"], 1e9, config)
    assert count == math.floor(epochs * pool["a"].rows + 1e-6)
    drawn = planned_rows(pool, _planned(pool, {"a": 1.0}, {"a": count}, config))
    assert tokens == sum(one.response_tokens for row, _ in drawn if (one := lengths_of([row])[0]))


def test_a_plan_is_the_same_whatever_was_measured_before(tmp_path: Path, small_parts: None) -> None:
    config, pool = sampled(tmp_path, examples=40)
    plan = plan_rows(pool, uniform_mixture(pool), config)
    pool.save(tmp_path / "pool")
    loaded = TaskPool.load(tmp_path / "pool", lengths_of)
    which_fit(loaded["a"].train)
    again = plan_rows(loaded, uniform_mixture(loaded), config)
    assert planned_rows(loaded, again) == planned_rows(pool, plan)
    for k, one in enumerate((pool, loaded)):
        write_train_jsonl(tmp_path / f"{k}.jsonl", one, plan, "messages")
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()


def test_joined_rows_are_their_rows_one_after_another(tmp_path: Path, small_parts: None) -> None:
    config = configure({n: write(tmp_path / f"{n}.jsonl", pairs(*range(9))) for n in "ab"}, validation=0)
    sides = [task.train for task in pool_of(config).tasks]
    joined = Joined(sides)
    assert list(joined) == [*sides[0], *sides[1]]
    assert [joined.peek(i).key for i in range(len(joined))] == [row.key for row in joined]


# What is remembered


class Counting:
    """Lengths, and how many rows were asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, rows: Sequence[Conversation]) -> list[Measured]:
        self.rows += len(rows)
        return [Length(9, 3, False, ("the tools",)) if "odd" in repr(row) else lengths_of([row])[0] for row in rows]


def test_lengths_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPGM_CACHE", str(tmp_path / "cache"))
    rows = [*long_and_short(50), {"prompt": "odd", "completion": "yes"}]
    config, counting = configure({"a": write(tmp_path / "a.jsonl", rows)}), Counting()

    def once(encoder: str) -> tuple[int, TaskPool]:
        before = counting.rows
        pool = load_tasks(config, counting, memory=LengthFile(lambda: encoder), exact=True)
        return counting.rows - before, pool

    measured, first = once("one")
    assert measured == 51
    again, second = once("one")
    assert again == 1  # what the template leaves out is said again
    assert first.all == second.all
    assert once("another")[0] == 51
    file = LengthFile(lambda: "one").path
    file.write_bytes(file.read_bytes()[:-5])  # as if the disk had filled up
    assert once("one")[0] == 51
    assert once("one")[0] == 1


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("TASKPGM_CACHE", str(tmp_path / "cache"))
    config, counting = configure({"a": write(tmp_path / "a.jsonl", pairs(*range(9)))}), Counting()
    for k in (1, 2):
        load_tasks(config, counting, memory=LengthFile(lambda: "one"))
        assert counting.rows == 9 * k


def test_a_pool_keeps_what_is_known_and_measures_the_rest(tmp_path: Path, small_parts: None) -> None:
    _, pool = sampled(tmp_path)
    pool.save(tmp_path / "pool")
    loaded = TaskPool.load(tmp_path / "pool", lengths_of)
    assert loaded["a"].estimate == pool["a"].estimate
    assert loaded["a"].rows == pool["a"].rows
    assert list(loaded["a"].contexts) == list(pool["a"].contexts)
    one = next(row for row in loaded["a"].train if row.tokens > 0)
    assert isinstance(one, Row)
    assert lengths_of([one.conversation])[0] == Length(one.tokens, one.response_tokens, one.truncated)
