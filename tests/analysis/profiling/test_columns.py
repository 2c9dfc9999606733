"""The columns: each operator of each is the function it stands for, and one that is not is found
out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fasttrain_kernels as kernels
from fasttrain.analysis.profiling.checks import (
    Check,
    Results,
    compare,
    part_of,
    results_of,
)
from fasttrain.analysis.profiling.columns import Column, columns_for, random_weights
from fasttrain.analysis.profiling.step import synthetic_batch
from fasttrain.models.networks import unet_block
from tests.analysis.profiling.support import CPU, tiny

EAGER, LIBRARY, OURS = columns_for(tiny(), CPU, False)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random).to(dtype).requires_grad_()


def norm(op: Callable[..., Any], *, modulated: bool, dtype: torch.dtype) -> list[Tensor]:
    x = draw(2, 8, 3, 5, dtype=dtype)
    weight, bias = draw(8, seed=1), draw(8, seed=2)
    rows = {n: draw(2, 8, seed=3 + i, dtype=dtype) for i, n in enumerate(("scale", "shift"))}
    options = rows if modulated else {"shift_in": rows["shift"], "activation": "none"}
    y = op(x, weight, bias, groups=2, eps=1e-5, statistics=None, impl="reference", **options)
    inputs = [t for t in (x, weight, bias, *options.values()) if isinstance(t, Tensor)]
    return [y, *torch.autograd.grad(y.float().square().sum(), inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("column", [EAGER, LIBRARY], ids=lambda c: c.name)
def test_the_norm_of_a_column(column: Column, modulated: bool, dtype: torch.dtype) -> None:
    found = norm(column.patches["group_norm"], modulated=modulated, dtype=dtype)
    expected = norm(kernels.group_norm, modulated=modulated, dtype=dtype)
    assert found[0].dtype == dtype
    close(found, expected, 1e-5 if dtype == torch.float32 else 0.03)


def test_the_eager_attention_sums_and_resampling() -> None:
    qkv = draw(2, 24, 3, 4)
    same_gradients(
        lambda op: op(qkv, heads=2, impl="reference"), "attention", kernels.attention, [qkv]
    )
    branch, residual, bias = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1), draw(4, seed=2)
    for scale in (1.0, math.sqrt(0.5)):
        same_gradients(
            lambda op, s=scale: op(branch, residual, bias, scale=s, impl="reference"),
            "residual_scale", kernels.residual_scale, [branch, residual, bias],
        )  # fmt: skip
    y, statistics = EAGER.patches["residual_scale"](branch, residual, statistics=True)
    torch.testing.assert_close(y, branch + residual)
    assert statistics is None
    x = draw(2, 3, 4, 6)
    for mode in ("up", "down"):
        for taps in ((1, 1), (1, 3, 3, 1)):
            same_gradients(
                lambda op, m=mode, t=taps: op(x, m, taps=t, impl="reference"),
                "resample2d", kernels.resample2d, [x],
            )  # fmt: skip


def same_gradients(
    call: Callable[..., Tensor], name: str, op: Callable[..., Any], inputs: list[Tensor]
) -> None:
    results = []
    for function in (EAGER.patches[name], op):
        y = call(function)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    close(*results, 1e-5)


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        error = (a - b).detach().float().norm() / b.detach().float().norm()
        assert float(error) < tolerance


def test_operators_are_put_back_and_unknown_names_left_alone() -> None:
    before = unet_block.attention
    stray = Column("stray", "", patches={"attention": print, "no_such_operator": print})

    def fail() -> None:
        with stray.operators():
            assert unet_block.attention is print
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert unet_block.attention is before
    assert not hasattr(unet_block, "no_such_operator")


def test_columns_are_those_that_differ() -> None:
    def names(*overrides: str, device: str = "cuda", compiled: bool = False) -> list[str]:
        columns = columns_for(tiny(*overrides), torch.device(device), compiled)
        return [column.name for column in columns]

    assert names(device="cpu") == ["eager", "library", "ours"]
    assert names(compiled=True) == ["eager", "library", "library_nchw", "compile", "ours"]
    assert names("memory_format=contiguous") == ["eager", "library", "ours"]
    *others, ours = columns_for(tiny("recompute_norms=true", "compile=true"), CPU, True)
    assert [c.recompute_norms for c in others] == [False] * 3
    assert [c.compiled for c in others] == [False, False, True]
    assert (ours.recompute_norms, ours.compiled) == (True, True)


def test_weights_are_random_shared_while_frozen_and_a_columns_own_where_they_train() -> None:
    settings = tiny()
    weights = random_weights(settings, CPU)
    for name, value in weights.items():
        if "resample_filter" not in name:
            assert float(value.abs().min()) > 0, name
        if value.dim() > 1 and "resample_filter" not in name:
            assert float(value.std()) > 0.05 * value[0].numel() ** -0.5, name
    one, two = (EAGER.network(weights, settings, CPU) for _ in range(2))
    pairs = zip(one.named_parameters(), two.parameters(), strict=True)
    for (name, a), b in pairs:
        assert torch.equal(a, b), name
        assert (a.data_ptr() == b.data_ptr()) == (not a.requires_grad), name


@pytest.fixture(scope="module", params=["imagenet64-d2o-f", "cifar10-uncond-d2o-f"])
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Tensor], Results]:
    extra = ["network.label_dim=0"] if "cifar" in request.param else []
    settings = tiny(*extra, recipe=request.param)
    weights = random_weights(settings, CPU)
    return settings, weights, run(EAGER, settings, weights)


def run(column: Column, settings: Any, weights: dict[str, Tensor], samples: int = 2) -> Results:
    network = column.network(weights, settings, CPU)
    return results_of(column, network, synthetic_batch(settings, CPU), settings.sigma, samples)


def against(exact: Results, found: Results) -> Check:
    eager = compare(exact, exact, None, torch.float32)
    return compare(found, exact, eager, torch.float32)


def test_all_columns_compute_the_same(case: tuple[Any, dict[str, Tensor], Results]) -> None:
    settings, weights, exact = case
    for column in (LIBRARY, OURS):
        check = against(exact, run(column, settings, weights))
        assert check.wrong == ()
        assert 0 < check.images < 1e-5
        assert 0 < check.gradient <= max(check.parts.values()) < 1e-4


def test_other_samples_of_the_batch_change_nothing(
    case: tuple[Any, dict[str, Tensor], Results],
) -> None:
    settings, weights, _ = case
    batch = synthetic_batch(settings, CPU)
    network = EAGER.network(weights, settings, CPU)
    first = results_of(EAGER, network, batch, settings.sigma, 1)
    alone = results_of(EAGER, network, batch.split(1)[0], settings.sigma, 1)
    assert against(alone, first).wrong == ()


def without_slope(x: Tensor, *parameters: Any, **options: Any) -> Tensor:
    """The right value; the gradient of the norm's parameters is lost."""
    return kernels.group_norm(x, *(p.detach() + 0 * p for p in parameters), **options)


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "images": ("attention", lambda qkv, *, heads, impl="auto": qkv[:, : qkv.shape[1] // 3]),
    "gradient of block.norm0.weight": ("group_norm", without_slope),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_column_is_found_out(
    what: str, case: tuple[Any, dict[str, Tensor], Results]
) -> None:
    settings, weights, exact = case
    name, function = WRONG[what]
    wrong = Column("wrong", "", patches={name: function})
    check = against(exact, run(wrong, settings, weights))
    assert any(what.split(".")[0] in found for found in check.wrong)
    assert ("images" in check.wrong) == (what == "images")


def test_not_a_number_is_wrong_and_eagers_own_error_is_allowed() -> None:
    exact = Results(torch.ones(4), {"a": torch.ones(4), "b": torch.ones(2)})
    nothing = Results(torch.ones(4), {"a": torch.full((4,), math.nan), "b": torch.ones(2)})
    assert compare(nothing, exact, None, torch.bfloat16).wrong == ("gradient", "gradient of a")
    good = compare(exact, exact, None, torch.bfloat16)
    assert good == Check(0.0, 0.0, {"a": 0.0, "b": 0.0})
    off = Results(torch.full((4,), 1.05), {"a": torch.ones(4), "b": torch.full((2,), 1.2)})
    wrong = ("images", "gradient", "gradient of b")
    assert compare(off, exact, good, torch.bfloat16).wrong == wrong
    eager = compare(off, exact, None, torch.bfloat16)  # the yardstick, as long as it makes sense
    assert eager.wrong == compare(off, exact, eager, torch.bfloat16).wrong == ()
    far = Results(torch.zeros(4), exact.gradients)
    assert compare(far, exact, None, torch.bfloat16).wrong == ("images",)


def test_parts_are_kinds_of_layers() -> None:
    assert part_of("model.enc.32x32_block0.norm0.weight") == "block.norm0.weight"
    assert part_of("model.enc.16x16_aux_residual.bias") == "aux_residual.bias"
    assert part_of("model.map_layer0.weight") == "map_layer0.weight"
