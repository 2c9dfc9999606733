"""The profile as tables: the content of profile.json and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["print_profile"]

Data = Mapping[str, Any]


def print_profile(profile: Data, console: Console) -> None:
    for table in (_rates, _columns, _checks, _phases, _model, _classes, _generator_classes):
        table(profile, console)
    for line in profile["remarks"]:
        console.print(f"- {line}", highlight=False)


def _rates(profile: Data, console: Console) -> None:
    machine, run = profile["machine"], profile["configuration"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "cudnn")
        if machine.get(name)
    )  # fmt: skip
    console.print(f"[bold]{machine['device']}[/], {machine['threads']} threads, {versions}")
    console.print(
        f"{run['parameters']:,} parameters, batch {run['batch']}, generator in {run['dtype']}, "
        f"{run['memory_format']}, kernels={run['kernels']} -> {run['implementation']}; "
        f"discriminator in {run['discriminator_dtype']}"
        + (", TF32 in its convolutions" if machine.get("tf32_convolutions") else "")
    )
    console.print(f"Times: median of {run['iterations']} (p20 to p80), {profile['method']}.")
    table = _table("Measured ceilings", "", "rate", "ms: median (p20 to p80)", "of what")
    for name, unit in (("copy", "B/s"), ("matrix", "FLOP/s")):
        rate = profile["rates"][name]
        table.add_row(name, f"{_si(rate['per_second'])}{unit}", _timing(rate), rate["what"])
    console.print(table)


def _columns(profile: Data, console: Console) -> None:
    columns = profile["columns"]
    table = _table(
        "Columns: the generator alone, then the whole iteration without R1", "", *columns
    )

    def row(title: str, cell: Any) -> None:
        table.add_row(title, *(cell(column) for column in columns.values()))

    eager = columns["eager"]["generator"]["total"]["median_ms"]
    for part in ("forward", "backward", "total"):
        row(f"{part}, ms", lambda c, part=part: _timing(c["generator"][part]))
    row("against eager", lambda c: f"{eager / c['generator']['total']['median_ms']:.2f}x")
    for count, unit in (("bytes", "B"), ("flops", "FLOP")):
        row(f"counted {unit}", lambda c, count=count, unit=unit: _counted(c, count, unit))
    row("weights", lambda c: _amount(c["generator"]["weight_bytes"], "B"))
    row("saved activations", lambda c: _amount(c["generator"]["saved_activation_bytes"], "B"))
    row("peak above weights", lambda c: _amount(c["generator"]["peak_bytes_above_weights"], "B"))
    table.add_section()
    row("iteration, ms", lambda c: _timing(c["step"]["time"]) if c["step"] else "-")
    row(
        "peak above standing",
        lambda c: _amount(c["step"] and c["step"]["peak_bytes_above_standing"], "B"),
    )
    console.print(table)
    for name, column in columns.items():
        console.print(f"  [bold]{name}[/]: {column['what']}", highlight=False)
    for name, error in profile["failed"].items():
        console.print(
            f"  [bold red]{name}[/]: dropped, because it failed: {escape(error)}", highlight=False
        )
    console.print()


def _checks(profile: Data, console: Console) -> None:
    table = _table(
        "Agreement of the columns: relative L2 error against eager in float32",
        "", "images", "gradient", "worst part of the gradient", "",
    )  # fmt: skip
    for name, column in profile["columns"].items():
        check = column["check"]
        wrong = check["wrong"]
        verdict = Text("ok", style="green")
        if wrong:
            more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
            verdict = Text(f"WRONG: {', '.join(wrong[:2])}{more}", style="bold red")
        parts = check["parts"]
        worst = max(parts, key=lambda part: math.inf if parts[part] is None else parts[part])
        errors = [_error(check["images"]), _error(check["gradient"])]
        table.add_row(name, *errors, f"{_error(parts[worst])}  {worst}", verdict)
    console.print(table)


def _phases(profile: Data, console: Console) -> None:
    phases = profile["phases"]
    table = _table(
        "The iteration of ours by phase",
        "step", "phase", "ms: median (p20 to p80)", "every", "amortised ms", "share",
    )  # fmt: skip
    step = None
    for row in phases["rows"]:
        if step not in (None, row["step"]):
            table.add_section()
        table.add_row(
            row["step"] if row["step"] != step else "",
            row["phase"],
            _timing(row),
            str(row["every"]),
            f"{row['amortised_ms']:.3g}",
            f"{100 * row['share']:.1f} %",
        )
        step = row["step"]
    console.print(table)
    console.print(
        f"Sum of the phases {phases['sum_ms']:.4g} ms, whole iteration measured separately "
        f"{phases['measured_ms']:.4g} ms, difference {phases['difference_ms']:+.3g} ms "
        f"({100 * phases['difference_ms'] / phases['measured_ms']:+.1f} %); "
        f"{phases['images_per_second']:.4g} images/s."
    )
    if phases["r1"]:
        console.print(
            f"An R1 step takes {_timing(phases['r1'])} ms; in these numbers it is amortised."
        )
    console.print()


def _model(profile: Data, console: Console) -> None:
    model = profile["model"]
    if model is None:
        return
    table = _table(
        f"The speed model of a {model['gpu']}, counted, beside the measurement",
        "", "floor, ms", "expected, ms", "measured, ms", "of expected",
    )  # fmt: skip
    whole = {"title": "iteration; optimizers, EMA are measured only", **model["iteration"]}
    for row in (*model["rows"], whole):
        times = [row[f"{name}_ms"] for name in ("floor", "expected", "measured")]
        ratio = f"{times[2] / times[1]:.2f}x"
        table.add_row(row["title"], *(f"{time:.4g}" for time in times), ratio)
    console.print(table)


def _classes(profile: Data, console: Console) -> None:
    console.print(_class_table("An iteration of ours without R1, by class of operator",
                               profile["classes"]["rows"]))  # fmt: skip


def _generator_classes(profile: Data, console: Console) -> None:
    for name, column in profile["columns"].items():
        rows = column["generator"]["classes"]
        if rows and name in ("eager", "ours"):
            title = f"Generator forward and backward, {name}, by class of operator"
            console.print(_class_table(title, rows["rows"]))


def _class_table(title: str, rows: Sequence[Data]) -> Table:
    table = _table(
        title,
        "", "calls", "ms", "share", "bytes", "B/s", "of copy", "FLOP", "FLOP/s", "of matrix",
    )  # fmt: skip
    for row in rows:
        moved, done = row["bytes_per_second"], row["flops_per_second"]
        table.add_row(
            row["class"],
            f"{row['calls']:,}" if row["calls"] else "-",
            f"{row['time_ms']:.4g}",
            f"{100 * row['share']:.1f} %",
            _amount(row["bytes"] or None, "B"),
            _amount(moved, ""),
            f"{100 * row['of_copy']:.0f} %" if moved else "-",
            _amount(row["flops"] or None, ""),
            _amount(done, ""),
            f"{100 * row['of_matrix']:.0f} %" if done else "-",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        justify: Any = "left" if index == 0 or column in ("phase", "of what") else "right"
        table.add_column(column, justify=justify)
    return table


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _timing(timing: Data) -> str:
    return f"{timing['median_ms']:.4g} ({timing['p20_ms']:.4g} to {timing['p80_ms']:.4g})"


def _counted(column: Data, count: str, unit: str) -> str:
    classes = column["generator"]["classes"]
    return _amount(classes and classes[count], unit)


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{_si(value)}{unit}"


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
