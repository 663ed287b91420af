"""Subsets: a clone of a hub repository, whose README says which files are which subset and split."""

from pathlib import Path

from triptych.training.errors import UserError, nearest
from triptych.training.files import Source
from triptych.training.settings import Data


def subsets(path: Path) -> list[str]:
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


def subset_of(path: Path, data: Data) -> Source:
    """A clone of a hub repository whose README says which files are which subset and split: `datasets` reads that."""
    import datasets

    known = subsets(path)
    if data.subset is None and len(known) > 1 and "default" not in known:
        raise UserError(
            f"data {path}: its README.md names several subsets ({', '.join(known)}): name one, --data.subset"
        )
    if data.subset is not None and data.subset not in known:
        raise UserError(
            f"data.subset {data.subset!r}: no such subset{nearest(data.subset, known)}; there are {', '.join(known)}"
        )
    subset = data.subset or ("default" if "default" in known else known[0])
    source = Source(str(data.name), str(path)).of_tables(datasets.load_dataset(str(path), subset))
    source.notes.append(f"subset {subset!r}, as README.md has it")
    if others := [name for name in known if name != subset]:
        source.leave("subsets", *others)
    return source
