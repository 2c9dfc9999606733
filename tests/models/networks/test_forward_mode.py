"""Forward-mode derivatives of the layers that are not torch's own."""

from __future__ import annotations

import pytest
import torch

from fasttrain.models.networks.frozen_conv import frozen_conv2d, frozen_conv_transpose2d
from fasttrain_kernels import group_norm

CHECK = {"check_forward_ad": True, "check_undefined_grad": False}


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2])
def test_of_frozen_convolutions(stride: int) -> None:
    x = double(2, 4, 5, 5).requires_grad_()
    options = {"stride": (stride, stride), "padding": (1, 1)}
    weight, bias = double(6, 2, 3, 3), double(6)
    assert torch.autograd.gradcheck(
        lambda x: frozen_conv2d(x, weight, bias, groups=2, **options), x, **CHECK
    )
    back, bias = double(4, 3, 4, 4), double(3)
    assert torch.autograd.gradcheck(
        lambda x: frozen_conv_transpose2d(x, back, bias, **options), x, **CHECK
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_group_norm_in_either_layout(layout: torch.memory_format) -> None:
    x = double(2, 8, 3, 3).contiguous(memory_format=layout).requires_grad_()
    shift = double(2, 8)
    assert torch.autograd.gradcheck(
        lambda x: group_norm(x, shift_in=shift, groups=2, impl="reference"), x, **CHECK
    )
