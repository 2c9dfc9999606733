"""Philox against its published vectors; draws against the distributions they claim."""

from __future__ import annotations

import math

import pytest
import torch

from fasttrain_kernels import counter_normal, counter_random, counter_uniform
from fasttrain_kernels.counter_random import philox_4x32_10
from tests.kernels.kolmogorov import p_value
from tests.kernels.philox import KNOWN, philox_in_ints, words

DRAWS = [counter_normal, counter_uniform]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    k0, k1 = words(key)
    out = philox_4x32_10(tuple(torch.tensor([c]) for c in words(counter)), (k0, k1))
    assert [int(word) for word in out] == words(result)


@pytest.mark.parametrize("index", [0, 5, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (2**64 - 1, 2**32 - 1), (2**32 + 7, 3)])
def test_layout_of_key_and_counter(seed: int, stream: int, index: int) -> None:
    """Element e of a sample is word e mod 4 of block e div 4, in the layout of the docstring."""
    indices = torch.tensor([index])
    uniform = counter_uniform(seed, stream, indices, (11,))[0]
    normal = counter_normal(seed, stream, indices, (11,))[0]
    expected_uniform, expected_normal = [], []
    for block in range(3):
        w = philox_in_ints([block, stream, index % 2**32, index >> 32], [seed % 2**32, seed >> 32])
        expected_uniform += [(word >> 8) * 2.0**-24 for word in w]
        for a, b in ((w[0], w[1]), (w[2], w[3])):
            radius = math.sqrt(-2 * math.log(a * 2.0**-32 + 2.0**-33))
            angle = 2 * math.pi * b * 2.0**-32
            expected_normal += [radius * math.cos(angle), radius * math.sin(angle)]
    assert uniform.tolist() == expected_uniform[:11]
    torch.testing.assert_close(normal, torch.tensor(expected_normal[:11]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 16, 16)])
def test_a_sample_does_not_depend_on_its_batch(draw, shape, monkeypatch) -> None:
    indices = torch.tensor([7, 0, 2**40 + 1, 7, 3, 12, 11, 5, 1, 2**62])
    batch = draw(1, 2, indices, shape)
    alone = torch.cat([draw(1, 2, indices[i : i + 1], shape) for i in range(len(indices))])
    assert torch.equal(batch, alone)
    assert torch.equal(batch[0], batch[3])
    assert torch.equal(batch.flip(0), draw(1, 2, indices.flip(0), shape))
    monkeypatch.setattr(counter_random, "_CHUNK_BLOCKS", 300)  # several chunks, the last one short
    assert torch.equal(batch, draw(1, 2, indices, shape))


@pytest.mark.parametrize("draw", DRAWS)
def test_shorter_samples_are_prefixes(draw) -> None:
    long = draw(3, 0, torch.arange(4), (37,))
    assert torch.equal(long[:, :10].reshape(4, 2, 5), draw(3, 0, torch.arange(4), (2, 5)))


def test_normals_are_normal() -> None:
    z = counter_normal(0, 0, torch.arange(500), (401,)).double()  # 200,500 values
    flat = z.flatten()
    n = len(flat)
    assert abs(float(flat.mean())) < 4 / math.sqrt(n)
    assert abs(float(flat.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((flat**3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float((flat**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert p_value(flat, "norm") > 1e-3
    # over the samples at one position and over the positions in one sample
    assert p_value(z[:, 17], "norm") > 1e-3
    assert p_value(z[123], "norm") > 1e-3
    assert float(flat.abs().max()) < math.sqrt(-2 * math.log(2.0**-33))


def test_uniforms_are_uniform() -> None:
    u = counter_uniform(0, 0, torch.arange(500), (401,)).double().flatten()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert p_value(u, "uniform") > 1e-3


def test_no_correlation_across_streams_indices_seeds_and_positions() -> None:
    indices = torch.arange(400)
    base = counter_normal(5, 1, indices, (500,)).double()
    others = {
        "stream": counter_normal(5, 2, indices, (500,)),
        "index": counter_normal(5, 1, indices + 1, (500,)),
        "high index": counter_normal(5, 1, indices + 2**32, (500,)),
        "seed": counter_normal(6, 1, indices, (500,)),
        "high seed": counter_normal(5 + 2**32, 1, indices, (500,)),
        "position": base.roll(1, dims=1),
        "two positions": base.roll(2, dims=1),
        "block": base.roll(4, dims=1),
    }
    bound = 4.5 / math.sqrt(base.numel())
    for name, other in others.items():
        assert abs(float((base * other).mean())) < bound, name
        assert abs(float(((base**2 - 1) * (other.double() ** 2 - 1)).mean())) < 2 * bound, name


def test_ends_of_the_map_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0, 2**32 - 1]])
    monkeypatch.setattr(counter_random, "philox_4x32_10", lambda counter, key: (ends,) * 4)
    z = counter_normal(0, 0, torch.arange(1), (8,))
    assert torch.isfinite(z).all()
    assert float(z.max()) == pytest.approx(math.sqrt(66 * math.log(2)))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        u = counter_uniform(0, 0, torch.arange(1), (8,), dtype=dtype)
        assert float(u.min()) == 0
        assert float(u.max()) < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_the_same_draws(dtype: torch.dtype) -> None:
    indices = torch.arange(3)
    z = counter_normal(1, 1, indices, (50,), dtype=dtype)
    assert z.dtype == dtype
    assert torch.equal(z, counter_normal(1, 1, indices, (50,)).to(dtype))
    u = counter_uniform(1, 1, indices, (50,), dtype=dtype)
    difference = counter_uniform(1, 1, indices, (50,)).double() - u.double()
    assert u.dtype == dtype
    assert float(difference.min()) >= 0  # truncated
    assert float(difference.max()) < 2.0**-8


def test_no_samples_and_empty_samples() -> None:
    assert counter_normal(0, 0, torch.arange(0), (3, 2)).tolist() == []
    assert counter_normal(0, 0, torch.arange(2), (0,)).tolist() == [[], []]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"impl": "fast"}, "unknown implementation 'fast'"),
        ({"impl": "triton", "dtype": torch.float64}, "use impl='reference'"),
        ({"seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, "seed must be"),
        ({"stream": 2**32}, r"stream must be in \[0, 2\^32\)"),
        ({"indices": torch.tensor([0, -3])}, "indices must not be negative, got -3"),
        ({"indices": torch.arange(3.0)}, r"int64 of shape \[N\], got torch.float32"),
        ({"indices": torch.zeros(2, 2, dtype=torch.int64)}, r"int64 of shape \[N\]"),
        ({"dtype": torch.int32}, "got dtype=torch.int32"),
    ],
)
@pytest.mark.parametrize("draw", DRAWS)
def test_bad_arguments(draw, changes: dict, message: str) -> None:
    arguments = {"seed": 0, "stream": 0, "indices": torch.arange(2), "shape": (4,), **changes}
    with pytest.raises(ValueError, match=message):
        draw(**arguments)
