"""Which rows count as equal: exactly, but for case, spacing and punctuation, or nearly.

What carries meaning stays: digits, signs, operators, brackets, and every mark between digits. So "3 + 4" never equals
"3 - 4", nor 3.5 equals 35, nor 10² equals 102, and 5! is not 5.
"""

import json
import re
import sys
import unicodedata
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Any

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
PLAIN = str.maketrans({
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"', "«": '"', "»": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "×": "*", "÷": "/", "\u00ad": None, "\u200b": None,
    "\ufeff": None,
})  # fmt: skip
# Marks of a sentence: behind a word (not a letter: n! is no n) and before white space; at the end behind anything.
SENTENCE = re.compile(r"(?<=[^\W\d_][^\W\d_])(?:\s*[.,;:!?…]+)+(?=\s|$)")
LAST = re.compile(r"(?<=\w)(?:\s*[.?]+)+\s*$")
SPACE = re.compile(r"(?<=\W) | (?=\W)")  # beside what is no letter or digit
ESCAPES = [b"\\\\", b"\\n", b"\\t", b"\\r", b"\\f", b"\\b"]
LOWER = bytes(range(256)).lower()
SIGNS = bytes(i for i in range(128) if not chr(i).isalnum())
NO_WORD = re.compile(r"[\W_]+")
OTHERS = re.compile(r"[^\x00-\x7f]+")
SHORT = 16  # characters of a run that is likely to come again


def normal(text: str) -> str:
    """The text without differences of case, of white space, of punctuation between words and of Unicode's forms (NFKC).

    Superscripts, subscripts and fractions keep their own characters; curly quotes and dashes become plain ones. White
    space stays between two letters or digits.
    """
    text = folded(text)
    text = LAST.sub("", SENTENCE.sub(" ", text))
    return SPACE.sub("", " ".join(text.split()))


def folded(text: str) -> str:
    """NFKC and case, run by run: what stands between is plain ASCII, most of most texts."""
    if text.isascii():
        return text.lower()
    parts: list[str] = []
    done = 0
    for run in OTHERS.finditer(text):
        start = max(run.start() - 1, done)  # a letter takes the accents behind it
        parts += (text[done:start], _composed(text[start : run.end()]))
        done = run.end()
    return "".join([*parts, text[done:]]).casefold()


def _composed(text: str) -> str:
    return _remembered(text) if len(text) <= SHORT else _composed_anew(text)


def _composed_anew(text: str) -> str:
    parts = _kept().split(text)  # every second part is a character that stays
    parts[::2] = [unicodedata.normalize("NFKC", part.translate(PLAIN)).translate(PLAIN) for part in parts[::2]]
    return "".join(parts)


_remembered = lru_cache(4096)(_composed_anew)


@cache
def _kept() -> re.Pattern[str]:
    """Characters that NFKC would turn into plain digits: those above and below the line, and fractions."""
    kinds = ("<super>", "<sub>", "<fraction>")
    found = (chr(i) for i in range(sys.maxunicode + 1) if unicodedata.decomposition(chr(i)).startswith(kinds))
    return re.compile(f"([{''.join(found)}])")


def normal_data(data: list[Any]) -> bytes:
    """The data of a row (`Conversation.to_data`) with normal texts; rows that equal in it are copies."""
    return ENCODE([[_normal_turn(turn) for turn in data[0]], *data[1:]]).encode()


def _normal_turn(turn: Any) -> Any:
    if isinstance(turn, list):
        return [turn[0], normal(turn[1])]
    thoughts = {"reasoning_content": normal(turn["reasoning_content"])} if "reasoning_content" in turn else {}
    return {**turn, "content": normal(turn["content"]), **thoughts}


def coarse(data: list[Any], text: bytes) -> bytes:
    """8 bytes that are the same for rows with the same normal data, and seldom for others: of letters and digits alone.

    Args:
        data: of a row.
        text: that as JSON.
    """
    if not text.isascii() or b"\\u" in text:
        text = ENCODE([[_folded_turn(turn) for turn in data[0]], *data[1:]]).encode()
    if b"\\" in text:
        for escape in ESCAPES:
            text = text.replace(escape, b"")
    left = text.translate(LOWER, SIGNS)
    left = left if left.isascii() else NO_WORD.sub("", left.decode().casefold()).encode()
    return blake2b(left, digest_size=8).digest()


def _folded_turn(turn: Any) -> Any:
    """The turn with folded texts, control characters among the white space made spaces."""
    if isinstance(turn, list):
        return [turn[0], _spaced(turn[1])]
    thoughts = {"reasoning_content": _spaced(turn["reasoning_content"])} if "reasoning_content" in turn else {}
    return {**turn, "content": _spaced(turn["content"]), **thoughts}


def _spaced(text: str) -> str:
    return " ".join(folded(text).split())
