"""What is said when something goes wrong: one line that names the thing and the way out."""

import difflib


class UserError(ValueError):
    """A mistake of the user's: one line that names the thing and the way out, and no traceback."""


def one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def nearest(word: str, known, dashes: str = "") -> str:
    """`; did you mean ...?`, or nothing."""
    known = list(known)
    found = difflib.get_close_matches(word, known, 1, 0.5)
    if not found:  # the same last part in another group: mask_ratio for objective.mask_ratio
        found = difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], 1, 0.7)
        found = [k for k in known if found and k.split(".")[-1] == found[0]]
    return f"; did you mean {dashes}{found[0]}?" if found else ""
