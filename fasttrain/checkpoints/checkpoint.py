"""Checkpoints that exist completely or not at all.

`save` writes `checkpoints/step-N.tmp/` beside the others, with named tensors in safetensors files,
`state.json`, and a manifest of sizes and SHA-256 last; everything is synced to disk, then one
rename makes it `step-N` (N = images seen). `newest` returns the newest step whose bytes match its
manifest and warns of each one that it skipped.

    save(run / "checkpoints", 6000, {"generator": engine.state_dict()}, {"images": 6000})
    step = newest(run / "checkpoints")
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fasttrain.checkpoints.state import checked
from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.system.files import plain, read_json, remove, sha256, sync
from fasttrain.system.tensors import load_tensors, save_tensors

__all__ = ["Step", "find", "newest", "prune", "save", "steps", "tidy"]


MANIFEST, STATE = "manifest.json", "state.json"

MAX_MANIFEST = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Step:
    """One complete checkpoint on disk."""

    path: Path
    images: int

    @property
    def state(self) -> dict[str, Any]:
        """Counters, data cursor and the last evaluation. Raises UserError when they are invalid."""
        return checked(read_json(self.path / STATE), self.path / STATE)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The named tensors of one file, on the CPU."""
        path = self.path / f"{name}.safetensors"
        try:
            return load_tensors(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from None

    def damage(self) -> str | None:
        """Description of the first damage, or None when the manifest lists all files and each
        matches it."""
        if self.path.is_symlink():
            return "it is a symbolic link"
        try:
            manifest = read_json(self.path / MANIFEST, MAX_MANIFEST)
            present = {path.name for path in self.path.iterdir() if path.name[0] != "."}
        except (OSError, UserError) as error:
            if is_machine_fault(error):  # a skipped checkpoint would be deleted later
                raise
            return f"no readable {MANIFEST}"
        for name in dict.fromkeys([*manifest, STATE]):
            expected, path = manifest.get(name), self.path / name
            if name not in present or not path.is_file():
                return f"{plain(name)} is missing"
            if expected is None:
                return f"{name} is missing in {MANIFEST}"
            if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
                return f"{MANIFEST} is corrupt: it does not describe {name}"
            if (size := path.stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']!s:.40}"
            if sha256(path) != expected["sha256"]:
                return f"{name} is corrupt: its SHA-256 differs from the manifest"
        unlisted = sorted(present - manifest.keys() - {MANIFEST})
        return f"{plain(unlisted[0])} is missing in {MANIFEST}" if unlisted else None


def save(
    folder: Path,
    images: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Step:
    """Write one checkpoint atomically.

    tensors: file name (without ending) -> named tensors, any device and dtype.
    Raises OSError when the disk is full or not writable; earlier checkpoints stay unchanged.
    """
    final = folder / f"step-{images:010d}"
    beside = folder / f"{final.name}.tmp"
    remove(beside)
    beside.mkdir(parents=True)  # new, so that its file names are free
    try:
        for name, named in tensors.items():
            save_tensors(named, beside / f"{name}.safetensors")
        (beside / STATE).write_text(json.dumps(state, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(beside.iterdir())
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*beside.iterdir(), beside):
            sync(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    there = final.exists() or final.is_symlink()
    old = _aside(final) if there else None  # a damaged step of the same number
    beside.rename(final)
    sync(folder)
    if old is not None:
        remove(old)
    return Step(final, images)


def steps(folder: Path) -> list[Step]:
    """All finished checkpoints, oldest first, intact or not."""
    finished = []
    for path in _named(folder, "step-*"):
        number = path.name.removeprefix("step-")
        if path.is_dir() and number.isdecimal() and len(number) < 19:
            finished.append(Step(path, int(number)))
    return sorted(finished, key=lambda step: step.images)


def _named(folder: Path, pattern: str) -> list[Path]:
    """As `glob`, which from Python 3.13 on says nothing where a folder cannot be read for now."""
    try:
        return [folder / name for name in fnmatch.filter(os.listdir(folder), pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest(folder: Path) -> Step | None:
    """The newest intact checkpoint; a warning names each damaged one that was skipped."""
    for step in reversed(steps(folder)):
        damage = step.damage()
        if damage is None:
            return step
        warnings.warn(f"checkpoint {step.path} is skipped: {damage}", stacklevel=2)
    return None


def find(folder: Path, which: str = "latest") -> Step:
    """The checkpoint named `latest`, `best` (by `evaluate.metric`) or by its number of images, with
    each file hashed once. Raises UserError when there is none, or it is damaged."""
    if which == "latest":
        step = newest(folder)
    elif which == "best":
        step = _best([step for step in steps(folder) if step.damage() is None])
    else:
        step = next((s for s in steps(folder) if str(s.images) == (which.lstrip("0") or "0")), None)
        if step is not None and (damage := step.damage()) is not None:
            raise UserError(f"checkpoint {step.path} cannot be used: {damage}")
    if step is None and which == "best" and steps(folder):
        raise UserError(
            f"{folder}: no checkpoint holds an evaluation to be the best by; name `latest`"
        )
    if step is None:
        have = ", ".join(str(step.images) for step in steps(folder)) or "none"
        raise UserError(f"{folder} has no intact checkpoint {which!r}; it has: {have}")
    return step


def prune(folder: Path, keep: int, newest: int) -> None:
    """Delete all but the `keep` checkpoints up to `newest` images, and the best one of each
    protocol: settings, or another version, may change it in the middle of a run.

    Checkpoints beyond `newest` are damaged, or the run would have resumed from them: they go too.
    """
    for step in steps(folder):
        if step.images > newest:
            _remove(step.path)
    finished = steps(folder)
    best = _bests(finished).values()
    for step in finished[:-keep]:
        if step not in best:
            _remove(step.path)


def tidy(folder: Path) -> None:
    """Delete half-written and half-deleted files of a killed process, and finish the last rename of
    a complete checkpoint. The caller holds the lock."""
    for leftover in _named(folder, "step-*.tmp"):
        final = leftover.with_suffix("")  # for step-N.old.tmp this is not a step's name
        whole = final.suffix != ".old" and not (final.exists() or final.is_symlink())
        if whole and Step(leftover, 0).damage() is None:
            leftover.rename(final)
            sync(folder)
        else:
            remove(leftover)


def _remove(step: Path) -> None:
    """Delete a finished checkpoint so that a kill half-way leaves none that looks finished."""
    remove(_aside(step))


def _aside(step: Path) -> Path:
    """Rename a finished checkpoint so that it does not look finished any more; its new path."""
    going = step.with_name(f"{step.name}.old.tmp")
    remove(going)
    step.rename(going)
    return going


def _best(candidates: list[Step]) -> Step | None:
    """The best of the evaluated steps, among those with the metric and protocol of the newest
    evaluation, because no others compare with it."""
    return next(iter(_bests(candidates).values()), None)


def _bests(candidates: list[Step]) -> dict[str, Step]:
    """The best of the evaluated steps of each metric and protocol, that of the newest one first."""
    scored: list[tuple[str, float, int, Step]] = []
    for step in candidates:
        try:
            evaluation = step.state.get("evaluation") or {}
            fd = step.state.get("fd")  # steps of earlier versions have nothing else
        except (OSError, ValueError) as error:
            if is_machine_fault(error):  # else the best one could be deleted
                raise
            continue
        score = evaluation.get("score", fd)
        if isinstance(score, int | float):
            how = json.dumps(
                [evaluation.get("metric", "fd"), evaluation.get("protocol")], sort_keys=True
            )
            scored.append((how, score, -step.images, step))
    kinds = dict.fromkeys(entry[0] for entry in reversed(scored))
    return {
        how: min((entry for entry in scored if entry[0] == how), key=lambda entry: entry[1:3])[3]
        for how in kinds
    }
