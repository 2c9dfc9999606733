"""Errors that end a command in one clear line and a specific exit status, without a traceback
(`fasttrain.cli.app`)."""

import errno

from fasttrain_data.errors import DataError

__all__ = ["PeerError", "Stopped", "Unavailable", "UserError", "for_others", "in_a_line"]
__all__ += ["is_machine_fault"]

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


class PeerError(Exception):
    """An unexpected error of another process, which shows its traceback there."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether another attempt may succeed: no memory or descriptors left, a failing disk, mount or
    network. A full disk, a missing file or missing permissions are for the user to fix."""
    if isinstance(error, OSError):
        return error.errno in MACHINE_FAULTS
    return isinstance(error, MemoryError | Unavailable)


def in_a_line(error: BaseException) -> UserError | Unavailable | None:
    """An error as the line and the exit status that end a command; None for an unexpected one,
    whose traceback is needed."""
    if isinstance(error, UserError | Unavailable):
        return error
    if isinstance(error, DataError):
        return UserError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        if is_machine_fault(error):
            return Unavailable(f"{why}; run the same command again")
        return UserError(why)
    if isinstance(error, MemoryError):
        return Unavailable(f"not enough memory ({error}); run the same command again")
    # torch, which may not be imported here, has a type for a full GPU and none for a full CPU.
    gpu = type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, RuntimeError) and (gpu or "DefaultCPUAllocator" in str(error)):
        why = f"not enough memory ({str(error).splitlines()[0]})"
        if gpu:  # the same would not fit again
            return UserError(f"{why}; set a smaller micro_batch, or --batch")
        return Unavailable(f"{why}; run the same command again")
    return None


def for_others(error: Exception, host: str = "") -> Exception:
    """An error as other processes raise it: of the same exit status, and of a type that can be
    sent.

    host: of the process, which the line then begins with.
    """
    where = f"{host}: " if host else ""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{where}{error.strerror}", error.filename)
    for kind in (OSError, Stopped, Unavailable, DataError, UserError, PeerError):
        if isinstance(error, kind):
            return kind(f"{where}{error}")
    line = in_a_line(error)
    if line is not None:
        return type(line)(f"{where}{line}")
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return PeerError(f"{where}a process ended with {what}; its traceback is beside this")
