"""Named tensors in safetensors files, written completely or not at all.

write_tensors(path, {"weight": tensor})
read_tensors(path)
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fasttrain.system.errors import UserError
from fasttrain.system.files import create, sync
from fasttrain_kernels import to_host

__all__ = ["load_tensors", "read_tensors", "write_tensors"]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file completely or not at all, as `write_atomic` does. Raises OSError
    when the disk is full."""
    beside = path.with_name(path.name + ".tmp")
    try:
        create(beside).close()
        save_tensors(tensors, beside, metadata)
        sync(beside)
        beside.replace(path)
        sync(path.absolute().parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a safetensors file, on the CPU. Raises SafetensorError, OSError."""
    with path.open("rb"):  # the library reports any file that cannot be opened as missing
        return load_file(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """`load_tensors`, but raises UserError when it is not a safetensors file."""
    try:
        return load_tensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    own: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, value in zip(tensors, to_host(v.detach() for v in tensors.values()), strict=True):
        whole = value.contiguous()
        # The library refuses two tensors that share memory; only those are copied.
        if whole.untyped_storage().nbytes() != whole.nbytes or whole.data_ptr() in places:
            whole = whole.clone()
        places.add(whole.data_ptr())
        own[name] = whole
    try:
        save_file(own, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from None
    # The library creates private files; a run's files follow the user's umask.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
