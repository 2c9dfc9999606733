"""The speed model's trace: what a generator launches, and that nothing in an iteration waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.analysis.speed.costs import summed
from fasttrain.analysis.speed.phases import OURS, generator_phases, phases
from fasttrain.analysis.speed.trace import Trace
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain_kernels import dispatch, upsample_add, using
from tests.tiny import DISCRIMINATOR, NETWORK


@pytest.mark.slow
def test_the_published_generator_launches_no_more_than_counted() -> None:
    """Of the committed table of docs/performance.md: a cast, a zero or a sum more shows here."""
    settings = load_settings("imagenet64-d2o-f", (), FinetuneSettings)
    traced, _ = generator_phases(settings, OURS, 128)
    assert len(traced["generator forward"]) <= 438
    assert len(traced["generator backward"]) <= 551
    assert len(traced["generator forward, without graph"]) <= 438
    names = [launch.name for launch in traced["generator backward"]]
    assert names.count("group_norm_split.small_kernel") == 95
    assert not {"zeros", "zeros_like", "zero_"} & set(names)


@pytest.mark.slow
def test_an_iteration_waits_for_no_value_and_for_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that CUDA graphs can hold the generator's passes and the discriminator's step. On the meta
    device `.item()`, `.cpu()` and `nonzero` fail; what the host sends or takes is recorded."""
    small = (*NETWORK, *DISCRIMINATOR, "discriminator.norm_group=2")
    settings = load_settings("digits-d2o-f", small, FinetuneSettings)
    traces: list[Trace] = []
    original = Trace.__enter__

    def entered(self: Trace) -> Any:
        traces.append(self)
        return original(self)

    monkeypatch.setattr(Trace, "__enter__", entered)
    found = phases(settings, 2)
    assert len(found) >= 7
    assert all(launches for launches, _ in found.values())
    assert [name for trace in traces for name in trace.from_host] == []


@pytest.mark.parametrize(
    "wait",
    [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.tolist, lambda x: x[x > 0]],
    ids=["item", "cpu", "tolist", "mask"],
)
def test_the_trace_fails_on_what_waits(wait: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), Trace():
        wait(torch.empty(1, device="meta"))


def test_a_copy_from_the_host_is_recorded() -> None:
    with Trace() as trace:
        torch.ones(3).to("meta")
    assert trace.from_host


def test_bytes_and_operations_of_a_launch() -> None:
    a, b = torch.empty(8, 16, device="meta"), torch.empty(16, 4, device="meta")
    with Trace() as trace:
        _ = a @ b + a[:, :1].expand(8, 4)
    product, total = trace.launches
    assert (product.name, product.flops, product.bytes) == (
        "mm",
        2 * 8 * 16 * 4,
        4 * (8 * 16 + 16 * 4 + 8 * 4),
    )
    assert total.bytes == 4 * (8 * 4 + 8 + 8 * 4)  # what is expanded is read once


def test_kernels_are_recorded_with_their_grid_and_constants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fasttrain_kernels.dispatch.INTERPRETED", True)
    x = torch.empty(2, 8, 4, 4, device="meta", requires_grad=True)
    with using("triton"), Trace() as trace:
        upsample_add(x).backward(torch.empty(2, 8, 8, 8, device="meta"))
    forward, backward = trace.launches
    assert forward.arguments is not None
    assert (forward.arguments["C"], forward.arguments["H"]) == (8, 4)
    assert forward.bytes == 4 * 2 * 8 * (16 + 64)
    assert backward.name == "scale_mixing._adjoint_kernel"


def test_a_sum_is_bound_by_what_takes_most_of_it() -> None:
    assert summed([]).bound == "nothing"


def test_a_machine_without_triton_counts_the_same_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fasttrain plan` on a laptop. There a kernel is the function that Triton would wrap."""
    settings = load_settings("digits-d2o-f", NETWORK, FinetuneSettings)
    expected, _ = generator_phases(settings, OURS, 2)
    monkeypatch.setattr(dispatch, "HAVE_TRITON", False)
    found, _ = generator_phases(settings, OURS, 2)
    assert {k: [x.name for x in v] for k, v in found.items()} == {
        k: [x.name for x in v] for k, v in expected.items()
    }

    def _kernel() -> None: ...

    with Trace() as trace:
        trace._launched(_kernel, (1,), x=torch.empty(4, device="meta"))
    assert trace.launches[0].name == "test_trace._kernel"
