"""One kernel variant compiled ahead of time, without a GPU, and what the compiler made of it.

    row = compile_variant(Variant(kernel, "group_norm", "192x64x64-bf16", signature, ...), 90)

`benchmarks.aot` compiles all variants that the folder `benchmarks/variants` lists.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fasttrain_kernels

__all__ = [
    "ARCHITECTURES",
    "Row",
    "Variant",
    "compile_for_amd",
    "compile_variant",
    "key_of",
    "signature_of",
]

ARCHITECTURES = (80, 90, 100)

# A load of 128 bits, into registers or by an asynchronous copy into shared memory.
_WIDE_LOAD = r"ld\.global\S*\.(?:v4\.\w32|v2\.\w64)|cp\.async\.c[ag]\S* .*, 0x10\b"


@dataclass(frozen=True)
class Variant:
    """A kernel as its launcher calls it for one shape, dtype and set of inputs.

    op: the kernel's name in the table. name: the variant's.
    signature: argument name -> Triton type (`*bf16`, `i32`, `constexpr`, ...), in order.
    constants: of the constexpr arguments. Pointers and i32 are taken to divide by 16, but those
        that the kernel is not specialised for.
    archs: where the launcher takes it; another variant of the same name covers the others.
    wide: 128-bit loads that the code must hold at least: what a thread needs to read its part of
        one tile of each activation.
    tiles: that a program walks through in each of its loops.
    """

    kernel: Any
    op: str
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    wide: int
    num_stages: int = 3
    archs: tuple[int, ...] = ARCHITECTURES
    tiles: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What the compiler made of one variant. `spills` in bytes a thread, `shared_bytes` a block;
    `issued`: instructions of one warp of a program from its start to its end (`issued_by`), 0 where
    they are not counted; `key` of what it was made from (`key_of`)."""

    kernel: str
    variant: str
    arch: str
    key: str
    registers: int
    spills: int
    shared_bytes: int
    wide_loads: bool
    issued: int = 0


def signature_of(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    floats: Collection[str] = ("eps",),
) -> dict[str, str]:
    """The signature of a kernel: `pointers` by element type, `constants`, `floats` by name (fp32),
    and every other argument an i32."""
    signature = {}
    for name in inspect.signature(kernel.fn).parameters:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
        else:
            signature[name] = "fp32" if name in floats else "i32"
    return signature


def source_of(variant: Variant) -> Any:
    """What Triton compiles."""
    from triton.compiler import ASTSource

    signature = dict(variant.signature)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (type_, parameter) in enumerate(
            zip(signature.values(), variant.kernel.params, strict=True)
        )
        if type_.startswith("*") or (type_ == "i32" and not parameter.do_not_specialize)
    }
    return ASTSource(
        variant.kernel, signature=signature, constexprs=dict(variant.constants), attrs=aligned
    )


def options_of(variant: Variant) -> dict[str, Any]:
    return {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": True,
        **variant.options,
    }


def _hash_functions() -> None:
    """Hashes every function of the kernels once, in one order and wherever in its file it stands.
    Triton's hash of a caller holds the constants of the functions it calls only if these were
    hashed before it."""
    import triton

    for module in pkgutil.iter_modules(fasttrain_kernels.__path__, "fasttrain_kernels."):
        importlib.import_module(module.name)
    fresh = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("fasttrain_kernels"):
            for value in vars(module).values():
                if isinstance(value, triton.runtime.JITFunction) and value.starting_line_number:
                    value.starting_line_number, value.hash = 0, None
                    fresh[value.fn.__module__, value.fn.__name__] = value
    for place in sorted(fresh):
        _ = fresh[place].cache_key


def key_of(variant: Variant, arch: int | str) -> str:
    """Of everything that the compiled code follows from: the kernel's text and that of all it
    calls, types, constants, options, architecture and Triton. As Triton's own cache has it, but
    wherever in its file a kernel stands."""
    import triton

    _hash_functions()
    parts = (source_of(variant).hash(), sorted(options_of(variant).items()), arch)
    text = f"{triton.__version__} {parts}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compile_for_amd(variant: Variant, arch: str) -> Row:
    """Compile for one of AMD's architectures ("gfx942"). Its 64 lanes need half as many loads of
    128 bits as the 32 of others."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("hip", arch, 64)
    compiled = triton.compile(source_of(variant), target=target, options=options_of(variant))
    text = compiled.asm["amdgcn"]
    usage = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
    return Row(
        kernel=variant.op,
        variant=variant.name,
        arch=arch,
        key=key_of(variant, arch),
        registers=usage["vgpr_count"],
        spills=usage["private_segment_fixed_size"],
        shared_bytes=compiled.metadata.shared,
        wide_loads=len(re.findall(r"(?:global|buffer)_load_dwordx4", text)) >= variant.wide / 2,
    )


def compile_variant(variant: Variant, arch: int) -> Row:
    """Compile for compute capability `arch` (90 for 9.0)."""
    import triton
    from triton.backends.compiler import GPUTarget

    key = key_of(variant, arch)
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source_of(variant), target=target, options=options_of(variant))
    usage = resource_usage(compiled.asm["cubin"])
    return Row(
        kernel=variant.op,
        variant=variant.name,
        arch=f"sm_{arch}",
        key=key,
        registers=usage["REG"],
        # STACK counts the frame, LOCAL what lies beside it: spilled registers are in either.
        spills=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        wide_loads=len(re.findall(_WIDE_LOAD, compiled.asm["ptx"])) >= variant.wide,
        issued=issued_by(machine_code(compiled.asm["cubin"]), variant),
    )


def machine_code(cubin: bytes) -> list[tuple[int, str]]:
    """Addresses and instructions (SASS) of the one kernel in a cubin, without the padding."""
    text = _cuobjdump("-sass", cubin)
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", text)
    return [(int(at, 16), code) for at, code in found if code.split()[0] != "NOP"]


def issued_by(code: list[tuple[int, str]], variant: Variant) -> int:
    """Instructions of one warp: everything once, but the innermost loops, which begin where a
    branch goes back to, as often as the tiles take. A loop reads as many tiles at a time as its
    128-bit loads are for; one without any reads one. Branches that a shape never takes count, too:
    an upper bound, and the same for the same code."""
    at = {address: place for place, (address, _) in enumerate(code)}
    loops = []
    for place, (address, text) in enumerate(code):
        target = re.search(r"\bBRA\S*\s.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append((at[int(target[1], 16)], place))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    issued = float(len(code))
    for first, last in inner:
        body = [text for _, text in code[first : last + 1]]
        wide = sum("LDG" in text and ".128" in text for text in body)
        times = max(1.0, variant.tiles / max(1.0, wide / max(1, variant.wide)))
        issued += len(body) * (times - 1)
    return round(issued)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump -res-usage` says of the one kernel in a cubin."""
    text = _cuobjdump("-res-usage", cubin)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def _cuobjdump(option: str, cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, option, file.name], check=True, capture_output=True, text=True
        ).stdout
