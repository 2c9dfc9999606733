"""group_norm in channels_last and in its split form; torch's own without its crash."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_kernels, _group_norm_reference, dispatch
from fasttrain_kernels import _group_norm_launches as launches
from fasttrain_kernels._group_norm_plans import WholePlan, groups_together, plan_forward, splits
from fasttrain_kernels._tiles import Plan
from tests.kernels.group_norm_definition import (
    NAMES,
    OPTIONS,
    assert_right,
    channels_last,
    definition,
    make_inputs,
    set_plan,
    triton_op,
)
from tests.kernels.support import TOLERANCE, relative_error

SHAPES = [  # shape, groups: one program for all; several; odd channels; one pixel a row
    ((2, 8, 4, 4), 2),
    ((1, 48, 3, 3), 8),
    ((2, 54, 2, 5), 6),
    ((2, 6, 3, 5), 3),
    ((1, 14, 5, 1), 7),
]


def plans(shape: tuple[int, ...], groups: int) -> dict[str, WholePlan | Plan | None]:
    together = groups_together(groups, shape[1] // groups)
    width = 1 << (shape[1] // groups * together - 1).bit_length()
    loop = WholePlan(together, fits=False, block_c=width, block_p=4, num_warps=1)
    return {"one tile": None, "loop": loop, "split": Plan(32, 4, 1)}


@pytest.mark.parametrize("form", ["one tile", "loop", "split"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_channels_last(form, dtype, shape, groups, monkeypatch) -> None:
    set_plan(monkeypatch, plans(shape, groups)[form])
    assert_right(channels_last(make_inputs(shape, dtype)), groups)


@pytest.mark.parametrize("form", ["one tile", "loop", "split"])
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("options", [(), ("weight", "bias"), ("shift_in",), ("scale", "shift")])
def test_channels_last_options(form, activation, options, monkeypatch) -> None:
    shape, groups = (1, 48, 2, 3), 8
    set_plan(monkeypatch, plans(shape, groups)[form])
    assert_right(channels_last(make_inputs(shape, torch.float32, options)), groups, activation)


@pytest.mark.parametrize("form", ["one tile", "loop", "split"])
def test_nothing_cancels_far_from_zero(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, groups = (2, 48, 5, 5), 8
    set_plan(monkeypatch, plans(shape, groups)[form])
    inputs = make_inputs(shape, torch.float32, ())
    with torch.no_grad():
        inputs["x"] += 1000
    inputs = channels_last(inputs)
    expected = definition(inputs["x"].detach().double(), groups=groups)
    assert relative_error(triton_op(inputs["x"], groups=groups), expected) < 1e-4


@pytest.mark.parametrize("form", ["one tile", "loop", "split"])
def test_results_repeat_and_only_needed_gradients_exist(form: str, monkeypatch) -> None:
    shape, groups = (2, 48, 2, 3), 8  # two tiles of pixels, the last cut short
    set_plan(monkeypatch, plans(shape, groups)[form])
    inputs = channels_last(make_inputs(shape, torch.float32))
    y = triton_op(**inputs, groups=groups)
    dy = torch.randn_like(y)
    first, second = (
        torch.autograd.grad(y, list(inputs.values()), dy, retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for wanted in NAMES:
        leaves = {name: t.detach().requires_grad_(name == wanted) for name, t in inputs.items()}
        triton_op(**leaves, groups=groups).backward(dy)
        assert torch.equal(leaves[wanted].grad, first[NAMES.index(wanted)]), wanted
        assert all(t.grad is None for name, t in leaves.items() if name != wanted)


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are given x and dy themselves, where dy lies as x does."""
    seen: list[list[int]] = []

    class Spy:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def launch(**arguments: Any) -> Any:
                seen.append([a.data_ptr() for a in arguments.values() if isinstance(a, Tensor)])
                return self.kernel[grid](**arguments)

            return launch

    for name in ("forward_kernel", "backward_kernel"):
        monkeypatch.setattr(_group_norm_kernels, name, Spy(getattr(_group_norm_kernels, name)))
    inputs = channels_last(make_inputs((2, 8, 4, 4), torch.float32, ("weight", "bias")))
    y = triton_op(**inputs, groups=2)
    dy = torch.randn_like(y)
    torch.autograd.grad(y, list(inputs.values()), dy)
    forward, backward = seen
    assert forward[0] == inputs["x"].data_ptr()
    assert backward[:2] == [dy.data_ptr(), inputs["x"].data_ptr()]


