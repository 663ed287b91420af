"""Sources: what is where, read through `datasets` into rows with a column of samples and, perhaps, one of labels."""

import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalities import MODALITIES, Modality
from training.builtin import NAMES, builtin
from training.errors import UserError, nearest, one_line
from training.settings import Data

TABLES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
SPLITS |= {"dev": "validation"}


@dataclass
class Rows:
    """Rows of one split, undecoded, with the columns that hold samples and labels."""

    table: Any  # datasets.Dataset
    column: str
    label: str | None
    name: str
    modality: Modality

    def __len__(self) -> int:
        return len(self.table)

    def select(self, index) -> "Rows":
        return Rows(self.table.select(index), self.column, self.label, self.name, self.modality)

    def labels(self) -> np.ndarray:
        """The label of each row, numbers or words as the column has them."""
        if self.label is None:
            raise UserError(
                f"data {self.name} has no class label column: name its column of labels, or other data that has one"
            )
        return np.asarray(self.table[self.label][:])

    def labelled(self) -> "Rows":
        """The rows that have a label: None and, as is the custom of `datasets`, negative numbers stand for none."""
        found = [i for i, v in enumerate(self.labels().tolist()) if v is not None and (isinstance(v, str) or v >= 0)]
        if not found:
            raise UserError(f"data {self.name}: no row has a label in column {self.label!r}; name another split")
        return self if len(found) == len(self) else self.select(found)


def load(data: Data, modality: Modality, split: str | None = None) -> Rows:
    """Rows of `split` (default: `data.split`). Raises `UserError` with the way out."""
    import datasets

    datasets.disable_progress_bars()
    name, kind, split = str(data.name), _name(modality), split or data.split
    path = Path(os.path.expanduser(name))
    try:
        if name in NAMES:
            splits = builtin(name)
        elif path.exists():
            splits = _local(path, modality)
        else:
            splits = _hub(data)
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        raise UserError(f"data {name}: cannot be read: {one_line(error.__cause__ or error)}") from error
    if isinstance(splits, datasets.Dataset):
        splits = {"train": splits}
    if split not in splits:
        raise UserError(f"data {name} has no split {split!r}; it has {', '.join(splits)}")
    table = splits[split]
    if not len(table):
        raise UserError(f"data {name}, split {split}: no rows")
    column, why = _column(table, data.column, modality, kind, name)
    table, unrolled = _undecoded(table, column, modality)
    label = data.label_column or _label(table)
    if label is not None and label not in table.column_names:
        raise UserError(f"data.label_column {label!r} is not a column; there are {', '.join(table.column_names)}")
    print_once(f"data: {len(table):,} rows of {name} ({split}), column {column!r} ({why}{unrolled})")
    return Rows(table, column, label, name, modality)


def splits_of(data: Data, modality: Modality) -> list[str]:
    """Names of the splits that a source has."""
    import datasets

    path = Path(os.path.expanduser(str(data.name)))
    found = builtin(data.name) if data.name in NAMES else _local(path, modality) if path.exists() else _hub(data)
    return ["train"] if isinstance(found, datasets.Dataset) else list(found)


def print_once(text: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, flush=True)


def _name(modality: Modality) -> str:
    return next((name for name, cls in MODALITIES.items() if cls is type(modality)), type(modality).__name__.lower())


def _hub(data: Data):
    import datasets

    name = str(data.name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"data {name}: no such file or folder")
    try:
        return datasets.load_dataset(name, data.subset, revision=data.revision)
    except Exception as error:
        hint = nearest(name, NAMES)
        raise UserError(
            f"data {name}: not a built-in set ({', '.join(NAMES)}), no such folder, and not readable from the hub "
            f"({type(error).__name__}: {one_line(error)[:120]}){hint}"
        ) from error


def _local(path: Path, modality: Modality):
    """Splits of a file or a folder on this machine."""
    import datasets

    if path.is_file():
        builder = TABLES.get(path.suffix.lower())
        if builder:
            return datasets.load_dataset(builder, data_files={"train": str(path)}, **_csv(path))
        return _text([path], path) if path.suffix.lower() in (".txt", ".md") else _folder(path.parent, modality, [path])
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    suffixes = {p.suffix.lower() for p in path.rglob("*") if p.stem != "metadata"}
    kinds = {TABLES[suffix] for suffix in suffixes if suffix in TABLES}
    if kinds and suffixes.isdisjoint(modality.suffixes):
        if len(kinds) > 1:
            raise UserError(f"data {path}: tables of several kinds ({', '.join(sorted(kinds))}); name one file")
        (builder,) = kinds
        return datasets.load_dataset(builder, data_dir=str(path))
    return _folder(path, modality)


def _csv(path: Path) -> dict[str, str]:
    return {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}


def _text(files: list[Path], path: Path):
    import datasets

    return datasets.load_dataset("text", data_files={"train": [str(f) for f in files]})["train"]


