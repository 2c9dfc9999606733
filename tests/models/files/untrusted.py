"""What the tests of reading untrusted files share."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fasttrain.models.files.model_file import read_model_file
from fasttrain.system.errors import UserError


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """Allocations beyond so much more than there is now fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def assert_refused(path: Path, why: str) -> None:
    """In one line that begins with the file's name, and with little memory."""
    with little_memory(256), pytest.raises(UserError, match=why) as caught:
        read_model_file(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert message.startswith(str(path))
