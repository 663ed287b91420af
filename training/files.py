"""Files: what lies in a folder, which of it is data, and which split a file belongs to."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from triptych.modalities import Modality
from triptych.modalities.archives import is_archive, members
from triptych.training.errors import UserError

TABLES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
TABLES |= {".csv": "csv", ".tsv": "csv"}
CLASS = ".cls"  # of a WebDataset: a file beside a sample that holds the number of its class
COMPRESSED = (".gz", ".bz2", ".xz")  # tables of text may be
ARCHIVES = tuple(".zip .tar .tgz .gz .bz2 .xz .zst .7z .rar".split())
DOCUMENTATION = re.compile(
    r"(read[-_ ]?me|licen[cs]es?|copying|notice|changelog|contributing|citation|authors|code_of_conduct|requirements"
    r"|data[-_ ]?(sheet|card)|dataset[-_ ]?card)([-_. ].*)?",
    re.IGNORECASE,
)
WRITTEN = ("", ".md", ".txt", ".rst", ".html", ".pdf", ".cff", ".bib", ".rtf")  # suffixes of documentation
SYSTEM = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "lost+found", "DICOMDIR")
SHARD = re.compile(r"(\w+(?:\.\w+)*)[-.]\d{5}-of-\d{5}\b")  # `unsupervised-00000-of-00002.parquet`


class File(NamedTuple):
    """`opens`: a path, or the address of a member of an archive. `name`: the same within the source, with `/`."""

    opens: str
    name: str

    def __deepcopy__(self, memo) -> "File":
        return self

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()

    @property
    def table(self) -> str | None:
        return table_of(self.name)

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(self.name.split("/")[:-1])

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass
class Source:
    """What is where: each split's files and how to read them, and what was left out, by reason.

    Args:
        name: as the user gave it.
        root: folder to which the names of files are relative, if there is one.
        files: names of the files of each split; none where a library knows them.
        read: reads a split's table.
        left: names of what is not used, by reason.
        classes: addresses of what says the class of a sample, by the sample's, as shards of WebDataset have it.
        marks: names of files that mark segments of the others.
        notes: what else a user should know, a line each.
        encoding: of its files of text and tables, where the user says so.
        column: that of its samples, where it is known.
    """

    name: str
    root: str | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, Callable[[], Any]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoding: str | None = None
    column: str | None = None

    def add(self, split: str, files: list[str], read: Callable[[], Any]) -> None:
        self.files[split], self.read[split] = files, read

    def of_tables(self, found: Any) -> "Source":
        """With the splits of a `datasets.DatasetDict`, or a `Dataset`, which is its training split."""
        for split, table in (found if isinstance(found, dict) else {"train": found}).items():
            self.add(split, [], lambda table=table: table)
        return self

    def leave(self, reason: str, *names: str) -> None:
        self.left.setdefault(reason, []).extend(names)

    def left_out(self) -> str:
        return "; ".join(f"{len(names):,} {reason} ({some(names)})" for reason, names in self.left.items() if names)


def sort_out(source: Source, path: Path, modality: Modality) -> tuple[list[File], list[File], list[File]]:
    """The files of samples, the tables, and the tables about files. All else is left out, with the reason."""
    given = path.is_file()
    found = [File(str(path), path.name)] if given else list(walk(str(path), source.leave))
    samples, tables = [], []
    packed = [file for file in found if is_archive(file.name)]
    called = len(packed) > 1 and any(split_word(os.path.splitext(file.base)[0]) for file in packed)
    for file in found:
        if is_archive(file.name):
            samples += _members(source, file, modality, called)
        elif documentation(file.base) and not given:
            source.leave("documentation", file.name)
        elif file.table:
            if os.path.getsize(file.opens):
                tables.append(file)
            else:
                source.leave("empty", file.name)
        elif file.suffix in modality.suffixes or is_marked(file.opens, modality):
            samples.append(file)
        elif file.suffix in ARCHIVES:
            source.leave("archives that are not opened; extract them", file.name)
        else:
            source.leave("other files", file.name)
    about = [t for t in tables if samples and os.path.splitext(t.base)[0].lower() == "metadata"]
    return samples, [t for t in tables if t not in about], about


def _members(source: Source, archive: File, modality: Modality, called: bool) -> list[File]:
    """The files of samples in an archive, which counts as a folder where archives are `called` by splits."""
    made, classes = [], {}
    for name, address in members(archive.opens):
        folder = (*archive.folders, archive.base[:-4]) if called else archive.folders
        file = File(address, "/".join((*folder, name)))
        place = f"{archive.name}/{name}"
        if hidden(name):
            source.leave("hidden", place)
        elif documentation(file.base):
            source.leave("documentation", place)
        elif file.suffix in modality.suffixes:
            made.append(file)
        elif file.suffix == CLASS:
            classes[os.path.splitext(file.name)[0]] = file
        elif file.table or file.suffix in ARCHIVES:
            source.leave("tables or archives within an archive; extract it", place)
        else:
            source.leave("other files", place)
    for file in made:
        if beside := classes.get(os.path.splitext(file.name)[0]):
            source.classes[file.opens] = beside.opens
    return made


def table_of(name: str) -> str | None:
    """The reader of `datasets` for a table of that name; None if it is none."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in COMPRESSED:
        return TABLES.get(suffix)
    kind = TABLES.get(os.path.splitext(uncompressed(name))[1])
    return kind if kind in ("json", "csv") else None


def uncompressed(name: str) -> str:
    """A file's name in small letters, as it is once a compressed one is unpacked."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if suffix in COMPRESSED else name.lower()


def opened(path: str):
    """A file's bytes to read, and those of a compressed one uncompressed."""
    import fsspec

    return fsspec.open(path, "rb", compression="infer").open()


