"""The error types of this package: one line that names the culprit and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["DataError", "Unreachable", "VerificationError", "shown"]

_LONGEST = 1000


def shown(text: object) -> str:
    """Text for a terminal, whatever names in it came with the data: on one line, printable (no
    escape codes), and of bounded length; both ends are kept."""
    line = str(text)
    if not line.isprintable():
        line = line.encode("unicode_escape").decode()
    if len(line) > _LONGEST:
        line = f"{line[:480]} ... {line[-480:]}"
    return line


class DataError(ValueError):
    """A mistake that a user can fix; the message is one line: what is wrong and what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(shown(message))


class Unreachable(Exception):
    """A server does not answer, and may later: the message is one line that names it."""

    def __init__(self, message: object) -> None:
        super().__init__(shown(message))


class VerificationError(DataError):
    """A shard set that is not what its index says.

    `problems` holds one line for each thing found; the message is the first of them.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(shown, problems))
        more = len(self.problems) - 1
        super().__init__(self.problems[0] + (f" (and {more} more problems)" if more else ""))
