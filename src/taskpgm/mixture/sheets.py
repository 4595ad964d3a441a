"""Small tables of numbers that a user wrote, as CSV: matrices and results."""

import csv
import io
from pathlib import Path

from taskpgm.errors import UserError

SEPARATORS = (",", ";", "\t")


def read_sheet(path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every row of a CSV file that is not blank, the header first; cells without space around.

    What separates the header's names most separates all cells. A column that is empty throughout is none.

    Raises:
        UserError: no CSV in UTF-8.
        OSError: unreadable.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it again as CSV in UTF-8.") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not valid CSV: {error}; correct its quotes.") from error
    return _without_empty_columns([(line, cells) for line, cells in rows if any(cells)])


def number(cell: str) -> float | None:
    """The number in a cell, or None."""
    try:
        return float(cell)
    except ValueError:
        return None


def not_a_number(cell: str) -> str:
    """What is wrong with a cell that should hold a number, and what to write instead."""
    if not cell:
        return "is empty; fill it in"
    if number(cell.replace(",", ".")) is not None:
        return f"is {cell!r}, which is not a number; write it with a point: {cell.replace(',', '.')}"
    if number(cell.removesuffix("%")) is not None:
        return f"is {cell!r}, which is not a number; leave out the sign %"
    return f"is {cell!r}, which is not a number; correct it"


def _without_empty_columns(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Spreadsheets write separators behind the last cell."""
    width = max((i for _, cells in rows for i, cell in enumerate(cells, 1) if cell), default=0)
    return [(line, cells[:width]) for line, cells in rows]
