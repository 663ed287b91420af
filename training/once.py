"""A source is walked over once a command, however often it is asked for: by the choice, the run, the probe."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Of `Data`, what does not say where a source is; of `group` it only matters whether there is one.
WITHIN = ("split", "column", "label_column", "group", "eval_fraction", "max_bad")
found: dict[tuple, Any] | None = None  # by what was asked, where somebody wants it to be kept


@contextmanager
def walked_once() -> Iterator[None]:
    """Within, what was found is found again without a look at the disk."""
    global found
    before, found = found, {} if found is None else found
    try:
        yield
    finally:
        found = before


def kept(find: Callable, data, modality) -> Any:
    """What `find` finds, perhaps before. Each call gets a copy of its own: readers write notes into a source."""
    if found is None:
        return find(data, modality)
    where = (value for name, value in vars(data).items() if name not in WITHIN)
    key = (*where, data.group is None, type(modality))
    if key not in found:
        found[key] = find(data, modality)
    return copy.deepcopy(found[key])
