"""How much a command says of what it does: `fasttrain --quiet` or `--verbose`.

if not quiet(): print("resumed at 6,400 images", file=sys.stderr)

It is kept in the environment, so that processes which the command starts say as much. Results,
warnings and errors are said always.
"""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["quiet", "speak", "verbose"]

NAME = "FASTTRAIN_SAYS"
"""The variable; a user may set it, too."""


def speak(how: Literal["less", "more"]) -> None:
    """Say less or more from now on."""
    os.environ[NAME] = how


def quiet() -> bool:
    """Whether progress is left out."""
    return os.environ.get(NAME) == "less"


def verbose() -> bool:
    """Whether every report says all metrics, and a mistake where it was noticed."""
    return os.environ.get(NAME) == "more"
