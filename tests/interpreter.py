"""Triton's interpreter, in half the time.

A launch puts the interpreter's functions in place of those of `triton.language`, and takes them out
at its end. Each call of a device function inside of it does the first half again, which changes
nothing and takes as long as the rest of an average kernel.
"""

from __future__ import annotations

from typing import Any

__all__ = ["patch_once_a_launch"]


def patch_once_a_launch() -> None:
    """Device functions, too, use what their kernel's launch has put in place."""
    from triton.runtime.interpreter import InterpretedFunction, InterpreterError

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    InterpretedFunction.__call__ = call
