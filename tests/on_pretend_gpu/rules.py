"""The rules of the pretend GPU, each a function that shows what CUDA allows and what it refuses.

They run on the machine with pretend GPUs, all in one process; `check` is the task. They are in
`device_rules` and `runtime_rules`.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

__all__ = ["RULES", "check", "gpu", "in_child", "mixes", "rule"]

RULES: dict[str, Callable[[], None]] = {}
MIXED = "Expected all tensors to be on the same device"


def rule(function: Callable[[], None]) -> Callable[[], None]:
    """Put a function among the rules."""
    RULES[function.__name__] = function
    return function


def check() -> dict[str, str]:
    """Name of each rule -> an empty string, or the error."""
    for module in ("device_rules", "runtime_rules"):
        importlib.import_module(f"tests.on_pretend_gpu.{module}")
    found = {}
    for name, function in RULES.items():
        try:
            function()
        except BaseException:
            found[name] = traceback.format_exc()
        else:
            found[name] = ""
    return found


def gpu(*values: float, index: int = 0) -> torch.Tensor:
    """Float32 values on a GPU."""
    return torch.tensor(values, dtype=torch.float32, device=f"cuda:{index}")


def mixes(work: Callable[[], Any]) -> None:
    """The work is refused, for it mixes devices."""
    with pytest.raises(RuntimeError, match=MIXED):
        work()


def in_child(work: Callable[[], None], *, fresh: bool) -> int:
    """Exit status of a forked child that does the work: 0, or 1 for an error."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            if fresh:
                from tests.pretend_gpu import fresh as start_afresh

                start_afresh()
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
