"""`fasttrain doctor`: checks of this machine, with a remedy for each problem.

    healthy = examine()          # prints a line for each check

A line says `ok`, `warn` (something is missing that only some uses need) or `fail` (fasttrain cannot
work). It claims only what was tried: a library that was not imported is called installed, not
working. A check that raises is a failure, never a traceback.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from fasttrain.cli.doctor.line import Check, Line, print_line
from fasttrain.cli.doctor.machine import (
    check_deepspeed,
    check_launchers,
    check_libraries,
    check_python,
    check_torch,
    check_triton,
    check_webdataset,
)
from fasttrain.cli.doctor.weights import check_weights

__all__ = ["examine"]


LITTLE_SPACE = 2 << 30
"""Free disk space, in bytes, below which there is a warning."""


def examine() -> bool:
    """Print a line for each check; returns whether fasttrain can work here."""
    console = Console()
    healthy = True
    for name, check in CHECKS.items():
        for line in _guarded(name, check):
            print_line(console, line)
            healthy = healthy and line.status != "fail"
    print("fasttrain can work here" if healthy else "fasttrain cannot work here: see `fail` above")
    return healthy


def _guarded(name: str, check: Check) -> Iterator[Line]:
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Line("fail", name, str(error), f"pip install {error.name}")
    except Exception as error:  # the broken part is what the user needs to see
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Line("fail", name, reason, "pip install --force-reinstall fasttrain")


def _recipes() -> Iterator[Line]:
    from fasttrain.settings.recipes import recipe_names

    names = recipe_names()
    if not names:
        remedy = "pip install --force-reinstall fasttrain, or name recipes by path"
        yield Line("fail", "recipes", "none found", remedy)
        return
    yield Line("ok", "recipes", ", ".join(names))


def _storage() -> Iterator[Line]:
    here = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".fasttrain-doctor-") as file:
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = f"{here} cannot be written: {error.strerror}"
        yield Line("fail", "write access", reason, "run in another folder, or set run=DIR")
    else:
        yield Line("ok", "write access", f"{here}, a file was written and deleted")
    free = shutil.disk_usage(here).free
    space = f"{free / 2**30:.1f} GiB free"
    if free < LITTLE_SPACE:
        yield Line(
            "warn", "disk space", space, "free space: checkpoints of large networks need GBs"
        )
    else:
        yield Line("ok", "disk space", space)


CHECKS: dict[str, Check] = {
    "Python": check_python,
    "libraries": check_libraries,
    "torch": check_torch,
    "triton": check_triton,
    "deepspeed": check_deepspeed,
    "webdataset": check_webdataset,
    "weights": check_weights,
    "recipes": _recipes,
    "write access": _storage,
    "launchers": check_launchers,
}
