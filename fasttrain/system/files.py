"""Files in a directory from an untrusted source: a run that was downloaded, unpacked, shared.

    record = read_json(run / "audit.json")       # a mapping, or one line that names the file
    with create(run / "report.html.tmp") as file: ...

Only regular files of a bounded size are read: a FIFO does not hang, a device does not fill the
memory, JSON nested a million deep ends in a line like any other damage. Writing stays inside the
directory: a file is created, never opened through a link at its name. Reading follows links to
files, because published snapshots consist of them; the directory itself may be a link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain_data.errors import DataError
from fasttrain_data.tables import read_json as parse_json

__all__ = [
    "awaited",
    "create",
    "open_plain",
    "own_folder",
    "plain",
    "probe",
    "read_bytes",
    "read_json",
    "sha256",
    "write_atomic",
]


MAX_BYTES = 64 << 20


MAX_VALUES = 1 << 20
"""Limit of a JSON file, in bytes."""


OPEN = os.O_CLOEXEC | os.O_NONBLOCK


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Content of a regular file. Raises UserError for another kind or a larger file, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | OPEN)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device without a driver
            raise UserError(f"{path} is not a regular file") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file")
    with open(descriptor, "rb") as file:
        content = file.read(most + 1) if status.st_size <= most else b" " * (most + 1)
    if len(content) > most:
        raise UserError(f"{path} is larger than {most:,} bytes, the limit for it")
    return content


def read_json(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError, in one line, if there is none; OSError."""
    try:
        value = parse_json(read_bytes(path, most), path, most=MAX_VALUES)
    except DataError as error:
        raise UserError(str(error)) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a mapping")
    return value


def create(path: Path) -> BinaryIO:
    """A new file, opened for writing; a file or link at its name is removed first. Raises
    OSError."""
    with suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | OPEN
    return open(os.open(path, flags, 0o666), "wb")


def open_plain(path: Path, flags: int) -> int:
    """Descriptor of a file that is kept open or written in place; created if it does not exist.

    Raises UserError when it is a link, has another name too, or is not a regular file; OSError.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | OPEN, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"{path} is not a regular file: remove it") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        why = "has another name, too" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise UserError(f"{path} {why}: remove it")
    return descriptor


def touch(path: Path) -> None:
    """Create an empty file, or set the time of an existing one. Raises UserError, OSError."""
    descriptor = open_plain(path, os.O_WRONLY)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def own_folder(path: Path) -> None:
    """Create a folder inside a run directory. Raises UserError as `refuse_link` does, OSError."""
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)


def refuse_link(folder: Path) -> None:
    """Raise UserError for a link at the name of a folder inside a run directory, because files
    written there would end up elsewhere."""
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a symbolic link, and nothing is written through one: remove it, or make "
            f"the run directory itself the link"
        )


def remove(path: Path) -> None:
    """Delete a file, a folder with its content, or a link but not its target; what cannot be
    deleted stays."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def plain(name: str) -> str:
    """A foreign name, safe to print: in one line, and without a terminal's escape codes."""
    return (name if name.isprintable() else ascii(name))[:100]


def one_line(value: Any) -> str:
    """Foreign text, escaped for a line or table cell of Markdown: no rows, headings or tags."""
    printed = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(printed.split())[:300].replace("|", "\\|").replace("<", "&lt;")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, completely or not at all. A link at its name is replaced; its
    target stays unchanged."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with create(beside) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        sync(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def probe(path: Path) -> None:
    """Make the folder of a file that is the result of long work. Raises UserError when the file
    could not be written there."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write")
    beside = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create(beside).close()
    except OSError as error:
        if is_machine_fault(error):
            raise
        why = error.strerror
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            above = next(p for p in (path.parent, *path.parent.parents) if p.exists())
            why = f"{above} is not a folder"
        raise UserError(f"cannot write {path}: {why}") from None
    beside.unlink(missing_ok=True)


def awaited(path: Path, seconds: float = 60) -> Path:
    """The path of a file in the run directory that another process has written, maybe just now and
    on another host: NFS may remember for a minute that there was none, unless the folder is read.

    Raises UserError when it does not come.
    """
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() >= until:
            raise UserError(
                f"{path}, which process 0 sees, is not there: put the run directory on a file "
                f"system that all hosts share"
            )
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a folder (a rename reaches the disk only with its folder)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)
