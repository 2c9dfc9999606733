"""The committed table of compiled kernels: complete, free of spills, and true of today's code."""

from __future__ import annotations

import importlib.util
import json
import linecache
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compiled import Variant, key_of, signature_of

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "benchmarks" / "results" / "aot.json").read_text())
LEAST = {
    "attention": 12,
    "attention_dkdv": 12,
    "attention_dq": 12,
    "group_norm_apply": 3,
    "group_norm_statistics": 3,
    "residual_scale": 12,
    "resample2d_down": 10,
    "resample2d_up": 10,
    "counter_draw": 4,
    "upsample_add": 14,
    "upsample_add_adjoint": 8,
    "image_prep": 12,
    "image_prep_adjoint": 8,
    "ghost_batch_norm_apply": 8,
    "ghost_batch_norm_combine_backward": 8,
    "bias_activation": 10,
    "logit_losses": 2,
    "power_iteration_rows": 1,
}
VARIANTS = {(row["kernel"], row["variant"]) for row in TABLE}


def test_the_table_is_complete_and_nothing_spills() -> None:
    assert len(TABLE) == len(VARIANTS) * 3
    assert {row["arch"] for row in TABLE} == {"sm_80", "sm_90", "sm_100"}
    count = Counter(kernel for kernel, _ in VARIANTS)
    assert count["group_norm"] == count["group_norm_backward"] >= 47
    for kernel, least in LEAST.items():
        assert count[kernel] >= least, kernel
    for row in TABLE:
        assert row["spills"] == 0, row
        assert 0 < row["registers"] <= 255, row
        # What every GPU gives without asking; products of blocks ask, for what all can give.
        most = 99 if row["kernel"].startswith("attention") else 64
        assert row["shared_bytes"] <= most * 1024, row
        assert row["wide_loads"], row


def test_a_sample_of_each_kernel_compiles_for_amd() -> None:
    """The committed table. Nothing has run there."""
    table = json.loads((ROOT / "benchmarks" / "results" / "aot-gfx942.json").read_text())
    assert {row["kernel"] for row in table} == {kernel for kernel, _ in VARIANTS}
    for row in table:
        assert row["arch"] == "gfx942"
        assert row["spills"] == 0, row
        assert 0 < row["registers"] <= 512, row
        assert row["shared_bytes"] <= 64 * 1024, row


@pytest.mark.slow
def test_todays_kernels_compile_no_worse_than_the_table(tmp_path: Path) -> None:
    """Every variant, each for one of the three architectures: compiled now, or the table has the
    result of the very same code (one variant of each kernel is compiled in any case). A process of
    its own, because this one has the interpreter on."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot", "--check", "--sample", "--changed"],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    compiled = {(line[0], line[1]) for line in lines if line[5:7] == ["0", "spilled"]}
    unchanged = {(line[0], line[1]) for line in lines if line[3:] == ["unchanged"]}
    assert compiled | unchanged == VARIANTS
    assert {kernel for kernel, _ in compiled} == {kernel for kernel, _ in VARIANTS}


PROBE = """
from fasttrain_kernels.dispatch import tl
from triton.runtime import JITFunction

FACTOR = tl.constexpr(3)

@JITFunction
def helper(x):
    return x + 1

@JITFunction
def kernel(x, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, helper(tl.load(x + at)) * FACTOR)
"""


def test_a_key_is_of_all_that_compiled_code_follows_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(text: str = PROBE, arch: int = 90, **changes: Any) -> str:
        spec = importlib.util.spec_from_file_location(name := "fasttrain_kernels_probe", path)
        assert spec is not None
        assert spec.loader is not None
        path.write_text(text)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        linecache.clearcache()
        spec.loader.exec_module(module)
        constants = {"BLOCK": 16}
        signature = signature_of(module.kernel, {"x": "fp32"}, constants)
        how = {"signature": signature, "constants": constants, "num_warps": 1, **changes}
        return key_of(Variant(module.kernel, "probe", "probe", wide=0, **how), arch)

    path = tmp_path / "probe.py"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two texts in one second
    assert key() == key("# further down\n\n" + PROBE)
    others = [
        key(PROBE.replace("x + 1", "x + 2")),
        key(PROBE.replace("constexpr(3)", "constexpr(4)")),
        key(PROBE.replace("* FACTOR", "- FACTOR")),
        key(arch=80),
        key(constants={"BLOCK": 32}),
        key(signature={"x": "*bf16", "n": "i32", "BLOCK": "constexpr"}),
        key(num_warps=2),
        key(num_stages=1),
        key(options={"maxnreg": 64}),
    ]
    assert len({key(), *others}) == 1 + len(others)
