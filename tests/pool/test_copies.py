"""Which rows count as copies, and that none of them is trained on."""

import re
import unicodedata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.files import configure, lengths_of, load, one_sentence, pairs, write

from taskpgm.config import Config
from taskpgm.errors import UserError
from taskpgm.pool.alike import PLAIN, folded, normal, normal_data
from taskpgm.pool.near import ALIKE, FIGURES
from taskpgm.pool.task_pool import TaskPool, load_tasks

SAME = [
    ("Roger had 29 dollars. How much now?", "roger had 29 dollars .  How much now ?"),
    ("Tim's cat, “Tom”", 'Tim \'s cat , "tom"'),
    ("3 + 4 = ", "3+4="),
    ("ﬁne　print", "fine print"),
    ("Is it so?\n", "is it so"),
    ("a – b", "a - b"),
]
DIFFERENT = [
    ("3 + 4", "3 - 4"), ("3 + 4", "3 * 4"), ("3.5", "35"), ("3.5", "3 5"), ("10²", "102"), ("5!", "5"), ("n!", "n"),
    ("-3", "3"), ("1 2", "12"), ("f(x)", "fx"), ("½", "12"), ("a < b", "a > b"), ("no", "on"), ("50%", "50"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_case_spacing_and_punctuation_make_no_other_row(a: str, b: str) -> None:
    assert normal(a) == normal(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_what_carries_meaning_makes_another_row(a: str, b: str) -> None:
    assert normal(a) != normal(b)


@given(st.text("ab3.5+-*/=<>() !?,’–²½ﬁ\n", max_size=30))
def test_normal_text_stays_normal_and_keeps_its_figures(text: str) -> None:
    once = normal(text)
    assert normal(once) == once
    kept = r"[0-9+*/=<>²½]"
    assert re.findall(kept, once) == re.findall(kept, text)
    assert normal(text.upper().replace("\n", "  ")) in (once, normal(text.upper()))


LETTERS = st.characters(codec="utf-8").filter(
    lambda one: not unicodedata.decomposition(one).startswith(("<super>", "<sub>", "<fraction>"))
)


@given(st.text(LETTERS | st.sampled_from("aE ß\u0301\u0327ﬁ’–İ\u1100\u1161\u11a8ΐ"), max_size=40))
def test_texts_are_folded_in_pieces_as_a_whole(text: str) -> None:
    whole = unicodedata.normalize("NFKC", text.translate(PLAIN)).translate(PLAIN).casefold()
    assert folded(text) == whole


def test_arithmetic_of_generators_keeps_its_meaning() -> None:
    """Rows that differ in more than spacing never become copies."""
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for name in ("chain_sum", "basic_arithmetic", "decimal_arithmetic", "fraction_simplification"):
        rows = [entry["question"] for entry in reasoning_gym.create_dataset(name, size=300, seed=1)]
        bare = {re.sub(r"\s", "", row).casefold() for row in rows}
        assert len({normal(row) for row in rows}) == len(bare)


def copies_of(config: Config, sense: str, within: bool = False) -> Config:
    data = config.data.model_copy(update={"duplicates": sense, "within_tasks": within})
    return config.model_copy(update={"data": data})


NOISE = (str, str.upper, lambda text: text.replace(" ", "  "), lambda text: text + " .")


def messy(folder: Path) -> Config:
    """Two tasks and a target that repeat each other, with noise."""
    rng = np.random.default_rng(0)

    def rows(numbers: Any) -> list[dict[str, str]]:
        return [{"prompt": NOISE[rng.integers(4)](f"how much is {i} and {i}"), "completion": f"it is {2 * i}"} for i in numbers]  # fmt: skip

    return configure(
        {"a": write(folder / "a.jsonl", rows(range(40))), "b": write(folder / "b.jsonl", rows(range(80)))},
        {"t": write(folder / "t.jsonl", rows(range(60, 80)))},
        per_set=4,
        validation=3,
    )


@pytest.mark.parametrize("sense", ["exact", "normalised"])
def test_leaks_against_every_pair(tmp_path: Path, sense: str) -> None:
    config = copies_of(messy(tmp_path), sense)
    pool = load_tasks(config, lengths_of)
    # The oracle: with nothing left out (no two rows are copies of each other in different files), compare all pairs.
    apart = {s.name: s for s in pool.all}
    assert pool.leaks is not None
    everything = {name: _read(tmp_path / f"{name}.jsonl") for name in apart}
    identity = (lambda row: row) if sense == "exact" else (lambda row: normal_data(row.to_data()))
    held = {name: [r.conversation for r in (*s.contexts, *s.validation)] for name, s in apart.items()}
    for i, task in enumerate(pool.tasks):
        own = {r.conversation for r in (*task.contexts, *task.validation)}
        rest = [row for row in everything[task.name] if row not in own]
        gone = {row for row in rest if any(identity(row) == identity(h) for rows in held.values() for h in rows)}
        assert {r.conversation for r in task.train} == set(rest) - gone
        assert task.counts.train_dropped == len(gone)
        for j, name in enumerate(pool.sets):
            matches = [(r, h) for r, h in product(rest, held[name]) if identity(r) == identity(h)]
            assert pool.leaks.dropped[i, j] == len({r for r, _ in matches})
            assert pool.leaks.held[i, j] == len({h for _, h in matches})
    assert sum(task.counts.train_dropped for task in pool.tasks) > 0


def _read(path: Path) -> list[Any]:
    from support.files import read

    return list(dict.fromkeys(read(path)))


def test_normalised_is_the_default_and_is_said(tmp_path: Path) -> None:
    config = messy(tmp_path)
    assert config.data.duplicates == "normalised"
    exact, normalised = (load_tasks(copies_of(config, sense), lengths_of) for sense in ("exact", "normalised"))
    assert len(normalised["a"].train) + len(normalised["b"].train) < len(exact["a"].train) + len(exact["b"].train)
    assert [s.contexts for s in exact.all] == [s.contexts for s in normalised.all]  # never another context
    (worst, *_) = normalised.contamination()
    assert worst.share == worst.rows / len((*normalised[worst.set].contexts, *normalised[worst.set].validation))
    normalised.save(tmp_path / "pool")
    loaded = TaskPool.load(tmp_path / "pool")
    assert loaded.contamination() == normalised.contamination()
    assert loaded.overlap_table() == normalised.overlap_table()


def test_within_a_task_the_first_is_kept(tmp_path: Path) -> None:
    rows = pairs(*range(20), *(f"{i} ." for i in range(20)))
    config = configure({"a": write(tmp_path / "a.jsonl", rows)}, per_set=2, validation=0)
    both = load(copies_of(config, "normalised"))
    once = load(copies_of(config, "normalised", within=True))
    texts = [normal_data(row.conversation.to_data()) for row in once["a"].train]
    assert len(set(texts)) == len(texts) == len({normal_data(r.conversation.to_data()) for r in both["a"].train})
    counts = once["a"].counts
    assert counts.repeats == len(both["a"].train) - len(once["a"].train) > 0
    assert counts.read == len(once["a"].train) + len(once["a"].contexts) + counts.train_dropped + counts.repeats


def test_near_copies_share_most_of_their_runs_of_words_and_their_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(rng.choice(words, 40)).replace("w", "v") for _ in range(30)]
    texts = [re.sub(r"\d+", lambda m: "abcdefghij"[int(m[0]) % 10] * (1 + int(m[0]) // 40), text) for text in texts]
    near = [text + " indeed" for text in texts[:10]]  # one run more of some forty
    far = [" ".join(text.split()[:20] + ["else"] * 20) for text in texts[10:20]]
    other = [text + " 5" for text in texts[20:]]
    rows = pairs(*near, *far, *other)
    config = configure(
        {"a": write(tmp_path / "a.jsonl", rows)}, {"t": write(tmp_path / "t.jsonl", pairs(*texts))}, per_set=2
    )
    pool = load(copies_of(config, "near"))
    left = {
        row.conversation.messages[0].content for row in (*pool["a"].train, *pool["a"].contexts, *pool["a"].validation)
    }
    assert left >= set(far) | set(other)
    held = {row.conversation.messages[0].content for row in (*pool["a"].contexts, *pool["a"].validation)}
    assert not (set(near) - held) & left
    for a, b in zip(texts[:10], near, strict=True):
        assert jaccard(a, b) >= ALIKE
        assert FIGURES.findall(a) == FIGURES.findall(b)


def jaccard(a: str, b: str) -> float:
    runs = [{tuple(text.split()[i : i + 3]) for i in range(len(text.split()) - 2)} for text in (a, b)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_a_task_that_is_only_copies(tmp_path: Path) -> None:
    rows = pairs(*(f"same {i}" for i in range(6)))
    noisy = pairs(*(f"Same  {i} ." for i in range(6)))
    config = configure({"a": write(tmp_path / "a.jsonl", rows)}, {"t": write(tmp_path / "t.jsonl", noisy)}, per_set=2)
    with pytest.raises(UserError, match="narrower sense") as error:
        load(config)
    one_sentence(error)
    assert load(copies_of(config, "exact"))["a"].train
