"""Further attempts after a fault of the machine or the network.

index = patiently(lambda: load_index(folder), attempts=5, what=folder)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fasttrain.system.errors import Unavailable, is_machine_fault
from fasttrain_data import DataError
from fasttrain_data.fetching import pause

__all__ = ["patiently", "pause"]

T = TypeVar("T")


def patiently(work: Callable[[], T], attempts: int, what: object) -> T:
    """The value of `work()`, tried again after faults of the machine.

    Raises Unavailable, naming `what`, after the last attempt, and all other errors of `work`.
    """
    attempt = 1
    while True:
        try:
            return work()
        except (DataError, OSError) as error:
            cause = error.__cause__ if isinstance(error, DataError) else error
            if cause is None or not is_machine_fault(cause):
                raise
            if attempt == attempts:
                why = str(error) if cause is not error else f"cannot read {what}: {error}"
                raise Unavailable(f"{why} ({attempt} attempts)") from error
        time.sleep(pause(attempt))
        attempt += 1
