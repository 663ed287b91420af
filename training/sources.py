"""Sources: what is where, and what was left out. A source becomes rows with a column of samples, and perhaps of labels.

A folder is read by one rule. Hidden files and documentation are no data. Of what is left, a table that holds samples
wins over loose files; where that is not sure, the run asks. Words of splits are those of `datasets`, in the names of
folders, and where folders have none, in the names of tables and text files. Whatever is not used is named with the
reason.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from triptych.modalities import MODALITIES, BadSample, Modality
from triptych.modalities.base import bytes_or_path, recording
from triptych.training.builtin import NAMES, builtin
from triptych.training.documents import NOT_TEXT, not_text, read_documents
from triptych.training.errors import UserError, nearest, one_line
from triptych.training.fields import flattened, has, labels_joined, longer_within
from triptych.training.files import (
    ARCHIVES,
    TABLES,
    File,
    Source,
    by_split,
    names,
    some,
    sort_out,
    split_level,
    split_word,
)
from triptych.training.memory import HELD
from triptych.training.memory import NAME as MEMORY
from triptych.training.segments import cut_out, marking, segmented, times_of
from triptych.training.settings import Data
from triptych.training.tables import (
    cells_of,
    column_of,
    holds,
    holds_lines,
    holds_text,
    kind_of,
    label_of,
    name_of_modality,
    plain,
    points,
    read_files,
    say,
    whole,
)

BESIDE = "tables beside the files; to read one, name it, or join it by --data.metadata"


@dataclass
class Rows:
    """Rows of one split, undecoded, with the columns that hold samples and labels. `root`: where its files lie."""

    table: Any  # datasets.Dataset
    column: str
    label: str | None
    name: str
    modality: Modality
    root: str | None = None
    group: str | None = None  # what `groups_of` reads

    def __len__(self) -> int:
        return len(self.table)

    def select(self, index) -> "Rows":
        return dataclasses.replace(self, table=self.table.select(index))

    def paths(self) -> Iterator[str | None]:
        """The path of each row, if it has one."""
        cells = self.table.select_columns([self.column])
        if not hasattr(cells.features[self.column], "decode"):  # no files
            return
        for batch in cells.with_format("arrow").iter(10_000):
            yield from batch[self.column].combine_chunks().field("path").to_pylist()

    def recordings(self) -> np.ndarray:
        """By row, the number of the first row of the same recording: its own, but for segments of one file."""
        numbers, first = np.arange(len(self)), {}
        for row, path in enumerate(self.paths()):
            if path is not None and recording(path) != path:
                numbers[row] = first.setdefault(recording(path), row)
        return numbers

    def labels(self) -> np.ndarray:
        """The label of each row, numbers or words as the column has them."""
        if self.label is None:
            raise UserError(
                f"data {self.name} has no class label column: name its column of labels, or other data that has one"
            )
        return np.asarray(self.table[self.label][:])


def rows_of(source: Source, data: Data, modality: Modality, split: str) -> tuple[Rows, str]:
    """Rows of a split, and why it is that column."""
    import datasets

    asked, split = split, split_called(split, list(source.read))
    if split is None:
        known = ", ".join(source.read)
        raise UserError(f"data {source.name} has no split {asked!r}; it has {known}: name one, --data.split")
    try:
        table = source.read[split]()
    except UserError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise UserError(f"data {source.name}: cannot be read: {one_line(error.__cause__ or error)[:300]}") from error
    if not len(table):
        raise UserError(f"data {source.name}, split {split}: no rows")
    table = flattened(table, data.column, data.label_column, data.group)
    column, why = column_of(table, data, modality, source)
    if holds_lines(modality) and data.column is None and (within := longer_within(table, column)):
        raise UserError(
            f"data {source.name}: the samples may be in {column!r} or in the longer {within!r}: name one, --data.column"
        )
    times = times_of(table.column_names) if modality.segments and holds_text(table.features[column]) else None
    table, more = cells_of(table, column, modality, source, split)
    cut = bool(times) and data.segments is not False
    if cut:
        table, more = cut_out(table, column, times, source), ", segments"
    table = whole(table, column, modality, data, source)
    label = data.label_column or label_of(table)
    table = labels_joined(table, label)
    rows = Rows(table, column, label, source.name, modality, source.root, data.group)
    if (cut or data.segments) and data.group is None:
        if len(np.unique(rows.recordings())) > 1:
            rows.group = "file"  # segments of one recording are on one side
        else:
            say(source, "all segments are of one recording: what is judged is not apart from what is learned from")
    return rows, f"{column!r} ({why}{more})"


def load(data: Data, modality: Modality, split: str | None = None) -> Rows:
    """Rows of `split` (default: `data.split`). Says what is read, and what is not. `UserError` names the way out."""
    source = find(data, modality)
    rows, column = rows_of(source, data, modality, split or data.split)
    split = split_called(split or data.split, list(source.read))
    labels = f"labels {rows.label!r}" if rows.label else "no labels"
    others = f"; other splits: {', '.join(s for s in source.read if s != split)}" if len(source.read) > 1 else ""
    print_once(f"data: {len(rows):,} rows of {source.name} ({split}), column {column}; {labels}{others}")
    for note in source.notes:
        print_once(f"data: {note}")
    if source.left_out():
        print_once(f"data: left out: {source.left_out()}")
    return rows


def judged(data: Data, modality: Modality) -> Data:
    """Data as a probe reads it: the segments of its recordings, where somebody marked some."""
    if data.segments is None and modality.segments and find(data, modality).marks:
        return dataclasses.replace(data, segments=True)
    return data


def splits_of(data: Data, modality: Modality) -> list[str]:
    """Names of the splits that a source has."""
    return list(find(data, modality).read)


def split_called(word: str, splits: list[str]) -> str | None:
    """The split that a word means: the one of that name, or of another of `datasets`' words for it; None for none."""
    if word in splits:
        return word
    meant = split_word(word)
    return next((split for split in splits if meant and split_word(split) == meant), None)


