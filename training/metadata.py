"""Metadata: tables about the files of a folder, whose columns are joined to them by the files' names."""

import os
from collections import Counter
from pathlib import Path
from typing import Any
from unicodedata import normalize

from triptych.training.errors import UserError
from triptych.training.files import TABLES, File, Source, called_alone, numbered, some, table_of
from triptych.training.tables import holds_numbers, holds_text, posix, read_files


def table_about(name: str) -> File:
    """A table about files, which may lie anywhere."""
    path = Path(os.path.expanduser(name))
    if not path.is_file() or table_of(path.name) is None:
        raise UserError(f"data.metadata {name}: no such table ({', '.join(TABLES)})")
    return File(str(path), path.name)


def metadata_of(source: Source, samples: list[File], about: list[File]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Columns of metadata tables by file; rows without a file, the reverse, and second rows are reported."""
    rows: dict[str, dict[str, Any]] = {}
    columns: list[str] = []
    known = {file.name for file in samples}
    alike = _by_likeness(known)
    root = os.path.abspath(source.root or "")

    def placed(folder: str, value: str | None) -> str:
        place = _place(folder, value, root)
        return place if place in known else alike.get(likeness(place), place)

    for table in about:
        read = read_files(source, table.table, [table])
        folder = "/".join((*table.folders, ""))
        here = {name for name in known if name.startswith(folder)}
        strings = [c for c, f in read.features.items() if holds_text(f)]
        places = {column: [placed(folder, value) for value in read[column][:]] for column in strings}
        if not any(here & set(values) for values in places.values()):
            # Without the folder, or the suffix: what but one file is called.
            short = called_alone(here)
            places = {c: [short.get(_place("", value, root), value or "") for value in read[c][:]] for c in strings}
            if not any(here & set(values) for values in places.values()):
                places |= (found := _by_number(read, numbered(short)))
                source.notes += [f"{table.name}: numbers in column {c!r} are taken for names of files" for c in found]
        # The column of files is the one that names most of them.
        found = {column: len(here & set(values)) for column, values in places.items()}
        column = max(found, key=lambda c: (found[c], c == "file_name"), default=None)
        if column is None or not found[column]:
            source.leave("metadata of which no column names the files", table.name)
            continue
        lost = [place for place in places[column] if place not in here]
        twice = [place for place, count in Counter(places[column]).items() if count > 1 and place in here]
        others = [c for c in read.column_names if c != column]
        columns += [c for c in others if c not in columns]
        twice += sorted(here & rows.keys() & set(places[column]))  # in another table
        for place, row in zip(places[column], read.select_columns(others).to_list(), strict=True):
            if place in here:
                rows.setdefault(place, row)
        bare = len(here - rows.keys())
        if lost or bare:
            source.notes.append(f"{table.name}: {len(lost)} rows without a file, {bare} files without a row")
        if twice:
            source.notes.append(
                f"{table.name}: {len(twice)} files have several rows, of which the first counts ({some(twice)})"
            )
    return rows, columns


def _by_number(table, numbers: dict[int, str]) -> dict[str, list[str]]:
    """The files that a column of numbers names, by that column: most files, and none twice; or nothing."""
    for column in (c for c, f in table.features.items() if holds_numbers(f)):
        values = table[column][:]
        there = [value for value in values if value in numbers]
        if 2 * len(there) > len(numbers) and len(set(there)) == len(there):
            return {column: [numbers.get(value, str(value)) for value in values]}
    return {}


def _place(folder: str, value: str | None, root: str) -> str:
    """The name within the source of what a table calls so, whole paths too; also where the folder was elsewhere."""
    path = posix((value or "").strip())
    if path.startswith(root + "/"):
        return os.path.normpath(path[len(root) + 1 :])
    if os.path.isabs(path) or path[1:3] == ":/":
        return os.path.normpath(path.rpartition(f"/{os.path.basename(root)}/")[2])
    return os.path.normpath(folder + path)


def likeness(name: str) -> str:
    """What names have in common that differ in capitals, or in how an accent is written (macOS takes it apart)."""
    return normalize("NFC", normalize("NFC", name).casefold())


def _by_likeness(names: set[str]) -> dict[str, str]:
    """Names by it, of which no other is alike."""
    count = Counter(map(likeness, names))
    return {like: name for name in names if count[like := likeness(name)] == 1}
