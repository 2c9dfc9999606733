"""One machine with two pretend GPUs for all these tests, and a small shard set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.on_pretend_gpu.machine import Machine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    found = Machine(tmp_path_factory.mktemp("pretend-gpu"))
    yield found
    found.close()
