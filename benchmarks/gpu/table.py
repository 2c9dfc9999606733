"""The result as Markdown, and attention's rows as entries of its table of choices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.discriminator import as_markdown as judge_tables
from benchmarks.gpu.attention import CUDNN, FLASH, TRITON
from benchmarks.gpu.bars import both_ways, peak_bytes
from benchmarks.gpu.case import AGAIN, COMPILE, COPY, EAGER, OURS

__all__ = ["as_choices", "as_markdown", "broken"]

Row = Mapping[str, Any]


def as_markdown(result: Mapping[str, Any]) -> str:
    """Everything a reader must see: the machine, bars, every row, every error, all left out."""
    parts = [_head(result), _bars(result["acceptance"])]
    for op in dict.fromkeys(row["op"] for row in result["rows"]):
        parts.append(_op_table(op, [row for row in result["rows"] if row["op"] == op]))
    if result.get("discriminator", {}).get("cases"):
        parts.append("#### The discriminator\n\n" + judge_tables(result["discriminator"]))
    if "profile" in result["profile"]:
        parts.append(_profile_tables(result["profile"]["profile"]))
    if result["left_out"]:
        lines = [
            f"- {left['op']} {left['case']} {left['layout']}: {left['why']}"
            for left in result["left_out"]
        ]
        parts.append("\n".join(["#### Left out", "", *lines]))
    return "\n\n".join(parts)


def _head(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    name = machine["gpu"] or machine["cpu"]
    lines = [f"### {name}", ""]
    if result["rehearsal"]:
        lines += ["**REHEARSAL**: tiny shapes, to try the code. Not a measurement.", ""]
    if not result["complete"]:
        done = ", ".join(result.get("done", ())) or "none"
        lines += [f"**INCOMPLETE**: parts that reached their end: {done}.", ""]
    commit = (machine["commit"] or "unknown")[:12]
    changed = f" and {machine['modified_files']} changed files" if machine["modified_files"] else ""
    lines.append(
        f"Driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}, "
        f"{machine['date']}, commit {commit}{changed}; torch.compile's backend is "
        f"{result['compile_backend']}."
    )
    rates = result["rates"]
    if rates:
        copy, matrix = rates["copy"], rates["matrix"]
        lines.append(
            f"Measured copy: {copy['per_second'] / 1e9:.0f} GB/s read plus written "
            f"({copy['what']}, {_milliseconds(copy)} ms). Measured matrix rate: "
            f"{matrix['per_second'] / 1e12:.3g} TFLOP/s ({matrix['what']}, "
            f"{_milliseconds(matrix)} ms)."
        )
    tests, step = result["tests"], result["profile"]
    if checked := result.get("check", []):
        bad = sum(bool(entry["failed"] or entry.get("wrong")) for entry in checked)
        ran = sum("wrong" in entry for entry in checked)
        lines.append(
            f"Kernels against float64: {ran} checks, {bad} failed, "
            f"{len(checked) - ran} cases did not run."
        )
    lines.append(f"Kernel tests: {tests.get('result') or tests['left_out']}.")
    lines += [f"- {failure}" for failure in tests.get("failures", [])]
    for title, part in (("Short run", "fd"), ("Trainings", "runs")):
        lines += [f"- {title}: {line}" for line in result.get(part, {}).get("lines", [])]
    if "profile" not in step or "error" in step:
        lines.append(f"Generator and step: {step.get('error') or step['left_out']}.")
    return "\n".join(lines)


def _bars(bars: Sequence[Mapping[str, Any]]) -> str:
    words = {True: "passed", False: "**FAILED**", None: "not shown"}
    lines = ["| bar | | measured |", "|---|---|---|"]
    lines += [f"| {bar['bar']} | {words[bar['passed']]} | {bar['measured']} |" for bar in bars]
    return "\n".join(lines)


def _op_table(op: str, rows: Sequence[Row]) -> str:
    work = any(row["flops"] for row in rows)
    ceiling = "TFLOP/s, of matrix rate" if work else "GB/s, of copy (of a copy as large)"
    notes: list[str] = []
    lines = [
        f"#### {op}",
        "",
        "Milliseconds: median (p20 to p80)."
        + ("" if rows[0]["launches"] == "hidden" else " Launch overhead counts here."),
        "",
        f"| shape | | MB | {EAGER} | {COMPILE} | library | {OURS} | {ceiling} "
        "| registers, spilled bytes | error (eager's) | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = row["columns"]
        libraries = [n for n in cells if n not in (EAGER, COMPILE, OURS, AGAIN, COPY)]
        library = "<br>".join(f"{n}: {_cell(cells[n], notes)}" for n in libraries)
        parts = [
            f"{row['case']} {row['layout']} {row['dtype']}",
            row["direction"],
            f"{row['bytes'] / 1e6:.4g}",
            _cell(cells[EAGER], notes),
            _cell(cells[COMPILE], notes) if COMPILE in cells else "",
            library,
            _cell(cells[OURS], notes),
            _rate(row),
            ", ".join(f"{k['registers']}, {k['spills']}" for k in row["kernels"]),
            _worst_error(row),
            _marks(row),
        ]
        lines.append("| " + " | ".join(parts) + " |")
    lines += ["", *(f"[{number}] {note}  " for number, note in enumerate(notes, 1))]
    return "\n".join(lines).rstrip()


def _profile_tables(profile: Mapping[str, Any]) -> str:
    """The generator and the iteration by column; the iteration of ours by phase."""
    about = profile["configuration"]
    lines = [
        f"#### The generator and the iteration of `{profile['recipe']}`",
        "",
        f"By `fasttrain profile`: {about['parameters']:,} parameters, batch {about['batch']}, "
        f"{about['dtype']}. Milliseconds: median (p20 to p80). Memory: weights and all.",
        *(["", *(f"- {note}" for note in profile["notes"])] if profile["notes"] else []),
        "",
        "| column | generator forward | backward | both | peak, GiB | iteration | error, images "
        "(gradient) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, column in profile["columns"].items():
        generator, step, check = column["generator"], column["step"], column["check"]
        peak = peak_bytes(generator)
        cells = [
            f"{name}{' **WRONG**' if name in profile['wrong'] else ''}",
            *(_milliseconds(generator[key]) for key in ("forward", "backward", "total")),
            "" if peak is None else f"{peak / 2**30:.2f}",
            "" if step is None else _milliseconds(step["time"]),
            f"{check['images']:.1e} ({check['gradient']:.1e})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | error: {why} | | | | | |" for name, why in profile["failed"].items()]
    phases = profile["phases"]
    lines += [
        "",
        f"The iteration of ours by phase, {phases['images_per_second']:.4g} images a second:",
        "",
        "| step | phase | ms | every | share |",
        "|---|---|---|---|---|",
    ]
    for row in phases["rows"]:
        share = f"{100 * row['share']:.1f} %"
        cells = [row["step"], row["phase"], _milliseconds(row), str(row["every"]), share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(cell: Mapping[str, Any]) -> str:
    return f"{cell['median_ms']:.4g} ({cell['p20_ms']:.4g} to {cell['p80_ms']:.4g})"


def _cell(cell: Mapping[str, Any], notes: list[str]) -> str:
    if "error" not in cell:
        return _milliseconds(cell)
    if cell["error"] not in notes:
        notes.append(cell["error"])
    return f"error [{notes.index(cell['error']) + 1}]"


def _rate(row: Row) -> str:
    if row["failed"]:
        return ""
    if row["flops"]:
        return f"{row['tflop_s']:.3g}, {100 * row['of_matrix']:.3g} %"
    same = f" ({100 * row['of_same_size_copy']:.3g} %)" if "of_same_size_copy" in row else ""
    return f"{row['gb_s']:.3g}, {100 * row['of_copy']:.3g} %{same}"


def _worst_error(row: Row) -> str:
    """The largest of our results' errors by name, and eager's error of the same result."""
    mine = row["errors"].get(OURS, {})
    if not mine:
        return ""
    name = max(mine, key=lambda key: float("inf") if isinstance(mine[key], str) else mine[key])
    own, eager = (row["errors"].get(column, {}).get(name) for column in (OURS, EAGER))
    text = [value if isinstance(value, str) else f"{value:.1e}" for value in (own, eager) if value
            is not None]  # fmt: skip
    return f"{name} {text[0]}" + (f" ({text[1]})" if len(text) > 1 else "")


def _marks(row: Row) -> str:
    marks = ["FAILED"] if row["failed"] else []
    if row["wrong"]:
        marks.append(f"WRONG: {', '.join(row['wrong'])}")
    if row["loss"]:
        marks.append(f"LOSS to {', '.join(row['loss'])}")
    return "; ".join(f"**{mark}**" for mark in marks)


def as_choices(rows: Sequence[Row], gpu: str) -> str:
    """Entries for `MEASURED` in fasttrain_kernels/attention.py, ready to paste: the fastest of its
    choices forward plus backward, in channels_last."""
    family = next((word for word in gpu.split() if re.match(r"[A-Z]+\d", word)), gpu.split()[-1])
    pairs: dict[Any, list[Row]] = {}
    for row in rows:
        if row["op"] == "attention" and row["layout"] == "NHWC":
            pairs.setdefault((row["case"], row["dtype"]), []).append(row)
    lines = []
    for (_, dtype), pair in pairs.items():
        times = {choice: both_ways(pair, column) for choice, column in _CHOICES.items()}
        ranked = sorted((ms, choice) for choice, ms in times.items() if ms is not None)
        if ranked:
            facts = pair[0]["facts"]
            key = (family, facts["tokens"], facts["head_size"], dtype)
            text = ", ".join(f"{choice} {ms:.4g}" for ms, choice in ranked)
            lines.append(f'    ({json.dumps(key)[1:-1]}): "{ranked[0][1]}",  # ms: {text}')
    return "\n".join(lines)


_CHOICES = {"triton": TRITON, "sdpa_flash": FLASH, "sdpa_cudnn": CUDNN}


def broken(result: Mapping[str, Any]) -> Iterator[str]:
    """What makes the exit status 1."""
    for entry in result.get("check", []):
        if problem := entry["failed"] or entry.get("wrong"):
            why = entry.get("why", problem)
            yield f"check: {entry['op']} {entry['case']} {entry['layout']}: {why}"
    if result["tests"].get("passed") is False:
        yield f"tests: {result['tests']['result']}"
    for row in result["rows"]:
        name = f"{row['op']} {row['case']} {row['layout']} {row['direction']}"
        if row["failed"]:
            yield f"{name}: {row['failed']}"
        if row["wrong"]:
            yield f"{name}: wrong {', '.join(row['wrong'])}"
    for left in result["left_out"]:
        if left["failed"]:
            yield f"{left['op']} {left['case']} {left['layout']}: {left['why']}"
    for part in ("discriminator", "profile", "fd", "runs"):
        if "error" in result.get(part, {}):
            yield f"{part}: {result[part]['error']}"
