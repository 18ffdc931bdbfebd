"""One process at a time: alive or dead, of this machine or another, where nothing can be locked."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from shared.runtime import lock
from shared.runtime.errors import CannotWriteError, UserError
from shared.runtime.lock import BusyError, clear, held, release, release_all, require_held, take

HOLD = """
import sys, time
from pathlib import Path
from shared.runtime.lock import take
take(Path(sys.argv[1]))
print("has it", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def gives_back():
    yield
    release_all()


@pytest.fixture
def other(tmp_path):
    """Another process, which has the lock of ``tmp_path/run/pretrain``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run/pretrain")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def note(**changes) -> str:
    """What a process of another machine has noted."""
    there = {"host": "elsewhere", "boot": "b", "space": "s", "pid": 7, "started": 1.0}
    return json.dumps({**there, "since": "2026-11-26 07:30:12", **changes})


def lock_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / ".pretrain.lock"
    file.write_text(text)
    return file


def test_a_lock_is_there_while_it_is_held(tmp_path):
    path = tmp_path / "run/pretrain"
    assert take(path)
    assert not take(path)  # by the same process once more
    file = tmp_path / "run/.pretrain.lock"
    assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not path.exists()
    with held(path):
        pass
    assert file.exists()  # of who had it before
    release(path)
    assert not file.exists()
    with held(path):
        assert file.exists()
    assert not file.exists()
    release(path)


def test_a_lock_goes_although_the_working_folder_has_gone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with held(Path("../run")):
        (tmp_path / "here").rmdir()
    monkeypatch.chdir(tmp_path)
    assert not (tmp_path / ".run.lock").exists()


def test_who_works_there_is_said_and_a_killed_process_holds_nothing(tmp_path, other):
    path = tmp_path / "run/pretrain"
    with pytest.raises(BusyError) as refused:
        take(path)
    assert f"{path} is in use: process {other.pid} on {socket.gethostname()}" in str(refused.value)
    assert time.strftime("since %Y-%m-%d ") in str(refused.value)
    assert "another --run" in str(refused.value)
    assert take(path.with_name("finetune"))  # each folder has its own
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run/.pretrain.lock").exists()
    assert take(path)


def test_patience(tmp_path, other):
    other.send_signal(signal.SIGSTOP)  # still there, and silent
    with pytest.raises(BusyError):
        take(tmp_path / "run/pretrain", patience=0.2)
    other.kill()
    assert take(tmp_path / "run/pretrain", patience=10)


def test_a_forked_process_has_not_the_locks_of_its_parent(tmp_path):
    take(tmp_path / "pretrain")
    child = os.fork()
    if not child:
        try:
            take(tmp_path / "pretrain")
        except BusyError:
            os._exit(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert lock._held  # nor does its end give them back


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\xff", note(boot=lock._own_note()["boot"])])
def test_what_a_dead_process_of_this_machine_left_is_taken_over(tmp_path, text):
    file = lock_file(tmp_path, text)
    assert take(tmp_path / "pretrain")
    assert json.loads(file.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("change", "is_left"),
    [
        ({}, False),
        ({"pid": 2**22 - 1}, True),
        ({"started": 5.0}, True),
        ({"pid": 2**22 - 1, "boot": "another"}, False),
        ({"pid": 2**22 - 1, "space": "another"}, False),
        (None, False),
    ],
)
def test_what_a_dead_process_left_is_cleared(tmp_path, change, is_left):
    """What a process of another machine, or one that is alive, has left stays."""
    file = tmp_path / ".x.lock"
    file.write_text("" if change is None else json.dumps({**lock._own_note(), **change}))
    clear(tmp_path / "x")
    clear(tmp_path / "none")
    assert [*tmp_path.iterdir()] == ([] if is_left else [file])


def test_an_own_lock_is_not_cleared(tmp_path):
    take(tmp_path / "x")
    clear(tmp_path / "x")
    require_held(tmp_path / "x")


@pytest.mark.parametrize("alive", [True, False])
def test_another_machine_is_watched(tmp_path, alive, monkeypatch, capsys):
    """Where its file system locks within each machine alone, the lock is free here."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    file = lock_file(tmp_path, note())
    touched = iter(range(100))
    if alive:
        monkeypatch.setattr(lock, "_touched", lambda _: next(touched))
        with pytest.raises(BusyError, match="process 7 on elsewhere has worked there since 2026"):
            take(tmp_path / "pretrain")
        assert file.read_text() == note()
    else:
        assert take(tmp_path / "pretrain")
    assert "process 7 on elsewhere" in capsys.readouterr().err


def test_the_holder_shows_that_it_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    monkeypatch.setattr(lock, "_pulse", None)
    take(tmp_path / "pretrain")
    file = tmp_path / ".pretrain.lock"
    os.utime(file, (1, 1))
    deadline = time.monotonic() + 10
    while file.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.stat().st_mtime > 2


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock(tmp_path, reason, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    own, parent = lock._own_note(), psutil.Process(os.getppid())
    alive = {**own, "pid": parent.pid, "started": parent.create_time()}
    file = lock_file(tmp_path, note(**alive))
    with pytest.raises(BusyError, match=f"process {parent.pid}"):
        take(tmp_path / "pretrain")
    file.write_text(note(**{**alive, "started": 5.0}))  # the number went to another process
    assert take(tmp_path / "pretrain")
    assert "cannot lock" in capsys.readouterr().err
    release(tmp_path / "pretrain")
    assert not file.exists()


@pytest.fixture
def cannot_lock(monkeypatch):
    """A file system that cannot lock."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)


def test_only_an_own_note_is_removed(tmp_path, cannot_lock):
    path = tmp_path / "pretrain"
    take(path)
    file = lock_file(tmp_path, note())  # another process took over
    release(path)
    assert file.read_text() == note()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("loss", ["overwritten", "another file", "gone"])
def test_a_process_that_was_silent_learns_that_it_lost_the_lock(tmp_path, loss, locks, request):
    if not locks:
        request.getfixturevalue("cannot_lock")
    path = tmp_path / "pretrain"
    take(path)
    require_held(path)
    file = tmp_path / ".pretrain.lock"
    if loss != "overwritten":
        file.unlink()
    if loss != "gone":
        file.write_text(note())
    with pytest.raises(UserError, match="another process took over"):
        require_held(path)
    release(path)
    assert file.exists() == (loss != "gone")
    require_held(path)  # what was never taken, or given back, is not asked for


def test_a_lost_lock_gets_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    monkeypatch.setattr(lock, "_pulse", None)
    take(tmp_path / "pretrain")
    file = lock_file(tmp_path, note())
    os.utime(file, (1, 1))
    time.sleep(0.2)
    assert file.stat().st_mtime == 1


def test_the_sign_of_life_does_not_disturb_who_asks(tmp_path, monkeypatch):
    """Both read the note by one descriptor, at the same time."""
    take(tmp_path / "pretrain")
    (own,) = lock._held.values()
    seek = os.lseek
    monkeypatch.setattr(os, "lseek", lambda *where: (seek(*where), time.sleep(0.001)))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: lock._is_ours(own), range(50)))


def test_who_comes_while_the_first_writes_its_note(tmp_path, cannot_lock, monkeypatch):
    """The first one made the file; it is empty, and so nobody's yet."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    file = lock_file(tmp_path, "")
    parent = psutil.Process(os.getppid())
    alive = {**lock._own_note(), "pid": parent.pid, "started": parent.create_time()}
    writer = threading.Timer(0.1, file.write_text, [note(**alive)])
    writer.start()
    with pytest.raises(BusyError, match=f"process {parent.pid}"):
        take(tmp_path / "pretrain")
    writer.join()


@pytest.mark.parametrize("text", ["", note(boot=lock._own_note()["boot"])])
def test_what_a_colleague_left_can_be_read_alone(tmp_path, text, monkeypatch):
    file, real = lock_file(tmp_path, text), os.open
    inode = file.stat().st_ino

    def refuse(name, flags, *mode):
        if flags & os.O_RDWR and os.path.exists(name) and os.stat(name).st_ino == inode:
            raise FileExistsError if flags & os.O_EXCL else PermissionError(errno.EACCES, "denied")
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with file.open():  # so that the new file has another number
        assert take(tmp_path / "pretrain")
    assert json.loads(file.read_text())["pid"] == os.getpid()
    assert file.stat().st_ino != inode


def test_a_colleague_who_is_alive_is_not_robbed(tmp_path, other, monkeypatch):
    real = os.open

    def refuse(name, flags, *mode):
        if flags & os.O_RDWR and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, "denied")
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BusyError, match=f"process {other.pid}"):
        take(tmp_path / "run/pretrain", advice="choose another -o")
    assert (tmp_path / "run/.pretrain.lock").exists()


def test_the_advice_is_the_callers_and_waiting_is_said(tmp_path, other, monkeypatch, capsys):
    monkeypatch.setattr(lock, "QUIET", 0.0)
    with pytest.raises(BusyError, match=r"or choose another -o$"):
        take(tmp_path / "run/pretrain", 0.3, "choose another -o")
    assert capsys.readouterr().err.count("waiting for ") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match=r"or choose another -o$"):
        take(tmp_path / "file/x", advice="choose another -o")


def test_a_link_a_pipe_and_a_folder_are_refused(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "pretrain").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        take(tmp_path / "pretrain")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.lock").symlink_to(victim)
    os.mkfifo(tmp_path / ".b.lock")
    (tmp_path / ".c.lock").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "file/x"):
        with pytest.raises(CannotWriteError, match="cannot write"):
            take(path)
    assert victim.read_text() == "precious"


def test_names_in_a_lock_file_do_not_reach_the_terminal(tmp_path):
    text = lock._who(json.loads(note(host="\x1b[31mred\nnext", since="\x1b[1m2026")))
    assert text == "process 7 on 31mrednext has worked there since 12026"
