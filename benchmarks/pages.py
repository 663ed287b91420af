"""Pages of docs/ that hold tables which a script makes."""


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between two of its marks."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
