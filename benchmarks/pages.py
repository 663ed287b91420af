"""Pages of docs/ that hold tables which a script makes of the lines that it has measured."""

import json
from pathlib import Path


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between two of its marks."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def lines_of(file: Path) -> list[dict]:
    """Finished measurements; none where there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
