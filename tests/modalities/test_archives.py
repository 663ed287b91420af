"""Archives: the bytes of a member are the file's, by any process, and the list of members is read once."""

import io
import multiprocessing
import os
import tarfile
import zipfile

import pytest

from triptych.modalities import archives
from triptych.modalities.base import bytes_or_path

FILES = {"a/1.png": b"one", "b/2 ::x.png": b"", "b/\u00e9+3.png": os.urandom(5000)}


@pytest.fixture(params=["zip", "tar"])
def archive(request, tmp_path):
    path = str(tmp_path / f"A b.{request.param}")
    if request.param == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("a/", b"")
            for name, content in FILES.items():
                made.writestr(name, content)
    else:
        with tarfile.open(path, "w") as made:
            folder = tarfile.TarInfo("./a")
            folder.type = tarfile.DIRTYPE
            made.addfile(folder)
            for name, content in FILES.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return path


def test_members_are_files_with_their_bytes(archive):
    found = dict(archives.members(archive))
    assert list(found) == sorted(FILES)
    for name, address in found.items():
        assert archives.parted(address) == (name, archive)
        assert archives.content(address) == FILES[name] == bytes_or_path({"bytes": None, "path": address})
    assert archives.parted(archive) is archives.parted("https://x/y.zip") is None


def test_the_list_of_members_is_not_read_for_each(archive, monkeypatch):
    """It was, by fsspec: of an archive of 50,000 files half a second for each of them."""
    addresses, read = [address for _, address in archives.members(archive)], []
    for kind in (zipfile.ZipFile, tarfile.TarFile):
        original = kind.__init__
        monkeypatch.setattr(kind, "__init__", lambda *a, own=original, **k: (read.append(0), own(*a, **k))[1])
    for address in addresses * 3:
        archives.content(address)
    assert len(read) <= 1


def of(address: str, times: int) -> list[bytes]:
    return [archives.content(address) for _ in range(times)]


def test_processes_that_were_forked_off_do_not_disturb_each_other(archive):
    addresses = dict(archives.members(archive))
    for address in addresses.values():
        archives.content(address)  # opened before the fork
    with multiprocessing.get_context("fork").Pool(3) as pool:
        made = pool.starmap(of, [(address, 300) for address in addresses.values()])
    assert [set(found) for found in made] == [{FILES[name]} for name in addresses]


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path):
    for content in (b"one", b"other"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
            made.writestr("x", content)
        assert archives.content(f"zip://x::{tmp_path}/a.zip") == content
