"""Tables of separated values: what a csv or tsv must be read with, by its first bytes, and by its quotes."""

import csv
import io
import re
from itertools import islice, zip_longest
from typing import Any

from triptych.training.files import opened, uncompressed

LINES = 1_000_000  # of a file whose quotes are looked at
WHOLE = 2**14  # characters; a head of fewer is the whole file
LONGEST = 2**31 - 1  # characters of a cell


def separation(path: str, head: str, encoding: str) -> tuple[dict[str, Any], list[str]]:
    """Settings of pandas' reader for a file that begins so, and what is to be said of it, after its name."""
    made, notes = {}, []
    first = head.lstrip("\ufeff").split("\n", 1)[0]
    separators = [s for s in "\t;|" if s in first and "," not in first]
    if uncompressed(path).endswith(".tsv"):
        made["sep"] = "\t"
        if quotes_are_text(path):
            made["quoting"] = csv.QUOTE_NONE
            notes.append("its quotes are text: they do not match")
    elif separators:
        made["sep"] = max(separators, key=first.count)
        notes.append(f"its separator is {made['sep']!r}")
    separator = made.get("sep", ",")
    rows = cells(head, separator)
    if rows and len(rows[0]) > 1 and all(name[:1] == " " for name in rows[0][1:]):
        made["skipinitialspace"] = True
        rows = cells(head, separator, True)
    if "quoting" not in made:
        notes += names_of_rows(rows, separator)
    if ends_in_separators(rows):
        made["index_col"] = False
    if separator != "," and has_decimal_commas(rows[1:]):
        made["decimal"] = ","
        notes.append("its numbers have a decimal comma")
    if zeros := begin_with_zeros(rows):
        notes.append(f"numbers in column {zeros!r} begin with zeros, which are not kept: 007 is 7")
    if "quoting" not in made and (line := open_quote(path, encoding, separator)):
        notes.append(f"a quote in line {line} may make one row of several: within a cell it is to be doubled")
    return made, notes


def cells(head: str, separator: str, spaced: bool = False) -> list[list[str]]:
    """Cells of the first rows, names of columns too; none of a head that cannot be parted, which is said at reading."""
    lines = io.StringIO(head.lstrip("\ufeff"), newline="")  # no other breaks of Unicode
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=spaced) if row]
    except csv.Error:
        return []
    return rows[:-1] if len(head) >= WHOLE and len(rows) > 2 else rows  # the last one may be cut


def names_of_rows(rows: list[list[str]], separator: str) -> list[str]:
    """What is to be said of rows with more cells than there are names of columns: all begin with a name of the row.

    pandas takes the first cells for such names as soon as the first row has more. Refuses rows that do not all have
    them: a cell that holds the separator is not quoted, and what stands before it would be lost.
    """
    if len(rows) < 2 or len(rows[1]) <= len(rows[0]) or ends_in_separators(rows):
        return []
    names, wide = len(rows[0]), len(rows[1])
    if odd := next((row for row in rows if len(row) != wide and row is not rows[0]), None):
        raise ValueError(
            f"rows of {wide} and of {len(odd)} cells, {names} names of columns: quote cells that hold {separator!r}"
        )
    return [f"its rows have {wide} cells, its columns {names} names: {rows[1][0]!r} is taken for the name of a row"]


def begin_with_zeros(rows: list[list[str]]) -> str | None:
    """The first column of whole numbers such as `007`, of which pandas keeps 7."""
    for name, *column in zip_longest(*rows, fillvalue=""):
        column = [cell.strip() for cell in column if cell.strip()]
        if all(cell.isdecimal() for cell in column) and any(cell[0] == "0" and len(cell) > 1 for cell in column):
            return name
    return None


def ends_in_separators(rows: list[list[str]]) -> bool:
    """Have rows more cells than there are names of columns, and nothing in those? A separator ends each row then.

    pandas would take the first column for an index, and each other for the one before it.
    """
    return len(rows) > 1 and all(len(row) > len(rows[0]) and not any(row[len(rows[0]) :]) for row in rows[1:])


def has_decimal_commas(rows: list[list[str]]) -> bool:
    """Is there a column of numbers such as `1,5`? Without that, `1,500` may well be a thousand and a half."""
    columns = ([cell.strip() for cell in column if cell.strip()] for column in zip_longest(*rows, fillvalue=""))
    return any(
        all(re.fullmatch(r"-?\d+(,\d+)?", cell) for cell in column)
        and any(re.search(r",(?!\d{3}$)", cell) for cell in column)
        for column in columns
    )


def quotes_are_text(path: str) -> bool:
    """A tsv of lines of equally many cells, one of which begins with a quote and does not end with one.

    For pandas the cell, and the rows below it, would go on to the next quote.
    """
    tabs, open_quote = set(), False
    with opened(path) as file:
        for line in file:
            cells = line.rstrip(b"\r\n").split(b"\t")
            tabs.add(len(cells))
            open_quote = open_quote or any(c[:1] == b'"' and (len(c) < 2 or c[-1:] != b'"') for c in cells)
            if len(tabs) > 1:
                return False
    return open_quote


def open_quote(path: str, encoding: str, separator: str) -> int | None:
    """The line from which on a quoted cell goes over several lines, and ends before its cell does; None without one."""
    before, limit = 0, csv.field_size_limit(LONGEST)
    try:
        with io.TextIOWrapper(opened(path), encoding, "replace", "") as file:
            rows = csv.reader(islice(file, LINES), delimiter=separator, strict=True)
            while True:
                try:
                    next(rows)
                except csv.Error:
                    if rows.line_num > before + 1:
                        return before + 1
                before = rows.line_num
    except StopIteration:
        return None
    finally:
        csv.field_size_limit(limit)
