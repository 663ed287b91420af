"""Tables, files of lines and documents: read by `datasets`, and the column that holds the samples."""

import dataclasses
import glob
import os
from typing import Any

from triptych.modalities import MODALITIES, Modality
from triptych.training.documents import WIDE, marked
from triptych.training.errors import UserError, nearest, one_line
from triptych.training.files import File, Source, opened, some, walk
from triptych.training.separated import separation
from triptych.training.settings import Data

# Only these are looked into whether they hold samples: a column of type Image is no accident, one of strings may be.
TYPED = ("parquet", "arrow")
PLAIN = ("Value", "ClassLabel")  # kinds of columns of one value a row


def read_files(source: Source, builder: str, files: list[File]):
    """The rows of tables or of files of lines, by a reader of `datasets`. Bytes that are not UTF-8 become U+FFFD."""
    import datasets

    parts, begin = [], 0
    settings = [_settings(source, builder, file.opens) for file in files]
    for end in range(1, len(files) + 1):
        if end == len(files) or settings[end] != settings[begin]:
            parts.append(_read(source, builder, files[begin:end], dict(settings[begin])))
            begin = end
    made = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    if builder == "csv" and (odd := [c for c in made.column_names if len(c) > 40 or c.lstrip("-").isdigit()]):
        source.notes.append(f"the first row of {files[0].base} is taken for names of columns ({some(odd)})")
    return made


def _read(source: Source, builder: str, files: list[File], settings: dict[str, Any]):
    import datasets

    def read(files: list[File], **more):
        # A path is a pattern to `datasets`, and some files have brackets in their names.
        paths = [glob.escape(os.path.abspath(f.opens)) for f in files]
        return datasets.load_dataset(builder, data_files={"train": paths}, split="train", **settings, **more)

    try:
        made = read(files)
        if builder != "json" or all(_valid(made, c) for c in made.column_names):
            return made
    except Exception as error:  # of `datasets`, pandas, Arrow and Python
        if builder not in ("csv", "json", "text") or "encoding" in settings:
            raise _culprit(source, files, read, error) from error
    bad = {file.name: where for file in files if (where := undecodable(file.opens))}
    try:
        made = read(files, encoding="utf8", encoding_errors="replace")
    except Exception as error:
        raise _culprit(source, files, read, error) from error
    source.notes += [f"{some([name])} is not UTF-8 in {where}" for name, where in bad.items()]
    return made


def _valid(table, column: str) -> bool:
    """Arrow's reader of JSON takes any bytes for text."""
    import pyarrow as pa

    try:
        table.data.column(column).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _culprit(source: Source, files: list[File], read, error: Exception) -> UserError:
    """The refusal of the first file that cannot be read by itself, or is not like the first."""
    kinds: dict[str, str] = {}
    for file in files:
        try:
            kinds.setdefault(_listed(read([file])), file.name)
        except Exception as own:
            if "corresponds to no data" in str(own) and len(files) > 1:
                continue
            why = "it holds no rows" if "corresponds to no data" in str(own) else one_line(own.__cause__ or own)
            return UserError(f"data {source.name}: {file.opens} cannot be read: {why[:300]}; mend or remove it")
    if len(kinds) > 1:
        (columns, first), (others, other), *_ = kinds.items()
        return UserError(
            f"data {source.name}: {first} has the columns {columns}, but {other} {others}: give all files the same"
        )
    return UserError(
        f"data {source.name}: its files cannot be read together: {one_line(error.__cause__ or error)[:300]}"
    )


def undecodable(path: str, most: int = 3) -> str | None:
    """Where a file is not UTF-8: `2 lines, such as 17, 305`; None where it is."""
    lines = []
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                lines.append(number)
    if not lines:
        return None
    return f"{len(lines):,} lines, such as {', '.join(map(str, lines[:most]))}"


