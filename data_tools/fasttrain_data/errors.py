"""The error types of this package: one line that names the culprit and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["DataError", "VerificationError", "WorkerKilled"]


class DataError(ValueError):
    """Something a user can mend; the message is one line: what is wrong and what to do."""


class WorkerKilled(DataError):
    """A process of a conversion was killed: what it has finished is kept for the same command."""


class VerificationError(DataError):
    """A shard set that is not what its index says.

    `problems` holds one line for each thing found; the message is the first of them.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - 1
        super().__init__(self.problems[0] + (f" (and {more} more problems)" if more else ""))
