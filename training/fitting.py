"""Fitting: what a modality takes from a checkpoint, from its start or from the rows; all ranks get the same."""

import os
from typing import Any

from triptych.modalities import Modality
from triptych.training.ranks import Team
from triptych.training.sources import Rows, print_once


def fit(modality: Modality, rows: Rows, origin: dict[str, Any] | None, start: Any, team: Team) -> None:
    """Statistics and tokenizers: the first rank finds them and tells the others. All ranks take part.

    Args:
        modality: is fitted in place.
        rows: that are trained on.
        origin: the checkpoint that a run continues from, where what was fitted lies.
        start: what the run starts from; a run of ours has it, too.
        team: of all ranks.
    """

    def prepare(to: str) -> None:
        if origin is not None:
            modality.load(os.path.join(origin["folder"], "modality"))
        elif fitted := getattr(start, "folder", None):
            modality.load(os.path.join(fitted, "modality"))
        elif note := modality.fit(rows.table, rows.column):
            print_once(f"data: {note}")
        if team.count > 1:
            modality.save(to)

    with team.files(prepare) as prepared:
        if not team.is_first:
            modality.load(prepared)
