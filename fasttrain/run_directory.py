"""A run directory: whose it is, who works in it, and what it holds.

`config.yaml` (resolved settings), `base.safetensors` (the model that fine-tuning began with),
`stats.jsonl`, `tensorboard/`, `samples/*.png`, `checkpoints/step-*/`, and what the commands add.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fasttrain import checkpoint
from fasttrain.config import load_run_settings, to_yaml
from fasttrain.errors import UserError
from fasttrain.settings import RunSettings

__all__ = ["Lock", "open_directory", "stop_file"]

MAY_CHANGE = {"run", "images", "micro_batch", "report_every", "sample", "checkpoint", "evaluate"}
MAY_CHANGE |= {"engine", "kernels", "data.path", "init", "bad_steps"}
MAY_CHANGE |= {"memory_format", "recompute_norms", "compile"}
MAY_CHANGE |= {"data.attempts", "data.cache", "data.cache_gigabytes", "data.max_skipped"}
MAY_CHANGE |= {"data.storage", "data.streams", "data.timeout", "data.workers"}
"""Settings that do not decide what an iteration computes, so a resumed run may change them. The
saved cursor says how many streams there are, and refuses another `data.streams`."""

OURS = {"audit.json", "base.safetensors", "checkpoints", "config.yaml", "discriminator.json"}
OURS |= {"evaluation.json", "lock", "memory.json", "report.html", "samples", "stop"}
OURS |= {"stats.jsonl", "tensorboard"}
OURS |= {name + ".tmp" for name in OURS}
"""What a run directory may hold."""


def open_directory(settings: RunSettings) -> None:
    """Make the run directory, or check that it belongs to these settings.

    Until the first checkpoint nothing in it is worth keeping, so its settings may be mended.
    Raises UserError, naming the first settings that differ, or why it cannot be written.
    """
    path = settings.run
    try:
        if checkpoint.steps(path / "checkpoints"):
            _same_settings(load_run_settings(path), settings)
        elif path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - OURS):
            raise UserError(
                f"{path} exists and is not a run directory; choose another with run=DIR"
            )
        for folder in ("checkpoints", "samples"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(path / "config.yaml", to_yaml(settings))
    except OSError as error:
        raise UserError(f"cannot write the run directory {path}: {error.strerror}") from None


def stop_file(run: Path) -> Path:
    """Touched while a run trains, it asks the run to stop at the next iteration's end."""
    return run / "stop"


class Lock:
    """That one command at a time trains in a directory, until `release` or the process's end.

    Raises UserError when another one does. Where the file system knows no locks there is none.
    """

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path = run / "lock"
        self.file = self.path.open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise UserError(
                f"{run} is being trained by {holder}: wait for it, or choose another run=DIR"
            ) from None
        except OSError:
            pass
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.file.flush()
        self.since = self.path.stat().st_mtime_ns
        """When it was taken, by the file system's clock."""

    def asked_to_stop(self) -> bool:
        """Whether the stop file was touched since."""
        try:
            return stop_file(self.path.parent).stat().st_mtime_ns >= self.since
        except OSError:
            return False

    def release(self) -> None:
        self.file.close()


def _same_settings(old: RunSettings, new: RunSettings) -> None:
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not any(name == free or name.startswith(free + ".") for free in MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"{new.run} was made with other settings: {'; '.join(changed[:3])}; "
            f"use those, or another directory with run=DIR"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, name + ".")
        else:
            flat[name] = value
    return flat
