"""`python -m MODULE` by a fork of a process that has imported everything, instead of a new
interpreter: a launcher, DeepSpeed's two and their ranks import torch five times otherwise.

    command(log, "launch", "--gpus=2", "--", "finetune", ..., before=fork_pythons)

The processes are those of the real thing: the same parents, sessions, environments, signals and
exit statuses. Only what the system keeps of an `exec`, `/proc/PID/cmdline` and `environ`, is that
of the process which all were forked from. `tests/cluster` and `tests/runs/test_deepspeed.py` start
interpreters.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tests.faults.child import do_and_exit

__all__ = ["fork_pythons"]


def fork_pythons() -> None:
    """From now on, in this process and what it forks."""
    subprocess.Popen = Forked  # type: ignore[assignment, misc]


class Forked(subprocess.Popen[Any]):
    """`Popen`, which forks where a module is run by this very interpreter."""

    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        module = _module(args)
        if not module:
            super().__init__(args, *rest, **options)
            return
        environment, session = options.pop("env", None), options.pop("start_new_session", False)
        if rest or options:
            raise TypeError(f"cannot be forked with {rest}, {options}")
        self.args, self.returncode = args, None
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock, self._child_created = threading.Lock(), True
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            do_and_exit(lambda: _be(module, environment, session))


def _module(args: Any) -> Sequence[str]:
    """The module and its arguments; nothing for another command."""
    if isinstance(args, str) or args[0] != sys.executable:
        return ()
    rest = args[2:] if args[1] == "-u" else args[1:]
    return rest[1:] if rest[0] == "-m" else ()


def _be(module: Sequence[str], environment: dict[str, str] | None, session: bool) -> None:
    """What an `exec` would leave: default signals, its own session and environment."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    if session:
        os.setsid()
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.argv = list(module)
    runpy.run_module(module[0], run_name="__main__", alter_sys=True)
