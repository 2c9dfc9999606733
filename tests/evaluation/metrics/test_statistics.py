"""Running mean and covariance against numpy's, and the files they are kept in."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fasttrain.evaluation.metrics.statistics import (
    Moments,
    Statistics,
    load_statistics,
    save_statistics,
)
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World

ALONE = World(0, 1, torch.device("cpu"))


def rows(n: int, width: int = 6, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -4, width)
    return torch.randn(n, width, generator=draw) * spread + 1000 * spread


@pytest.mark.parametrize("sizes", [[57], [1, 1, 55], [20, 0, 30, 7], [1] * 57])
def test_moments_are_numpys_in_any_batches(sizes: list[int]) -> None:
    """Also where the mean is a thousand times the spread."""
    x = rows(57)
    moments = Moments(6)
    for part in x.split(sizes):
        moments.update(part)
    found = moments.statistics(ALONE, {"k": 1})
    assert found.images == 57
    assert found.protocol == {"k": 1}
    wide = x.double().numpy()
    np.testing.assert_allclose(found.mu.numpy(), wide.mean(0), rtol=1e-13)
    spread = wide.std(0)
    error = np.abs(found.sigma.numpy() - np.cov(wide.T)) / np.outer(spread, spread)
    assert error.max() < 1e-10
    assert torch.equal(found.sigma, found.sigma.T)


def test_features_that_are_not_finite_are_counted_and_refused() -> None:
    x = rows(9)
    x[3, 2], x[5, 0] = torch.nan, torch.inf
    moments = Moments(6)
    for part in x.split(4):
        moments.update(part)
    with pytest.raises(UserError, match="the features of 2 of 9 images are not finite"):
        moments.statistics(ALONE)
    few = Moments(6)
    few.update(rows(1))
    with pytest.raises(UserError, match="two images or more, not 1"):
        few.statistics(ALONE)


def test_a_file_of_ours_comes_back_to_the_bit_and_is_one_of_edms(tmp_path: Path) -> None:
    moments = Moments(6)
    moments.update(rows(20))
    kept = moments.statistics(ALONE, {"extractor": {"extractor": "lite2"}, "reference": {}})
    path = tmp_path / "deep" / "ref.npz"
    save_statistics(path, kept)
    found = load_statistics(path)
    assert torch.equal(found.mu, kept.mu)
    assert torch.equal(found.sigma, kept.sigma)
    assert (found.images, found.protocol) == (20, kept.protocol)
    with np.load(path) as file:  # as EDM's tools do
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert file["sigma"].shape == (6, 6)
    again = tmp_path / "again.npz"
    save_statistics(again, kept)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_of_edms_has_no_protocol(tmp_path: Path) -> None:
    x = rows(20).double().numpy()
    np.savez(tmp_path / "ref.npz", mu=x.mean(0), sigma=np.cov(x.T))
    found = load_statistics(tmp_path / "ref.npz")
    assert (found.images, found.protocol) == (None, {})
    np.testing.assert_array_equal(found.mu.numpy(), x.mean(0))


class Hostile:
    def __reduce__(self):
        return (print, ("ran",))


GOOD = {"mu": np.zeros(3), "sigma": np.eye(3)}
BAD = {
    "no sigma": ({"mu": np.zeros(3)}, "has no `sigma`, it has mu"),
    "shapes": ({**GOOD, "sigma": np.eye(4)}, r"mu has the shape \(3,\) and sigma \(4, 4\)"),
    "scalar": ({**GOOD, "mu": np.array(3.0)}, r"mu has the shape \(\)"),
    "nan": ({**GOOD, "mu": np.full(3, np.nan)}, "is not finite"),
    "skew": ({**GOOD, "sigma": np.eye(3) + np.triu(np.ones((3, 3)), 1)}, "is not symmetric"),
    "text": ({**GOOD, "mu": np.array(["a", "b", "c"])}, "are <U1 and float64, not numbers"),
    "objects": ({**GOOD, "mu": np.array([Hostile()] * 3, dtype=object)}, "no plain array|plain"),
    "protocol": ({**GOOD, "protocol": np.array("{")}, "its protocol cannot be read"),
    "list": ({**GOOD, "protocol": np.array("[]")}, "its protocol cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_are_no_statistics_are_refused(name: str, tmp_path: Path, capsys) -> None:
    arrays, reason = BAD[name]
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match=reason):
        load_statistics(tmp_path / "ref.npz")
    assert "ran" not in capsys.readouterr().out


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no statistics at"):
        load_statistics(tmp_path / "missing.npz")
    path = tmp_path / "ref.npz"
    path.write_bytes(b"PK no zip at all")
    with pytest.raises(UserError, match=r"is not an \.npz file of statistics"):
        load_statistics(path)
    np.savez(path, **GOOD)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged[: len(damaged) - 40])
    with pytest.raises(UserError, match=r"is not an \.npz file of statistics"):
        load_statistics(path)


def test_a_header_that_asks_for_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    )
    with zipfile.ZipFile(tmp_path / "ref.npz", "w") as file:
        file.writestr("mu.npy", buffer.getvalue() + bytes(64))
    with pytest.raises(UserError, match="`mu` is not a plain array of its size"):
        load_statistics(tmp_path / "ref.npz")


def test_a_protocol_is_json_text(tmp_path: Path) -> None:
    kept = Statistics(torch.zeros(2).double(), torch.eye(2).double(), None, {"a": ["é"]})
    save_statistics(tmp_path / "ref.npz", kept)
    with np.load(tmp_path / "ref.npz") as file:
        assert json.loads(str(file["protocol"])) == {"a": ["é"]}
    found = load_statistics(tmp_path / "ref.npz")
    assert (found.images, found.protocol) == (None, {"a": ["é"]})
