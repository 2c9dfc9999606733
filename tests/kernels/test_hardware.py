"""Where Triton's interpreter and a GPU differ: the tests' interpreter gives the GPU's results
(`tests/hardware.py`), and the instructions that say so are read in PTX. The list for readers is in
kernels/README.md."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import dispatch
from tests.kernels import probe
from tests.kernels.support import DEVICE

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")
LEAST, MOST = -(2**31), 2**31 - 1


def floats(operation: str, x: list[float], y: list[float] | None = None, n: int = 1) -> Tensor:
    return run(operation, x, y or [1.0], [0], n)[0][: len(x)]


def integers(operation: str, w: list[int], n: int) -> list[int]:
    return run(operation, [0.0], [1.0], w, n)[1][: len(w)].tolist()


def run(
    operation: str, x: list[float], y: list[float], w: list[int], n: int
) -> tuple[Tensor, Tensor]:
    def lanes(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor((values * 32)[:32], dtype=dtype, device=DEVICE)

    out, whole = torch.zeros(32, device=DEVICE), torch.zeros(32, dtype=torch.int32, device=DEVICE)
    probe.kernel[(1,)](
        lanes(x, torch.float32), lanes(y, torch.float32), lanes(w, torch.int32), n, out, whole,
        operation, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out.cpu(), whole.cpu()


def equal(got: Tensor, expected: list[float]) -> bool:
    return torch.equal(got.nan_to_num(nan=123.0), torch.tensor(expected).nan_to_num(nan=123.0))


def test_maximum_and_minimum_drop_nan_unless_told() -> None:
    assert equal(floats("max", [NAN, -1.0, 2.0], [0.0]), [0.0, 0.0, 2.0])
    assert equal(floats("min", [NAN, -1.0, 2.0], [0.0]), [0.0, -1.0, 0.0])
    assert equal(floats("max_nan", [NAN, -1.0, 2.0], [0.0]), [NAN, 0.0, 2.0])
    assert equal(floats("min_nan", [NAN, -1.0, 2.0], [0.0]), [NAN, -1.0, 0.0])
    assert equal(floats("max_of_all", [NAN, -1.0, 2.0]), [2.0] * 3)


def test_conversions_round_to_nearest_even() -> None:
    """1 + 2^-8 and 1 + 3 2^-8 are half way between two bfloat16: ties go to the even one."""
    values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -1 - 2**-7 - 2**-9, NAN, INF]
    got = floats("to_bf16", values)
    assert equal(got, torch.tensor(values).bfloat16().float().tolist())
    assert got[:2].tolist() == [1.0, 1 + 2**-6]
    assert equal(floats("to_fp16", values), torch.tensor(values).half().float().tolist())


def test_floats_to_integers_saturate_and_nan_is_0() -> None:
    values = [NAN, INF, -INF, 3e9, -3e9, 2.9, -2.9, 2147483520.0]
    got = run("to_int", values, [1.0], [0], 1)[1][: len(values)].tolist()
    assert got == [0, MOST, LEAST, MOST, LEAST, 2, -2, 2147483520]
    assert floats("to_float", [0.0]).item() == 0
    assert run("to_float", [0.0], [1.0], [-1], 1)[0][0].item() == 2.0**32


def test_integers_divide_toward_zero_wrap_and_shift() -> None:
    assert integers("int_divide", [7, -7, -1], 2) == [3, -3, 0]
    assert integers("int_remainder", [7, -7, -1], 2) == [1, -1, -1]
    assert integers("int_multiply", [2**30, -(2**31)], 3) == [3 * 2**30 - 2**32, -(2**31)]
    assert integers("shift_left", [3, -1], 31) == [LEAST, LEAST]
    assert integers("shift_right", [-8, 8], 1) == [-4, 4]
    assert integers("unsigned_shift_right", [-8, 8], 1) == [(2**32 - 8) // 2, 4]


def test_a_fused_product_is_rounded_once() -> None:
    x, y = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    exact = (x.double() * y.double() + x.double()).float()
    assert torch.equal(floats("fma", x.tolist(), y.tolist()), exact)
    assert not torch.equal(x * y + x, exact)  # two roundings


def test_subnormal_numbers_are_zeros_to_sqrt_and_exp2() -> None:
    assert floats("sqrt", [1e-40, 4.0, NAN, -1.0])[:2].tolist() == [0.0, 2.0]
    assert floats("exp2", [-130.0, 1.0]).tolist() == [0.0, 2.0]


def test_a_divisor_beyond_2_to_the_126_gives_0() -> None:
    got = floats("divide", [2.0**127, INF, 1.0, 2.0**126], [2.0**127, 2.0**127, INF, 2.0**126])
    assert equal(got, [0.0, NAN, 0.0, 1.0])


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="a register may hold any value")
def test_a_masked_load_without_other_brings_anything() -> None:
    got = floats("no_other", [5.0] * 32, n=3)
    assert got[:3].tolist() == [5.0] * 3
    assert got[3:].isnan().all()


PTX = {
    "max": "max.f32", "max_nan": "max.NaN.f32", "min": "min.f32", "min_nan": "min.NaN.f32",
    "max_of_all": "max.f32", "sqrt": "sqrt.approx.ftz.f32", "exp": "ex2.approx.f32",
    "exp2": "ex2.approx.ftz.f32", "log": "fma.rn.ftz.f32", "divide": "div.full.f32",
    "multiply_add": "fma.rn.f32", "fma": "fma.rn.f32", "to_bf16": "cvt.rn.bf16.f32",
    "to_fp16": "cvt.rn.f16.f32", "to_int": "cvt.rzi.s32.f32", "to_float": "cvt.rn.f32.u32",
    "int_divide": "div.s32", "int_remainder": "rem.s32", "int_multiply": "mul.lo.s32",
    "shift_left": "shl.b32", "shift_right": "shr.s32", "unsigned_shift_right": "shr.u32",
    "no_other": "ld.global.b32",
}  # fmt: skip
"""The instruction that stands for each operation of the probe."""


def test_the_instructions_are_those_of_the_list(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.probe"],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    instructions = json.loads(done.stdout)
    assert instructions.keys() == PTX.keys() == set(probe.OPERATIONS)
    for operation, instruction in PTX.items():
        assert instruction in instructions[operation], (operation, instructions[operation])
    readme = (ROOT / "kernels" / "README.md").read_text()
    for instruction in PTX.values():
        assert f"`{instruction}`" in readme, instruction


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Calls of `tl.<name>` in all kernels, with where they stand."""
    return [
        (f"{path.name}:{node.lineno}", node)
        for path in sorted((ROOT / "kernels" / "fasttrain_kernels").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"tl.{name}"
    ]


def test_every_masked_load_says_what_lies_outside() -> None:
    loads = calls("load")
    assert len(loads) > 40
    for where, call in loads:
        given = {keyword.arg for keyword in call.keywords}
        assert ("mask" in given) == ("other" in given), where


FINITE = {"_attention_kernels.py", "_bilinear.py", "statistics.py"}
"""Files whose maxima and minima are of places and counts, which are finite, or (attention) of
scores whose NaN reaches the result by the sum as well: see test_nan.py."""


def test_every_maximum_and_minimum_says_what_becomes_of_nan() -> None:
    found = [*calls("maximum"), *calls("minimum")]
    assert found
    for where, call in found:
        text = ast.unparse(call)
        integers = "CHUNK" in text or "bitcast=True" in text
        if where.split(":")[0] not in FINITE and not integers:
            assert "propagate_nan" in {keyword.arg for keyword in call.keywords}, where
