"""Words as tasks: definitions, kinds, parts, opposites of WordNet, and translations of FreeDict, for `settings.py`.

apt-get install wordnet-base dict-freedict-eng-fra dict-freedict-eng-spa dict-freedict-eng-ita dict-freedict-fra-eng
"""

import gzip
import re
import sys
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import lookups

WORDNET, FREEDICT = Path("/usr/share/wordnet"), Path("/usr/share/dictd")
PARTS = ("noun", "verb", "adj", "adv")
WIDEST = 60  # characters of an answer


class Sense(NamedTuple):
    """A meaning: its words, the first example of its use, its definition, and (sign, place) of related ones."""

    words: tuple
    definition: str
    example: str
    related: tuple


def lines(name, rows):
    """So many distinct rows of one kind as JSON Lines, fewer if there are not so many; seeded by its name."""
    if missing := [str(folder) for folder in (WORDNET, FREEDICT) if not folder.is_dir()]:
        sys.exit(f"The dictionaries are not in {' and '.join(missing)}; {__doc__.splitlines()[-1]}")
    return lookups.lines(name, rows, KINDS)


@cache
def senses(part):
    """Senses of a part of speech by their place in WordNet's file (wndb(5WN))."""
    found = {}
    for line in (WORDNET / f"data.{part}").read_text(encoding="ascii").splitlines():
        if line.startswith(" "):
            continue
        data, gloss = line.split(" | ", 1)
        offset, _, _, count, *rest = data.split()
        words, rest = rest[: 2 * int(count, 16) : 2], rest[2 * int(count, 16) :]
        pointers = rest[1 : 1 + 4 * int(rest[0])]
        related = tuple(zip(pointers[::4], pointers[1::4], strict=True))
        definition, *others = (one.strip() for one in gloss.split("; "))
        example = next((other.strip('"') for other in others if other.startswith('"')), "")
        plain = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
        found[offset] = Sense(plain, definition, example, related)
    return found


@cache
def common(part):
    """(word, its first sense) of plain words that WordNet's texts use."""
    found = []
    for line in (WORDNET / f"index.{part}").read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):
            word, _, _, pointers, *rest = line.split()
            tagged, offset = rest[int(pointers) + 1 : int(pointers) + 3]
            if word.isalpha() and len(word) > 2 and int(tagged):
                found.append((word, senses(part)[offset]))
    return found


def _short(text):
    return 0 < len(text) <= WIDEST


def _definitions(part, question, draw):
    return ((question.format(word), one.definition) for word, one in common(part) if _short(one.definition))


def _defined(part, question, draw):
    return ((question.format(one.definition), word) for word, one in common(part) if word == one.words[0])


def _related(part, sign, question, draw):
    """The first word of the first sense that a pointer of this sign names."""
    for word, one in common(part):
        found = next((offset for found, offset in one.related if found == sign), None)
        if found:
            yield question.format(word), senses(part)[found].words[0]


def _synonyms(part, question, draw):
    for word, one in common(part):
        if others := [other for other in one.words if other != word]:
            yield question.format(word), others[0]


def _gaps(draw):
    for part in PARTS:
        for word, one in common(part):
            gapped, found = re.subn(rf"\b{word}\b", "___", one.example)
            if found:
                yield f"Fill the gap: {gapped}", word


def _inflected(part, question, draw):
    for line in (WORDNET / f"{part}.exc").read_text(encoding="ascii").splitlines():
        form, word, *_ = line.split()
        if form.isalpha():
            yield question.format(form), word


def _translated(pair, question, draw):
    """Headwords and their first translation."""
    with gzip.open(FREEDICT / f"freedict-{pair}.dict.dz", "rt", encoding="utf-8") as file:
        entries = re.findall(r"^([a-zà-ÿ]{3,}) /.*\n(?:1\. )?([^\n,;<(]+)", file.read(), re.MULTILINE)
    return ((question.format(word), answer.strip()) for word, answer in entries if _short(answer))


KINDS = {
    "noun_definitions": partial(_definitions, "noun", "What is meant by the noun {}?"),
    "french": partial(_translated, "eng-fra", "Translate {} into French."),
    "kinds": partial(_related, "noun", "@", "What kind of thing is meant by {}?"),
    "verbs": partial(_defined, "verb", "Which verb means: {}?"),
    "opposites": partial(_related, "adj", "!", "What is the opposite of {}?"),
    "spanish": partial(_translated, "eng-spa", "Translate {} into Spanish."),
    "gaps": _gaps,
    "base_forms": partial(_inflected, "verb", "What is the base form of the verb {}?"),
    "parts": partial(_related, "noun", "%p", "Name a part of this: {}"),
    "verb_synonyms": partial(_synonyms, "verb", "Give another verb for {}."),
    "adjective_definitions": partial(_definitions, "adj", "What does it mean to be {}?"),
    "singulars": partial(_inflected, "noun", "What is the singular of {}?"),
    # targets
    "nouns": partial(_defined, "noun", "Which noun means: {}?"),
    "verb_definitions": partial(_definitions, "verb", "What does it mean to {}?"),
    "wholes": partial(_related, "noun", "#p", "Of what is this a part: {}?"),
    "italian": partial(_translated, "eng-ita", "Translate {} into Italian."),
    "from_french": partial(_translated, "fra-eng", "Translate the French word {} into English."),
    "noun_synonyms": partial(_synonyms, "noun", "Give another noun for {}."),
    "positives": partial(_inflected, "adj", "What is the base form of the adjective {}?"),
}
