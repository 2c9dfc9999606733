"""Standard output that its reader closes, or a disk has no room for, before a command has ended.

with whole_output():
    app()
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["whole_output"]


@contextmanager
def whole_output() -> Iterator[None]:
    """Around a command line. A reader that has enough of it, such as `head`, ends the command with
    status 0. Raises OSError for what cannot be written, which would else be found, and said in the
    interpreter's own words, when the process ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of a class that the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        os._exit(0)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer's way to end then
            os._exit(0)
        _flush()
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _flush()
        raise


def _flush() -> None:
    if sys.stdout is None:  # closed from the first
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)
    except OSError:
        sys.stdout = None  # not tried again at the process's end
        raise
