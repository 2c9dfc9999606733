"""Compile every kernel ahead of time, without a GPU, and read what the compiler made of it.

For each variant and architecture: registers a thread, spills (bytes of local memory a thread),
shared memory a block, and whether the activations move in 128-bit loads. A kernel that spills or
loads narrow words is slow on every GPU, and no test of its values would tell.

    python -m benchmarks.aot                    # compiles all, writes benchmarks/results/aot.json
    python -m benchmarks.aot --check            # compiles again; exit status 1 if one got worse
    python -m benchmarks.aot --check --sample   # each variant on one architecture: a third of it

Run it from the root of a checkout. The interpreter must be off: TRITON_INTERPRET is ignored here.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated, so before the import
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from fasttrain_kernels import group_norm

RESULTS = Path(__file__).parent / "results" / "aot.json"
ARCHITECTURES = (80, 90, 100)
_WIDE_LOAD = r"ld\.global\S*\.(v4\.\w32|v2\.\w64)"


@dataclass(frozen=True)
class Row:
    """What the compiler made of one variant. `spills` in bytes a thread, `shared_bytes` a block."""

    kernel: str
    variant: str
    arch: str
    registers: int
    spills: int
    shared_bytes: int
    wide_loads: bool


@dataclass(frozen=True)
class Norm:
    """A group norm of a network: `inputs` are those present beside x."""

    channels: int
    resolution: int
    dtype: str
    inputs: tuple[str, ...] = ("weight", "bias", "scale", "shift")
    silu: bool = True

    @property
    def name(self) -> str:
        extra = [name for name in self.inputs if name not in ("weight", "bias")]
        size = f"{self.channels}x{self.resolution}x{self.resolution}"
        return "-".join([size, self.dtype, *extra, *(["silu"] if self.silu else [])])


_SHIFT_IN = ("weight", "bias", "shift_in")
_PLAIN = ("weight", "bias")

# The norms of ADM at 64x64 (modulated, at 64, 32, 16 and 8, and wider ones in the decoder), of
# NCSN++ at 32x32 (shift before the norm; none in its attention) and of the digits' network.
NORMS = (
    Norm(192, 64, "bf16"),
    Norm(384, 64, "bf16", _PLAIN),
    Norm(384, 32, "bf16"),
    Norm(576, 32, "bf16", _PLAIN, silu=False),
    Norm(576, 16, "bf16"),
    Norm(768, 8, "bf16"),
    Norm(192, 64, "fp32"),
    Norm(384, 32, "fp32"),
    Norm(768, 8, "fp32"),
    Norm(128, 32, "bf16", _SHIFT_IN),
    Norm(256, 16, "bf16", _PLAIN, silu=False),
    Norm(256, 32, "fp32", _SHIFT_IN),
    Norm(64, 8, "fp32", _SHIFT_IN),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--sample", action="store_true", help="each variant on one architecture")
    options = parser.parse_args()
    if options.sample and not options.check:
        parser.error("--sample would write a part of the table: use it with --check")
    step = len(ARCHITECTURES) if options.sample else 1
    rows = [
        compile_group_norm(norm, backward, arch)
        for first, arch in enumerate(ARCHITECTURES)
        for norm in NORMS[first % step :: step]
        for backward in (False, True)
    ]
    for row in rows:
        print(
            f"{row.kernel:26} {row.variant:34} {row.arch:7} {row.registers:4} registers "
            f"{row.spills:5} spilled {row.shared_bytes:6} shared  "
            f"{'wide' if row.wide_loads else 'narrow'}"
        )
    if options.check:
        return check(rows)
    lines = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    RESULTS.write_text(f"[\n{lines}\n]\n")
    return 0


def check(rows: list[Row]) -> int:
    """0 when no row is worse than in the committed table: more than 8 registers more (the least
    that compilers of neighbouring versions differ by), any spill more, wide loads lost."""
    table = {(r["kernel"], r["variant"], r["arch"]): r for r in json.loads(RESULTS.read_text())}
    worse = []
    for row in rows:
        old = table.get((row.kernel, row.variant, row.arch))
        if (
            old is None
            or row.registers > old["registers"] + 8
            or row.spills > old["spills"]
            or row.shared_bytes > old["shared_bytes"]
            or row.wide_loads < old["wide_loads"]
        ):
            worse.append(f"worse than the committed table: {asdict(row)}, committed: {old}")
    print("\n".join(worse))
    return 1 if worse else 0


def compile_group_norm(norm: Norm, backward: bool, arch: int) -> Row:
    """The kernel as the launcher calls it when every gradient is wanted."""
    groups = min(32, norm.channels // 4)
    sizes = (norm.channels // groups, norm.resolution**2)
    plan = (group_norm.plan_backward if backward else group_norm.plan_forward)(*sizes)
    kernel = group_norm._backward_kernel if backward else group_norm._forward_kernel
    constants: dict[str, Any] = {
        "GROUPS": groups, "CG": sizes[0], "HW": sizes[1], "SILU": norm.silu,
        "FITS": plan.fits, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p,
    }  # fmt: skip
    types = dict.fromkeys(("x", "y", "dx", "dy", "shift_in", "scale", "shift"), norm.dtype)
    types |= dict.fromkeys(("weight", "bias", "means", "rstds"), "fp32")
    types |= dict.fromkeys(("sums_a", "sums_b", "sums_dx"), "fp32")
    absent = {name for name in ("shift_in", "scale", "shift") if name not in norm.inputs}
    if "shift_in" in absent:
        absent.add("sums_dx")
    signature: dict[str, str] = {}
    for name in inspect.signature(kernel.fn).parameters:
        if name in absent:
            constants[name] = None
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = "*" + types[name]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
    name = "group_norm_silu_backward" if backward else "group_norm_silu"
    tile_bytes = plan.block_c * plan.block_p * (2 if norm.dtype == "bf16" else 4)
    wide = max(1, tile_bytes // (16 * 32 * plan.num_warps)) * (2 if backward else 1)
    return compile_one(name, norm.name, kernel, signature, constants, plan.num_warps, wide, arch)


def compile_one(
    name: str,
    variant: str,
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    num_warps: int,
    wide: int,
    arch: int,
) -> Row:
    """Compile for compute capability `arch` (90 for 9.0); pointers and strides divide by 16.

    `wide`: 128-bit loads a thread takes to read its part of one tile of each activation.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, type_ in enumerate(signature.values())
        if type_.startswith("*") or type_ == "i32"
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
    )
    usage = resource_usage(compiled.asm["cubin"])
    return Row(
        kernel=name,
        variant=variant,
        arch=f"sm_{arch}",
        registers=usage["REG"],
        # STACK counts the frame, LOCAL what lies beside it: spilled registers are in either.
        spills=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        wide_loads=len(re.findall(_WIDE_LOAD, compiled.asm["ptx"])) >= wide,
    )


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump -res-usage` says of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


if __name__ == "__main__":
    sys.exit(main())
