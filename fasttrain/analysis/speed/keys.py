"""What identifies a compiled kernel: its text and that of all it calls, types, constants, options.

`issued.json` beside this file has the instructions that one warp of each variant issues, by
architecture and key; `python -m benchmarks.aot` writes it.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fasttrain_kernels

__all__ = ["ARCHITECTURES", "Variant", "key_of", "options_of", "source_of"]

ARCHITECTURES = (80, 90, 100)


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

    for file in pkgutil.iter_modules(fasttrain_kernels.__path__, "fasttrain_kernels."):
        importlib.import_module(file.name)
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
