"""Philox against its published vectors; draws against the distributions they claim."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from fasttrain_kernels import (
    _counter_random_kernel,
    counter_normal,
    counter_random,
    counter_uniform,
    dispatch,
)
from fasttrain_kernels.counter_random import philox_4x32_10
from fasttrain_kernels.dispatch import tl, triton
from tests.kernels.support import DEVICE

# From the known-answer tests of the authors' library: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip
DRAWS = [counter_normal, counter_uniform]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    k0, k1 = words(key)
    out = philox_4x32_10(tuple(torch.tensor([c]) for c in words(counter)), (k0, k1))
    assert [int(word) for word in out] == words(result)


def philox_in_ints(counter: list[int], key: list[int]) -> list[int]:
    """The definition in Python's unbounded integers, to check any counter against."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second % 2**32,
            (first >> 32) ^ c[3] ^ k[1],
            first % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


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
    assert stats.kstest(flat.numpy(), "norm").pvalue > 1e-3
    # over the samples at one position and over the positions in one sample
    assert stats.kstest(z[:, 17].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(z[123].numpy(), "norm").pvalue > 1e-3
    assert float(flat.abs().max()) < math.sqrt(-2 * math.log(2.0**-33))


def test_uniforms_are_uniform() -> None:
    u = counter_uniform(0, 0, torch.arange(500), (401,)).double().flatten()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


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


IMPLS = ["reference", "triton"]


@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (2, 31, 33)])
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (2**64 - 1, 2**32 - 1), (2**63, 2**31)])
def test_the_kernel_draws_the_same(seed: int, stream: int, shape: tuple[int, ...]) -> None:
    """Uniforms, hence the words' leading bits, bit for bit; normals within the promised 4e-6."""
    indices = torch.tensor([0, 5, 2**31, 2**32 - 1, 2**32, 2**63 - 1], device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (counter_uniform(seed, stream, indices, shape, dtype=dtype, impl=i) for i in IMPLS)  # type: ignore[arg-type]
        assert torch.equal(a, b)
    a, b = (counter_normal(seed, stream, indices, shape, impl=i) for i in IMPLS)  # type: ignore[arg-type]
    assert float((a - b).abs().max()) < 4e-6
    for dtype in (torch.bfloat16, torch.float16):
        rounded = counter_normal(seed, stream, indices, shape, dtype=dtype, impl="triton")
        assert rounded.dtype == dtype
        torch.testing.assert_close(rounded.float(), b, atol=1e-6, rtol=2**-7)


def test_a_million_normals_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if dispatch.INTERPRETED:  # whose time goes by programs
        monkeypatch.setattr(counter_random, "_BLOCK", 1 << 14)
    indices = torch.arange(16, device=DEVICE)
    a, b = (counter_normal(1, 2, indices, (65_537,), impl=i) for i in IMPLS)  # type: ignore[arg-type]
    assert float((a - b).abs().max()) < 4e-6
    assert stats.kstest(b.flatten().cpu().numpy()[:200_000], "norm").pvalue > 1e-3


@triton.jit
def _philox_of(words, out, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Philox of COUNT columns of six words: four of the counter, two of the key."""
    at = tl.arange(0, COUNT)
    w0, w1, w2, w3 = _counter_random_kernel._philox(
        tl.load(words + at).to(tl.uint32), tl.load(words + COUNT + at).to(tl.uint32),
        tl.load(words + 2 * COUNT + at).to(tl.uint32),
        tl.load(words + 3 * COUNT + at).to(tl.uint32),
        tl.load(words + 4 * COUNT + at).to(tl.uint32),
        tl.load(words + 5 * COUNT + at).to(tl.uint32),
    )  # fmt: skip
    tl.store(out + at, w0.to(tl.int64))
    tl.store(out + COUNT + at, w1.to(tl.int64))
    tl.store(out + 2 * COUNT + at, w2.to(tl.int64))
    tl.store(out + 3 * COUNT + at, w3.to(tl.int64))


def test_the_kernel_makes_the_same_words() -> None:
    """All 32 bits: uniforms show at most 24 of them."""
    random = torch.randint(2**32, (6, 2048), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    random[:, :1280] = ends[torch.randint(5, (6, 1280), generator=torch.Generator().manual_seed(1))]
    for column, (counter, key, _) in enumerate(KNOWN):
        random[:, column] = torch.tensor(words(counter) + words(key))
    out = torch.zeros(4, 2048, dtype=torch.int64, device=DEVICE)
    _philox_of[(1,)](random.to(DEVICE), out, 2048)
    for column, (_, _, result) in enumerate(KNOWN):
        assert out[:, column].tolist() == words(result)
    for column in range(0, 2048, 7):
        assert out[:, column].tolist() == philox_in_ints(
            random[:4, column].tolist(), random[4:, column].tolist()
        )


@triton.jit
def _box_muller_of(u, t, first, second, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    a, b = _counter_random_kernel._box_muller(
        tl.load(u + at).to(tl.uint32), tl.load(t + at).to(tl.uint32)
    )
    tl.store(first + at, a)
    tl.store(second + at, b)


def test_every_quarter_of_the_circle_and_both_ends() -> None:
    """The kernel's own sine and cosine at every radius, the largest too, around the borders between
    quarters and in between: 4e-6 from the torch form, 1e-6 of it from another log and sqrt."""
    count = 1 << 14
    border = torch.arange(count) * 2**29 // (count // 8) // 2**29 * 2**29
    near = border + torch.randint(-400, 400, (count,), generator=torch.Generator().manual_seed(2))
    spread = torch.arange(count) * (2**32 // count) + 12345
    turns = torch.cat([near % 2**32, spread, 2**32 - 1 - torch.arange(count)])
    for end in (0, 1, 127, 2**20, 2**31, 2**32 - 1):
        ends = torch.full_like(turns, end)
        torch_form = torch.zeros(1, 3 * count, 4)
        counter_random._normals((ends[None], turns[None]) * 2, torch_form)
        first, second = torch.zeros(2, 3 * count, device=DEVICE)
        _box_muller_of[(3,)](ends.to(DEVICE), turns.to(DEVICE), first, second, count)
        got = torch.stack([first, second], 1).cpu()
        torch.testing.assert_close(got, torch_form[0, :, :2], atol=2e-6, rtol=0)
        uniform = ends.float() * 2.0**-32 + 2.0**-33  # the map is to float32: its end is 1
        radius = (-2 * uniform.double().log()).sqrt()
        angle = 2 * math.pi * turns.double() * 2.0**-32
        exact = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        torch.testing.assert_close(got.double(), exact, atol=5e-6, rtol=0)


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**34])
def test_samples_beyond_32_bits_begin_alike(numel: int) -> None:
    """The first program of a sample whose elements an int32 does not count."""
    indices = torch.tensor([9], device=DEVICE)
    out = torch.zeros(4 * counter_random._BLOCK, device=DEVICE)
    counter_random._kernel[(1,)](indices, out, 3, 0, 4, numel, False, 24, counter_random._BLOCK)
    assert torch.equal(out, counter_uniform(3, 4, indices, out.shape, impl="reference")[0])


def test_no_seed_or_stream_recompiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles for each type of an argument, and takes an int beyond 32 bits for an int64.
    The interpreter keeps no compiled kernels to count, so what they are chosen by is read here."""
    seen: list[tuple[int, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: seen.append(arguments[2:5])

    monkeypatch.setattr(counter_random, "_kernel", Recorder())
    ends = (0, 1, 16, 2**31 - 1, 2**31, 2**32 - 1)
    seeds = [low + (high << 32) for low in ends for high in ends]
    for seed in seeds:
        for stream in ends:
            counter_normal(seed, stream, torch.arange(1, device=DEVICE), (4,), impl="triton")
    assert len(set(seen)) == len(seeds) * len(ends)
    assert all(-(2**31) <= word < 2**31 for words in seen for word in words)


STORES = r"""
import re
import triton
from benchmarks.compiled import compile_variant
from benchmarks.variants.counter_random import variants

original, compiled = triton.compile, []
triton.compile = lambda *args, **kwargs: compiled.append(original(*args, **kwargs)) or compiled[-1]
for variant in variants():
    compile_variant(variant, 90)
    stores = re.findall(r"st\.global\S*", compiled[-1].asm["ptx"])
    print(variant.name, len(stores), set(stores))
"""


@pytest.mark.slow
def test_stores_are_128_bits_wide(tmp_path: Path) -> None:
    """1,024 values by 128 threads: two such stores of float32 each, one of the others."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", STORES],
        cwd=root,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        name, count, kinds = line.split(maxsplit=2)
        assert int(count) == (2 if name.endswith("fp32") else 1), line
        assert kinds == "{'st.global.v4.b32'}", line


def test_compiled_graphs_hold_the_draw_whole() -> None:
    def run(indices: torch.Tensor) -> torch.Tensor:
        return counter_normal(2**64 - 1, 3, indices, (3, 5), impl="triton") * 2

    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(run, fullgraph=True, backend=backend, dynamic=True)
    for count in (4, 7):  # another batch is no other graph
        indices = torch.arange(count, device=DEVICE)
        assert torch.equal(compiled(indices), run(indices))
    assert len(graphs) == 1
    assert sum("counter_draw" in target for target in graphs[0]) == 1
    assert torch.equal(
        torch.compile(run, fullgraph=True, backend="aot_eager")(indices), run(indices)
    )
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for seed_and_stream in ((2**32 - 1, 2**32 - 1, 2**32 - 1), (0, 0, 3)):
        arguments = (indices, *seed_and_stream, 15, True, torch.float32)
        torch.library.opcheck(counter_random._run.custom, arguments, test_utils=tests)


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
