"""Tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.discriminator import as_markdown as as_tables

__all__ = ["aot_part", "demo_part", "discriminator_part", "finetunings_part", "memory_part"]


def aot_part(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of compiled kernels, by kernel and architecture."""
    lines = [
        f"{len(rows)} compilations, from `benchmarks/results/aot.json`:",
        "",
        "| kernel | arch | variants | registers a thread, at most | spilled bytes, at most "
        "| shared bytes a block, at most | 128-bit loads |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, arch in dict.fromkeys((row["kernel"], row["arch"]) for row in _ordered(rows)):
        group = [row for row in rows if (row["kernel"], row["arch"]) == (kernel, arch)]
        wide = sum(row["wide_loads"] for row in group)
        most = [max(row[key] for row in group) for key in ("registers", "spills", "shared_bytes")]
        loads = "all" if wide == len(group) else f"{wide} of {len(group)}"
        cells = [f"`{kernel}`", arch, len(group), *most, loads]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (row["kernel"], int(row["arch"].removeprefix("sm_"))))


def demo_part(result: Mapping[str, Any]) -> str:
    """Times of `make demo`, a seed a line."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, from "
        "`benchmarks/results/demo.json`:",
        "",
        "| seed | threads | pre-training, s | fine-tuning, s | everything, s |",
        "|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        times = (run[key] for key in ("seconds_pretrain", "seconds_finetune", "seconds"))
        cells = [run["seed"], run["threads"], *(f"{seconds:.0f}" for seconds in times)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def memory_part(result: Mapping[str, Any]) -> str:
    """Counted activation memory, a network a line."""
    counts = result["bytes_per_image"]
    columns = list(next(iter(counts.values())))
    lines = [
        f"MB an image (10^6 bytes), torch {result['torch']}, from "
        "`benchmarks/results/memory.json`:",
        "",
        f"| network | {' | '.join(columns)} | ours of eager |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for network, row in counts.items():
        cells = [f"{row[column] / 1e6:.1f}" for column in columns]
        lines.append(f"| {network} | {' | '.join(cells)} | {row['ours'] / row['eager']:.0%} |")
    return "\n".join(lines)


def discriminator_part(result: Mapping[str, Any]) -> str:
    """Times of the discriminator on a CPU, a table a case."""
    machine = result["machine"]
    about = (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, medians from "
        "`benchmarks/results/discriminator-cpu.json`:"
    )
    return f"{about}\n\n{as_tables(result).strip()}"


def finetunings_part(result: Mapping[str, Any]) -> str:
    """The demo's fine-tuning under other settings, one a line."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, from "
        "`benchmarks/results/finetunings.json`:",
        "",
        "| fine-tuning | settings | one step after | diffusion model | seconds |",
        "|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        fd = run["fd"]
        cells = [run["name"], f"`{' '.join(run['settings'])}`"]
        cells += [f"{fd['one_step_after']:.1f}", f"{fd['teacher_18']:.1f}", f"{run['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
