"""The folder of a run: whose it is, what may continue in it, and that only one process writes to it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from triptych.training import checkpoint
from triptych.training.errors import UserError, one_line
from triptych.training.settings import Config, differences

LOCK = ".lock"
BEAT, STALE = 15.0, 120.0  # seconds between two signs of life; without one for so long, a process counts as dead
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class RunFolder:
    """Held by the first rank alone, from before data is read until the run ends."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.lock = self.path / LOCK
        self.handle: int | None = None
        self.made: list[Path] = []
        self.ended = threading.Event()

    def __enter__(self) -> "RunFolder":
        """Take the folder, or refuse. What it makes in an empty place is gone again if nothing comes of the run."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"output_dir {path} is a file; choose a folder")
        try:
            self.made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            self.__exit__()
            raise UserError(
                f"output_dir {path} cannot be written to ({error.strerror or error}); choose another folder"
            ) from error
        except BaseException:
            self.__exit__()
            raise
        threading.Thread(target=self._live, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.ended.set()
        if self.handle is not None:
            if self.mine():
                self.lock.unlink(missing_ok=True)
            os.close(self.handle)
            self.handle = None
        for folder in self.made:
            with contextlib.suppress(OSError):  # it holds something: the run
                folder.rmdir()

    def mine(self) -> bool:
        """False if another process has found this one dead, and has taken the folder over."""
        try:
            return os.stat(self.lock).st_ino == os.fstat(self.handle).st_ino
        except FileNotFoundError:
            return False

    def _lock(self) -> None:
        # A POSIX lock: after a SIGKILL, forked workers would keep a BSD lock, but not this. It is lost when *any*
        # handle of the file is closed in this process, so the file is opened here alone.
        while self.handle is None:
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                local = self._locked(handle)
                holder = os.pread(handle, 4096, 0).decode(errors="replace")
                if not local or (holder and json_of(holder).get("host") != socket.gethostname()):
                    self._watch(holder)  # the lock is none, or may be one within a machine only
                    if not local and holder:
                        self.lock.unlink(missing_ok=True)  # who was taken for dead will find another file
                        continue
                if not self._is(handle):
                    continue  # its holder has just gone, and the file with it
                self.handle, handle = handle, None
            finally:
                if handle is not None:
                    os.close(handle)
        who = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self.handle, 0)
        text = json.dumps(who).encode()
        os.pwrite(self.handle, text, 0)
        if not local:  # another one may have found the file empty at the same moment; the last to write has it
            time.sleep(1)
            if os.pread(self.handle, 4096, 0) != text:
                raise self._taken(os.pread(self.handle, 4096, 0).decode(errors="replace"))

    def _is(self, handle: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.lock).st_ino == os.fstat(handle).st_ino
        return False

    def _locked(self, handle: int) -> bool:
        """Lock the file; False where the file system has no locks."""
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._taken(os.pread(handle, 4096, 0).decode(errors="replace")) from None
            if error.errno not in NO_LOCKS:
                raise
            return False
        return True

    def _watch(self, holder: str) -> None:
        """Wait until the last sign of life of that holder is old; refuse if there is a new one."""
        seen = self.lock.stat().st_mtime_ns if self.lock.exists() else 0
        probe = self.path / f"{LOCK}.{os.getpid()}"
        probe.touch()
        age = probe.stat().st_mtime - seen / 1e9  # by the clock of the file system, not of this machine
        probe.unlink()
        left = STALE - age
        if holder and left > 0:
            print(
                f"output_dir {self.path}: {told(holder)} may be at work in it; waiting {left:.0f} s to see", flush=True
            )
        while holder and left > 0:
            time.sleep(min(1.0, left))
            left -= 1.0
            if not self.lock.exists():
                return
            if self.lock.stat().st_mtime_ns != seen:
                raise self._taken(holder)

    def _taken(self, holder: str) -> UserError:
        return UserError(
            f"output_dir {self.path} is in use by {told(holder)}: wait for it, end it, or choose another folder"
        )

    def _live(self) -> None:
        while not self.ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if self.mine():
                    os.utime(self.lock)

    # What is in it.

    def origin(self, config: Config) -> dict[str, Any] | None:
        """Where the run continues (`checkpoint.origin`), or None. Refuses others' folders and a run of other settings.

        The first rank asks, and tells the others.
        """
        path = self.path
        others = [file for file in path.iterdir() if not harmless(file)]
        if not others:
            return None
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"output_dir {path} holds other files ({', '.join(sorted(f.name for f in others)[:3])}); choose an "
                "empty or a new one"
            )
        old = read_config(path / "config.yaml")
        if changed := differences(old, config.stored()):
            way = (
                f"give the same settings to continue it, or start another run from its weights: --init_from {path} and "
                "another output_dir"
                if checkpoint.folders(path)
                else "choose another folder, or delete it: it has no checkpoint yet"
            )
            raise UserError(f"output_dir {path} holds a run with other settings ({', '.join(changed)}); {way}")
        before, now = str(old.get("data", {}).get("name")), str(config.data.name)
        if before != now:
            print(f"data {now} takes the place of {before}: the run continues if the content is the same", flush=True)
        found = checkpoint.newest(path)
        if found is None and (path / "metrics.jsonl").exists():
            print(f"output_dir {path}: no checkpoint was written, so the run starts again at step 0", flush=True)
        return None if found is None else checkpoint.origin(found)

    def stored(self) -> dict[str, Any]:
        """The configuration of the run that is in it."""
        return read_config(self.path / "config.yaml")


def harmless(file: Path) -> bool:
    """What a run never overwrites: hidden files and logs, such as `tee` and `sbatch` leave in the folder."""
    return file.name.startswith(".") or file.name == "lost+found" or file.suffix in (".log", ".out", ".err", ".txt")


def read_config(file: Path) -> dict[str, Any]:
    """What a run has stored of its configuration."""
    try:
        given = yaml.safe_load(file.read_text())
        if not isinstance(given, dict):
            raise ValueError("it holds no options")
        return given
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} is not the configuration of a run ({one_line(error)}); mend it, or choose another output_dir"
        ) from error


def told(holder: str) -> str:
    who = json_of(holder)
    return f"process {who['process']} on {who['host']} since {who['since']}" if len(who) == 3 else "another process"


def json_of(text: str) -> dict[str, Any]:
    """What a lock says, nothing if it was not yet written."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}
