"""The kernel of the draws: the reference's words and numbers, once compiled for every seed, in wide
stores, whole in a compiled graph."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain_kernels import (
    _counter_random_kernel,
    counter_normal,
    counter_random,
    counter_uniform,
    dispatch,
)
from fasttrain_kernels.dispatch import tl, triton
from tests.kernels.kolmogorov import p_value
from tests.kernels.philox import KNOWN, philox_in_ints, words
from tests.kernels.support import DEVICE

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
    assert p_value(b.flatten().cpu()[:200_000], "norm") > 1e-3


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
            words = ("seed_low", "seed_high", "stream")
            return lambda **arguments: seen.append(tuple(arguments[word] for word in words))

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
