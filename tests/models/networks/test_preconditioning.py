"""Preconditioning coefficients against the papers' algebra; labels and sigma in every form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fasttrain.models.networks import Precond, build_network
from fasttrain.models.networks.coefficients import FAMILIES, vp_sigma, vp_time
from fasttrain.training.objectives.diffusion import edm_loss

SIGMAS = torch.tensor([0.003, 0.1, 0.5, 3.0, 80.0]).reshape(-1, 1, 1, 1)


def small(precond: Any, label_dim: int = 0, **kwargs: Any) -> Precond:
    sizes = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    return build_network(precond, "SongUNet", 8, 1, label_dim, **sizes, **kwargs)


def test_edm_input_and_target_have_unit_variance() -> None:
    c_skip, c_out, c_in, c_noise = small("edm").row.coefficients(SIGMAS)
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in**2 * (0.25 + SIGMAS**2), ones)
    # Target F = (y - c_skip (y + sigma n)) / c_out for y of deviation 0.5.
    torch.testing.assert_close(((1 - c_skip) * 0.5) ** 2 + (c_skip * SIGMAS) ** 2, c_out**2)
    torch.testing.assert_close(c_noise, SIGMAS.log() / 4)


def test_one_step_boundary_and_shared_state() -> None:
    net = small("one_step")
    at_eps = torch.tensor(0.002).reshape(1, 1, 1, 1)
    c_skip, c_out, _, _ = net.row.coefficients(at_eps)
    assert (float(c_skip), float(c_out)) == (1.0, 0.0)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(net(x, 0.002), x)
    edm = small("edm")
    edm.load_state_dict(net.state_dict(), strict=True)
    assert list(edm.state_dict()) == list(net.state_dict())
    # eps vanishes against a large sigma: there both are the same denoiser.
    torch.testing.assert_close(edm(80 * x, 80.0), net(80 * x, 80.0), rtol=1e-3, atol=1e-4)


def test_vp_time_inverts_sigma_over_its_range() -> None:
    net = small("vp")
    times = torch.tensor([1e-5, 0.01, 0.3, 1.0], dtype=torch.float64)
    sigmas = torch.tensor([vp_sigma(float(t), 19.9, 0.1) for t in times], dtype=torch.float64)
    torch.testing.assert_close(vp_time(sigmas, 19.9, 0.1), times, rtol=1e-6, atol=1e-12)
    assert net.sigma_min == pytest.approx(math.sqrt(math.expm1(0.5 * 19.9e-10 + 1e-6)))
    assert net.sigma_max == pytest.approx(math.sqrt(math.expm1(0.5 * 19.9 + 0.1)))
    c_skip, c_out, c_in, c_noise = net.row.coefficients(sigmas.reshape(-1, 1, 1, 1))
    assert c_skip == 1.0
    torch.testing.assert_close(c_out.flatten(), -sigmas)
    assert isinstance(c_in, torch.Tensor)
    torch.testing.assert_close(c_in.flatten() ** -2, 1 + sigmas**2)
    torch.testing.assert_close(c_noise.flatten(), 999 * times, rtol=1e-6, atol=1e-9)


def test_ve_sees_the_image_unscaled() -> None:
    net = small("ve")
    assert (net.sigma_min, net.sigma_max) == (0.02, 100)
    c_skip, c_out, c_in, c_noise = net.row.coefficients(SIGMAS)
    assert (c_skip, c_in) == (1.0, 1.0)
    torch.testing.assert_close(c_out, SIGMAS)
    torch.testing.assert_close(c_noise.exp() * 2, SIGMAS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigma_in_every_form_is_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = small("edm").eval()
    x = torch.randn(3, 1, 8, 8, dtype=dtype)
    expected = net(x, 0.7)
    assert expected.dtype == torch.float32
    for sigma in (torch.tensor(0.7), torch.full((3,), 0.7), torch.full((3, 1, 1, 1), 0.7).double()):
        assert torch.equal(net(x, sigma), expected)


def test_class_labels() -> None:
    torch.manual_seed(1)
    net = small("edm", label_dim=4).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 1, 8, 8)
    none = net(x, 1.0)
    assert torch.equal(none, net(x, 1.0, torch.zeros(2, 4)))
    assert not torch.equal(none, net(x, 1.0, torch.eye(4)[:2]))
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*takes one-hot labels of shape \(2, 4\)"):
        net(x, 1.0, torch.eye(3)[:2])
    unconditional = small("edm").eval()
    assert torch.equal(unconditional(x, 1.0), unconditional(x, 1.0, torch.eye(4)[:2]))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="precond is 'edn': choose one of edm, vp, ve, one_step"):
        small("edn")
    with pytest.raises(ValueError, match="model_type is 'UNet': choose one of SongUNet"):
        build_network("edm", "UNet", 8, 1, 0)


def test_round_sigma_keeps_float64() -> None:
    net = small("edm")
    assert float(net.round_sigma(0.1)) == 0.1
    sigma = torch.tensor([1.0, 2.0])
    assert net.round_sigma(sigma) is sigma


def test_edm_loss_by_hand() -> None:
    images = torch.tensor([[[[0.5]]], [[[-0.25]]]])
    noise = torch.tensor([[[[1.0]]], [[[2.0]]]])
    rnd_normal = torch.tensor([0.0, 1.0])
    seen: list[torch.Tensor] = []

    def net(x: torch.Tensor, sigma: torch.Tensor, labels: Any, augment: Any) -> torch.Tensor:
        seen.append(sigma.flatten())
        return x  # leaves all the noise in

    loss = edm_loss(net, images, rnd_normal, noise, p_mean=-1.0, p_std=0.5, sigma_data=0.4)
    for i, (z, n) in enumerate([(0.0, 1.0), (1.0, 2.0)]):
        sigma = math.exp(-1 + 0.5 * z)
        assert float(seen[0][i]) == pytest.approx(sigma)
        expected = (sigma**2 + 0.16) / (sigma * 0.4) ** 2 * (sigma * n) ** 2
        assert float(loss[i]) == pytest.approx(expected, rel=1e-5)


def test_constants_are_those_of_the_family() -> None:
    assert small("vp", beta_min=0.2).sigma_max == vp_sigma(1.0, 19.9, 0.2)
    wide = small("edm", sigma_data=1.0)
    assert float(wide.row.coefficients(torch.tensor(1.0))[0]) == 0.5
    with pytest.raises(ValueError, match="eps: choose one of sigma_min, sigma_max, sigma_data"):
        FAMILIES["edm"].row(eps=0.1)
    with pytest.raises(ValueError, match="precond is 'ddpm': choose one of edm, vp, ve, one_step"):
        small("ddpm")