def known_column(name: str, data: Data, modality: Modality, split: str) -> str | None:
    """The column that a run's data names, where another source has it."""
    if data.column is None:
        return None
    source = find(dataclasses.replace(data, name=name, subset=None, revision=None), modality)
    found = split_called(split, list(source.read))
    return data.column if found is not None and has(source.read[found](), data.column) else None


def like(data: Data, name: str, modality: Modality) -> Data:
    """The training part of another source, read as that one is, with its columns as far as the other has them."""
    if name == data.name:
        return dataclasses.replace(data, split="train")
    given = {c: value for c in ("column", "label_column", "group") if (value := getattr(data, c))}
    other = dataclasses.replace(data, name=name, subset=None, revision=None, split="train", **dict.fromkeys(given))
    if not given:
        return other
    table = next(iter(find(other, modality).read.values()))()
    return dataclasses.replace(other, **{c: value for c, value in given.items() if has(table, value)})


def show(data: Data, modality: Modality) -> None:
    """Print how a source is read: files, splits, columns, labels, three samples, what is left out."""
    source = find(data, modality)
    rows, column = rows_of(source, data, modality, data.split)
    split = split_called(data.split, list(source.read))

    def line(title: str, text: str) -> None:
        print(f"{title:10} {text}")

    line("source", f"{source.name}, as {name_of_modality(modality)}")
    kinds = Counter(
        os.path.splitext(recording(name))[1].lower() or "no suffix" for names in source.files.values() for name in names
    )
    line("files", ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or "none of its own")
    for other in source.read:
        count = len(rows) if other == split else len(rows_of(source, data, modality, other)[0])
        files = f" ({some(source.files[other])})" if source.files[other] else ""
        line("split", f"{other}: {count:,} rows{files}{', read now' if other == split else ''}")
    line("columns", ", ".join(f"{name} ({kind_of(f)})" for name, f in rows.table.features.items()))
    line("samples", f"column {column}")
    line("labels", _described(rows))
    for note in source.notes:
        line("note", note)
    line("left out", source.left_out() or "nothing")
    table = rows.table.select_columns([rows.column, *([rows.label] if rows.label else [])])  # others stay undecoded
    for i in sorted({0, len(rows) // 2, len(rows) - 1}):
        cell = table[i][rows.column]
        try:
            text = modality.describe(cell)
        except BadSample as error:
            text = f"unusable: {error}"
        where = f"{some([relative(cell['path'], rows.root)])}: " if isinstance(cell, dict) and cell.get("path") else ""
        label = f" [{word(rows, table[i][rows.label])}]" if rows.label else ""
        line("sample", f"{i}: {where}{text}{label}")


def _described(rows: Rows) -> str:
    if rows.label is None:
        return "none: no column called label, no single class label (data.label_column names one)"
    count = Counter(word(rows, v) for v in rows.table[rows.label][:])
    most = ", ".join(f"{name} {n:,}" for name, n in count.most_common(10))
    return f"column {rows.label!r}, {len(count):,} different: {most}{', ...' if len(count) > 10 else ''}"


def word(rows: Rows, value: Any) -> str:
    """A label in words."""
    feature = rows.table.features[rows.label]
    if value is None or hasattr(feature, "names") and value < 0:
        return "no label"
    if isinstance(value, list):
        names = getattr(getattr(feature, "feature", None), "names", None)
        return "|".join(str(names[v] if names else v) for v in value) or "none of them"
    return feature.names[value] if hasattr(feature, "names") else str(value)


def fingerprint(rows: Rows) -> str:
    """The identity of the data, wherever it lies: number of rows, names, and sizes and bytes of a hundred rows."""
    count = len(rows)
    state = hashlib.sha256(f"{count} {rows.column}".encode())
    cells = rows.table.select_columns([rows.column])
    for path in rows.paths():
        state.update(relative(path or "", rows.root).encode() + b"\0")
    for i in sorted({i * (count - 1) // 99 for i in range(100)}):
        cell = cells[i][rows.column]
        if isinstance(cell, dict) and cell.get("bytes") is None:
            cell = _head(cell)
        elif isinstance(cell, dict):
            cell = cell["bytes"]
        state.update(cell if isinstance(cell, bytes) else repr(cell).encode("utf-8", "surrogatepass"))
    return state.hexdigest()[:16]


def _head(cell: dict[str, Any], most: int = 2**20) -> bytes:
    """Size and first bytes of a file; nothing of one that cannot be read, which is a bad sample in any place."""
    try:
        found = bytes_or_path(cell)
        if isinstance(found, bytes):
            return b"%d " % len(found) + found[:most]
        with open(found, "rb") as file:
            return b"%d " % os.fstat(file.fileno()).st_size + file.read(most)
    except (OSError, KeyError, zipfile.BadZipFile):
        return b""


def relative(path: str, root: str | None) -> str:
    """A path, `zip://member::archive` or `file://` address as it is called within the source."""
    if root is None:
        return path
    if path.startswith("zip://"):
        member, archive = path.rsplit("::", 1)
        return f"{member}::{relative(archive, root)}"
    folder = root.rstrip("/") + "/"
    return path.removeprefix(folder).removeprefix(Path(os.path.abspath(root)).as_uri() + "/")


def print_once(text: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)


def find(data: Data, modality: Modality) -> Source:
    """What is where. Reads names and the heads of tables, no rows."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it says of a failure, we say in one line
    name = str(data.name)
    path = Path(os.path.expanduser(name))
    try:
        if name.startswith(MEMORY):
            if name not in HELD:
                raise UserError(f"data {MEMORY} is of another call or process: give it again, or a name")
            return _splits(Source(name), HELD[name])
        if name in NAMES:
            source = _splits(Source(name), builtin(name))
            if path.exists():
                source.notes.append(f"{name} is the built-in set; the folder of that name is not used: ./{name} is it")
        elif path.exists():
            return _local(path, data, modality)
        else:
            return _hub(data)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"data {name}: cannot be read: {one_line(error)}") from error
    if data.subset or data.revision:
        raise UserError(f"data {name} is built in: it has no data.subset and no data.revision; leave them out")
    return source


def _splits(source: Source, found) -> Source:
    import datasets

    for split, table in ({"train": found} if isinstance(found, datasets.Dataset) else found).items():
        source.add(split, [], lambda table=table: table)
    return source


def _hub(data: Data) -> Source:
    import datasets

    name = str(data.name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"data {name}: no such file or folder")
    try:
        return _splits(Source(name), datasets.load_dataset(name, data.subset, revision=data.revision))
    except Exception as error:
        hint = nearest(name, NAMES)
        raise UserError(
            f"data {name}: not a built-in set ({', '.join(NAMES)}), no such folder, and not readable from the hub "
            f"({type(error).__name__}: {one_line(error)[:120]}){hint}"
        ) from error


def _local(path: Path, data: Data, modality: Modality) -> Source:
    """A file or a folder on this machine."""
    import datasets

    if data.document and not holds_lines(modality):
        raise UserError(f"data.document {data.document}: only text has documents; leave it out")
    if data.revision:
        raise UserError(
            f"data.revision {data.revision}: {path} lies on this machine and has no revisions; leave it out"
        )
    if path.is_dir() and _subsets(path):
        return _subset(path, data)
    if data.subset:
        raise UserError(f"data.subset {data.subset}: {path} names no subsets (configs in its README.md); leave it out")
    if (
        (path / "dataset_dict.json").exists()
        or (path / "state.json").exists()
        and (path / "dataset_info.json").exists()
    ):
        return _splits(Source(str(data.name), str(path)), datasets.load_from_disk(str(path)))
    source = Source(str(data.name), str(path if path.is_dir() else path.parent))
    source.encoding = data.encoding
    samples, tables, about = sort_out(source, path, modality)
    if data.metadata:
        about = [_about(data.metadata)]
        tables = [t for t in tables if not os.path.samefile(t.opens, about[0].opens)]
        if not samples:
            raise UserError(f"data.metadata {data.metadata}: {path} holds no files that it could be about")
    if not samples and not tables:
        raise UserError(_nothing(source, path, modality))
    if tables and not samples:
        if data.document:
            raise UserError(f"data.document {data.document}: the samples of a table are its rows; leave it out")
        return _tables(source, tables)
    if tables and holds_lines(modality):
        pointing = [t for t in tables if points(t, samples)]
        if len(pointing) == len(tables):
            source.leave(BESIDE, *names(tables))
            return _files(source, samples, about, data, modality)
        rest = [t for t in tables if t not in pointing]
        table = next((t for t in rest if split_word(os.path.splitext(t.base)[0]) == "train"), rest[0])
        raise UserError(
            f"data {path}: tables ({some([t.name for t in tables])}) beside text files "
            f"({some([s.name for s in samples])}): name the one to read, such as --data {path / table.name}, "
            "or a folder that holds one kind only"
        )
    holding = [t for t in tables if holds(t, modality)]
    if holding:
        source.leave("files beside the tables that hold samples; to read files, name their folder", *names(samples))
        source.leave("tables without samples", *(t.name for t in tables if t not in holding))
        return _tables(source, holding)
    marks = marking(source, samples, tables) if modality.segments and data.segments is not False else []
    for reason, left in source.left.items():
        source.left[reason] = [name for name in left if name not in names(marks)]
    tables, source.marks = [table for table in tables if table not in marks], names(marks)
    if tables:
        source.leave(BESIDE, *names(tables))
    if data.segments:
        if not marks:
            raise UserError(f"data.segments: no table or track in {path} marks segments of its recordings")
        samples, said, columns = segmented(source, samples, marks)
        return _files(source, samples, about, data, modality, said, columns)
    if marks:
        source.notes.append(
            f"segments marked in {some(source.marks)} are for the probe; to train on them alone, --data.segments true"
        )
    return _files(source, samples, about, data, modality)


def _subsets(path: Path) -> list[str]:
    """Names of the subsets that a clone of a hub repository describes in its README."""
    import yaml

    try:
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, yaml.YAMLError, IndexError):
        return []
    configs = head.get("configs") if isinstance(head, dict) else None
    return [
        c["config_name"] for c in configs or [] if isinstance(c, dict) and c.get("data_files") and "config_name" in c
    ]


def _subset(path: Path, data: Data) -> Source:
    """A clone of a hub repository whose README says which files are which subset and split: `datasets` reads that."""
    import datasets

    known = _subsets(path)
    if data.subset is None and len(known) > 1 and "default" not in known:
        raise UserError(
            f"data {path}: its README.md names several subsets ({', '.join(known)}): name one, --data.subset"
        )
    if data.subset is not None and data.subset not in known:
        raise UserError(
            f"data.subset {data.subset!r}: no such subset{nearest(data.subset, known)}; there are {', '.join(known)}"
        )
    subset = data.subset or ("default" if "default" in known else known[0])
    source = _splits(Source(str(data.name), str(path)), datasets.load_dataset(str(path), subset))
    source.notes.append(f"subset {subset!r}, as README.md has it")
    if others := [name for name in known if name != subset]:
        source.leave("subsets", *others)
    return source


def _nothing(source: Source, path: Path, modality: Modality) -> str:
    """Why there is nothing to read, and the way out."""
    left = source.left
    if written := left.get("documentation"):
        if holds_lines(modality) and not any(
            names for reason, names in left.items() if reason in ("other files", "archives")
        ):
            return (
                f"data {path} holds nothing but documentation ({some(written)}); "
                f"to train on it, name the file: --data {path / written[0]}"
            )
    others = Counter(os.path.splitext(name)[1].lower() or "no suffix" for names in left.values() for name in names)
    kind = name_of_modality(modality)
    looks = [n for n, cls in MODALITIES.items() if n != kind and any(s in cls.suffixes for s in others)]
    hint = f"; its files look like modality {looks[0]}" if looks else ""
    if any(suffix in ARCHIVES for suffix in others) or any(
        "archive" in reason for reason, names in left.items() if names
    ):
        hint += "; extract its archives"
    elif others and not looks:
        hint += f"; it reads {', '.join(modality.suffixes[:6])}{', ...' if len(modality.suffixes) > 6 else ''}"
    if empty := left.get("empty"):
        hint += f"; empty: {some(empty)}"
    there = ", ".join(f"{n} {s}" for s, n in others.most_common(5)) or "it is empty"
    return f"data {path}: no file that modality {kind} reads ({there}){hint}"


def _files(
    source: Source,
    samples: list[File],
    about: list[File],
    data: Data,
    modality: Modality,
    extra: dict[str, dict[str, Any]] | None = None,
    columns: list[str] | None = None,
) -> Source:
    """A file a sample, or, of text without folders, a line; class folders become labels, split folders splits.

    `extra`: columns of the samples by their names, where they are not those of the tables `about` them.
    """
    lines = holds_lines(modality)
    level = split_level(source.name, [f.folders for f in samples])
    # macOS takes an accent apart: the same name is to be the same class in all splits.
    inner = {f: tuple(normalize("NFC", p) for i, p in enumerate(f.folders) if i != level) for f in samples}
    top = _common(list(inner.values()))
    inner = {file: folders[top:] for file, folders in inner.items()}
    if extra is None:
        extra, columns = _metadata(source, samples, about)
    unit = "file" if not lines or any(inner.values()) or extra else "line"
    asked, unit = data.document is not None, data.document or unit
    plain_lines = unit == "line" and not any(inner.values()) and not extra and data.group is None
    groups = by_split(source, source.name, samples, containers=unit != "file")
    classes = _classes(source, groups, inner, columns)
    for split, files in groups.items():
        if plain_lines:
            read = partial(read_files, source, "text", _of_text(source, files))
        else:
            labels = [classes.get(inner[f][0], -1) if inner[f] else -1 for f in files] if classes else None
            if labels and -1 in labels:
                bare = [f.name for f, label in zip(files, labels, strict=True) if label < 0]
                source.notes.append(
                    f"{split}: {len(bare):,} files have no class of train's, and no label ({some(bare)})"
                )
            rows = [extra.get(f.name, {}) for f in files] if extra else None
            read = partial(_sampled, source, files, labels, list(classes), rows, columns, unit, modality)
        source.add(split, names(files), read)
    if lines:
        source.column = "text"
        other = f" ({len(samples):,} files; if each is a document, --data.document file)"
        source.notes.append(f"a {unit} is a sample{other if unit == 'line' and len(samples) > 1 and not asked else ''}")
    return source


def _of_text(source: Source, files: list[File], most: int = 2**20) -> list[File]:
    """The files that begin as text does."""
    bad = []
    for file in files:
        head = _head({"bytes": None, "path": file.opens}, most).partition(b" ")[2]  # after the size
        if why := not_text(head, source.encoding):
            source.leave(why, file.name)
            bad.append(file)
    if len(bad) == len(files):
        raise UserError(f"data {source.name}: {NOT_TEXT}: {some(names(bad))}; give text, or say its --data.encoding")
    return [file for file in files if file not in bad]


def _common(folders: list[tuple[str, ...]]) -> int:
    """How many folders all files have in common."""
    level = 0
    while all(len(f) > level and f[level] == folders[0][level] for f in folders):
        level += 1
    return level


def _classes(source: Source, groups: dict[str, list[File]], inner, columns: list[str]) -> dict[str, int]:
    """Numbers of the class folders: one table, the training split's, for all splits."""
    first = groups.get("train") or next(iter(groups.values()))
    depths = Counter(len(inner[file]) for file in first)
    if set(depths) == {0}:
        return {}
    if set(depths) != {1}:
        source.notes.append(
            f"no labels of folders: a class is a folder that holds its files, here they are "
            f"{' or '.join(map(str, sorted(depths)))} deep"
        )
        return {}
    found = sorted({inner[file][0] for file in first})
    if "label" in columns:
        source.notes.append(f"labels are those of the metadata's column, not the {len(found)} folders' names")
        return {}
    return {name: number for number, name in enumerate(found)} if len(found) > 1 else {}


def _about(name: str) -> File:
    """A table about files, which may lie anywhere."""
    path = Path(os.path.expanduser(name))
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise UserError(f"data.metadata {name}: no such table ({', '.join(TABLES)})")
    return File(str(path), path.name)


def _metadata(source: Source, samples: list[File], about: list[File]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Columns of metadata tables by file; rows without a file, the reverse, and second rows are reported."""
    rows: dict[str, dict[str, Any]] = {}
    columns: list[str] = []
    known = {file.name for file in samples}
    for table in about:
        read = read_files(source, TABLES[table.suffix], [table])
        folder = "/".join((*table.folders, ""))
        here = {name for name in known if name.startswith(folder)}
        strings = [c for c, f in read.features.items() if kind_of(f) in ("string", "large_string", "string_view")]
        places = {column: [_place(folder, value) for value in read[column][:]] for column in strings}
        if not any(here & set(values) for values in places.values()):
            # Without the folder, or the suffix: what but one file is called.
            short = _short(here)
            places = {c: [short.get(_place("", value), value or "") for value in read[c][:]] for c in strings}
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


def _short(names: set[str]) -> dict[str, str]:
    """Files by their name without the suffix, without folders, and without both, where only one is called so."""
    short = {
        name: {os.path.splitext(name)[0], (base := os.path.basename(name)), os.path.splitext(base)[0]} for name in names
    }
    count = Counter(called for each in short.values() for called in each)
    return {called: name for name, each in short.items() for called in each if count[called] == 1}


def _place(folder: str, value: str | None) -> str:
    return os.path.normpath(folder + (value or "").replace("\\", "/"))


def _sampled(
    source: Source, files: list[File], labels, classes, rows, columns: list[str], unit: str, modality: Modality
):
    """A table of files, or of their lines or paragraphs, one a row, with its file's label and columns of metadata."""
    import datasets

    features, name = {}, name_of_modality(modality)
    if holds_lines(modality):
        made = read_documents(files, unit, source.encoding)
        number, why = made["number"][:], made["why"][:]
        made, name = made.remove_columns(["number", "why"]), "text"
        for i in (bad := [i for i, said in enumerate(why) if said]):
            source.leave(why[i], files[number[i]].name)
        if len(bad) == len(made):
            raise UserError(f"data {source.name}: {source.left_out()}; say its --data.encoding, such as latin-1")
    else:
        bad, number = [], range(len(files))
        # Made plain and cast then: to encode, a column of type Audio would need torchcodec.
        made = datasets.Dataset.from_dict({name: [{"bytes": None, "path": _opened(file.opens)} for file in files]})
        made = made.cast_column(name, plain()).cast_column(name, getattr(datasets, modality.features[0])(decode=False))
    more = {}
    if labels:
        more["label"], features["label"] = [labels[i] for i in number], datasets.ClassLabel(names=classes)
    for column in columns:
        called = column if column not in (*made.column_names, *more) else f"{column}_of_metadata"
        more[called] = [rows[i].get(column) for i in number]
    if more:
        side = datasets.Dataset.from_dict(more)
        made = datasets.concatenate_datasets(
            [made, side.cast(datasets.Features({**side.features, **features}))], axis=1
        )
    return made.select(np.setdiff1d(np.arange(len(made)), bad)) if bad else made


def _opened(path: str) -> str:
    """A path as a column of text can hold it: a name that is not UTF-8 as a `file://` address."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return Path(os.path.abspath(path)).as_uri()


def _tables(source: Source, tables: list[File]) -> Source:
    kinds = sorted({TABLES[t.suffix] for t in tables})
    if len(kinds) > 1:
        raise UserError(
            f"data {source.name}: tables of several kinds ({', '.join(kinds)}: {some(names(tables))}); name one file, "
            "or a folder that holds one kind"
        )
    for split, files in by_split(source, source.name, tables, containers=True).items():
        source.add(split, names(files), partial(read_files, source, kinds[0], files))
    return source
