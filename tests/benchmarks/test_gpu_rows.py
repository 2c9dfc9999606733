"""A row of the GPU benchmark: what it counts, which errors and losses it marks, how it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import rows as rows_module
from benchmarks.gpu.attention import FLASH, attention_cases
from benchmarks.gpu.case import EAGER, OURS, Case
from benchmarks.gpu.launched import launched
from benchmarks.gpu.norms import norm_cases
from benchmarks.gpu.others import ema_case, normal_cases, resample_cases, residual_cases
from benchmarks.gpu.timing import Clock, DeviceLost, Run, measure
from fasttrain.analysis.profiling.meter import summarise
from fasttrain_kernels import dispatch
from tests.benchmarks.support import CPU, row, rows_of

# ------------------------------------------------------------------------------------- counting

NORM = next(norm_cases(quick=True))
COUNTED: dict[str, tuple[Case, tuple[int, int, int, int]]] = {
    # x is 2 x 24 x 4 x 4 in bfloat16: 1536 bytes; weight and bias 2 x 96, scale and shift 2 x 96.
    "norm": (NORM, (1536 + 384 + 1536, 1536 + 2 * (1536 + 384), 0, 0)),
    # x is 2 x 16 x 4 x 4: 1024 bytes, weight and bias 128; the statistics, 2 x 1 x 16 x 2 float32,
    # are read forward alone.
    "norm given": (
        next(case for case in norm_cases(quick=True) if "statistics" in case.name),
        (1024 + 128 + 256 + 1024, 1024 + 2 * (1024 + 128), 0, 0),
    ),
    # qkv 2 x 192 x 16 positions in bfloat16: 12288 bytes, y a third. A product: 2 samples x 2 heads
    # x 16 x 16 x 32 multiplications and additions = 65536; two forward, five backward.
    "attention": (
        next(attention_cases(quick=True)),
        (12288 + 4096, 4096 + 2 * 12288, 2 * 65536, 5 * 65536),
    ),
    # 2 x 16 x 4 x 4 in bfloat16: 1024 bytes, bias 64; statistics 2 x 1 x 16 x 2 float32: 256.
    "residual": (next(residual_cases(quick=True)), (3 * 1024 + 64 + 256, 1024 + 64, 0, 0)),
    "residual scaled": (
        list(residual_cases(quick=True))[1],
        (3 * 1024 + 64, 2 * 1024 + 64, 0, 0),
    ),
    # 2 x 8 x 4 x 4 in bfloat16: 512 bytes; four times as many after, or a quarter.
    "up": (next(resample_cases(quick=True)), (512 + 2048, 512 + 2048, 0, 0)),
    "down": (list(resample_cases(quick=True))[1], (512 + 128, 512 + 128, 0, 0)),
    # Two int64 indices in, 2 x 48 float32 out.
    "normals": (next(normal_cases(quick=True)), (16 + 384, 0, 0, 0)),
    # 3 + 20 + 17 numbers in float32: average and weights in, average out.
    "ema": (ema_case(quick=True), (3 * 160, 0, 0, 0)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_bytes_and_operations_are_those_counted_by_hand(name: str) -> None:
    case, expected = COUNTED[name]
    rows = rows_of(case)
    assert [made["direction"] for made in rows] == ["forward", "backward"][: len(rows)]
    assert (rows[0]["bytes"], rows[0]["flops"]) == expected[::2]
    if expected[1]:
        assert (rows[1]["bytes"], rows[1]["flops"]) == expected[1::2]
    else:
        assert len(rows) == 1


def test_the_published_shapes_are_all_there_once() -> None:
    titles = [case.title for case in command.all_cases(quick=False)]
    assert len(titles) == len(set(titles))
    for layout in ("NHWC", "NCHW"):
        for norm in ("192@64", "384@32", "576@16", "768@8"):
            assert f"group_norm {norm} scale shift silu {layout} bfloat16" in titles
        for norm in ("384@64", "576@32"):
            assert f"group_norm {norm} silu {layout} bfloat16" in titles
    for shape in ("6x64 S=1024", "9x64 S=256", "12x64 S=64", "3x64 S=4096 N=16", "1x256 S=256"):
        assert f"attention {shape} NHWC bfloat16" in titles


def test_data_is_random_and_the_same_for_a_seed() -> None:
    for case in command.all_cases(quick=True):
        first, again, other = (case.inputs(CPU, seed) for seed in (0, 0, 1))
        for name, value in first.items():
            if isinstance(value, torch.Tensor) and name != "window":
                assert torch.equal(value, again[name])
                assert not torch.equal(value, other[name])
                assert value.double().std() > 0.1


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("case", [case for case, _ in COUNTED.values()], ids=list(COUNTED))
def test_every_result_has_an_error_beside_eagers_and_ours_is_right(case: Case) -> None:
    forward, *backward = rows_of(case)
    assert set(forward["errors"][OURS]) == set(case.outputs)
    for made in backward:
        assert set(made["errors"][OURS]) == {"d" + name for name in case.gradients}
    for made in (forward, *backward):
        assert made["wrong"] == []
        assert set(made["errors"][EAGER]) == set(made["errors"][OURS])
        for value in made["errors"][OURS].values():
            assert value < 1e-2


@pytest.mark.parametrize("spoil", [lambda y: y * 1.03, lambda y: y + 0.1 * y.detach().roll(1, 1)])
def test_a_planted_wrong_op_is_marked_and_breaks_the_command(spoil: Callable[..., Any]) -> None:
    eager: Any = NORM.columns[EAGER]
    forward, backward = rows_of(NORM, **{OURS: lambda **inputs: spoil(eager(**inputs))})
    assert forward["wrong"] == ["y"]
    if spoil(torch.ones(1, 1)).item() == pytest.approx(1.03):
        assert set(backward["wrong"]) == {"dx", "dweight", "dbias", "dscale", "dshift"}
    result = {"tests": {}, "rows": [forward, backward], "left_out": [], "profile": {}}
    assert any("wrong y" in problem for problem in command.broken(result))


def test_one_wrong_gradient_is_named_alone() -> None:
    eager: Any = NORM.columns[EAGER]

    class Detour(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            return grads[0] * 0.9

    def ours(scale: torch.Tensor, **inputs: torch.Tensor) -> Any:
        return eager(scale=Detour.apply(scale), **inputs)

    forward, backward = rows_of(NORM, **{OURS: ours})
    assert forward["wrong"] == []
    assert backward["wrong"] == ["dscale"]
    assert backward["errors"][OURS]["dscale"] == pytest.approx(0.1, rel=0.1)


def test_nan_and_a_wrong_shape_are_wrong() -> None:
    eager: Any = NORM.columns[EAGER]
    nan = rows_of(NORM, **{OURS: lambda **inputs: eager(**inputs) * math.nan})[0]
    assert nan["wrong"] == ["y"]
    assert nan["errors"][OURS]["y"] == "not finite"
    assert rows_module.relative_error(torch.ones(2), torch.ones(3)) == "shape [2], not [3]"


# --------------------------------------------------------------------------------- times and marks


def test_a_loss_is_a_column_faster_by_more_than_the_noise() -> None:
    assert row(eager=2.0, ours=1.0, again=1.0)["loss"] == []
    assert row(eager=0.995, ours=1.0, again=1.0)["loss"] == []  # within 1 %
    assert row(eager=0.98, ours=1.0, again=1.0)["loss"] == [EAGER]
    assert row(eager=0.98, ours=1.0, again=1.03)["loss"] == []  # two timings of ours differ more
    assert row(eager=0.9, ours=1.0, again=2.0)["loss"] == [EAGER]  # noise excuses 5 % at most
    assert row(eager="broken", ours=1.0, flash=0.5, copy=0.1)["loss"] == [FLASH]


def test_rates_and_shares_follow_from_bytes_and_median() -> None:
    made = row(eager=2.0, ours=1.0, again=1.0, copy=0.9)
    assert made["gb_s"] == pytest.approx(800)  # 0.8 GB in 1 ms
    assert made["of_copy"] == pytest.approx(0.8)
    assert made["of_same_size_copy"] == pytest.approx(0.9)
    assert row(eager=1.0, ours="no kernel")["failed"] == "no kernel"


def test_quantiles_are_the_20th_50th_and_80th() -> None:
    timing = summarise([float(value) for value in range(101)][::-1])
    assert (timing.p20_ms, timing.median_ms, timing.p80_ms) == (20, 50, 80)
    assert timing.repetitions == 101


def test_turns_backwards_and_failures() -> None:
    calls: list[str] = []

    def forward(name: str) -> Callable[[], str]:
        def run() -> str:
            calls.append(name)
            return name

        return run

    def broken() -> Any:
        raise ValueError("first line\nsecond")

    runs = {
        "a": Run(forward("a"), lambda returned: calls.append(returned + " backward")),
        "broken": Run(broken),
        "b": Run(forward("b")),
    }
    times = measure(runs, Clock(CPU), seconds=0.0, least=2)
    assert times["broken"] == "ValueError: first line"
    turn = ["a", "a backward", "b"]
    assert calls == turn * (len(calls) // 3)  # in turns, and each backward after its own forward
    assert not isinstance(times["a"], str)
    assert times["a"].backward is not None
    assert times["a"].forward.repetitions == 2


def test_a_failed_column_is_recorded_and_the_others_go_on() -> None:
    def broken(**inputs: Any) -> Any:
        raise NotImplementedError("no such kernel")

    forward, backward = rows_of(NORM, library=broken)
    for made in (forward, backward):
        assert made["columns"]["library"] == {"error": "NotImplementedError: no such kernel"}
        assert made["failed"] is None
        assert made["columns"][OURS]["median_ms"] > 0
    lost = rows_of(NORM, **{OURS: broken})
    assert [made["failed"] for made in lost] == ["NotImplementedError: no such kernel"] * 2
    result = {"tests": {}, "rows": lost, "left_out": [], "profile": {}}
    assert len(list(command.broken(result))) == 2


def test_on_a_gpu_the_cache_is_flushed_before_each_region_and_events_are_read_after_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of calls, with stand-ins for the GPU's."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            log.append("event")

        def elapsed_time(self, end: Any) -> float:
            log.append("read")
            return 1.5

    clock = Clock(CPU)
    clock.meter.cuda = True
    clock.buffer = SimpleNamespace(sum=lambda: log.append("flush"))  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    run = Run(lambda: log.append("forward"), lambda _: log.append("backward"))
    for hide in (True, False):
        log.clear()
        times = measure({"a": run}, clock, seconds=0.0, least=1, hide_launch=hide)["a"]
        assert not isinstance(times, str)
        assert times.forward.median_ms == 1.5
        once = [name for i, name in enumerate(log) if name != "flush" or log[i - 1] != "flush"]
        idle = [] if hide else ["wait"]  # with launches counted the GPU is idle at the start
        region = ["flush", *idle, "event"]
        taken = [*region, "forward", "event", *region, "backward", "event", "wait"]
        assert once == taken * (len(once) // len(taken)) + ["read", "read"]

    def lose(device: Any = None) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", lose)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        measure({"a": Run(lose)}, clock, seconds=0.0)


def test_registers_are_read_off_our_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    jit = pytest.importorskip("triton.runtime.jit")
    compiled = SimpleNamespace(
        n_regs=96, n_spills=2, metadata=SimpleNamespace(shared=64, num_warps=8)
    )
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setattr(jit.JITFunction, "run", lambda self, *args, **kwargs: compiled)
    ours, other = (SimpleNamespace(__module__=m, __name__="kernel") for m in
                   ("fasttrain_kernels.group_norm", "torch._inductor"))  # fmt: skip
    with launched() as kernels:
        for function in (ours, ours, other):
            assert jit.JITFunction.run(SimpleNamespace(fn=function)) is compiled
    assert kernels == [
        {"kernel": "kernel", "registers": 96, "spills": 8, "shared_bytes": 64, "num_warps": 8}
    ]
