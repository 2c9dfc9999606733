"""The one error type for what a user can mend: its message is a single line that says what was
wrong and what to do. `fasttrain.cli` prints that line and exits with status 2, without a traceback.
"""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in the input. The message names the culprit and the remedy in one line."""
