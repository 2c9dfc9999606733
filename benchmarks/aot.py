"""Compile every kernel ahead of time, without a GPU, and read what the compiler made of it.

For each variant and architecture: registers a thread, spills (bytes of local memory a thread),
shared memory a block, and whether the activations move in 128-bit loads. A kernel that spills or
loads narrow words is slow on every GPU, and no test of its values would tell.

    python -m benchmarks.aot                    # compiles all, writes benchmarks/results/aot.json
    python -m benchmarks.aot --only attention   # compiles and prints one file of variants
    python -m benchmarks.aot --check            # compiles again; exit status 1 if one got worse
    python -m benchmarks.aot --check --sample   # each variant on one architecture: a third of it
    python -m benchmarks.aot --print --sample   # the same with another version of Triton: compares
                                                # with nothing; exit status 1 if one spills
    python -m benchmarks.aot --check --changed  # only what the table's keys do not answer for, and
                                                # one variant of each kernel
    python -m benchmarks.aot --changed          # compiles the same, and brings the table up to date
    python -m benchmarks.aot --rocm             # one variant of each kernel for AMD's gfx942, into
                                                # benchmarks/results/aot-gfx942.json

That a kernel compiles for gfx942 is all that is known there: nothing has run on such a GPU.

Run it from the root of a checkout. The interpreter must be off: TRITON_INTERPRET is ignored here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated, so before the import
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

import triton

from benchmarks import variants
from benchmarks.compiled import (
    ARCHITECTURES,
    Row,
    Variant,
    compile_for_amd,
    compile_variant,
    key_of,
)
from fasttrain_kernels import _tiles, dispatch

RESULTS = Path(__file__).parent / "results" / "aot.json"
COUNTS = Path(__file__).parents[1] / "fasttrain" / "analysis" / "speed" / "issued.json"
AMD = "gfx942"
MOST_RISE = 1.03
FILES = sorted(module.name for module in pkgutil.iter_modules(variants.__path__))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=FILES, help="one file of variants; writes nothing")
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--print", action="store_true", help="compile, compare with nothing")
    parser.add_argument("--sample", action="store_true", help="each variant on one architecture")
    parser.add_argument("--changed", action="store_true", help="those whose key is not in it")
    parser.add_argument("--rocm", action="store_true", help=f"a sample for AMD's {AMD}")
    options = parser.parse_args()
    if options.sample and not (options.check or options.print):
        parser.error("--sample would write a part of the table: add --check or --print")
    if options.rocm:
        return compile_sample_for_amd()
    wanted: list[Variant] = []
    for file in [options.only] if options.only else FILES:
        wanted += importlib.import_module(f"benchmarks.variants.{file}").variants()
    step = len(ARCHITECTURES) if options.sample else 1
    # A place in the list and an architecture: a kernel itself cannot be sent to another process.
    places = [
        (place, arch)
        for first, arch in enumerate(ARCHITECTURES)
        for place in range(first % step, len(of_arch(wanted, arch)), step)
    ]
    if options.changed:
        places = list(unanswered(wanted, places))
    rows = []
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), fork, _keep, (wanted,)) as pool:
        for row in pool.map(_compile, *zip(*places, strict=True)):
            rows.append(row)
            print(as_text(row), flush=True)
    if options.check:
        return check(rows)
    if options.print:
        spilling = sum(row.spills > 0 for row in rows)
        print(f"{len(rows)} kernels compiled by Triton {triton.__version__}, {spilling} spill")
        return int(spilling > 0)
    if not options.only:
        rows = up_to_date(wanted, rows) if options.changed else rows
        write(RESULTS, rows)
        COUNTS.write_text(counted(rows))
    return 0


def write(path: Path, rows: list[Row]) -> None:
    lines = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def counted(rows: Iterable[Row]) -> str:
    """The counts that the package takes along for the speed model, by architecture and key."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.issued:
            counts.setdefault(row.arch, {})[row.key] = row.issued
    return json.dumps(counts, indent=0, sort_keys=True) + "\n"


def up_to_date(wanted: list[Variant], rows: list[Row]) -> list[Row]:
    """The table with the rows just compiled in place of its own, in a full run's order."""
    known = [Row(**row) for row in json.loads(RESULTS.read_text())]
    table = {(row.kernel, row.variant, row.arch): row for row in [*known, *rows]}
    return [
        table[variant.op, variant.name, f"sm_{arch}"]
        for arch in ARCHITECTURES
        for variant in of_arch(wanted, arch)
    ]


def compile_sample_for_amd() -> int:
    """The first variant of each kernel, with the launch options of a torch for ROCm."""
    dispatch.ROCM = True
    _tiles._BY_NAME = dispatch.tl.constexpr(False)
    sample: dict[str, Variant] = {}
    for file in FILES:
        for variant in importlib.import_module(f"benchmarks.variants.{file}").variants():
            sample.setdefault(variant.op, variant)
    rows = []
    for variant in sample.values():
        rows.append(compile_for_amd(variant, AMD))
        print(as_text(rows[-1]), flush=True)
    write(RESULTS.with_name(f"aot-{AMD}.json"), rows)
    return 0


_wanted: list[Variant] = []


def _keep(wanted: list[Variant]) -> None:
    _wanted.extend(wanted)


def of_arch(wanted: list[Variant], arch: int) -> list[Variant]:
    return [variant for variant in wanted if arch in variant.archs]


def _compile(place: int, arch: int) -> Row:
    return compile_variant(of_arch(_wanted, arch)[place], arch)


def unanswered(wanted: list[Variant], places: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The places that the table says nothing of: other code has the same name there, or none. Of
    each kernel the first place is among them, so that the table can be checked."""
    table = {
        (r["kernel"], r["variant"], r["arch"], r["key"]) for r in json.loads(RESULTS.read_text())
    }
    seen = set()
    for place, arch in places:
        variant = of_arch(wanted, arch)[place]
        answered = (variant.op, variant.name, f"sm_{arch}", key_of(variant, arch)) in table
        if not answered or variant.op not in seen:
            yield place, arch
        else:
            print(f"{variant.op:26} {variant.name:40} {f'sm_{arch}':7} unchanged")
        seen.add(variant.op)


def as_text(row: Row) -> str:
    wide = "wide" if row.wide_loads else "narrow"
    return (
        f"{row.kernel:26} {row.variant:40} {row.arch:7} {row.registers:4} registers "
        f"{row.spills:5} spilled {row.shared_bytes:6} shared  {wide:6} {row.issued:7} issued"
    )


def check(rows: list[Row]) -> int:
    """0 when no row is worse than in the committed table: more than 8 registers more (the least
    that compilers of neighbouring versions differ by), any spill more, wide loads lost, or 3 % more
    instructions: what a kernel's floor in `benchmarks.model` follows from."""
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
            or 0 < old.get("issued", 0) * MOST_RISE < row.issued
        ):
            worse.append(f"worse than the committed table: {asdict(row)}, committed: {old}")
    print("\n".join(worse))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
