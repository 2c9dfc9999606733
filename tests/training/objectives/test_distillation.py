"""Distillation on constructed models: a data set of one image, whose trajectories are straight
lines, and Gaussian data, whose ODE has a known solution."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.sampling.draws import Stream
from fasttrain.settings import DistillSettings
from fasttrain.settings.base import Distillation
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.distill import LOWEST, Distiller
from fasttrain.training.objectives import distillation as objectives
from fasttrain_kernels import counter_uniform

METHODS = get_args(Distillation)
IMAGE, ERROR = 0.3, 0.1


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_the_grid_rises_from_0_over_the_lowest_level() -> None:
    levels = objectives.grid(18, 0.002, 80.0)
    assert len(levels) == 19
    assert levels[0] == 0
    assert levels[[1, -1]].tolist() == pytest.approx([0.002, 80.0])
    middle = (0.002 ** (1 / 7) + 8 / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert levels[9].item() == pytest.approx(middle)
    assert (levels.diff() > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_triples_are_the_methods(method: Distillation) -> None:
    """All that the draws reach, their ends 0 and 1 included."""
    axis = torch.linspace(0, 1, 24)
    uniform = torch.cartesian_prod(axis, axis, axis)
    t, u, s = objectives.triple(method, uniform, 8)
    found = set(zip(t.tolist(), u.tolist(), s.tolist(), strict=True))
    every = {(t, u, s) for t in range(9) for u in range(t) for s in range(u)}
    expected = {
        "pd": {(t, t - h, t - 2 * h) for h in (1, 2, 4) for t in range(2 * h, 9, 2 * h)},
        "cd": {(t, t - 1, 0) for t in range(2, 9)},
        "ctm": {(t, u, s) for t, u, s in every if s >= 1},
        "rcd": {(8, s + 1, s) for s in range(7)},
    }[method]
    assert found <= expected
    assert found == expected


def test_hand_values_of_the_steps() -> None:
    x, t, s = column(10.0), column(4.0), column(1.0)
    assert objectives.jump(lambda x, _: x * 0 + 2, x, t, s).item() == pytest.approx(4.0)
    assert objectives.implied(x, column(4.0), t, s).item() == pytest.approx(2.0)
    # D(x; t) = x / t: slope (10 - 2.5) / 4 = 1.875, x = 4.375; there (4.375 - 4.375) / 1 = 0.
    halves = objectives.heun_step(lambda x, t: x / t, x, t, s)
    assert halves.item() == pytest.approx(10 - 3 * 1.875 / 2)
    assert objectives.heun_step(lambda x, t: x / t, x, t, s * 0).item() == pytest.approx(2.5)


def test_heun_is_of_second_order_on_gaussian_data() -> None:
    """D = x / (1 + t^2); x_s = x_t sqrt((1 + s^2) / (1 + t^2))."""
    errors = []
    for step in (0.2, 0.1):
        x, t, s = column(1.0).double(), column(1.0).double(), column(1 - step).double()
        exact = math.sqrt((1 + (1 - step) ** 2) / 2)
        found = objectives.heun_step(lambda x, t: x / (1 + t**2), x, t, s)
        errors.append(abs(found.item() - exact))
    assert 6 < errors[0] / errors[1] < 10  # of the third order in one step


def test_feature_distance_compares_directions_at_each_place() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    one = torch.stack([east, east], 1).view(1, 2, 1, 2)  # two places
    other = torch.stack([east * 5, north], 1).view(1, 2, 1, 2)
    assert objectives.feature_distance([one], [other]).item() == pytest.approx(1.0)
    assert objectives.feature_distance([one, one], [other, one]).item() == pytest.approx(0.5)


def distiller(method: str, error: float) -> tuple[Distiller, Batch]:
    """Teacher and student of a data set of one image; the student's is wrong by `error`."""
    settings = load_settings("digits-cd", [f"method={method}", "levels=8"], DistillSettings)

    def teacher(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x, IMAGE)

    def student(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x, IMAGE + error)

    batch = Batch(torch.full((64, 1, 2, 2), IMAGE), None, torch.arange(64))
    return Distiller(settings, student, teacher), batch


