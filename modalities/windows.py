"""Documents cut into windows of token ids: every token of a document is in one of them."""

from itertools import chain

import numpy as np

from triptych.modalities.tokenizer import FORMAT, clean


def windows(rows, column: str, backend, length: int):
    """A `datasets.Dataset` of windows of at most `length` ids, in `column`, in the order of the rows of text.

    A window holds `ids` and `starts`, True where a word begins. The other columns go along, and `source_row` is the
    row's index. The result is cached by the rows, the tokenizer and the length.
    """
    import datasets
    from datasets.fingerprint import Hasher

    window = {"ids": datasets.List(datasets.Value("int32")), "starts": datasets.List(datasets.Value("bool"))}
    features = rows.features | {column: window, "source_row": datasets.Value("int64")}
    return rows.with_format("arrow").map(
        lambda table, index: cut(table, index, column, backend, length),
        with_indices=True,
        batched=True,
        batch_size=256,
        remove_columns=rows.column_names,
        features=datasets.Features(features),
        new_fingerprint=Hasher.hash((rows._fingerprint, column, backend.to_str(), length, FORMAT)),
        desc="cutting text into windows",
    )


def cut(table, index: list[int], column: str, backend, length: int):
    """Rows of text -> rows of windows of at most `length` token ids."""
    import pyarrow as pa

    encodings = backend.encode_batch([clean(t) for t in table[column].to_pylist()], add_special_tokens=False)
    count = np.array([len(e) for e in encodings], dtype=np.int64)
    windows = -(-count // length)
    source = np.repeat(np.arange(len(count)), windows)
    number = np.arange(len(source)) - np.repeat(np.cumsum(windows) - windows, windows)
    begin = (np.cumsum(count) - count)[source] + number * length
    offsets = pa.array(np.append(begin, count.sum()), pa.int32())

    def lists(values, kind):
        return pa.ListArray.from_arrays(offsets, pa.array(np.fromiter(chain.from_iterable(values), kind)))

    window = {
        "ids": lists((e.ids for e in encodings), np.int32),
        "starts": lists(map(word_starts, encodings), bool),
    }
    others = table.drop_columns([column]).take(source)
    made = {name: others[name] for name in others.column_names}
    made[column] = pa.StructArray.from_arrays(list(window.values()), list(window))
    return pa.table(made | {"source_row": pa.array(np.asarray(index)[source], pa.int64())})


def word_starts(encoding) -> list[bool]:
    """True where a token begins a word, by the tokenizer's own idea of a word."""
    words = encoding.word_ids
    return [i == 0 or word is None or word != words[i - 1] for i, word in enumerate(words)]
