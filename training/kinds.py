"""Kinds: which modality a source is of, by names of files and heads of tables; nothing is read, nothing imported.

It is asked while arguments are parsed, where the options that there are depend on the modality.
"""

import csv
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

from triptych.modalities import MODALITIES
from triptych.modalities.archives import ERRORS, is_archive, members
from triptych.training.builtin import MODALITY
from triptych.training.files import documentation_name, opened, table_of, walk

HEAD = 2**16  # bytes of a table of lines that are looked at
FILES = 20_000  # of a large folder these are enough


def modality_in(name: str) -> tuple[str, str] | None:
    """The modality of the data of that name, and what says so; None where that cannot be told from here."""
    path = Path(os.path.expanduser(name))
    if name in MODALITY:
        return MODALITY[name], f"{name} is built in"
    try:
        if path.is_file():
            found = _of_files([str(path)])
        elif path.is_dir():
            found = _of_saved(path) or _of_files(_below(path))
        else:
            return None
    except (*ERRORS, ValueError, csv.Error):  # said when it is read
        return None
    return found


def _below(folder: Path) -> list[str]:
    files = (file for file in walk(str(folder), lambda *_: None) if not documentation_name(file.base))
    return [file.opens for file in islice(files, FILES)]


def _of_files(paths: list[str]) -> tuple[str, str] | None:
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    tables = []
    for path in paths:
        if counts.total() > FILES:  # of shards there may be thousands
            break
        inside = [path]
        if is_archive(path):
            inside = [name for name, _ in members(path)[:FILES]]
        for name in inside:
            suffix = os.path.splitext(name)[1].lower()
            if table_of(name):
                tables.append(name)
            for modality, cls in MODALITIES.items():
                if suffix in cls.suffixes:
                    counts[modality] += 1
                    kinds[suffix] += 1
    if typed := next((found for t in tables[:8] if (found := _typed(t))), None):
        return typed
    if counts:
        best = max(counts, key=counts.get)  # of equally many, such as pictures with captions, the first of the table
        suffix = max((s for s in kinds if s in MODALITIES[best].suffixes), key=kinds.get)
        return best, f"{counts[best]:,} files such as {suffix}"
    return next((found for t in tables[:8] if (found := _lines(t))), None)


def _of_saved(folder: Path) -> tuple[str, str] | None:
    """A `save_to_disk` folder says what its columns are."""
    found = sorted([*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json")])
    if not found or not ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
        return None
    return _of_features(json.loads(found[0].read_text(encoding="utf-8")).get("features") or {})


def _of_features(features: dict) -> tuple[str, str] | None:
    """By the types of columns, as `datasets` writes them."""
    kinds = {
        column: feature.get("dtype") if feature.get("_type") == "Value" else feature.get("_type")
        for column, feature in features.items()
        if isinstance(feature, dict)
    }
    for plain in (False, True):  # a column of type Image is no accident, one of strings may be
        for modality, cls in MODALITIES.items():
            if plain != ("string" in cls.features):
                continue
            if found := [column for column, kind in kinds.items() if kind in cls.features]:
                return modality, f"column {found[0]!r} of type {kinds[found[0]]}"
    return None


def _typed(path: str) -> tuple[str, str] | None:
    """Of a parquet or arrow file: by what `datasets` left in its head, else by its columns."""
    kind = table_of(path)
    if kind not in ("parquet", "arrow"):
        return None
    import pyarrow as pa

    try:
        if kind == "parquet":
            import pyarrow.parquet as parquet

            schema = parquet.read_schema(path)
        else:
            with pa.memory_map(path) as file:
                try:
                    schema = pa.ipc.open_stream(file).schema
                except pa.ArrowInvalid:
                    schema = pa.ipc.open_file(file).schema
    except pa.ArrowException:
        return None
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features")
    if said and (found := _of_features(said)):
        return found
    columns = {f.name: {"_type": "Value", "dtype": str(f.type)} for f in schema}
    if any(pa.types.is_struct(f.type) or pa.types.is_binary(f.type) for f in schema):
        return None  # bytes of some kind, which their names or the user must say
    return _of_features(columns)


def _rows(head: str, path: str) -> tuple[list[list[str]], float]:
    """Cells of the rows of a csv, or words of the objects of a JSON, and which share of them names files, if any do."""
    if table_of(path) == "json":
        return [part.split('"') for part in head.split("{")[1:]], 0.2  # objects are within others
    first, *lines = head.splitlines() or [""]
    return list(csv.reader(lines, delimiter=max("\t;|,", key=first.count))), 0.5


def _lines(path: str) -> tuple[str, str] | None:
    """Of a csv or JSON: it names files of a modality, or holds its samples as words."""
    with opened(path) as file:
        head = file.read(HEAD).decode("utf-8", "replace").lower()
    rows, least = _rows(head, path)
    for modality, cls in MODALITIES.items():
        found = Counter(end for row in rows for end in {os.path.splitext(cell.strip())[1] for cell in row})
        named = [end for end, _ in found.most_common() if end in cls.suffixes]
        # Words may name a file by the way.
        if named and "string" not in cls.features and sum(found[end] for end in named) >= least * len(rows):
            return modality, f"{os.path.basename(path)} names files such as {named[0]}"
    words = next((m for m, cls in MODALITIES.items() if "string" in cls.features), None)
    return (words, f"{os.path.basename(path)} is a table of words") if words else None
