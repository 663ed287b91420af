"""Segments: seconds of recordings that somebody marked, in a csv, an Audacity label track or a Raven selection table.

A segment is a file to all that follows: its name is the recording's, with the seconds behind it (`a.wav#t=1.5,4.0`).
"""

import csv
import math
import os
import re
from typing import Any, NamedTuple

from triptych.modalities.base import segment
from triptych.training.files import File, Source, called_alone, numbered, some
from triptych.training.tables import holds_numbers, holds_text, plain, posix, read_files, say

SECONDS = r"[ _]?(time)?[ _]?(\(?s(ec|econds)?\)?)?"
START, END = (re.compile(f"({words}){SECONDS}", re.IGNORECASE) for words in ("start|begin|onset", "end|stop|offset"))
# Columns of labels, of which the first that there is counts; those of files in Raven's tables, and the seconds in them.
LABELS = ("label", "annotation", "species", "common name", "species code", "class", "category", "tag", "event_label")
BEGIN_FILE, OFFSET = ("begin file", "begin path"), "file offset (s)"
OTHER = "other files"  # a reason of `files.sort_out`


class Mark(NamedTuple):
    """Some seconds of a recording, which is called by its name within the source, and what else is said of them."""

    recording: str | None
    start: float | None
    end: float | None
    said: dict[str, Any]

    @property
    def good(self) -> bool:
        return None not in (self.recording, self.start, self.end) and 0 <= self.start < self.end

    @property
    def name(self) -> str:
        return segment(self.recording, (self.start, self.end))


def times_of(columns: list[str]) -> tuple[str, str] | None:
    """The columns where segments start and end, in seconds; None where there are not both."""
    start, end = (next((c for c in columns if pattern.fullmatch(c.strip())), None) for pattern in (START, END))
    return (start, end) if start and end else None


def marking(source: Source, samples: list[File], tables: list[File]) -> list[File]:
    """The files that mark segments: csv tables of recordings and times, and text files that are called as they are."""
    stems = _stems(samples)
    found = [table for table in tables if table.table == "csv" and _marks_some(table, stems)]
    for name in source.left.get(OTHER, []):
        track = File(os.path.join(source.root or "", name), name)
        recording = _recording_of(track, stems)
        if recording and os.path.isfile(track.opens) and _track(track, recording, stems):
            found.append(track)
    return found


def segmented(source: Source, samples: list[File], marks: list[File]) -> tuple[list[File], dict, list[str]]:
    """Segments as files, by recording; what is said of each, by its name, and the columns of that.

    Labels of the same seconds become one, with `|` between. Marks that name no recording or no time are counted.
    """
    known, stems = {sample.name: sample for sample in samples}, _stems(samples)
    every = [mark for file in marks for mark in _marks(source, file, set(known), stems)]
    good = sorted((mark for mark in every if mark.good), key=lambda mark: (mark.recording, mark.start, mark.end))
    if lost := len(every) - len(good):
        source.notes.append(
            f"{lost:,} of {len(every):,} marks name no recording that is here, or no time of any length"
        )
    files, said, labels = {}, {}, {}
    for mark in good:
        opens = known[mark.recording].opens
        files.setdefault(mark.name, File(segment(opens, (mark.start, mark.end)), mark.name))
        said.setdefault(mark.name, mark.said)
        labels.setdefault(mark.name, {})[_label(mark.said)] = None
    for name, several in labels.items():
        several = [label for label in several if label is not None]
        said[name] |= {"label": "|".join(map(str, several)) if len(several) > 1 else next(iter(several), None)}
    source.notes.append(
        f"{len(files):,} segments of {len({mark.recording for mark in good}):,} recordings, marked in "
        f"{some([file.name for file in marks])}"
    )
    return list(files.values()), said, list(dict.fromkeys(column for each in said.values() for column in each))


def cut_out(table, column: str, times: tuple[str, str], source: Source):
    """A table of recordings, some of which are to be segments of them, by the columns of their times."""
    import datasets

    start, end = ([_number(value) for value in table[c][:]] for c in times)
    paths = [cell and cell["path"] for cell in table[column][:]]
    marks = [Mark(*one, {}) for one in zip(paths, start, end, strict=True)]
    good = [i for i, mark in enumerate(marks) if mark.good or (mark.start, mark.end) == (None, None)]
    if lost := len(marks) - len(good):
        source.notes.append(f"{lost:,} of {len(marks):,} rows have no seconds of any length in {' and '.join(times)}")
    cells = [{"bytes": None, "path": marks[i].name if marks[i].good else paths[i]} for i in good]
    made = datasets.Dataset.from_dict({column: cells}).cast_column(column, plain())
    made = made.cast_column(column, table.features[column])
    source.notes.append(f"rows are segments of recordings, by the seconds in {' and '.join(times)}")
    return datasets.concatenate_datasets([table.select(good).remove_columns([column]), made], axis=1)


