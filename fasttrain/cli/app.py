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
from fasttrain.system.errors import PeerError, Stopped, Unavailable, in_a_line
from fasttrain.system.heap import collect_rarely, keep_memory
from fasttrain.system.talk import verbose
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
    except KeyboardInterrupt:
        sys.exit(130)
    except PeerError as error:
        _fail(str(error), 1)
    except Exception as error:
        line = in_a_line(error)
        if line is None:
            raise
        _fail(str(line), TRY_AGAIN if isinstance(line, Unavailable) else MISTAKE)


def _fail(message: str, status: int = MISTAKE) -> NoReturn:
    if verbose():
        traceback.print_exc()
    for line in message.splitlines():
        print(f"fasttrain: error: {line}", file=sys.stderr)
    sys.exit(status)
