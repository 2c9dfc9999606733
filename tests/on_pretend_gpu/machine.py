"""The tests' side of the machine with pretend GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Machine"]

ROOT = Path(__file__).parents[2]


class Machine:
    """Runs tasks on two pretend GPUs; see `tests.on_pretend_gpu.server`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_tools")]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tests.on_pretend_gpu.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
        self._read()

    def run(
        self,
        task: str,
        *arguments: Any,
        ranks: int = 1,
        expect: Sequence[int] | None = None,
        seconds: float = 240,
        **variables: str,
    ) -> list[Any]:
        """What `task` of this folder's modules (`rules:check`) returns on every rank.

        expect: the ranks' exit statuses, zeros if not given. variables: of the environment.
        Raises AssertionError with what a rank said when one ended otherwise.
        """
        request = {
            "task": f"tests.on_pretend_gpu.{task}",
            "arguments": [str(x) if isinstance(x, Path) else x for x in arguments],
            "ranks": ranks,
            "seconds": seconds,
            "folder": str(self.folder),
            **variables,
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        ended = json.loads(self._read())
        found = [rank["status"] for rank in ended]
        said = "\n".join(rank["said"][-3000:] for rank in ended)
        assert found == list(expect or [0] * ranks), f"{task} ended with {found}:\n{said}"
        return [rank["value"] for rank in ended]

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)

    def _read(self) -> str:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, f"the machine with pretend GPUs is gone:\n{self.log.read_text()[-3000:]}"
        return line
