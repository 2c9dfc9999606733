"""libtiff, which Pillow decodes compressed TIFF files with, says nothing of its own.

    silence()

It prints what is wrong with a file to stderr, beside the one line that a user should see, and
Pillow offers no switch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from PIL import TiffImagePlugin

__all__ = ["silence"]


@cache
def silence() -> None:
    """Take the error handler from the libtiff that this process has loaded, if there is one."""
    assert TiffImagePlugin  # it has loaded libtiff
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libtiff" in line}
    for path in paths:
        library = ctypes.CDLL(path)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
