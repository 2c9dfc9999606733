"""Files that another host writes."""

from __future__ import annotations

import threading
from pathlib import Path

from fasttrain.system.files import appears


def test_a_file_that_another_host_has_written_is_waited_for(tmp_path: Path) -> None:
    """A network file system may show it late."""
    path = tmp_path / "base.safetensors"
    writer = threading.Timer(0.3, path.touch)
    writer.start()
    assert appears(path, 30)
    writer.join()
    assert not appears(tmp_path / "other", 0.3)
    assert not appears(tmp_path / "gone" / "other", 0.3)
