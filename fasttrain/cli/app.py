"""The `fasttrain` command: a function for each verb, each a few lines.

A launcher runs the same with `--module fasttrain` (deepspeed) or `-m fasttrain` (torchrun). A
user's mistake ends in one clear line and exit status 2, without a traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import NoReturn

from fasttrain.cli import look, measure, playground, show, train, use
from fasttrain.cli.options import app
from fasttrain.cli.processes import LEFT_BEHIND, MISTAKE, STOPPED, TRY_AGAIN
from fasttrain.system.errors import Stopped, Unavailable, UserError, is_machine_fault
from fasttrain.system.heap import collect_rarely, keep_memory
from fasttrain.system.talk import verbose
from fasttrain_data.errors import DataError
from fasttrain_data.output import whole_output

__all__ = ["app", "main"]

VERBS = (train, use, measure, show, look, playground)
"""Modules of the verbs, which register with `app` when they are imported."""


def main() -> None:
    """Run the command line; a user's mistake exits with status 2."""
    try:
        _run()
    except BaseException as error:
        if not LEFT_BEHIND:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(error.code if isinstance(error, SystemExit) and type(error.code) is int else 1)


def _run() -> None:
    keep_memory()
    collect_rarely()
    warnings.formatwarning = lambda message, *_, **__: f"fasttrain: warning: {message}\n"
    try:
        with whole_output():
            app(prog_name="fasttrain")
    except Stopped as stopped:
        print(f"fasttrain: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    except Unavailable as error:
        _fail(str(error), TRY_AGAIN)
    except (UserError, DataError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        if is_machine_fault(error):
            _fail(f"{why}; run the same command again", TRY_AGAIN)
        _fail(why)
    except MemoryError as error:
        _fail(f"not enough memory ({error}); run the same command again", TRY_AGAIN)
    except RuntimeError as error:
        # torch, which may not be imported here, has a type for a full GPU and none for a full CPU.
        gpu = type(error).__name__ == "OutOfMemoryError"
        if not gpu and "DefaultCPUAllocator" not in str(error):
            raise
        why = f"not enough memory ({str(error).splitlines()[0]})"
        if gpu:  # the same would not fit again
            _fail(f"{why}; set a smaller micro_batch, or --batch")
        _fail(why, TRY_AGAIN)


def _fail(message: str, status: int = MISTAKE) -> NoReturn:
    if verbose():
        traceback.print_exc()
    for line in message.splitlines():
        print(f"fasttrain: error: {line}", file=sys.stderr)
    sys.exit(status)
