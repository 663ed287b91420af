"""Where a source is: files, splits and tables of a name, and what of it is left out.

A folder is read by one rule. Hidden files and documentation are no data. Of what is left, a table that holds samples
wins over loose files; where that is not sure, the run asks. Words of splits are those of `datasets`, in the names of
folders, and where folders have none, in the names of tables and text files. Whatever is not used is named with the
reason.
"""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from triptych.modalities import MODALITIES, Modality
from triptych.modalities.archives import ERRORS, content, parted
from triptych.modalities.base import bytes_or_path
from triptych.training.builtin import NAMES, builtin
from triptych.training.documents import NOT_TEXT, not_text, read_documents
from triptych.training.errors import UserError, nearest, one_line
from triptych.training.files import (
    ARCHIVES,
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
from triptych.training.metadata import metadata_of, table_about
from triptych.training.once import kept
from triptych.training.segments import marking, segmented
from triptych.training.settings import Data
from triptych.training.subsets import subset_of, subsets
from triptych.training.tables import (
    TYPED,
    holds,
    holds_lines,
    name_of_modality,
    plain,
    points,
    read_files,
)

OF_FILES = ("document", "metadata", "segments", "encoding")  # options of `Data` about a folder of files
BESIDE = "tables beside the files; to read one, name it, or join it by --data.metadata"


class NoUse(UserError):
    """An option that a source cannot use."""

    def __init__(self, data: Data, option: str, why: str):
        super().__init__(f"data.{option} {getattr(data, option)}: {why}; leave it out")
        self.option = option


def find(data: Data, modality: Modality) -> Source:
    """What is where. Reads names and the heads of tables, no rows. Within `walked_once`, once."""
    # What is in memory is at hand, and its name may be that of other data soon.
    return _find(data, modality) if str(data.name).startswith(MEMORY) else kept(_find, data, modality)


def elsewhere(data: Data, name: str, modality: Modality) -> Data:
    """Other data read as this is, without those options that it cannot use."""
    other = replace(data, name=name, subset=None, revision=None)
    while True:
        try:
            find(other, modality)
            return other
        except NoUse as error:
            other = replace(other, **{error.option: None})


def _whole(source: Source, data: Data) -> Source:
    """A source of rows, which are no files; refuses what is an option of those."""
    for option in OF_FILES:
        if getattr(data, option):
            raise NoUse(data, option, f"{source.name} holds rows, and this is about files")
    return source


def _find(data: Data, modality: Modality) -> Source:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it says of a failure, we say in one line
    name = str(data.name)
    path = Path(os.path.expanduser(name))
    try:
        if name.startswith(MEMORY):
            if name not in HELD:
                raise UserError(f"data {MEMORY} is of another call or process: give it again, or a name")
            return _whole(Source(name).of_tables(HELD[name]), data)
        if name in NAMES:
            source = _whole(Source(name).of_tables(builtin(name)), data)
            if path.exists():
                source.notes.append(f"{name} is the built-in set; the folder of that name is not used: ./{name} is it")
        elif path.exists():
            return _local(path, data, modality)
        else:
            return _whole(_hub(data), data)
    except ERRORS as error:
        raise UserError(f"data {name}: cannot be read: {one_line(error)}") from error
    if data.subset or data.revision:
        raise UserError(f"data {name} is built in: it has no data.subset and no data.revision; leave them out")
    return source


def _hub(data: Data) -> Source:
    import datasets

    name = str(data.name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"data {name}: no such file or folder")
    try:
        return Source(name).of_tables(datasets.load_dataset(name, data.subset, revision=data.revision))
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
        raise NoUse(data, "document", "only text has documents")
    if data.revision:
        raise NoUse(data, "revision", f"{path} lies on this machine and has no revisions")
    if path.is_dir() and subsets(path):
        return _whole(subset_of(path, data), data)
    if data.subset:
        raise NoUse(data, "subset", f"{path} names no subsets (configs in its README.md)")
    if (
        (path / "dataset_dict.json").exists()
        or (path / "state.json").exists()
        and (path / "dataset_info.json").exists()
    ):
        return _whole(Source(str(data.name), str(path)).of_tables(datasets.load_from_disk(str(path))), data)
    source = Source(str(data.name), str(path if path.is_dir() else path.parent))
    source.encoding = data.encoding
    samples, tables, about = sort_out(source, path, modality)
    if data.metadata:
        about = [table_about(data.metadata)]
        tables = [t for t in tables if not os.path.samefile(t.opens, about[0].opens)]
        if not samples:
            raise NoUse(data, "metadata", f"{path} holds no files that it could be about")
    if not samples and not tables:
        raise UserError(_nothing(source, path, modality))
    if tables and not samples:
        if data.document:
            raise NoUse(data, "document", "the samples of a table are its rows")
        if data.encoding and all(table.table in TYPED for table in tables):
            raise NoUse(data, "encoding", "parquet and arrow have their own")
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
            raise NoUse(data, "segments", f"no table or track in {path} marks segments of its recordings")
        samples, said, columns = segmented(source, samples, marks)
        return _files(source, samples, about, data, modality, said, columns)
    if marks:
        source.notes.append(
            f"segments marked in {some(source.marks)} are for the probe; to train on them alone, --data.segments true"
        )
    return _files(source, samples, about, data, modality)


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
        extra, columns = metadata_of(source, samples, about)
        if source.classes:
            columns = [*columns, *({"label"} - set(columns))]
        if data.metadata and not extra:
            raise NoUse(data, "metadata", f"none of its columns names files of {source.name}")
    unit = "file" if not lines or any(inner.values()) or extra else "line"
    asked, unit = data.document is not None, data.document or unit
    plain_lines = unit == "line" and not any(inner.values()) and not extra and data.group is None
    plain_lines &= not any(parted(f.opens) for f in samples)  # `datasets` opens files, no members of archives
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
            read = partial(_sampled, source, files, labels, list(classes), extra, columns, unit, modality, data)
        source.add(split, names(files), read)
    if lines:
        source.column = "text"
        other = f" ({len(samples):,} files; if each is a document, --data.document file)"
        source.notes.append(f"a {unit} is a sample{other if unit == 'line' and len(samples) > 1 and not asked else ''}")
    return source


def _class_beside(source: Source, file: File) -> dict[str, int]:
    """The label that a shard of a WebDataset has beside a sample."""
    if file.opens not in source.classes:
        return {}
    said = content(source.classes[file.opens])
    try:
        return {"label": int(said)}
    except ValueError:
        raise UserError(
            f"data {source.name}: {parted(source.classes[file.opens])[0]} holds {said[:20]!r}, no number of a class"
        ) from None


def _of_text(source: Source, files: list[File], most: int = 2**20) -> list[File]:
    """The files that begin as text does."""
    bad = []
    for file in files:
        head = head_of({"bytes": None, "path": file.opens}, most).partition(b" ")[2]  # after the size
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


def _sampled(
    source: Source,
    files: list[File],
    labels,
    classes,
    extra,
    columns: list[str],
    unit: str,
    modality: Modality,
    data: Data,
):
    """A table of files, or of their lines or paragraphs, one a row, with its file's label and columns of metadata."""
    import datasets

    rows = [extra.get(f.name, {}) | _class_beside(source, f) for f in files] if columns else []
    features, name = {}, name_of_modality(modality)
    if holds_lines(modality):
        made = read_documents(files, unit, source.encoding)
        number, why = made["number"][:], made["why"][:]
        made, name = made.remove_columns(["number", "why"]), "text"
        for i in (bad := [i for i, said in enumerate(why) if said]):
            source.leave(why[i], files[number[i]].name)
        if len(bad) == len(made):
            raise UserError(f"data {source.name}: {source.left_out()}; say its --data.encoding, such as latin-1")
        if (lost := sum(why[i] != NOT_TEXT for i in bad)) > (most := data.most_bad(len(made))):
            raise UserError(
                f"data {source.name}: {source.left_out()}; {lost:,} files would be lost, more than {most} "
                "(data.max_bad): say what they are, such as --data.encoding latin-1, or convert them, as by iconv -f "
                "latin1 -t utf-8"
            )
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
    kinds = sorted({t.table for t in tables})
    if len(kinds) > 1:
        raise UserError(
            f"data {source.name}: tables of several kinds ({', '.join(kinds)}: {some(names(tables))}); name one file, "
            "or a folder that holds one kind"
        )
    for split, files in by_split(source, source.name, tables, containers=True).items():
        source.add(split, names(files), partial(read_files, source, kinds[0], files))
    return source


def head_of(cell: dict[str, Any], most: int = 2**20) -> bytes:
    """Size and first bytes of a file; nothing of one that cannot be read, which is a bad sample in any place."""
    try:
        found = bytes_or_path(cell)
        if isinstance(found, bytes):
            return b"%d " % len(found) + found[:most]
        with open(found, "rb") as file:
            return b"%d " % os.fstat(file.fileno()).st_size + file.read(most)
    except ERRORS:
        return b""
