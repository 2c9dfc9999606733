"""Triton's interpreter, in half the time.

A launch puts the interpreter's functions in place of those of `triton.language`, and takes them out
at its end. Each call of a device function inside of it does the first half again: where that has
been done for the modules that the function sees, it changes nothing, and takes as long as the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["patch_once_a_launch"]


def patch_once_a_launch() -> None:
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[frozenset[str]] = set()

    @cache
    def modules(function: Any) -> frozenset[str]:
        """The names of the language's modules that a function sees, as Triton looks for them."""
        values = function.__globals__.values()
        return frozenset(
            module.__name__
            for module in (interpreter.tl, interpreter.tl.core)
            if any(value is module for value in values)
        )

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    def once(function: Any) -> Any:
        seen = modules(function)
        if seen in patched:
            return None  # of a device function, which does not take the scope
        patched.add(seen)
        return patch(function)

    interpreter.GridExecutor.__call__ = launched
    interpreter._patch_lang = once
