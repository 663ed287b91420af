"""Embed: data -> vectors of a trained encoder, in a table; and search among them.

python embed.py runs/mine --data path/to/pictures --to features.parquet
python embed.py facebook/dinov2-small --data path/to/pictures --query q.png --neighbours 5

The first word is a run's folder, an export's, or a published checkpoint of a known family. From Python:
`from triptych import embed; embed("runs/mine", pictures)`.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from triptych.encoders.backbone import Backbone, Pooling
from triptych.modalities.domains import Count, Fraction, check
from triptych.training import own
from triptych.training.command_line import with_values
from triptych.training.errors import UserError, at_home, explained, one_line, one_line_exit

CHUNK = 4096  # rows that are embedded and written together; of pieces a batch
SHOWN = 100  # duplicates that are printed


def embed(
    model: Any,
    data: Any = None,
    pieces: bool = False,
    every: Literal["layer"] | None = None,
    pooling: Pooling | None = None,
    column: str | None = None,
    split: str = "train",
    weights: Literal["student", "teacher"] = "student",
    revision: str | None = None,
    batch: Count = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> np.ndarray:
    """Vectors of samples, in their order, float32: what `probe` judges and what stock `transformers` computes.

    A long text or sound has the mean of the vectors of all its windows.

    Args:
        model: folder of a run, of one of its checkpoints or of an export; hub id of a published checkpoint; or a
            `Backbone`, which then stays loaded.
        data: samples in memory: paths, texts, PIL pictures, arrays `[h w]` or `[h w c]`, waves with their rates
            `(wave, 16000)`; a `datasets.Dataset`; or what `--data` takes, by its name. Default: what the run was
            trained on.
        pieces: the vector of each piece (patch, tile, token) instead, of a long sample those of all windows.
        every: `layer`: of the embedding and of each block, one after another, not of the last block alone.
        pooling: what a sample's vector is, as a run's `--pooling`. Default: the run's or the checkpoint's own.
        column: column of the samples. Default: the run's own, where the data has it, or the one of its type.
        split: split of the data.
        weights: of a run, the `student` that was trained, or its `teacher`.
        revision: branch, tag or commit of a model on the hub.
        batch: samples at a time.
        device: `auto` takes a GPU if there is one. Vectors are float32 on both.

    Returns:
        `[samples width]`; with `every` `[samples layers width]`, the embedding first; with `pieces` `[samples pieces
        width]` or `[samples layers pieces width]`. Where samples have unequally many pieces, an array of dtype object
        that holds an array for each. A sample that cannot be read is NaN (in dtype object without pieces), and a line
        names it.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    from triptych.evaluation.features import vectors

    with explained():
        check(embed, {"batch": batch})
        backbone, rows, place = ready(model, data, column, split, weights, revision, device, pooling, said=False)
        with watched(len(rows)) as seen:
            found, bad = vectors(
                backbone, rows, None if pieces else backbone.pooling, bool(every), batch, device=place, seen=seen
            )
        report_lost(len(rows), found, bad)
    found = found if every else {row: vector[0] for row, vector in found.items()}
    shapes = {vector.shape for vector in found.values()}
    if len(shapes) == 1:
        made = np.full((len(rows), *shapes.pop()), np.nan, dtype=np.float32)
    else:
        empty = next(iter(found.values()))[..., :0, :]
        made = np.empty(len(rows), dtype=object)
        made[:] = [empty] * len(rows)
    for row, vector in found.items():
        made[row] = vector
    return made


def ready(model, data, column, split, weights, revision, device, pooling, said: bool = True):
    """The backbone, the rows, and the device. `said`: print how the data is read."""
    from triptych.evaluation.load import Opened, opened
    from triptych.training.engine import pick_device
    from triptych.training.finding import elsewhere, find
    from triptych.training.memory import held
    from triptych.training.once import walked_once
    from triptych.training.settings import Data, Run
    from triptych.training.sources import known_column, load, rows_of

    place = pick_device(Run(device=device))
    whole = isinstance(model, Backbone)
    found = Opened(model.modality, True, lambda: model) if whole else opened(model, weights, revision)
    if data is None and found.data is None:
        raise UserError("data: name what is to be embedded; only a run has data of its own")
    with held(found.data.name if data is None else data, found.modality) as name, walked_once():
        where = found.data or Data(name=name)
        if data is not None:
            own = found.data and known_column(name, found.data, found.modality, split)
            where = dataclasses.replace(elsewhere(where, name, found.modality), column=own, label_column=None)
        where = where if column is None else dataclasses.replace(where, column=column)
        if said:
            rows = load(where, found.modality, split)
        else:
            rows, _ = rows_of(find(where, found.modality), where, found.modality, split)
    if not found.fitted and (note := found.modality.fit(rows.table, rows.column)):
        print(f"data: {note}")
    backbone = found.build()
    if pooling is not None and pooling != backbone.pooling:
        backbone = Backbone(backbone.embedding, backbone.encoder, pooling)
    return backbone.eval(), rows, place