def _folder(path: Path, modality: Modality, files: list[Path] | None = None):
    """Files of a folder, and of zip archives in it, one a row; class folders become labels, split folders splits."""
    import datasets

    found: list[tuple[str, str]] = []  # (what to open, name within the folder)
    others: Counter[str] = Counter()
    for file in sorted(files or (p for p in path.rglob("*") if p.is_file() and not hidden(p.relative_to(path)))):
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                names = sorted(n for n in archive.namelist() if not hidden(Path(n)))
                inner = [n for n in names if Path(n).suffix.lower() in modality.suffixes]
            found += [(f"zip://{name}::{file}", name) for name in inner]
        elif file.suffix.lower() in modality.suffixes:
            found.append((str(file), str(file.relative_to(path))))
        elif file.stem != "metadata":
            others[file.suffix.lower() or "no suffix"] += 1
    if not found:
        looks = [n for n, cls in MODALITIES.items() if any(s in cls.suffixes for s in others)]
        hint = f"; its files look like modality {looks[0]}" if looks else ""
        there = ", ".join(f"{n} {s}" for s, n in others.most_common(5)) or "it is empty"
        raise UserError(f"data {path}: no file that modality {_name(modality)} reads ({there}){hint}")
    if others:
        print_once(f"data: ignored {sum(others.values())} other files ({', '.join(sorted(others))})")
    if set(modality.features) & {"string", "large_string"}:
        return _text([Path(f) for f, _ in found], path)

    groups: dict[str, list[tuple[str, str]]] = {}
    for file, name in found:
        first = Path(name).parts[0].lower()
        groups.setdefault(SPLITS.get(first, "") if len(Path(name).parts) > 1 else "", []).append((file, name))
    if len(groups) == 1 and "" in groups:
        groups = {"train": groups[""]}
    elif "" in groups:
        raise UserError(f"data {path}: {len(groups[''])} files lie beside the split folders; move them into one")

    depth = {
        len(Path(name).parts)
        - (2 if split and path.joinpath(Path(name).parts[0]).is_dir() and Path(name).parts[0].lower() in SPLITS else 1)
        for split, rows in groups.items()
        for _, name in rows
    }
    feature = getattr(datasets, modality.features[0])(decode=False)
    columns = {_name(modality): feature}
    # Labels go by name: one table, the training split's, for all.
    first = groups.get("train") or next(iter(groups.values()))
    classes = sorted({Path(name).parts[-2] for _, name in first}) if depth == {1} else []
    if len(classes) > 1:
        columns["label"] = datasets.ClassLabel(names=classes)
    extra = _metadata(path, {name for _, name in found})

    def rows(split: str) -> list[dict[str, Any]]:
        made = []
        for file, name in groups[split]:
            row: dict[str, Any] = {_name(modality): {"path": file, "bytes": None}}
            if "label" in columns:
                row["label"] = classes.index(Path(name).parts[-2]) if Path(name).parts[-2] in classes else -1
            made.append(row | extra.get(name, dict.fromkeys(extra.get("", ()))))
        return made

    result = datasets.DatasetDict()
    for split in groups:
        made = datasets.Dataset.from_list(rows(split))
        result[split] = made.cast(datasets.Features({**made.features, **columns}))
    return result


def hidden(path: Path) -> bool:
    """What file managers leave about: `.DS_Store`, and in archives `__MACOSX/._a.jpg`, which is no picture."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _metadata(path: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """Columns of a `metadata.csv` or `.jsonl` by file name; files without a row, and the reverse, are reported."""
    import datasets

    for file in (path / "metadata.csv", path / "metadata.jsonl"):
        if not file.exists():
            continue
        table = datasets.load_dataset(TABLES[file.suffix], data_files=str(file))["train"]
        if "file_name" not in table.column_names:
            continue
        rows = {row.pop("file_name"): row for row in table.to_list()}
        lost, bare = len(rows.keys() - names), len(names - rows.keys())
        if lost or bare:
            print_once(f"data: {file.name}: {lost} rows without a file, {bare} files without a row")
        rows[""] = dict.fromkeys(c for c in table.column_names if c != "file_name")
        return rows
    return {}


def _kind(feature: Any) -> str:
    return (
        getattr(feature, "dtype", None) or type(feature).__name__
        if type(feature).__name__ == "Value"
        else type(feature).__name__
    )


def _column(table, named: str | None, modality: Modality, kind: str, source: str) -> tuple[str, str]:
    """The column of samples, and why."""
    if named is not None:
        if named not in table.column_names:
            known = table.column_names
            raise UserError(
                f"data.column {named!r}: no such column{nearest(named, known)}; there are {', '.join(known)}"
            )
        return named, "as asked"
    found = [c for c, f in table.features.items() if _kind(getattr(f, "feature", f)) in modality.features]
    if len(found) == 1:
        return found[0], f"the only one of type {'/'.join(modality.features)}"
    if kind in found:
        return kind, f"of {', '.join(found)} the one of that name"
    if found:
        raise UserError(
            f"data {source}: several columns may hold the samples ({', '.join(found)}): name one, --data.column"
        )
    there = ", ".join(f"{c} ({_kind(f)})" for c, f in table.features.items())
    raise UserError(f"data {source}: no column of type {'/'.join(modality.features)}; there are {there}")


def _undecoded(table, column: str, modality: Modality):
    """The table with that column as bytes; a column of lists is unrolled."""
    import datasets

    feature = table.features[column]
    if not hasattr(datasets, modality.features[0]):  # plain values, of which nothing is decoded
        return table, ""
    raw = getattr(datasets, modality.features[0])(decode=False)
    if hasattr(feature, "feature"):
        table = table.cast_column(column, datasets.List(raw)).select_columns([column])
        table = table.map(
            lambda rows: {column: [cell for row in rows[column] for cell in row]},
            batched=True,
            features=datasets.Features({column: raw}),
        )
        return table, ", lists unrolled"
    return table.cast_column(column, raw), ""


def _label(table) -> str | None:
    found = [c for c, f in table.features.items() if type(f).__name__ == "ClassLabel"]
    return found[0] if len(found) == 1 else "label" if "label" in table.column_names else None
