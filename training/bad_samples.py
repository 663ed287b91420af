"""Unusable samples of a run: known to all ranks, counted, and written down by name."""

import json
from pathlib import Path
from typing import Any

from triptych.training.checkpoint import write_aside
from triptych.training.ranks import Team

Reason = tuple[str, str]  # what its source calls the sample, and why it cannot be used


class BadSamples:
    """By number of the row. `new` is what this rank has found since `share` was called last."""

    def __init__(self, folder: Path, limit: int, team: Team):
        self.file, self.limit, self.team = folder / "bad_samples.jsonl", limit, team
        self.known: dict[int, Reason] = {}
        self.new: dict[int, Reason] = {}

    def __len__(self) -> int:
        return len(self.known)

    def share(self) -> None:
        """Make what each rank found known to all, and write it down. All ranks take part."""
        found = [item for part in self.team.gather(list(self.new.items())) for item in part]
        found = {row: tuple(why) for row, why in found if row not in self.known}
        self.known, self.new = self.known | found, {}
        if found and self.team.is_first:
            with open(self.file, "a") as file:
                file.write(lines(found))
        if len(self.known) > self.limit:
            row, (name, reason) = next(iter(self.known.items()))
            self.team.refuse(
                f"more than {self.limit} unusable samples (data.max_bad), such as {name}: {reason}; "
                f"all are named in {self.file}"
            )

    def state(self) -> dict[str, Reason]:
        return {str(row): why for row, why in self.known.items()}

    def load(self, state: dict[str, list[str]]) -> None:
        self.known = {int(row): tuple(why) for row, why in state.items()}

    def rewrite(self) -> None:
        """The file without what came after the checkpoint."""
        if self.known or self.file.exists():
            write_aside(self.file, lines(self.known))


class Clipped:
    """Samples with values beyond the range of the settings, by number of the row, with the share that was clipped."""

    def __init__(self, team: Team):
        self.team = team
        self.known: dict[int, tuple[str, float]] = {}
        self.new: dict[int, tuple[str, float]] = {}

    def share(self) -> str | None:
        """Make what each rank found known to all, who take part; when it is the first, says so in a line."""
        found = dict(item for part in self.team.gather(list(self.new.items())) for item in part)
        first = bool(found) and not self.known
        self.known, self.new = self.known | found, {}
        return f"{self.summary()}; the end of the run counts them" if first else None

    def state(self) -> dict[str, Any]:
        """Which rows, and the one of which most was clipped: the others' names may be those of all the data."""
        return {"rows": sorted(self.known), "most": max(self.known.values(), key=lambda one: one[1], default=None)}

    def load(self, state: dict[str, Any]) -> None:
        self.known = dict.fromkeys(state["rows"], tuple(state["most"] or ()))

    def summary(self) -> str:
        """How many, and the most of one."""
        return clipped_line(self.known.values())


def clipped_line(found) -> str:
    """In a line, how many (name, share) there are, and the largest."""
    name, share = max(found, key=lambda one: one[1])
    return f"{len(found):,} samples have values beyond the range, which were clipped: {share:.2g} of {name} at most"


def lines(bad: dict[int, Reason]) -> str:
    rows = ({"source": name, "row": row, "reason": reason} for row, (name, reason) in bad.items())
    return "".join(json.dumps(row) + "\n" for row in rows)
