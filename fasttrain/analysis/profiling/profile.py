"""`profile_recipe`: settings in, printed tables and two files out."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fasttrain.analysis.profiling.bench import Bench
from fasttrain.analysis.profiling.expectation import expected_of
from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.sizes import fitted, parameters_of
from fasttrain.analysis.profiling.table import print_profile
from fasttrain.models.build import activation_dtype, memory_format
from fasttrain.models.precision import decided
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.files import write_atomic
from fasttrain.system.switches import exact_float32
from fasttrain_kernels import resolve, using

__all__ = ["profile_recipe"]

GPU_ITERATIONS, CPU_ITERATIONS = 10, 5
WIDTH = 124


def profile_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    batch: int | None = None,
    iterations: int | None = None,
    out: Path | None = None,
    compiled: bool | None = None,
) -> dict[str, Any]:
    """Measure the training iteration of a fine-tuning recipe; returns the content of
    OUT/profile.json.

    Args:
        device: `cuda`, `cuda:1` or `cpu`; default: the GPU if there is one.
        batch: images of an iteration; default: the recipe's micro-batch, at most 128 of its batch,
            or a few on a CPU. Halved as long as memory runs out.
        iterations: repetitions of every measurement.
        out: folder; default: `profiles/RECIPE-DEVICE`.
        compiled: whether torch.compile is a column; default: on a GPU only.

    Raises UserError for mistakes in the input. `wrong` in the result names the columns with wrong
    results: such a profile proves nothing.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)

    def say(line: str) -> None:
        console.print(line, highlight=False)

    exact_float32()  # as in the measured loop
    meter = Meter(_device(device))
    if compiled is None:
        compiled = meter.cuda
    wanted = load_settings(recipe, overrides, FinetuneSettings, ahead=True)
    folder = out or Path("profiles") / f"{Path(recipe).stem}-{meter.device.type}"
    iterations = iterations or (GPU_ITERATIONS if meter.cuda else CPU_ITERATIONS)
    settings, notes = fitted(wanted, meter.device, batch)
    settings, _ = decided(settings, meter.device)
    say(f"[bold]fasttrain profile {recipe}[/]: random weights, synthetic images")
    for note in notes:
        say(f"[bold yellow]{note}.[/]")
    folder.mkdir(parents=True, exist_ok=True)
    rates = meter.rates(activation_dtype(settings, meter.device))
    bench: Bench | None = None
    measured: dict[str, Any] = {}
    while not measured:
        problem = ""
        try:
            with using(settings.kernels):
                bench = Bench(settings, meter, rates, compiled=compiled, say=say)
                measured = {
                    "configuration": _configuration(bench, iterations),
                    **_measured(bench, iterations, folder / "trace.json", say),
                }
        except torch.OutOfMemoryError as error:
            problem = str(error).splitlines()[0]
        if problem:  # outside the handler, whose traceback keeps the memory
            if settings.batch == 1:
                raise UserError(f"one image does not fit in memory: {problem}")
            note = f"out of memory at batch {settings.batch}: halved to {settings.batch // 2}"
            say(f"[bold yellow]{note}.[/]")
            settings, changes = fitted(settings, meter.device, settings.batch // 2)
            notes += [note, *changes]
            bench = None
            gc.collect()
            meter.free()

    result = {
        "schema": 1,
        "recipe": recipe,
        "overrides": list(overrides),
        "notes": notes,
        "shrunk": settings.network != wanted.network,
        "machine": meter.machine(),
        "settings": settings.model_dump(mode="json"),
        "method": meter.method,
        "rates": rates,
        **measured,
    }
    result["model"] = None
    if meter.cuda:
        device_name = result["machine"]["device"]
        result["model"] = expected_of(settings, device_name, measured["phases"])
    result["remarks"] = _remarks(result, compiled, meter)
    result["files"] = {"trace": str(folder / "trace.json")}
    text = json.dumps(result, indent=1, allow_nan=False)
    write_atomic(folder / "profile.json", text)
    result = json.loads(text)
    print_profile(result, console)
    for name in result["wrong"]:
        say(f"[bold red]WRONG: column {name} has wrong results.[/]")
    say(f"written: {folder / 'profile.json'} and {folder / 'trace.json'}")
    return result


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"no device {name!r}: choose cuda or cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has {count} GPUs, numbered from 0")
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"cannot profile on {device.type}: choose cuda or cpu")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _short(name: object) -> str:
    return str(name).removeprefix("torch.")


