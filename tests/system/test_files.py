"""Files that another host writes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fasttrain.system.errors import UserError
from fasttrain.system.files import awaited


def test_a_file_that_another_host_has_written_is_waited_for(tmp_path: Path) -> None:
    """A network file system may show it late, and a folder of its own never."""
    path = tmp_path / "base.safetensors"
    writer = threading.Timer(0.3, path.touch)
    writer.start()
    assert awaited(path, 30) == path
    writer.join()
    for other in (tmp_path / "other", tmp_path / "gone" / "other"):
        with pytest.raises(UserError, match=f"^{other}, which process 0 sees, is not there: put"):
            awaited(other, 0.3)
