"""Groups: rows of one patient, speaker or recording, which are never on both sides of a split."""

import os
import re
from collections import Counter
from statistics import median

import numpy as np

from triptych.modalities.base import recording
from triptych.training.errors import UserError, nearest
from triptych.training.sources import Rows, print_once, relative

PLACES = {"file": lambda path: path, "folder": os.path.dirname}
UNKNOWN = ""
PATH = "path"  # of the file that a document is from
# Names of a group's files differ in their last parts, set off by these.
PARTS = {1: r"(.+)[-_ ][^-_ /]*$", 2: r"(.+)[-_ ][^-_ /]*[-_ ][^-_ /]*$"}
LEAST, MOST_EACH = 5, 50  # groups in all, rows of most of them: fewer and larger ones are rather classes


def groups_of(rows: Rows, what: str) -> np.ndarray | None:
    """The name of each row's group; None where none was asked for. Rows of no known group are one, and are counted.

    Segments are of their recording where nothing else is asked for. `what` says in a printed line which rows these are.
    """
    if rows.group is None:
        paths = list(rows.paths())
        if all(path is None or recording(path) == path for path in paths):
            return None
        return np.array([recording(path or UNKNOWN) for path in paths])
    if rows.group in rows.table.column_names and rows.group != rows.column:
        named = [None if v is None or v != v else str(v).strip() for v in rows.table[rows.group][:]]
    else:
        named = _by_path(rows)
    lost = sum(not name for name in named)
    if lost == len(named):
        raise UserError(f"group {rows.group!r}: no row {what} has one")
    if lost:
        print_once(f"{lost:,} of {len(named):,} rows {what} have no {group_of(rows)}: they count as one")
    return np.array([name or UNKNOWN for name in named])


def group_of(rows: Rows) -> str:
    """What a group is called in a line."""
    if rows.group is None:
        return "recording"
    return rows.group if rows.group in PLACES or rows.group in rows.table.column_names else "group"


def _by_path(rows: Rows) -> list[str | None]:
    asked, columns = rows.group, [c for c in rows.table.column_names if c != rows.column]
    there = f"there are {', '.join(columns) or 'no other columns'}"
    if asked in PLACES:
        of = PLACES[asked]
    else:
        try:
            pattern = re.compile(asked)
        except re.error as error:
            hint = nearest(asked, columns)
            raise UserError(f"group {asked!r}: no such column{hint}, and no pattern ({error}); {there}") from None

        def of(path: str) -> str | None:
            found = pattern.search(os.path.splitext(path)[0])
            return found and (found[1] if pattern.groups else found[0])

    if (paths := paths_of(rows)) is None:
        raise UserError(f"group {asked!r}: no such column{nearest(asked, columns)}, and rows have no file; {there}")
    named = [of(path) if path else None for path in paths]
    if not any(named) and asked not in PLACES:
        example = next((path for path in paths if path), "")
        raise UserError(
            f"group {asked!r}: no such column{nearest(asked, columns)}, and as a pattern it is in no file's name, such "
            f"as {example}; {there}"
        )
    return named


def paths_of(rows: Rows) -> list[str | None] | None:
    """The file of each row, of a segment its recording, by its path within the data; None where rows have none."""
    found = list(rows.paths())
    if not found and PATH in rows.table.column_names:
        found = rows.table[PATH][:]
    return [path and recording(relative(path, rows.root)) for path in found] or None


def suspected(rows: Rows) -> str | None:
    """A line, where files' names look as if several were of one patient, speaker or recording."""
    if rows.group is not None or (paths := paths_of(rows)) is None:
        return None
    paths = [path for path in paths if path]
    if PATH in rows.table.column_names and _look_like_groups(Counter(paths), len(paths)):  # lines or paragraphs
        return f"several samples are of one file, such as {paths[0]}; to keep these on one side: --group file"
    paths = [os.path.splitext(path)[0] for path in paths]
    for pattern in PARTS.values():
        found = Counter(m[1] for path in paths if (m := re.search(pattern, path)))
        folders = {os.path.dirname(stem) for stem in found}
        if _look_like_groups(found, len(paths)) and len(found) >= 3 * len(folders):
            example = max(found, key=found.get)
            names = [os.path.basename(path) for path in paths if path.startswith(example)][:2]
            return (
                f"names such as {', '.join(names)} look like several files of one patient, speaker or recording; "
                f"if they are, keep these on one side: --group '{pattern}', or a column"
            )
    folders = Counter(os.path.dirname(path) for path in paths)
    if rows.label != "label" and _look_like_groups(folders, len(paths)):
        return (
            f"folders such as {max(folders, key=folders.get)} look like one patient, speaker or recording each; "
            "if they are, keep their files on one side: --group folder"
        )
    return None


def _look_like_groups(found: Counter, rows: int) -> bool:
    """Many, of several rows each, that hold most of the rows."""
    several = [count for count in found.values() if count > 1]
    return len(several) >= LEAST and sum(several) > rows / 2 and median(several) <= MOST_EACH