def _settings(source: Source, builder: str, path: str) -> tuple[tuple[str, Any], ...]:
    """What a reader must be told of a file: its encoding and its separator, by its first bytes."""
    if builder in TYPED:
        return ()
    with opened(path) as file:
        head = file.read(2**16)
    made: dict[str, Any] = {}
    if head[:2] in WIDE:
        made["encoding"] = "utf-16"
    elif source.encoding:
        made["encoding"] = marked(head) or source.encoding
    if builder == "csv":
        encoding = made.get("encoding", "utf-8")
        try:
            how, notes = separation(path, head.decode(encoding, "replace"), encoding)
        except ValueError as error:
            raise UserError(f"data {source.name}: {path}: {error}") from error
        made |= how
        for note in notes:
            say(source, f"{os.path.basename(path)}: {note}")
    return tuple(made.items())


def say(source: Source, note: str) -> None:
    if note not in source.notes:
        source.notes.append(note)


def holds(table: File, modality: Modality) -> bool:
    """Has it a column of the modality's type? Only tables whose columns have types can say."""
    if table.table not in TYPED:
        return False
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        if table.table == "parquet":
            schema = parquet.read_schema(table.opens)
        else:
            with pa.memory_map(table.opens) as file:
                try:
                    schema = pa.ipc.open_stream(file).schema
                except pa.ArrowInvalid:
                    schema = pa.ipc.open_file(file).schema
        features = datasets.Features.from_arrow_schema(schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"data {table.opens}: cannot be read: {one_line(error)[:200]}") from error
    return any(rank_of(feature, modality) for feature in features.values())


def points(table: File, samples: list[File]) -> bool:
    """Does the head of a table name some of the files?"""
    if table.table in TYPED:
        return False
    with opened(table.opens) as file:
        head = file.read(2**16)
    return any(os.fsencode(sample.base) in head for sample in samples[:10_000])


# Columns.


def column_of(table, data: Data, modality: Modality, source: Source) -> tuple[str, str]:
    """The column of samples, and why. Labels are no samples."""
    named, kind, known = data.column, name_of_modality(modality), table.column_names
    if named is not None:
        if named not in known:
            raise UserError(
                f"data.column {named!r}: no such column{nearest(named, known)}; there are {', '.join(known)}"
            )
        if not rank_of(table.features[named], modality) and not holds_text(table.features[named]):
            raise UserError(
                f"data.column {named!r} holds {kind_of(table.features[named])}, which modality {kind} does not read; "
                f"there are {_listed(table)}"
            )
        return named, "as asked"
    if source.column is not None:
        return source.column, "what the files hold"
    ranks = {c: rank_of(f, modality) for c, f in table.features.items() if c not in (data.label_column, "label")}
    for rank, why in ((2, f"the only one of type {'/'.join(modality.features)}"), (1, "the only one of bytes")):
        found = [c for c, r in ranks.items() if r == rank]
        if found:
            return _only(found, why, kind, source)
    if not holds_lines(modality):
        found = [c for c in ranks if holds_text(table.features[c]) and _name_files(table, c, modality)]
        if found:
            return _only(found, "the only one that names files", kind, source)
    kinds = {kind_of(f) for f in table.features.values()}
    looks = [n for n, cls in MODALITIES.items() if kinds & set(cls.features) - {"string", "large_string"}]
    hint = f"; it looks like modality {looks[0]}" if looks else ""
    if not looks and any(type(f).__name__ not in PLAIN for f in table.features.values()):
        hint = "; arrays are read from files (.npy, .wav, ...), or handed over in Python (docs/use.md)"
    if within := nested(table, modality):
        hint = f"; within them {', '.join(within)}: name one, such as --data.column {within[0]}"
    raise UserError(
        f"data {source.name}: no column of type {'/'.join(modality.features)}; there are {_listed(table)}{hint}"
    )


def nested(table, modality: Modality, rows: int = 20) -> list[str]:
    """Dotted names of the fields within others that are of the modality's type; the longest by the first rows first."""
    parents = [c for c, feature in table.features.items() if isinstance(feature, dict)]
    flat = table.select(range(min(rows, len(table)))).select_columns(parents).flatten()
    found = [c for c, f in flat.features.items() if not hasattr(f, "feature") and rank_of(f, modality) == 2]
    return sorted(found, key=lambda c: -sum(len(str(v)) for v in flat[c][:]))


