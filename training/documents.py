"""Documents: files of text whose samples are the file, its lines, or its paragraphs."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from triptych.modalities.base import bytes_or_path
from triptych.training.files import File

WIDE = (b"\xff\xfe", b"\xfe\xff")  # the marks of UTF-16
BETWEEN = re.compile(r"\n[^\S\n]*\n\s*")  # paragraphs
NOT_TEXT = "files that are not text (they hold NUL bytes)"


def read_documents(files: list[File], unit: str, encoding: str | None = None):
    """A sample a row, in the column `text`; the name of its file in `path`, the file's number in `number`.

    A file that is no text of that encoding is one row without text, and `why` says so.
    """
    import datasets

    # Each has its number: `datasets` may give the generator one file at a time.
    known = [(i, os.fsencode(f.opens), os.fsencode(f.name), _stamp(f.opens)) for i, f in enumerate(files)]
    kinds = {"text": "string", "path": "string", "number": "int64", "why": "string"}
    return datasets.Dataset.from_generator(
        documents,
        gen_kwargs={"files": known, "unit": unit, "encoding": encoding},
        features=datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()}),
    )


def _stamp(opens: str) -> tuple[int, int]:
    """What changes when a file does: a cached reading must not outlive it."""
    status = os.stat(opens.split("::")[-1])
    return status.st_mtime_ns, status.st_size


def documents(files: list[tuple], unit: str, encoding: str | None) -> Iterator[dict]:
    """Rows of `read_documents`."""
    for number, path, name, _ in files:
        found = bytes_or_path(os.fsdecode(path))
        row = {"path": name.decode("utf-8", "backslashreplace"), "number": number}
        content = found if isinstance(found, bytes) else Path(found).read_bytes()
        if why := not_text(content, encoding):
            yield row | {"text": None, "why": why}
            continue
        try:
            text = content.decode(marked(content) or encoding or "utf-8")
        except UnicodeError:
            yield row | {"text": None, "why": f"files that are not {(encoding or 'utf-8').upper()}"}
            continue
        for part in parts(text.removeprefix("\ufeff"), unit):
            yield row | {"text": part, "why": None}


def marked(head: bytes) -> str | None:
    """The encoding that a file's first bytes say, which is surer than what was said of a whole folder."""
    return "utf-16" if head[:2] in WIDE else "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else None


def not_text(content: bytes, encoding: str | None) -> str | None:
    """Why bytes are none of text, where it can be told: a NUL is a character, but in no text that people wrote."""
    wide = content[:2] in WIDE or re.match(r"utf[-_ ]?(16|32)", encoding or "", re.IGNORECASE)
    return NOT_TEXT if b"\0" in content and not wide else None


def parts(text: str, unit: str) -> Iterator[str]:
    """The samples of a file. Lines end as they do on any system, and blank ones are lines."""
    if unit == "file":
        yield text
    elif unit == "line":
        yield from (line.removesuffix("\n") for line in io.StringIO(text, newline=None))
    else:
        yield from (part for part in BETWEEN.split(text.replace("\r\n", "\n").replace("\r", "\n")) if part.strip())
