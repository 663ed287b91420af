"""The folder of a run: one process at a time, also where there are no locks; logs may lie in it, others' files not."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import support

from triptych.training import log, run_folder
from triptych.training.errors import UserError
from triptych.training.run_folder import RunFolder

HOLD = """
import sys, time
from triptych.training.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.__enter__()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=support.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.fault(
    "two processes in one folder", "the second is refused before data is read", "in use by process N on HOST since TIME"
)
def test_a_second_process_is_refused_by_name_until_the_first_is_dead(holder, tmp_path):
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on \S+ since") as refused:
        RunFolder(tmp_path / "run").__enter__()
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunFolder(tmp_path / "run") as folder:
        assert json.loads(folder.lock.read_text())["process"] == os.getpid()
    assert not folder.lock.exists()


def test_a_folder_that_nothing_came_of_is_gone_again(tmp_path):
    with RunFolder(tmp_path / "a" / "run") as folder:
        assert folder.mine()
    assert not (tmp_path / "a").exists()


def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(run_folder, "STALE", 2.0)


@pytest.mark.fault("a file system without locks", "a heartbeat stands for the lock", "in use by process N")
def test_without_locks_a_heartbeat_decides(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    monkeypatch.setattr(run_folder, "BEAT", 0.2)
    with RunFolder(tmp_path / "run"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            RunFolder(tmp_path / "run").__enter__()


@pytest.mark.fault("no heartbeat for two minutes", "the folder is taken over, and the first stops", "nothing")
def test_without_locks_who_shows_no_life_is_taken_for_dead_and_hears_of_it(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    with RunFolder(tmp_path / "run") as first:
        with RunFolder(tmp_path / "run") as second:
            assert second.mine() and not first.mine()
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(
    "a lock of another machine",
    "it is watched before the folder is taken",
    "process 7 on elsewhere since noon may be at work",
)
def test_a_lock_of_another_machine_is_watched(tmp_path, monkeypatch, capsys):
    """Some network disks lock within a machine only."""
    monkeypatch.setattr(run_folder, "STALE", 2.0)
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "noon"}))
    begin = time.monotonic()
    with RunFolder(tmp_path) as folder:
        assert folder.mine() and time.monotonic() - begin > 1
    assert "process 7 on elsewhere since noon may be at work" in capsys.readouterr().out


def test_a_lock_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "STALE", 2.0)
    (tmp_path / ".lock").write_text("{half")
    with RunFolder(tmp_path) as folder:
        assert folder.mine()


@pytest.mark.fault("a log in the run's folder", "accepted", "nothing")
@pytest.mark.parametrize("name", ["train.log", "slurm-17.out", "slurm.err", "notes.txt", ".nfs0001", "lost+found"])
def test_logs_do_not_make_a_folder_somebody_elses(tmp_path, name):
    (tmp_path / name).mkdir() if name == "lost+found" else (tmp_path / name).touch()
    with RunFolder(tmp_path) as folder:
        assert folder.origin(support.config("image", "mae", tmp_path)) is None
    assert (tmp_path / name).exists()


@pytest.mark.fault("a damaged config.yaml in the folder", "refused", "config.yaml is not the configuration of a run")
@pytest.mark.parametrize("content", ["", "null", "- a", "a: [", "\0"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with RunFolder(tmp_path) as folder, pytest.raises(UserError, match="config.yaml is not the configuration of a run"):
        folder.origin(support.config("image", "mae", tmp_path))


@pytest.mark.fault("files of others in the folder", "refused", "other files, by name")
def test_others_files_are_refused_by_name(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with RunFolder(tmp_path) as folder, pytest.raises(UserError, match="other files.*thesis.tex"):
        folder.origin(support.config("image", "mae", tmp_path))


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null", "/dev/null/run"])
def test_a_place_that_cannot_be_written_to(place):
    with pytest.raises(UserError, match=f"output_dir {place}"):
        RunFolder(place).__enter__()


@pytest.mark.fault("no git on the machine", "the run starts; its commit is unknown", "nothing")
def test_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert log.environment({})["git_commit"] is None
