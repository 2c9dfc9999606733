"""A machine without room in /dev/shm.

if not fill_shared_memory():
    ...  # nothing may be mounted here
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

__all__ = ["fill_shared_memory"]

CLONE_NEWNS = 0x20000  # <linux/sched.h>
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # <linux/mount.h>


def fill_shared_memory() -> bool:
    """For this process and its children, /dev/shm has one page, and that is taken; temporary files
    stay where they are, also if that is within it. False where nothing may be mounted."""
    libc, temporary = ctypes.CDLL(None), Path(tempfile.gettempdir())
    if libc.unshare(CLONE_NEWNS):
        return False
    assert not libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    kept = os.open(temporary, os.O_PATH)
    assert not libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4k")
    if not temporary.exists():
        temporary.mkdir()
        within = f"/proc/self/fd/{kept}".encode()
        assert not libc.mount(within, bytes(temporary), None, MS_BIND, None)
    Path("/dev/shm/full").write_bytes(b"x" * 4096)
    return True
