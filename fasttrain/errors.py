"""Errors that end a command in one clear line and an exit status of their own, without a traceback
(`fasttrain.cli`)."""

__all__ = ["Stopped", "TryAgain", "UserError"]


class UserError(ValueError):
    """A mistake in the input. The message names the culprit and the remedy in one line."""


class TryAgain(OSError):
    """What stands in the way passes by itself: the same command, later, goes on."""


class Stopped(Exception):
    """Training was asked to stop, and did so with a checkpoint: the same command goes on."""