@contextlib.contextmanager
def watched(count: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal or in a notebook; within, a function that is told how many rows are begun."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter)) as progress:
        task, most = progress.add_task("rows", total=count), 0

        def seen(rows: int) -> None:
            nonlocal most
            most = max(most, rows)
            progress.update(task, completed=most)

        yield seen
        progress.update(task, completed=count)


def report_lost(count: int, found, bad) -> None:
    """Say which rows have no vectors."""
    if bad:
        row, (name, reason) = next(iter(bad.items()))
        print(f"{len(bad):,} of {count:,} rows cannot be read, such as row {row} ({name}): {reason}", file=sys.stderr)
    if blank := count - len(found) - len(bad):
        print(f"{blank:,} of {count:,} rows are blank, and have no vector", file=sys.stderr)
    if not found:
        raise UserError(f"none of {count:,} rows can be used")


def write(
    model: str,
    data: str | None = None,
    to: str | None = None,
    pieces: bool = False,
    every: Literal["layer"] | None = None,
    pooling: Pooling | None = None,
    query: str | None = None,
    neighbours: Count | None = None,
    duplicates: Fraction | None = None,
    column: str | None = None,
    split: str = "train",
    weights: Literal["student", "teacher"] = "student",
    revision: str | None = None,
    batch: Count = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Count | None = None,
) -> None:
    """Write the vectors of data into a table, and search among them.

    Args:
        model: folder of a run, of one of its checkpoints or of an export; or the hub id of a published checkpoint.
        data: what a run's `--data` takes. Default: what the run was trained on.
        to: file to write, .parquet, a vector a line: `row` (its number in the data), `path` (of its file, within the
            data), with --every `layer`, with --pieces `piece`, and `vector` (float32). Rows that cannot be read are
            left out.
        pieces: the vector of each piece (patch, tile, token) instead of one a sample.
        every: `layer`: of the embedding (0) and of each block, not of the last block alone.
        pooling: what a sample's vector is, as a run's `--pooling`. Default: the run's or the checkpoint's own.
        query: a file like those of the data, seconds of a recording (a.wav#t=1.5,4.0), a folder of files, or a text:
            prints its nearest neighbours in the data.
        neighbours: how many. Default: 5.
        duplicates: print the pairs of rows whose vectors have at least this cosine.
        column: column of the samples. Default: the run's own, where the data has it, or the one of its type.
        split: split of the data.
        weights: of a run, the `student` that was trained, or its `teacher`.
        revision: branch, tag or commit of a model on the hub.
        batch: samples at a time.
        device: `auto` takes a GPU if there is one. Vectors are float32 on both.
        threads: threads for torch. Default: torch's own choice.
    """
    check(write, locals())
    import torch

    from triptych.evaluation import search

    searches = query is not None or duplicates is not None
    if neighbours is not None and query is None:
        raise UserError(f"--neighbours {neighbours}: of what? give --query")
    if to is None and not searches:
        raise UserError("nothing to do: give --to features.parquet, --query or --duplicates")
    if to is not None and Path(to).suffix.lower() != ".parquet":
        raise UserError(f"--to {to}: the table is written as parquet; name it so, {Path(to).with_suffix('.parquet')}")
    if searches and (pieces or every):
        raise UserError("a search is for one vector a sample: leave --pieces and --every out, or run it by itself")
    if threads:
        torch.set_num_threads(threads)
    backbone, rows, place = ready(model, data, column, split, weights, revision, device, pooling)
    print(f"{model}: {backbone.width} wide, vector: {'each piece' if pieces else backbone.pooling}, on {place}")
    held: list[tuple[int, np.ndarray]] = []
    about = {"model": str(model), "data": rows.name, "vector": "piece" if pieces else backbone.pooling}
    with Table(to, about) as add:
        for found in chunks(backbone, rows, pieces, bool(every), batch, place):
            add(found, rows, pieces, bool(every))
            if searches:
                held += [(row, vector[0]) for row, vector in found.items()]
    if not searches:
        return
    number, x = [row for row, _ in held], np.stack([vector for _, vector in held])
    if query is not None:
        asked = query_rows(query, rows, backbone.modality)
        them = {row: x for found in chunks(backbone, asked, False, False, batch, place) for row, x in found.items()}
        index, cosine = search.neighbours(x, np.stack([vector[0] for vector in them.values()]), neighbours or 5)
        for row, near, close in zip(them, index, cosine, strict=True):
            print(f"nearest to {called(asked, row)}:")
            for i, c in zip(near, close, strict=True):
                print(f"  {c:.4f}  row {number[i]:<6}  {called(rows, number[i])}")
    if duplicates is not None:
        pairs, count = search.duplicates(x, duplicates, SHOWN)
        print(f"{count:,} pairs of {len(x):,} rows with a cosine of at least {duplicates:g}")
        for i, j, c in pairs:
            a, b = number[i], number[j]
            print(f"  {c:.4f}  rows {a} and {b}  {called(rows, a)}  {called(rows, b)}")
        if count > SHOWN:
            print(f"  and {count - SHOWN:,} more, less alike")


def chunks(backbone, rows, pieces: bool, every: bool, batch: int, place) -> Iterator[dict[int, np.ndarray]]:
    """Vectors by row, some rows at a time. Says which rows have none, in the end."""
    from triptych.evaluation.features import vectors
    from triptych.modalities.base import NoSamples

    size, all_bad, done = batch if pieces else CHUNK, {}, set()
    with watched(len(rows)) as seen:
        for start in range(0, len(rows), size):
            part = rows.select(range(start, min(start + size, len(rows))))
            pooling = None if pieces else backbone.pooling
            try:
                told = lambda row, start=start: seen(start + row)  # noqa: E731
                found, bad = vectors(backbone, part, pooling, every, batch, device=place, seen=told)
            except NoSamples:  # of these rows; perhaps others have some
                continue
            all_bad |= {start + row: why for row, why in bad.items()}
            if found:
                done |= {start + row for row in found}
                yield {start + row: vector for row, vector in found.items()}
    report_lost(len(rows), done, all_bad)


class Table:
    """A parquet file in the making, which is there when it is whole; within, a function that adds vectors to it."""

    def __init__(self, to: str | None, about: dict[str, str]):
        self.to, self.about, self.writer, self.count = to and Path(to).expanduser(), about, None, 0

    def __enter__(self):
        if self.to is not None:
            self.to.parent.mkdir(parents=True, exist_ok=True)
            self.aside = self.to.with_name(f".{self.to.name}.partial")
        return self.add

    def __exit__(self, kind, *_):
        if self.writer is not None:
            self.writer.close()
            if kind is None:
                os.replace(self.aside, self.to)
                print(f"{self.to}: {self.count:,} vectors")
            else:
                self.aside.unlink()

    def add(self, found: dict[int, np.ndarray], rows, pieces: bool, every: bool) -> None:
        if self.to is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as parquet

        found = {row: vector if pieces else vector[:, None] for row, vector in found.items()}  # [l n d]
        shapes = [vector.shape[:2] for vector in found.values()]
        width = next(iter(found.values())).shape[2]
        times = [layers * count for layers, count in shapes]
        paths = [path_of(rows, row) for row in found]
        flat = np.concatenate([vector.ravel() for vector in found.values()])
        columns = {
            "row": pa.array(np.repeat(list(found), times), pa.int64()),
            "path": pa.array(paths, pa.string()).take(pa.array(np.repeat(np.arange(len(paths)), times))),
            "layer": np.concatenate([np.repeat(np.arange(ls), n) for ls, n in shapes]).astype(np.int32),
            "piece": np.concatenate([np.tile(np.arange(n), ls) for ls, n in shapes]).astype(np.int32),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), width),
        }
        columns = {k: v for k, v in columns.items() if (k != "layer" or every) and (k != "piece" or pieces)}
        made = pa.table(columns).replace_schema_metadata({"triptych": json.dumps(self.about)})
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.aside, made.schema)
        self.writer.write_table(made)
        self.count += len(made)