def _marks(source: Source, file: File, known: set[str], stems: dict[str, str]) -> list[Mark]:
    if file.suffix == ".txt":
        return _track(file, _recording_of(file, stems), stems)
    read = read_files(source, file.table, [file])
    start, end = times_of(read.column_names)
    places = {c: _places(read[c][:], file, known) for c, f in read.features.items() if holds_text(f)}
    if not any(place for several in places.values() for place in several):  # `0007` was read as 7
        numbers = numbered(called_alone(known))
        whole = [c for c, f in read.features.items() if holds_numbers(f) and c not in (start, end)]
        places |= {c: [numbers.get(value) for value in read[c][:]] for c in whole}
    column = max(places, key=lambda c: sum(place is not None for place in places[c]), default=None)
    if column is None:
        return [Mark(None, None, None, {})] * len(read)
    if holds_numbers(read.features[column]):
        say(source, f"{file.name}: numbers in column {column!r} are taken for names of recordings")
    times = ([_number(value) for value in read[c][:]] for c in (start, end))
    others = read.remove_columns([column, start, end]).to_list() or [{}] * len(read)
    return [Mark(*one) for one in zip(places[column], *times, others, strict=True)]


def _places(values: list[str | None], table: File, known: set[str]) -> list[str | None]:
    """The recording that each value names: by its path from the table, or a name that no other has."""
    folder, short = "/".join((*table.folders, "")), called_alone(known)

    def place(value: str) -> str | None:
        full = os.path.normpath(folder + value)
        return full if full in known else short.get(value.rpartition("/")[2])

    return [place(posix(value or "")) for value in values]


def _marks_some(table: File, stems: dict[str, str]) -> bool:
    """Has a csv file columns of times, and does its head name recordings?"""
    with open(table.opens, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(2**16)
    first = head.split("\n", 1)[0].rstrip("\r")
    columns = next(csv.reader([first], delimiter=max("\t;|,", key=first.count)), [])
    return times_of(columns) is not None and any(stem.rpartition("/")[2] in head for stem in stems)


def _stems(samples: list[File]) -> dict[str, str]:
    """Names of recordings by the same without their suffix."""
    return {os.path.splitext(sample.name)[0]: sample.name for sample in samples}


def _recording_of(track: File, stems: dict[str, str]) -> str | None:
    """The recording that a text file is called after: `a.txt` and `a.Table.1.selections.txt` are of `a.wav`."""
    if track.suffix != ".txt":
        return None
    parts = track.name.split(".")[:-1]
    return next((stems[s] for n in range(len(parts), 0, -1) if (s := ".".join(parts[:n])) in stems), None)


def _track(track: File, recording: str, stems: dict[str, str]) -> list[Mark]:
    """Marks of a text file: lines `start<tab>end<tab>label`, or a Raven selection table. None of any other text."""
    with open(track.opens, encoding="utf-8-sig", errors="replace") as file:
        lines = [line.rstrip("\r\n") for line in file]
    if lines and times_of(lines[0].split("\t")):
        return _raven(list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)), recording, stems)
    made = []
    for line in lines:
        if not line.strip() or line.startswith("\\"):  # the frequencies of the mark above it
            continue
        start, end, label, *_ = map(str.strip, f"{line}\t\t".split("\t"))
        if _number(start) is None or _number(end) is None:
            return []
        made.append(Mark(recording, _number(start), _number(end), {"label": label or None}))
    return made


def _raven(rows: list[dict[str, str]], recording: str, stems: dict[str, str]) -> list[Mark]:
    """A selection is there once for each view of it. A table of several recordings names the file of each."""
    made = {}
    for row in rows:
        said = {name: (value or "").strip() or None for name, value in row.items() if name and name.lower() != "view"}
        lower = {name.lower(): value for name, value in said.items()}
        start, end = (_number(said[c]) for c in times_of(list(said)))
        called = next((lower[c] for c in BEGIN_FILE if lower.get(c)), None)
        if called:
            stem = os.path.join(os.path.dirname(recording), os.path.splitext(posix(called).rpartition("/")[2])[0])
            offset = _number(lower.get(OFFSET))
            if offset is not None and None not in (start, end):  # what it begins at is of all files, one after another
                start, end = offset, offset + end - start
        mark = Mark(stems.get(stem) if called else recording, start, end, said)
        made.setdefault(tuple(said.items()), mark)
    return list(made.values())


def _label(said: dict[str, Any]) -> Any:
    """The label among the columns of a mark."""
    lower = {name.lower(): value for name, value in said.items()}
    return next((lower[name] for name in LABELS if lower.get(name) is not None), None)


def _number(value: Any) -> float | None:
    """Seconds, with a decimal comma too; None for what is no number."""
    try:
        number = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