def _only(found: list[str], why: str, kind: str, source: Source) -> tuple[str, str]:
    if len(found) == 1:
        return found[0], why
    if kind in found:
        return kind, f"of {', '.join(found)} the one of that name"
    raise UserError(
        f"data {source.name}: several columns may hold the samples ({', '.join(found)}): name one, --data.column"
    )


def _listed(table) -> str:
    return ", ".join(f"{c} ({kind_of(f)})" for c, f in table.features.items())


def undecoded(table):
    """The table, whose pictures and sounds are files as they are: a row of many columns is asked for one of them."""
    for column, feature in table.features.items():
        if getattr(feature, "decode", False) and type(feature).__name__ != "Json":  # values of several types
            table = table.cast_column(column, dataclasses.replace(feature, decode=False))
    return table


def cells_of(table, column: str, modality: Modality, source: Source, split: str):
    """The table with that column as the modality reads it: undecoded bytes or paths, or text; lists are unrolled."""
    import datasets

    feature, more = table.features[column], ""
    lines = holds_lines(modality)
    if not lines and not hasattr(datasets, modality.features[0]):  # plain values, of which nothing is decoded
        return table, more
    raw = datasets.Value("string") if lines else getattr(datasets, modality.features[0])(decode=False)
    if hasattr(feature, "feature"):
        table, more = _unrolled(table, column, raw if lines else plain(), source), ", lists unrolled"
    elif not lines and holds_text(feature):
        table, more = _paths(table, column, source, split), ", paths"
    if table.features[column] != raw:
        table = table.cast_column(column, raw)
    return table, more


