"""Errors that end a command in one clear line and a specific exit status, without a traceback
(`fasttrain.cli.app`)."""

import errno

__all__ = ["Stopped", "Unavailable", "UserError", "is_machine_fault"]

MACHINE_FAULTS = {
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "EBUSY", "ENOLCK"),  # not enough of it
        *("EIO", "EREMOTEIO", "ENODEV", "ENXIO", "ENOMEDIUM", "ENOTCONN", "ESTALE"),  # disk, mount
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ECOMM", "ENOLINK", "EKEYEXPIRED"),
    )
}


class UserError(ValueError):
    """A mistake in the input. The message names the culprit and the remedy in one line."""


class Unavailable(Exception):
    """A temporary failure of a machine, disk, network or process; the same command then resumes.
    The message names the path or process in one line."""


class Stopped(Exception):
    """Training stopped on request, with a checkpoint; the same command resumes it."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether another attempt may succeed: no memory or descriptors left, a failing disk, mount or
    network. A full disk, a missing file or missing permissions are for the user to fix."""
    if isinstance(error, OSError):
        return error.errno in MACHINE_FAULTS
    return isinstance(error, MemoryError | Unavailable)
