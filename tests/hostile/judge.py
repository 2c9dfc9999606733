"""A case is built by one forked process and read by another, whose every action is looked at: what
it printed, what memory it took, which files there are afterwards, and Python's audit events for
whatever runs a program, loads a pickle or opens a file to write outside the folder that was named.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain_data import run_conversion
from fasttrain_data.cli import main
from tests.hostile.cases import CONVERT, INDEX, INFO, VERIFY, Case, write
from tests.hostile.confined import bound_memory
from tests.hostile.files import image

__all__ = ["Judge", "Verdict", "in_a_child", "memory_held", "size_of"]

RUNS_SOMETHING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "pickle.find_class",
    "socket.connect",
    "socket.bind",
    "urllib.Request",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TIMEOUT = 300


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        status, line: exit status, and the first line that it printed that is not of a progress bar.
        problems: what must not be: an empty list.
        bytes: size of the files on disk.
        megabytes, seconds: memory taken on top of what the process had before, and time.
    """

    status: int
    line: str
    problems: list[str]
    bytes: int
    megabytes: float
    seconds: float


class Judge:
    """Judges cases in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        _warm_up()
        # What each command takes for sound files, code that it loads for one, counts for no case.
        self._usual: dict[str, float] = {}
        for command, make in (
            (CONVERT, _sound_images),
            (VERIFY, _sound_set),
            (INFO, _sound_set),
            (INDEX, _sound_set),
        ):
            case = Case(
                group="", what="", make=make, command=command, expect="", status=0, megabytes=256
            )
            verdict = self(case)
            assert not verdict.problems, verdict.problems
            self._usual[command[0]] = verdict.megabytes

    def __call__(self, case: Case) -> Verdict:
        """Build a case in a new folder, run its command there, and look at what came of it."""
        self._count += 1
        folder = self.folder / f"case-{self._count}"
        folder.mkdir()
        in_a_child(lambda: bool(case.make(folder)))
        (folder / "tmp").mkdir()
        size, before = size_of(folder), set(_listing(self.folder))
        status, seconds, megabytes, events = in_a_child(lambda: _run(case, folder))
        megabytes = max(0.0, megabytes - self._usual.get(case.command[0], 0.0))
        text = (folder / "err").read_text(errors="replace") + (folder / "out.txt").read_text()
        text = text.replace(f"{folder}/", "").replace("fasttrain-data: ", "")
        problems = [*events, *_wrong(case, status, text, megabytes)]
        for path in sorted(set(_listing(self.folder)) - before):
            own = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else ""
            if own not in ("out", "out.txt", "err"):
                problems.append(f"made {path}")
        try:
            shutil.rmtree(folder)
        except (OSError, RecursionError):  # folders that are nested deeper than it goes
            subprocess.run(["rm", "-rf", str(folder)], check=True)
        return Verdict(status, text.split("\n")[0], problems, size, megabytes, seconds)


def _wrong(case: Case, status: int, text: str, megabytes: float) -> Iterator[str]:
    if status != case.status:
        yield f"status {status}, expected {case.status}: {text[-2000:]}"
    if case.expect not in text:
        yield f"printed {text[:300]!r}, expected {case.expect!r}"
    if megabytes > case.megabytes:
        yield f"took {megabytes:.0f} MB, allowed are {case.megabytes}"
    if not text.replace("\n", "").isprintable():
        yield f"printed {text!r}"


def _sound_images(folder: Path) -> None:
    write(folder / "in/a/x.png", image())


def _sound_set(folder: Path) -> None:
    write(folder / "images/a/x.png", image())
    run_conversion(folder / "images", folder / "in")


def _warm_up() -> None:
    """Import what every command needs."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None), redirect_stderr(None):
        _sound_set(Path(folder))
        for command in (VERIFY, INFO):
            sys.argv = ["fasttrain-data", *command]
            with suppress(SystemExit), chdir(folder):
                main()


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.lstat().st_size for path in _listing(folder) if path.is_file())


def _listing(folder: Path) -> list[Path]:
    return [
        Path(where) / name for where, folders, files in _walk(folder) for name in folders + files
    ]


def _walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """As `os.walk`, for folders that are nested deeper than it goes."""
    waiting, found = [str(folder)], []
    while waiting:
        where = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            for entry in os.scandir(where):
                is_folder = entry.is_dir(follow_symlinks=False)
                (folders if is_folder else files).append(entry.name)
        except OSError:  # a path that is too long
            continue
        waiting += [f"{where}/{name}" for name in folders]
        found.append((where, folders, files))
    return found


def in_a_child(work: Callable[[], Any]) -> Any:
    """The value, as JSON, of a function that a forked process calls."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(receive)
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"failed": traceback.format_exc()})
        os.write(send, answer.encode()[:60_000])
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found = json.loads(text) if text else {"failed": "the process died"}
    if isinstance(found, dict):
        raise RuntimeError(found["failed"])
    return found


def _run(case: Case, folder: Path) -> tuple[int, float, float, list[str]]:
    """Run the command in this process; status, seconds, megabytes, and what it should not do."""
    os.chdir(folder)
    tempfile.tempdir = str(folder / "tmp")
    os.fsync = lambda fd: None  # waiting for a disk says nothing here
    for name, descriptor in (("out.txt", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
    sys.argv = ["fasttrain-data", *case.command]
    warnings.resetwarnings()
    for kind in (ResourceWarning, DeprecationWarning):  # as an interpreter starts
        warnings.simplefilter("ignore", kind)
    events = _audited(folder)
    bound_memory(case.megabytes + 64)
    before, began, status = memory_held(), time.perf_counter(), 0
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = -1
    seconds, megabytes = time.perf_counter() - began, (memory_held() - before) / 1e3
    sys.stdout.flush()
    sys.stderr.flush()
    return status, seconds, megabytes, sorted(set(events))


def memory_held() -> int:
    """Most memory that this process, or one of its children, has held, in kB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds)


def _audited(folder: Path) -> list[str]:
    """Collects what this process does from now on that no reader may do."""
    events: list[str] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS_SOMETHING:
            events.append(f"{event} {arguments[:2]}")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = arguments
            writes = flags & WRITES if isinstance(flags, int) else False
            if writes and not _allowed(Path(os.path.abspath(os.fsdecode(path))), folder):
                events.append(f"opens {os.fsdecode(path)} to write ({mode}, {flags})")

    sys.addaudithook(look)
    return events


def _allowed(path: Path, folder: Path) -> bool:
    if path == Path("/dev/null"):
        return True
    if not path.is_relative_to(folder):
        return False
    first = path.relative_to(folder).parts[:1]
    return bool(first) and (first[0] in ("tmp", "out") or first[0].startswith(".out.partial-"))