def plain() -> dict[str, Any]:
    """What a column of type Image or Audio is to Arrow."""
    import datasets

    return {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def _unrolled(table, column: str, item, source: Source):
    """A row an item of the lists in that column; others go along, of lists those that are as long in all rows."""
    import datasets
    import pyarrow.compute as pc

    table = table if table._indices is None else table.flatten_indices()

    def lengths(name: str):
        return pc.fill_null(pc.list_value_length(table.data.column(name)), 0)

    features = {c: f for c, f in table.features.items() if c != column}
    others = [c for c, f in features.items() if type(f).__name__ in PLAIN]
    lists = [c for c, f in features.items() if type(getattr(f, "feature", None)).__name__ in PLAIN]
    beside = [c for c in lists if lengths(c).equals(lengths(column))]
    if left := [c for c in features if c not in (*others, *beside)]:
        say(source, f"columns that do not go along with the items of {column!r}: {', '.join(left)}")
    table = table.select_columns([*others, *beside, column])

    def unroll(rows):
        made = {c: [v for v, items in zip(rows[c], rows[column], strict=True) for _ in items or ()] for c in others}
        return made | {c: [item for items in rows[c] for item in items or ()] for c in (*beside, column)}

    table = table.cast_column(column, datasets.List(item))
    items = {c: features[c].feature for c in beside} | {column: item}
    return table.map(unroll, batched=True, features=datasets.Features({**table.features, **items}))


def _paths(table, column: str, source: Source, split: str):
    """A column of paths, which are relative to the folder of their table, or else to the source's."""
    import datasets

    values = table[column][:]
    if any("://" in v for v in values[:20] if v):
        raise UserError(
            f"data {source.name}: column {column!r} holds addresses ({next(v for v in values if v)}), which are not "
            "fetched; download the files, and name their folder"
        )
    near = os.path.dirname(os.path.join(source.root or "", *(source.files.get(split) or [""])[:1]))
    sample = [posix(v) for v in values[:: max(1, len(values) // 100)] if v]
    tried = own = list(dict.fromkeys((near, source.root or "")))
    if sample and not any(os.path.isfile(os.path.join(folder, v)) for folder in tried for v in sample):
        # Many sets have their files in a folder of which the table says nothing.
        tail = os.sep + os.path.normpath(sample[0])
        tried = own + sorted(
            {f.opens.removesuffix(tail) for f in walk(near or ".", lambda *_: None) if f.opens.endswith(tail)}
        )
    found = {folder: sum(os.path.isfile(os.path.join(folder, v)) for v in sample) for folder in tried}
    there = [folder for folder in tried if found[folder]]
    if not there or len(there) > 1 and there[0] not in own:
        example = sample[0] if sample else "all are empty"
        raise UserError(
            f"data {source.name}: column {column!r} of type string names "
            + (
                f"files of several folders ({', '.join(there)}: {example})"
                if there
                else f"no file that is there ({example})"
            )
            + f": paths are relative to {near or 'their table'}; or keep one folder of that name below it"
        )
    folder = max(there, key=found.get)
    if folder not in own:
        source.notes.append(f"the files of column {column!r} were found in {folder}")
    features = datasets.Features({**table.features, column: datasets.Value("string")})
    return table.map(
        lambda rows: {column: [None if v is None else os.path.join(folder, posix(v)) for v in rows[column]]},
        batched=True,
        features=features,
    )


def posix(path: str) -> str:
    """A path that may have been written on Windows."""
    return path.replace("\\", "/")


def whole(table, column: str, modality: Modality, data: Data, source: Source):
    """Without rows of text that a reader could not decode; too many of them are refused. Empty cells are counted."""
    if empty := table.data.column(column).null_count if table._indices is None else 0:
        csv = any(name.lower().endswith((".csv", ".tsv")) for names in source.files.values() for name in names)
        why = " (in a csv, words such as NA, null and None mean nothing)" if csv else ""
        source.notes.append(f"{empty:,} of {len(table):,} rows have nothing in column {column!r}{why}")
    if not holds_lines(modality) or not any("is not UTF-8" in note for note in source.notes):
        return table
    whole = table.filter(lambda rows: ["\ufffd" not in (v or "") for v in rows[column]], batched=True)
    lost, most = len(table) - len(whole), data.most_bad(len(table))
    if lost > most:
        bad = next(note for note in source.notes if "is not UTF-8" in note)
        raise UserError(
            f"data {source.name}: {bad}; {lost:,} rows would be lost, more than {most} (data.max_bad): say what it "
            "is, such as --data.encoding latin-1, or convert it, as by iconv -f latin1 -t utf-8"
        )
    if lost:
        source.left["rows that are not UTF-8; named by file and line above"] = [f"{lost:,} rows"] * lost
    return whole


def label_of(table) -> str | None:
    found = [c for c, f in table.features.items() if type(f).__name__ == "ClassLabel"]
    return found[0] if len(found) == 1 else "label" if "label" in table.column_names else None


def rank_of(feature: Any, modality: Modality) -> int:
    """How surely a column of that type holds samples: 2 by its type, 1 as bytes without a type, 0 not at all."""
    feature = getattr(feature, "feature", feature)
    kind = kind_of(feature)
    if kind in modality.features or holds_lines(modality) and kind == "string_view":
        return 2
    bytes_inside = isinstance(feature, dict) and kind_of(feature.get("bytes")) in (
        "binary",
        "large_binary",
        "binary_view",
    )
    return int(not holds_lines(modality) and (bytes_inside or kind in ("binary", "large_binary", "binary_view")))


def kind_of(feature: Any) -> str:
    return feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__


def holds_numbers(feature: Any) -> bool:
    return kind_of(feature).startswith(("int", "uint", "float"))


def holds_text(feature: Any) -> bool:
    return kind_of(feature) in ("string", "large_string", "string_view")


def _name_files(table, column: str, modality: Modality) -> bool:
    values = [v for v in table[:20][column] if v]
    return bool(values) and all(os.path.splitext(v)[1].lower() in modality.suffixes for v in values)


def holds_lines(modality: Modality) -> bool:
    """Are samples plain strings, so that a file may hold many?"""
    return "string" in modality.features


def name_of_modality(modality: Modality) -> str:
    return next((name for name, cls in MODALITIES.items() if cls is type(modality)), type(modality).__name__.lower())