def _configuration(bench: Bench, iterations: int) -> dict[str, Any]:
    settings, meter, dtype = bench.settings, bench.meter, bench.dtype
    layout = memory_format(settings, meter.device)
    probe = torch.empty(1, device=meter.device, dtype=dtype)
    return {
        "batch": settings.batch,
        "iterations": iterations,
        "parameters": parameters_of(settings),
        "dtype": _short(dtype),
        "memory_format": _short(layout).removesuffix("_format"),
        "kernels": settings.kernels,
        "implementation": resolve(settings.kernels, probe),
        "discriminator_dtype": _short(next(bench.discriminator.parameters()).dtype),
    }


def _measured(
    bench: Bench, iterations: int, trace: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    say("measuring: the generator alone")
    generators = bench.generators(iterations)
    say("measuring: the whole iteration")
    steps, phases = bench.steps(iterations)
    say("measuring: classes of operators, trace")
    classes = bench.step_classes(trace)
    phases["images_per_second"] = len(bench.batch) / phases["measured_ms"] * 1e3
    columns = {}
    for name, column in bench.columns.items():
        columns[name] = {
            "what": column.what,
            "kernels": column.kernels,
            "memory_format": column.memory_format,
            "compiled": column.compiled,
            "warm_up_s": bench.warm_up_s[name],
            "check": _finite(asdict(bench.checks[name])),
            "generator": generators[name],
            "step": steps.get(name),
        }
    return {
        "columns": columns,
        "phases": phases,
        "classes": classes,
        "failed": bench.failed,
        "wrong": [name for name, check in bench.checks.items() if check.wrong],
    }


def _finite(value: Any) -> Any:
    """The value with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remarks(result: dict[str, Any], compiled: bool, meter: Meter) -> list[str]:
    interval = result["settings"]["r1"]["interval"]
    remarks = [
        "Counted bytes are the least that the operators must read and write (each input once, "
        "each output once, views nothing); operations are those of matrix products, "
        "convolutions and attention. Less of either can be good; a rate alone says nothing.",
        "Classes depend on the operator: eager resamples with depthwise convolutions, which count "
        "as convolutions; bmm and softmax count as attention.",
        "The discriminator is the same in every column, so whole iterations differ only by the "
        "generator. Data loading, checkpoints and other processes are not included.",
        "Phases and the whole iteration are measured in turns, the phases with stamps between "
        f"the calls; an R1 step counts once in {interval} iterations.",
        "Errors are of the first 4 images of the batch. A column is wrong beyond the tolerance of "
        "its dtype and twice eager's own error in it (a part of the gradient: four and three).",
    ]
    if meter.cuda:
        busy = result["classes"]["time_ms"] / result["phases"]["iteration"]["median_ms"]
        remarks.append(
            "Times by class are the GPU's own (torch.profiler), "
            f"{100 * busy:.0f} % of the iteration's: the rest is waiting for the CPU. Fractions of "
            f"the matrix rate are of the {result['configuration']['dtype']} rate, also for the "
            "float32 discriminator."
        )
        return remarks
    remarks.append(
        "Times by class are the operators' own on the CPU, slowed by the profiler; `other` is "
        "autograd's work and Python. Caches are large here: rates above the copy's are no error."
    )
    run = result["configuration"]
    if (run["implementation"], run["dtype"]) == ("reference", "float32"):
        remarks.append(
            "On this device `ours` and `library` are the same code (kernels=reference), except "
            "that the frozen convolutions of `ours` save no input: their times differ by noise."
        )
    if not compiled:
        remarks.append(
            "torch.compile is not measured on a CPU; --compile adds it, which takes minutes."
        )
    return remarks