def query_rows(query: str, rows, modality):
    """The rows that a query names: files, seconds of a recording (`a.wav#t=1.5,4.0`), or else a text that it is."""
    from triptych.modalities.base import recording
    from triptych.training.finding import find
    from triptych.training.memory import held
    from triptych.training.settings import Data
    from triptych.training.sources import rows_of
    from triptych.training.tables import holds_lines

    words = holds_lines(modality) and not os.path.exists(os.path.expanduser(query))  # `Path` refuses long words
    file = recording(query) if modality.segments else query  # without its seconds
    with held([query] if words or file != query else query, modality) as name:
        where = Data(name=name)
        try:
            found = rows_of(find(where, modality), where, modality, "train")[0]
            return found if file == query else dataclasses.replace(found, root=os.path.dirname(file))
        except UserError as error:
            raise UserError(one_line(error).replace("data ", "--query ", 1)) from error


def path_of(rows, row: int) -> str | None:
    """The path of a row's file within the data; None where it has none."""
    from triptych.training.sources import relative

    found = rows.table[row]
    cell = found[rows.column]
    path = (cell if isinstance(cell, dict) else found).get("path")  # of a document, in a column of its own
    return relative(path, rows.root) if isinstance(path, str) and path else None


def called(rows, row: int) -> str:
    """What people know a row by: its path, or what it holds."""
    return path_of(rows, row) or rows.modality.describe(rows.table[row][rows.column])


def main(argv: list[str] | None = None, program: str = "embed.py") -> None:
    """The command line. A mistake of the user's is one line and exit code 1, not a traceback."""
    from jsonargparse import auto_cli

    with one_line_exit(program):
        argv = with_values(own.taken(at_home(sys.argv[1:] if argv is None else argv)), ["pieces"])
        argv = [re.sub(r"^--data\.(?=(column|split)\b)", "--", argument) for argument in argv]
        auto_cli(write, args=argv, as_positional=True, exit_on_error=False, prog=program)


if __name__ == "__main__":
    main()
