"""One operation of Triton's language in a kernel of 32 lanes: what a GPU or the interpreter makes
of it. Interpreted, or compiled by a process without TRITON_INTERPRET: `python -m
tests.kernels.probe` prints the instructions of every operation, for sm_90, as JSON."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

import json
import re

from fasttrain_kernels.dispatch import tl, triton

OPERATIONS = (
    "max", "max_nan", "min", "min_nan", "max_of_all", "sqrt", "exp", "exp2", "log", "divide",
    "multiply_add", "fma", "to_bf16", "to_fp16", "to_int", "to_float", "int_divide",
    "int_remainder", "int_multiply", "shift_left", "shift_right", "unsigned_shift_right",
    "no_other",
)  # fmt: skip


@triton.jit
def kernel(x, y, i, n, out, whole, OPERATION: tl.constexpr):
    at = tl.arange(0, 32)
    u, v, w = tl.load(x + at), tl.load(y + at), tl.load(i + at)
    result = u
    if OPERATION == "max":
        result = tl.maximum(u, v)
    elif OPERATION == "max_nan":
        result = tl.maximum(u, v, propagate_nan=tl.PropagateNan.ALL)
    elif OPERATION == "min":
        result = tl.minimum(u, v)
    elif OPERATION == "min_nan":
        result = tl.minimum(u, v, propagate_nan=tl.PropagateNan.ALL)
    elif OPERATION == "max_of_all":
        result = tl.zeros([32], tl.float32) + tl.max(u)
    elif OPERATION == "sqrt":
        result = tl.sqrt(u)
    elif OPERATION == "exp":
        result = tl.exp(u)
    elif OPERATION == "exp2":
        result = tl.exp2(u)
    elif OPERATION == "log":
        result = tl.log(u)
    elif OPERATION == "divide":
        result = u / v
    elif OPERATION == "multiply_add":
        result = u * v + u
    elif OPERATION == "fma":
        result = tl.fma(u, v, u)
    elif OPERATION == "to_bf16":
        result = u.to(tl.bfloat16).to(tl.float32)
    elif OPERATION == "to_fp16":
        result = u.to(tl.float16).to(tl.float32)
    elif OPERATION == "to_int":
        w = u.to(tl.int32)
    elif OPERATION == "to_float":
        result = w.to(tl.uint32, bitcast=True).to(tl.float32)
    elif OPERATION == "int_divide":
        w = w // n
    elif OPERATION == "int_remainder":
        w = w % n
    elif OPERATION == "int_multiply":
        w = w * n
    elif OPERATION == "shift_left":
        w = w << n
    elif OPERATION == "shift_right":
        w = w >> n
    elif OPERATION == "unsigned_shift_right":
        w = (w.to(tl.uint32, bitcast=True) >> n).to(tl.int32, bitcast=True)
    elif OPERATION == "no_other":
        result = tl.load(x + at, mask=at < n)
    tl.store(out + at, result)
    tl.store(whole + at, w)


def instructions(operation: str, arch: int = 90) -> list[str]:
    """Names of the PTX instructions of the kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = ("*fp32", "*fp32", "*i32", "i32", "*fp32", "*i32", "constexpr")
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature=signature, constexprs={"OPERATION": operation})
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": 1, "enable_fp_fusion": True},
    )
    lines = compiled.asm["ptx"].splitlines()
    return [m[1] for line in lines if (m := re.match(r"\s+(?:@\S+ )?([a-z][a-z0-9_.A-Z]+)", line))]


if __name__ == "__main__":
    print(json.dumps({operation: instructions(operation) for operation in OPERATIONS}))
