"""Near copies: rows that share most of their runs of words, and all their numbers and signs.

A row nearly copies another if at least ALIKE of their runs of three words are the same, |A ∩ B| / |A ∪ B|, and the
same numbers and signs stand in both in the same order; rows with equal normal texts do. Candidates come from MinHash,
which misses some near the limit.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from taskpgm.data.forked import mapped
from taskpgm.data.messages import Conversation
from taskpgm.errors import UserError
from taskpgm.pool.alike import normal
from taskpgm.pool.copies import Copied, Leaks, Mask, Members
from taskpgm.pool.meter import CHUNK
from taskpgm.pool.rowfiles import Entries, RowFiles

RUN = 3  # words
ALIKE = 0.8  # share of their runs of words that near copies have in common, by Jaccard
CANDIDATES = 0.6  # candidates are sought from here on, so that few of the rows near the limit are missed
HASHES = 128  # of a MinHash: the standard error of its Jaccard index is at most 0.045
FIGURES = re.compile(r"\d+|[-+*/=<>^%]")  # near copies have the same ones: 3 + 4 and 3 + 5 are two exercises


class NearSeeker:
    """Seeks near copies among the rows of these files, in so many processes."""

    def __init__(self, files: RowFiles, processes: int) -> None:
        if not find_spec("datasketch"):
            raise UserError("data.duplicates near needs the package datasketch: pip install 'taskpgm[near]'.")
        self.files, self.processes = files, processes

    def copies(self, sets: Sequence[Members], others: Sequence[Members]) -> Copied:
        """Rows of sets that nearly copy rows of others; see `copies.equal_copies`."""
        homes = [(j, i) for j, one in enumerate(others) for i in range(len(one.entries))]
        index = _Index()
        for number, (j, i) in enumerate(homes):
            index.add(number, self.files.conversation(others[j].entries[i]))
        leaks = Leaks(*(np.zeros((len(sets), len(others)), dtype=np.int64) for _ in range(2)))
        masks = []
        for i, one in enumerate(sets):
            found = list(self._of(index, one.entries))
            for numbers in found:
                leaks.dropped[i, sorted({homes[number][0] for number in numbers})] += 1
            for number in set[int]().union(*found):
                leaks.held[i, homes[number][0]] += 1
            masks.append(np.array([bool(numbers) for numbers in found], dtype=bool))
        return Copied(masks, leaks)

    def _of(self, index: "_Index", entries: Entries) -> Iterator[list[int]]:
        """Numbers in the index that each row nearly copies."""

        def work(chunk: Entries) -> list[list[int]]:
            return [index.of(self.files.conversation(one)) for one in chunk]

        for found in mapped(work, [entries[i : i + CHUNK] for i in range(0, len(entries), CHUNK)], self.processes):
            yield from found

    def firsts(self, rows: Members) -> Mask:
        """Which rows nearly copy none that is kept before them."""
        kept, index = np.zeros(len(rows.entries), dtype=bool), _Index()
        for i, entry in enumerate(rows.entries):
            conversation = self.files.conversation(entry)
            if not index.of(conversation):
                index.add(i, conversation)
                kept[i] = True
        return kept


class _Index:
    """Rows by MinHash."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=CANDIDATES, num_perm=HASHES)
        self._rows: dict[int, tuple[set[str], list[str]]] = {}

    def add(self, number: int, row: Conversation) -> None:
        """One more row."""
        self._rows[number] = runs, _ = _words_of(row)
        self._index.insert(number, _minhash(runs))

    def of(self, row: Conversation) -> list[int]:
        """Numbers of the rows that it nearly copies."""
        runs, figures = _words_of(row)
        found = []
        for number in self._index.query(_minhash(runs)):
            theirs, signs = self._rows[number]
            if signs == figures and len(runs & theirs) >= ALIKE * len(runs | theirs):
                found.append(number)
        return found


def _words_of(conversation: Conversation) -> tuple[set[str], list[str]]:
    """Runs of words of the row's normal text, and its numbers and signs in order."""
    text = " \n ".join(f"{turn.role} {normal(turn.content)}" for turn in conversation.messages)
    words = text.split()
    return {" ".join(words[i : i + RUN]) for i in range(max(len(words) - RUN + 1, 1))}, FIGURES.findall(text)


def _minhash(runs: set[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=HASHES)
    sketch.update_batch([run.encode() for run in runs])
    return sketch
