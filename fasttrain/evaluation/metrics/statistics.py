"""Mean and covariance of features, from which the Frechet distance is computed.

    moments = Moments(extractor.width, device)
    for images in batches:
        moments.update(extractor(images))        # float64, in constant memory
    statistics = moments.statistics(world)       # of every process's images together
    save_statistics(Path("ref.npz"), statistics)

The file is an `.npz` with `mu` and `sigma`, like EDM's published references, so that either tool
reads the other's. Ours also holds `images`, their number, and `protocol`, JSON text: the extractor
and the source images.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.system.files import write_atomic
from fasttrain.system.processes import World

__all__ = ["Moments", "Statistics", "load_statistics", "save_statistics"]

MOST_BYTES = 1 << 30
"""Size limit of one array in a file: a covariance of 11,000 features."""


@dataclass(frozen=True)
class Statistics:
    """Mean [F] and unbiased covariance [F, F] in float64, with their source."""

    mu: Tensor
    sigma: Tensor
    images: int | None = None
    """Number of images; None where a file does not record it."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """{"extractor": ..., "reference": ...}; empty where a file does not record it."""

    def to(self, device: torch.device) -> Statistics:
        return replace(self, mu=self.mu.to(device), sigma=self.sigma.to(device))


class Moments:
    """Mean and scatter matrix of the features seen so far.

    Deviations are from the running mean, so that no digits are lost. Memory: two matrices [F, F].
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.count, self.bad = 0, 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add features [n, F]; rows that are not finite are counted and dropped."""
        x = features.to(self.mean)
        good = torch.isfinite(x).all(1)
        if not good.all():
            self.bad += int((~good).sum())
            x = x[good]
        new, total = len(x), self.count + len(x)
        if not new:
            return
        mean = x.mean(0)
        gap = (mean - self.mean) * (self.count * new / total) ** 0.5
        rows = torch.cat([x - mean, gap[None]])
        self.scatter.addmm_(rows.T, rows)
        self.mean += (mean - self.mean) * (new / total)
        self.count = total

    def statistics(self, world: World, protocol: dict[str, Any] | None = None) -> Statistics:
        """Statistics of all processes' features together, on every process and on their device.

        Raises UserError for fewer than two images, and features that are not finite.
        """
        device = self.mean.device
        counts = torch.tensor([self.count, self.bad], dtype=torch.float64, device=device)
        count, bad = map(int, world.sum(counts).tolist())
        if bad:
            raise UserError(
                f"the features of {bad} of {count + bad} images are not finite: check the images "
                f"for NaN"
            )
        if count < 2:
            raise UserError(f"a covariance needs two images or more, not {count}")
        mean = world.sum(self.mean * self.count) / count
        gap = (self.mean - mean) * self.count**0.5
        scatter = world.sum(torch.addmm(self.scatter, gap[:, None], gap[None]))
        sigma = (scatter + scatter.T) / (2 * (count - 1))
        return Statistics(mean, sigma, count, protocol or {})


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write the file, completely or not at all; equal statistics give equal bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=statistics.mu.cpu().numpy(),
        sigma=statistics.sigma.cpu().numpy(),
        images=np.array(-1 if statistics.images is None else statistics.images),
        protocol=np.array(json.dumps(statistics.protocol)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def load_statistics(path: Path) -> Statistics:
    """Read a file of ours or of EDM's, on the CPU; nothing in it is executed.

    Raises UserError for a file that cannot be read, and for arrays that are not a mean and a
    covariance: wrong shapes, values that are not finite, a matrix that is not symmetric.
    """
    try:
        with zipfile.ZipFile(path) as members:
            if any(member.file_size > MOST_BYTES for member in members.infolist()):
                raise UserError(f"{path} is larger than any file of statistics")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _array(file, name) for name in file.files}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no statistics at {path}") from None
    except Exception as error:  # a damaged file can raise nearly anything inside the readers
        if is_machine_fault(error):
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not an .npz file of statistics: {why}") from error
    for name in ("mu", "sigma"):
        if name not in arrays:
            have = ", ".join(sorted(arrays)) or "nothing"
            raise UserError(
                f"{path} has no `{name}`, it has {have}: it is not a file of statistics"
            )
    mu, sigma = _checked(path, arrays["mu"], arrays["sigma"])
    images, protocol = _described(path, arrays)
    return Statistics(mu, sigma, images, protocol)


def _array(file: Any, name: str) -> Any:
    """One array, after a check of its header: it must not need more memory than it has bytes."""
    member = file.zip.getinfo(f"{name}.npy" if f"{name}.npy" in file.zip.namelist() else name)
    with file.zip.open(member) as content:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(content)
    size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
    if dtype.hasobject or size > member.file_size:
        raise ValueError(f"`{name}` is not a plain array of its size")
    return file[name]


def _checked(path: Path, mu: Any, sigma: Any) -> tuple[Tensor, Tensor]:
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise UserError(f"{path}: mu and sigma are {mu.dtype} and {sigma.dtype}, not numbers")
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path}: mu has the shape {mu.shape} and sigma {sigma.shape}: they must be [F], [F, F]"
        )
    mean, covariance = torch.from_numpy(mu.astype(np.float64)), sigma.astype(np.float64)
    matrix = torch.from_numpy(covariance)
    if not (torch.isfinite(mean).all() and torch.isfinite(matrix).all()):
        raise UserError(f"{path}: mu or sigma is not finite: the file is damaged")
    if (matrix - matrix.T).abs().max() > 1e-6 * matrix.abs().max():
        raise UserError(f"{path}: sigma is not symmetric, so it is not a covariance")
    return mean, (matrix + matrix.T) / 2


def _described(path: Path, arrays: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
    if "protocol" not in arrays:
        return None, {}
    try:
        protocol, images = json.loads(str(arrays["protocol"])), int(arrays.get("images", -1))
        if not isinstance(protocol, dict):
            raise ValueError("it is not a table")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its protocol cannot be read ({error})") from None
    return (images if images >= 0 else None), protocol
