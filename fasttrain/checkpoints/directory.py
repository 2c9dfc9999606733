"""A run directory: its owner, its lock and its content.

`config.yaml` (resolved settings), `config.earlier.yaml` (those of an earlier version, where some
are gone since), `base.safetensors` (the model that fine-tuning began with), `stats.jsonl`,
`tensorboard/`, `samples/*.png`, `checkpoints/step-*/`, `wandb/` where it is asked for, and files
of other commands.

The directory itself may be a link. Inside it nothing is written through one: a link at a file's
name is replaced, one at the name of a folder, of `lock` or of `stop` is refused
(`fasttrain.system.files`).
"""

from __future__ import annotations

import warnings
from pathlib import Path

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.lock import Lock
from fasttrain.checkpoints.rates import RATES, flat
from fasttrain.settings import RunSettings
from fasttrain.settings.of_run import former_settings, load_run_settings
from fasttrain.settings.recipes import to_yaml
from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.system.files import own_folder, read_bytes, refuse_link, write_atomic

__all__ = ["OURS", "check_directory", "keep_earlier", "open_directory"]

MAY_CHANGE = {"run", "images", "micro_batch", "report_every", "sample", "checkpoint", "evaluate"}
MAY_CHANGE |= {"log", "stop"}
MAY_CHANGE |= {"engine", "kernels", "data.path", "init", "init_classes", "bad_steps"}
MAY_CHANGE |= {"memory_format", "recompute_norms", "compile"}
MAY_CHANGE |= {"data.any_protocol", "data.attempts", "data.cache", "data.cache_gigabytes"}
MAY_CHANGE |= {"data.index", "data.mix"}  # what is in them is in the cursor
MAY_CHANGE |= {"data.max_skipped", "data.reader_timeout", "data.storage", "data.streams"}
MAY_CHANGE |= {"data.timeout", "data.workers"}
"""Settings that do not affect the computation of an iteration, so a resumed run may change them.
The saved cursor records the number of streams, and refuses another `data.streams`."""
MAY_CHANGE |= RATES  # the run says it, and its checkpoints record it

EARLIER = "config.earlier.yaml"
OURS = {"audit.json", "base.safetensors", "checkpoints", "config.yaml", "discriminator.json"}
OURS |= {EARLIER, "evaluation.json", "lock", "memory.json", "report.html", "samples", "stop"}
OURS |= {"stats.jsonl", "tensorboard", "wandb"}
OURS |= {name + ".tmp" for name in OURS}
"""Names that may exist in a run directory."""
FOLDERS = ("checkpoints", "samples", "tensorboard")


def check_directory(settings: RunSettings) -> None:
    """Check that the run directory can be created or belongs to these settings; writes nothing.

    Before the first checkpoint nothing in it is worth keeping, so its settings may be changed.
    Raises UserError, naming the first settings that differ, or a link inside.
    """
    path = settings.run
    for folder in (*FOLDERS, "wandb"):
        refuse_link(path / folder)
    if checkpoint.steps(path / "checkpoints"):
        for gone in former_settings(path):
            if gone.felt:
                raise UserError(
                    f"{path} was trained with {gone}; train on in a copy with from={path}@latest "
                    f"run=DIR"
                )
        _same_settings(load_run_settings(path), settings)
    elif path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - OURS):
        raise UserError(f"{path} exists and is not a run directory; choose another with run=DIR")


def open_directory(settings: RunSettings) -> Lock:
    """Create the run directory, or open the one that belongs to these settings; its lock.

    The lock comes first, so that a refused command changes no byte. Raises UserError when it is in
    use, belongs to another run or cannot be written, Unavailable as `Lock` does.
    """
    path = settings.run
    lock = None
    try:
        check_directory(settings)
        lock = Lock(path)
        check_directory(settings)  # again: whoever had the lock may have written
        for folder in FOLDERS:
            own_folder(path / folder)
        lock.sign()
        keep_earlier(path)
        write_atomic(path / "config.yaml", to_yaml(settings))
        return lock
    except BaseException as error:
        if lock is not None:
            lock.release()
        if isinstance(error, OSError) and not is_machine_fault(error):
            raise UserError(f"cannot write the run directory {path}: {error.strerror}") from None
        raise


def keep_earlier(path: Path) -> None:
    """Keep `config.yaml` of a run that has begun, if an earlier version had settings in it that
    this one would lose."""
    gone = former_settings(path) if checkpoint.steps(path / "checkpoints") else []
    if gone:
        names = ", ".join(each.name for each in gone)
        warnings.warn(
            f"{path} is of an earlier version: renamed or gone since are {names}; {EARLIER} keeps "
            f"its settings",
            stacklevel=2,
        )
        write_atomic(path / EARLIER, read_bytes(path / "config.yaml"))


def _same_settings(old: RunSettings, new: RunSettings) -> None:
    before, after = (flat(s.model_dump(mode="json")) for s in (old, new))
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not any(name == free or name.startswith(free + ".") for free in MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"{new.run} has other settings: {'; '.join(changed[:3])}; "
            f"use those, or another directory with run=DIR"
        )
