"""`gather`: the rows of all sources, read once in a stream; what stays in memory of a row is its hash and its place.

Large files are read in stretches by several processes, each of which writes the rows it reads to files of its own.
"""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from taskpgm.data.conversations import PartReading, SourceStream
from taskpgm.data.forked import mapped
from taskpgm.data.grading import Grading
from taskpgm.data.making import ENCODER
from taskpgm.data.parts import PART
from taskpgm.errors import UserError
from taskpgm.pool.alike import coarse
from taskpgm.pool.rowfiles import ENTRY, Entries, RowFiles, shape_of
from taskpgm.progress import Progress

ENOUGH = 8 << 20  # bytes of files that are worth a second process: a guess, half a second of work


class Gathered(NamedTuple):
    """The rows of one source in file order."""

    stream: SourceStream
    entries: Entries
    notes: tuple[str, ...]


class _Piece(NamedTuple):
    """One part of one source."""

    stream: int
    part: int  # among all parts of all sources


class _Item(NamedTuple):
    """What is read in one go, into one segment."""

    segment: int
    pieces: list[_Piece]


class _Read(NamedTuple):
    """What a part came to."""

    reading: PartReading | UserError
    entries: Entries
    shapes: list[str]


class Gatherer:
    """Reads parts of sources into row files.

    Args:
        seed: of the hash of a row.
        fuzzy: whether rows that are equal but for case, spacing and punctuation are looked for.
    """

    def __init__(self, streams: Sequence[SourceStream], files: RowFiles, seed: int, fuzzy: bool) -> None:
        self.streams, self.files, self.fuzzy = streams, files, fuzzy
        self.parts = [(i, part) for i, stream in enumerate(streams) for part in stream.parts]
        self.shapes: dict[str, int] = {}
        self._prefix = b"[%d," % seed
        self._segments = 0
        files.places = [(part.word, part.file) for _, part in self.parts]

    def read(self, wanted: Sequence[int], processes: int, progress: Progress) -> list[list[_Read]]:
        """What the parts of every source came to; of those that are wanted, by number."""
        items = self._items(wanted)
        found: dict[_Piece, _Read] = {}
        with progress.stage("reading", len(items), "part"):
            for item, read in self._results(items, processes):
                found |= zip(item.pieces, read, strict=True)
                progress.advance()
        return [[found[piece] for piece in sorted(found) if piece.stream == i] for i in range(len(self.streams))]

    def _results(self, items: list[_Item], processes: int) -> Iterator[tuple[_Item, list[_Read]]]:
        """Of items that may be read beside others, then of the rest."""
        apart = [item for item in items if self._size(item.pieces[0])]
        here = [item for item in items if not self._size(item.pieces[0])]
        enough = sum(self._size(piece) for item in apart for piece in item.pieces) > ENOUGH
        yield from zip(apart, mapped(self._read_item, apart, processes if enough else 1), strict=True)
        yield from ((item, self._read_item(item)) for item in here)

    def _size(self, piece: _Piece) -> int:
        return self.parts[piece.part][1].size

    def _items(self, wanted: Sequence[int]) -> list[_Item]:
        """The parts in order, small ones together."""
        numbers = set(wanted)
        pieces = [_Piece(i, n) for n, (i, _) in enumerate(self.parts) if i in numbers]
        pieces.sort(key=lambda piece: not self._size(piece))
        items: list[_Item] = []
        for apart, some in groupby(pieces, lambda piece: bool(self._size(piece))):
            filled = PART
            for piece in some:
                if filled >= PART or not apart:
                    items.append(_Item(self._segments, []))
                    self._segments, filled = self._segments + 1, 0
                items[-1].pieces.append(piece)
                filled += self._size(piece)
        return items

    def _read_item(self, item: _Item) -> list[_Read]:
        with self.files.path(item.segment).open("wb") as file:
            return [self._read_piece(piece, item.segment, file) for piece in item.pieces]

    def _read_piece(self, piece: _Piece, segment: int, file: Any) -> _Read:
        collected = _Collected(self._prefix, self.fuzzy, file)
        start = file.tell()
        part = self.parts[piece.part][1]
        try:
            reading: PartReading | UserError = self.streams[piece.stream].read_part(part, collected.keep)
        except UserError as error:
            reading = error
        return _Read(reading, collected.entries(piece.part, segment, start), list(collected.shapes))


class _Collected:
    """Rows of one part, written as they come."""

    def __init__(self, prefix: bytes, fuzzy: bool, file: Any) -> None:
        self.shapes: dict[str, int] = {}
        self._prefix, self._fuzzy, self._file = prefix, fuzzy, file
        self._hashes, self._coarse, self._graded = bytearray(), bytearray(), bytearray()
        self._lengths, self._numbers, self._shapes = array("I"), array("I"), array("I")

    def keep(self, number: int, data: list[Any], text: bytes, grading: Grading) -> None:
        """One row."""
        self._hashes += blake2b(self._prefix + text[1:], digest_size=16).digest()
        if self._fuzzy:
            self._coarse += coarse(data, text)
        graded = any(grading)
        line = b"[%b,%b\n" % (text, ENCODER.encode(list(grading))[1:].encode()) if graded else b"[%b]\n" % text
        self._file.write(line)
        self._lengths.append(len(line))
        self._numbers.append(number)
        self._graded.append(graded)
        self._shapes.append(self.shapes.setdefault(shape_of(data), len(self.shapes)))

    def entries(self, part: int, segment: int, start: int) -> Entries:
        """All of them."""
        found = np.zeros(len(self._lengths), ENTRY)
        halves = np.frombuffer(self._hashes, ">u8").reshape(-1, 2)
        found["high"], found["low"] = halves[:, 0], halves[:, 1]
        if self._fuzzy:
            found["coarse"] = np.frombuffer(self._coarse, "u8")
        found["length"] = self._lengths
        found["offset"] = start + np.cumsum(found["length"], dtype=np.int64) - found["length"]
        found["number"], found["graded"] = self._numbers, np.frombuffer(self._graded, "?")
        found["shape"], found["part"], found["segment"] = self._shapes, part, segment
        return found


def gather(gatherer: Gatherer, processes: int, progress: Progress) -> list[Gathered]:
    """The rows of every source, in the order of the streams.

    Raises:
        UserError: the first thing about a source that its owner has to put right.
    """
    streams = gatherer.streams
    read = gatherer.read(range(len(streams)), processes, progress)
    found = []
    for i, stream in enumerate(streams):
        if not stream.settle(_readings(read[i])):
            read[i] = gatherer.read([i], processes, progress)[i]
        readings = _readings(read[i])
        stream.check(readings)
        for one in read[i]:
            numbers = [gatherer.shapes.setdefault(shape, len(gatherer.shapes)) for shape in one.shapes]
            one.entries["shape"] = np.array(numbers or [0], dtype=np.uint32)[one.entries["shape"]]
        entries = np.concatenate([one.entries for one in read[i]])
        read[i] = []
        found.append(Gathered(stream, entries, stream.notes(readings, len(entries))))
    return found


def _readings(read: Sequence[_Read]) -> list[PartReading]:
    for one in read:
        if isinstance(one.reading, UserError):
            raise one.reading
    return [one.reading for one in read if isinstance(one.reading, PartReading)]
