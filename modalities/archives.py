"""Archives: what lies in a .zip or .tar, and the bytes of one member, without unpacking it.

A member's address is `zip://NAME::ARCHIVE`, or `tar://PLACE+SIZE/NAME::ARCHIVE`, which says where in the archive it is:
of shards there may be thousands, and of each the list of members would have to be read again.
"""

import os
import re
import tarfile
import zipfile
from functools import lru_cache

SUFFIXES = (".zip", ".tar")
ERRORS = (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError)
ADDRESS = re.compile(r"(zip|tar)://(?:(\d+)\+(\d+)/)?(.*)::(.*)", re.DOTALL)


def is_archive(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def members(archive: str) -> list[tuple[str, str]]:
    """Name and address of each file in it, by name."""
    if archive.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            found = [(name, f"zip://{name}::{archive}") for name in opened.namelist() if not name.endswith("/")]
    else:
        with tarfile.open(archive, "r:") as opened:
            files = ((i.name.removeprefix("./"), i.offset_data, i.size) for i in opened if i.isreg())
            found = [(name, f"tar://{place}+{size}/{name}::{archive}") for name, place, size in files]
    return sorted(found)


def parted(address: str) -> tuple[str, str] | None:
    """Name and archive of a member; None of what is no address of one."""
    found = ADDRESS.fullmatch(address)
    return (found[4], found[5]) if found else None


def content(address: str) -> bytes:
    """A member's bytes."""
    _, place, size, name, archive = ADDRESS.fullmatch(address).groups()
    if place is not None:
        with open(archive, "rb") as file:
            file.seek(int(place))
            return file.read(int(size))
    status = os.stat(archive)
    return _opened(archive, (status.st_mtime_ns, status.st_size), os.getpid()).read(name)


@lru_cache(maxsize=16)
def _opened(archive: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Its list of members is read once. A process that was forked off would move the file's position of the other."""
    return zipfile.ZipFile(archive)