@pytest.mark.parametrize("method", METHODS)
def test_the_right_student_has_no_loss(method: str) -> None:
    made, batch = distiller(method, 0.0)
    assert made.loss(batch, 0).item() < 1e-8


def test_the_loss_of_a_wrong_student_is_that_of_the_formulas() -> None:
    """Student e off, teacher right. pd over neighbours: e^2; over jumps of the student's own and
    cd: 0, because it agrees with itself. rcd: e is left of the jump from t to u as (1 - u/t) s/u of
    the end at s."""
    made, batch = distiller("cd", ERROR)
    assert made.loss(batch, 0).item() < 1e-8
    draws = counter_uniform(0, int(Stream.DISTILLATION_LEVEL), batch.index, (3,))
    levels = objectives.grid(8, LOWEST, 80.0).double()
    for method in ("pd", "rcd"):
        made, batch = distiller(method, ERROR)
        places = objectives.triple(method, draws, 8)  # type: ignore[arg-type]
        t, u, s = (levels[place] for place in places)
        if method == "pd":
            expected = ERROR**2 * (places.t - places.u == 1).double()
        else:
            left = (1 - u / t) * (s / u) / (1 - s / t)
            expected = (ERROR * (1 - left)) ** 2
        assert made.loss(batch, 0).item() == pytest.approx(expected.mean().item(), rel=1e-3)


def test_ctm_follows_the_teacher_from_t_to_u() -> None:
    """A constant student, e off: from the teacher's point at u its jump to s leaves (1 - s/u) e,
    the teacher's step none, and what is compared is the rest at the lowest level. (With the
    student's own jump from t to u all but neighbours would agree, whatever the student says.)"""
    made, batch = distiller("ctm", 10 * ERROR)
    levels = objectives.grid(8, LOWEST, 80.0).double()
    draws = counter_uniform(0, int(Stream.DISTILLATION_LEVEL), batch.index, (3,))
    places = objectives.triple("ctm", draws, 8)
    t, u, s = (levels[place] for place in places)
    student = torch.where(places.u - places.s == 1, 0.0, 1 - s / u)
    expected = (LOWEST / s * (1 - s / t - student) * 10 * ERROR).square()
    assert (places.t - places.u > 2).any()
    assert made.loss(batch, 0).item() == pytest.approx(expected.mean().item(), rel=1e-3)


def test_the_gradient_of_ctm_leaves_the_second_jumps_weights_out() -> None:
    """Compared with a student of which one weight is differentiable in the first jump alone."""
    made, batch = distiller("ctm", 0.0)
    weight = torch.tensor(0.5, requires_grad=True)
    calls: list[bool] = []

    def student(w: Tensor) -> Any:
        def evaluate(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return torch.tanh(w * x / (1 + sigma)) + 0.1 * w

        return evaluate

    ours = Distiller(made.settings, student(weight), made.teacher)
    loss = ours.loss(batch, 0)
    (gradient,) = torch.autograd.grad(loss, weight)
    first, other = torch.tensor(0.5, dtype=torch.float64), weight.detach().double()

    def at(w: Tensor) -> float:
        """The first call has w, all others the constant."""
        calls.clear()

        def evaluate(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            now = w if not calls else other
            calls.append(True)
            return torch.tanh(now * x.double() / (1 + sigma)) + 0.1 * now

        return Distiller(made.settings, evaluate, made.teacher).loss(batch, 0).item()

    assert at(first) == pytest.approx(loss.item(), rel=1e-3)
    slope = (at(first + 0.05) - at(first - 0.05)) / 0.1
    assert gradient.item() == pytest.approx(slope, rel=0.02)


def test_wrong_settings_are_refused() -> None:
    for changes, message in (
        (["method=pd", "levels=18"], "pd halves 18 levels"),
        (["engine.zero_stage=3"], "which ZeRO 3 cannot"),
        (["method=ladd"], "method"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings("digits-cd", changes, DistillSettings)