@pytest.mark.parametrize(
    ("groups", "size", "together"),
    [(32, 6, 4), (32, 12, 2), (32, 18, 4), (32, 24, 1), (32, 36, 2), (32, 4, 8), (32, 16, 2),
     (32, 42, 4), (4, 4, 4), (1, 7, 1), (7, 1, 7), (6, 9, 3)],
)  # fmt: skip
def test_groups_side_by_side(groups: int, size: int, together: int) -> None:
    """At least 48 bytes of bfloat16, in whole 16 bytes where the channels allow it."""
    assert groups_together(groups, size) == together


def test_the_form_follows_the_rule() -> None:
    """ADM's 192 channels at 64 pixels a side: whole groups at a batch of 128, split at 1, and
    always where the statistics are there; what one tile holds is never split."""
    for last in (False, True):
        plan = plan_forward(32, 12, 4096, last)
        assert not plan.fits
        assert not splits(128, 32, plan)
        assert splits(1, 32, plan)
        assert splits(128, 32, plan, given=True)
        small = plan_forward(32, 24, 64, last)
        assert small.fits
        assert not splits(1, 32, small)
        assert not splits(1, 32, small, given=True)


def test_small_batches_take_the_split_form_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "plan_forward", lambda *sizes: WholePlan(1, False, 4, 8, 1))
    monkeypatch.setattr(launches, "plan_backward", lambda *sizes: WholePlan(1, False, 4, 8, 1))
    assert_right(make_inputs((1, 8, 4, 5), torch.float32, OPTIONS), 2)


@pytest.mark.parametrize("plan", [plan_forward(32, 6, 4096, True), WholePlan(1, True, 8, 64, 4)])
def test_amds_compiler_takes_every_launch_option(
    plan: WholePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.amd.compiler import HIPOptions

    monkeypatch.setattr(dispatch, "ROCM", True)
    options = {name for name in plan.sizes if name.islower()}
    assert options <= set(HIPOptions.__dataclass_fields__)
    assert plan.sizes["num_warps"] * 64 <= 1024  # threads of a block
    monkeypatch.setattr(dispatch, "ROCM", False)
    assert ("maxnreg" in plan.sizes) == (plan.num_warps >= 8)


CRASHES = """
import itertools
import torch
from fasttrain_kernels import group_norm_reference as norm

def check(make, shape, asked, modulated, second):
    torch.manual_seed(0)
    x = make(torch.randn(shape, dtype=torch.double))
    inputs = {"x": x, "weight": torch.randn(8).double(), "bias": torch.randn(8).double()}
    if modulated:
        inputs["scale"] = torch.randn(shape[0], 8).double()
    results = []
    for layout in (lambda t: t, lambda t: t.contiguous()):
        leaves = {name: t.detach().clone() for name, t in inputs.items()}
        leaves["x"] = layout(leaves["x"])
        for name in asked:
            leaves[name].requires_grad_()
        y = norm(**leaves, groups=2)
        wanted = [leaves[name] for name in asked if name in leaves]
        for left in range(1, len(wanted) + 1):
            for some in itertools.combinations(wanted, left):
                first = torch.autograd.grad(y.pow(3).sum(), some, create_graph=second,
                                            retain_graph=True)
                if second:
                    first = torch.autograd.grad(sum(g.square().sum() for g in first), some,
                                                retain_graph=True)
                results.append(first)
    half = len(results) // 2
    for got, expected in zip(results[:half], results[half:], strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)

last = lambda t: t.contiguous(memory_format=torch.channels_last)
for asked in (("weight",), ("bias", "weight"), ("x", "weight"), ("bias",), ("x", "bias", "weight")):
    for modulated in (False, True):
        for second in (False, True):
            check(last, (2, 8, 4, 4), asked, modulated, second)
            check(last, (1, 8, 3, 5), asked, modulated, second)
    check(lambda t: t.mT, (2, 8, 5, 4), asked, False, False)
    three = lambda t: t.contiguous(memory_format=torch.channels_last_3d)
    check(three, (2, 8, 2, 3, 2), asked, False, False)
print("all")
"""


def test_torchs_group_norm_does_not_crash_for_an_input_without_gradient() -> None:
    """In a process of its own, which a segmentation fault would end (status 139)."""
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr


def test_the_guard_changes_no_bit() -> None:
    """Of what torch's group norm gives where it does not crash, all gradients asked for; a second
    order adds up in another order."""
    results = []
    for norm in (torch.nn.functional.group_norm, _group_norm_reference._NormOfAnyGradients.apply):
        x, weight, bias = (
            make_inputs((2, 6, 4, 5), torch.float32)[name] for name in ("x", "weight", "bias")
        )
        leaves = [x.contiguous(memory_format=torch.channels_last), weight, bias]
        leaves = [t.detach().cpu().requires_grad_() for t in leaves]  # where the guard is needed
        y = norm(leaves[0], 2, *leaves[1:], 1e-5)
        grads = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        results.append([y, *grads, *torch.autograd.grad(y.pow(3).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
