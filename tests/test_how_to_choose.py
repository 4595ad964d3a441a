"""The page on choosing computes what it says."""

import doctest
from pathlib import Path


def test_every_number_of_the_page():
    page = Path(__file__).parents[1] / "docs" / "how-to-choose.md"
    results = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 15
    assert results.failed == 0
