"""What hundreds of small runs of one process, and of those forked from it, need not make again."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer.main

from fasttrain.evaluation.lite2 import Lite2

__all__ = ["EXTRACTOR", "keep_command_lines"]

EXTRACTOR = cache(Lite2.load)
"""In place of `Lite2.load`: its network is frozen, so one serves all; a tenth of a small run."""


def keep_command_lines() -> None:
    """Typer's commands are built once from an app's functions, instead of at each call."""
    build: Any = typer.main.get_command
    if not hasattr(build, "cache_info"):
        typer.main.get_command = cache(build)
