"""Errors that end a command in one clear line and an exit status of their own, without a traceback
(`fasttrain.cli.app`)."""

import errno

__all__ = ["Stopped", "Unavailable", "UserError", "is_machine_fault"]

MACHINE_FAULTS = {
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "EBUSY", "ENOLCK"),  # for want of it
        *("EIO", "EREMOTEIO", "ENODEV", "ENXIO", "ENOMEDIUM", "ENOTCONN", "ESTALE"),  # disk, mount
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ECOMM", "ENOLINK", "EKEYEXPIRED"),
    )
}


class UserError(ValueError):
    """A mistake in the input. The message names the culprit and the remedy in one line."""


class Unavailable(Exception):
    """A machine, disk, network or process fails, and may work again: the same command goes on then.
    The message names the path or process in one line."""


class Stopped(Exception):
    """Training was asked to stop, and did so with a checkpoint: the same command goes on."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether trying again may help: a want of memory or descriptors, a disk, mount or network that
    fails. A full disk, a missing file or missing rights are the user's to fix."""
    if isinstance(error, OSError):
        return error.errno in MACHINE_FAULTS
    return isinstance(error, MemoryError | Unavailable)
