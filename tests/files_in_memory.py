"""Temporary files in memory: on a disk with a journal a folder takes up to 4 ms to remove and a
file 0.3 ms to make, in memory a hundredth of that."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["use_memory_for_files"]

MEMORY = Path("/dev/shm")
NEEDED = 4 << 30
"""Bytes. The whole suite had up to 0.6 GB at a time."""


def use_memory_for_files() -> None:
    """Put this process's and its children's temporary files into memory, if there is room for them
    and nobody has chosen another place (`TMPDIR`)."""
    if os.environ.get("TMPDIR") or not MEMORY.is_dir():
        return
    if min(shutil.disk_usage(MEMORY).free, _available()) < NEEDED:
        return
    folder = MEMORY / f"fasttrain-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _available() -> int:
    """Bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) << 10
