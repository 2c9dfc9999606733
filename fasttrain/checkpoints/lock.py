"""One command at a time trains in a run directory; others may ask it to stop.

    lock = Lock(run)            # UserError: in use; Unavailable: its holder seems to be gone
    lock.sign()                 # names the holder; earlier requests to stop are void
    while not lock.asked_to_stop(): ...
    lock.release()

The kernel's lock on the file `lock` decides, and ends with the processes that hold it; on a shared
file system the server may keep it for a while after their host has died. The file's content is for
people, and for distinguishing a live holder from a dead one: a process of this host is looked up,
one of another host shows that it is alive by updating the file's time.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from fasttrain.system.errors import Unavailable, UserError
from fasttrain.system.files import open_plain, touch

__all__ = ["PATIENCE", "Lock", "ask_to_stop", "holder", "wait_until_free"]

PATIENCE = 30.0
"""Seconds to wait for a lock whose holder shows no sign of life."""
BEAT = 5.0
"""Least time between two such signs, in seconds: they come with the iterations."""
PAUSE = 0.2


def ask_to_stop(run: Path) -> None:
    """Ask the training there to stop at the end of the iteration. Raises OSError, UserError."""
    touch(run / "stop")


class Lock:
    """The exclusive right to train in a directory, until `release` or the process's end.

    patience: seconds to wait for a holder that shows no sign of life; default: PATIENCE.

    Raises UserError at once when another command trains there, Unavailable when the lock is held by
    an unknown process; OSError. On a file system without locks there is no protection.
    """

    def __init__(self, run: Path, patience: float | None = None) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path, self.stop = run / "lock", run / "stop"
        self.file = open(open_plain(self.path, os.O_RDWR), "r+b", buffering=0)  # noqa: SIM115
        self.beaten = time.monotonic()
        self.void: tuple[int, ...] | None = None
        try:
            self._take(PATIENCE if patience is None else patience)
        except BaseException:
            self.release()
            raise

    def _take(self, patience: float) -> None:
        until = time.monotonic() + patience
        file = self.file.fileno()
        sign = os.fstat(file).st_mtime_ns
        while not _held(file):
            holder = os.pread(file, 1000, 0).decode(errors="replace")
            name = holder.partition("\n")[0].strip() or "another process"
            if _lives(holder) or os.fstat(file).st_mtime_ns != sign:
                raise UserError(
                    f"{self.path.parent} is being trained by {name}: wait for it, or choose "
                    f"another run=DIR"
                )
            if time.monotonic() >= until:
                raise Unavailable(
                    f"{self.path.parent} is in use by {name}, which has shown no sign of life for "
                    f"{patience:g} s: when it is gone, the same command resumes the run"
                )
            time.sleep(PAUSE)

    def sign(self) -> None:
        """Write the holder's name, and void earlier requests to stop."""
        self.file.truncate(0)
        self.file.write(f"{_name(os.getpid())}\n{_born(os.getpid())}\n".encode())
        with suppress(OSError):
            self.stop.unlink()
        self.void = self._wish()

    def asked_to_stop(self) -> bool:
        """Whether there is a stop file that was absent, or another one, when the lock was signed:
        no clocks are compared. Also shows that this process is alive."""
        now = time.monotonic()
        if now - self.beaten >= BEAT:
            self.beaten = now
            with suppress(OSError):
                os.utime(self.file.fileno())
        return self._wish() not in (None, self.void)

    def _wish(self) -> tuple[int, ...] | None:
        try:
            status = self.stop.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    def release(self) -> None:
        """Release the directory for another command."""
        self.file.close()


def wait_until_free(run: Path, seconds: float) -> bool:
    """Whether the lock of a directory is free, or becomes free within this time."""
    until = time.monotonic() + seconds
    try:
        file = os.open(run / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True  # the next command reports the error
    try:
        while not _held(file):
            if time.monotonic() >= until:
                return False
            time.sleep(PAUSE)
        return True
    finally:
        os.close(file)


def holder(run: Path) -> str | None:
    """Who trains in a directory, as `process N on HOST`; None when nobody holds its lock."""
    try:
        file = os.open(run / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, and let go at once: a training that starts now waits that long for it.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        name = os.pread(file, 300, 0).decode(errors="replace").partition("\n")[0]
        return "".join(c for c in name if c.isprintable())[:100] or "another process"
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _held(file: int) -> bool:
    """Whether this process now holds the lock of an open file, or there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _name(pid: int) -> str:
    return f"process {pid} on {socket.gethostname()}"


def _born(pid: int) -> str:
    """Start time of a process of this host, because its number is reused later; empty when there is
    none, or it is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _lives(holder: str) -> bool:
    """Whether a lock's holder is a running process of this host."""
    name, _, born = holder.partition("\n")
    pid = name.removeprefix("process ").partition(" ")[0]
    if not (pid.isdecimal() and len(pid) < 10 and name == _name(int(pid))):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's process
    return _born(int(pid)) == born.strip()
