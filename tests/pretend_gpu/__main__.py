"""`python -m pretend_gpu SCRIPT|-m MODULE ARGS...`: a command with PRETEND_GPUS GPUs, one of none.

Triton's kernels run under its interpreter unless TRITON_INTERPRET says otherwise.
"""

from __future__ import annotations

import os
import runpy
import sys

from .install import install


def main() -> None:
    """Install, and be the command."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    del sys.argv[0]
    if not sys.argv or sys.argv == ["-m"]:
        sys.exit("usage: python -m pretend_gpu SCRIPT|-m MODULE ARGS...")
    install(gpus=int(os.environ.get("PRETEND_GPUS", "1")))
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