def walk(folder: str, leave: Callable[..., None], within: str = "", above: tuple[str, ...] = ()) -> Iterator[File]:
    """All files below a folder, in the order of their names. Links are followed, but not in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        leave("links to a folder above", within.rstrip("/"))
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except PermissionError:
        leave("folders that may not be read", within.rstrip("/") or folder)
        return
    for entry in entries:
        name = within + entry.name
        if hidden(entry.name):
            leave("hidden", name)
        elif os.path.isdir(entry.path):  # `entry` raises for links that go to each other
            yield from walk(entry.path, leave, name + "/", (*above, real))
        elif os.path.isfile(entry.path):
            yield File(entry.path, name)
        else:
            leave("broken links or no files", name)


def called_alone(names: Iterable[str]) -> dict[str, str]:
    """Files by their name without the suffix, without folders, and without both, where only one is called so."""
    short = {
        name: {os.path.splitext(name)[0], (base := os.path.basename(name)), os.path.splitext(base)[0]} for name in names
    }
    count = Counter(called for each in short.values() for called in each)
    return {called: name for name, each in short.items() for called in each if count[called] == 1}


def numbered(short: dict[str, str]) -> dict[int, str]:
    """Files by the number that one alone is called: in a table `0007` is read as 7. `short`: of `called_alone`."""
    found: dict[int, set[str]] = {}
    for called, name in short.items():
        if called.isdecimal():
            found.setdefault(int(called), set()).add(name)
    return {number: names.pop() for number, names in found.items() if len(names) == 1}


def is_marked(path: str, modality: Modality) -> bool:
    """Whether a file of any name is one of samples by its first bytes."""
    if not modality.marks:
        return False
    with open(path, "rb") as file:
        head = file.read(256)
    return any(head.startswith(mark, at) for at, mark in modality.marks)


def hidden(name: str) -> bool:
    """What file managers leave about: `.DS_Store`, and in archives `__MACOSX/._a.jpg`, which is no picture."""
    return any(part.startswith(".") or part in SYSTEM for part in name.split("/"))


def documentation(base: str) -> bool:
    from datasets.data_files import FILES_TO_IGNORE

    return base in FILES_TO_IGNORE or documentation_name(base)


def documentation_name(base: str) -> bool:
    return os.path.splitext(base)[1].lower() in WRITTEN and DOCUMENTATION.fullmatch(base) is not None


@lru_cache
def split_word(name: str) -> str | None:
    """`my-train_2` -> `train`, by the words and separators of `datasets`; None without such a word, or with two."""
    from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

    parts = set(re.split(f"[{NON_WORDS_CHARS}]+", name.lower()))
    found = [str(split) for split, words in SPLIT_KEYWORDS.items() if parts & set(words)]
    return found[0] if len(found) == 1 else None


def split_level(path: str, folders: list[tuple[str, ...]]) -> int | None:
    """The level of folders that are splits, if there is one: that whose names are all words of splits.

    One such word among other names is a class (of vehicles: bus, car, train). Several are refused.
    """
    for level in range(max(map(len, folders), default=0)):
        names = sorted({f[level] for f in folders if len(f) > level})
        words = {name: split_word(name) for name in names}
        beside = sum(len(f) <= level for f in folders)
        if all(words.values()):
            if beside:
                raise UserError(
                    f"data {path}: {beside} files lie beside the split folders ({some(names)}); move them into one, "
                    "or name a folder"
                )
            return level
        if len(set(words.values()) - {None}) > 1:
            taken, others = [n for n in names if words[n]], [n for n in names if not words[n]]
            raise UserError(
                f"data {path}: folders that look like splits ({some(taken)}) beside others ({some(others)}): are these "
                "splits or classes? Move the others away, or rename the first; or name one folder"
            )
        if beside:
            return None
    return None


def by_split(source: Source, path: str, files: list[File], containers: bool) -> dict[str, list[File]]:
    """The files of each split: by folders, else by their own names. Containers hold many samples, other files one."""
    level = split_level(path, [f.folders for f in files])
    groups: dict[str, list[File]] = {}
    if level is not None:
        for file in files:
            groups.setdefault(split_word(file.folders[level]), []).append(file)
        return groups
    words = {file: split_word(os.path.splitext(file.base)[0]) for file in files}
    if containers:
        shards = {file: found[1] for file in files if (found := SHARD.match(file.base))}
        if "train" in {split_word(name) for name in shards.values()}:  # a set that gives its splits names of its own
            words = {file: words[file] or shards.get(file) for file in files}
    splits = set(words.values()) - {None}
    if not splits or os.path.isfile(os.path.expanduser(path)):  # a file that is named is trained on
        return {"train": files}
    if not containers and (len(splits) == 1 or None in words.values()):
        if len(splits) > 1:
            named = [f.name for f in files if words[f]]
            source.notes.append(
                f"{len(named):,} of {len(files):,} file names hold words of splits ({some(named)}), the others none: "
                "these are taken for names, not for splits"
            )
        return {"train": files}
    rest = [file for file in files if words[file] is None]
    if rest and "train" in splits:
        source.leave("files whose names say no split, beside others that do", *names(rest))
    for file in files:
        if words[file] or "train" not in splits:
            groups.setdefault(words[file] or "train", []).append(file)
    return groups


def names(files: list[File]) -> list[str]:
    return [file.name for file in files]


def some(names: list[str], most: int = 3) -> str:
    """The first names, on one line; an undecodable byte shows as its escape."""
    shown = [os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n") for name in names[:most]]
    return ", ".join(shown) + (", ..." if len(names) > most else "")
