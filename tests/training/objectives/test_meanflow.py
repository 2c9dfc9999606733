"""MeanFlow on Gaussian data, whose average velocity is known, and on networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.models.networks.prediction import Prediction
from fasttrain.models.second_time import add_second_time
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import MeanFlowSettings, NetworkSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.log import collect, reset
from fasttrain.training.meanflow import MeanFlow
from fasttrain.training.objectives.meanflow import Times, adaptive, shortfall, times, velocity
from tests.small_models import ADM, NCSNPP, PLAIN, small_network
from tests.tiny import NETWORK

MEAN, DEVIATION = 0.4, 0.3


def average(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """(x_t - x_r) / (t - r) along the exact trajectories of N(MEAN, DEVIATION^2)."""
    std_t, std_r = (((1 - a) * DEVIATION).square().add(a.square()).sqrt() for a in (t, r))
    there = (1 - r) * MEAN + std_r / std_t * (x - (1 - t) * MEAN)
    return (x - there) / (t - r)


def exact(y: Tensor, s: Tensor, interval: Tensor) -> Tensor:
    """The denoiser that `velocity` is the average velocity of; of an empty interval EDM's."""
    t = s / (1 + s)
    r = t - interval.view(-1, 1, 1, 1)
    x = y * (1 - t)
    best = (DEVIATION**2 * y + s**2 * MEAN) / (DEVIATION**2 + s**2)
    safe = torch.where(r < t, r, t / 2)
    return torch.where(r < t, x - t * average(x, t, safe), best)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def test_the_average_velocity_solves_the_identity() -> None:
    s = column(0.05, 0.3, 1.0, 5.0, 80.0, 80.0)
    t, r = s / (1 + s), column(0.01, 0.1, 0.3, 0.6, 0.5, 0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 2, 2, generator=generator, dtype=torch.float64)
    v = velocity(exact, x, s, t)  # of the whole distribution: that of an empty interval
    u = velocity(exact, x, s, r)
    torch.testing.assert_close(u, average(x, t, r))
    when = Times(s, t, r)
    assert adaptive(u - (v - shortfall(exact, x, v, when)), 1.0).max() < 1e-16
    wrong = Times(s, t, r + 0.1 * (t - r))
    assert adaptive(u - (v - shortfall(exact, x, v, wrong)), 0.0).min() > 1e-9
    # One step of the generator is the end of its trajectory.
    end = exact(80 * x, column(80.0), column(80 / 81).flatten())
    scale = DEVIATION / (DEVIATION**2 + 80**2) ** 0.5
    torch.testing.assert_close(end, MEAN + scale * (80 * x - MEAN))


def test_the_derivative_is_that_of_differences() -> None:
    s, r = column(0.7, 3.0), column(0.1, 0.2)
    t = s / (1 + s)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 1, 2, 2)
    v = x.flip(0)

    def moved(by: float) -> Tensor:
        time = t + by
        return velocity(exact, x + by * v, time / (1 - time), r)

    difference = (t - r) * (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(shortfall(exact, x, v, Times(s, t, r)), difference)


def test_gradients_in_float64() -> None:
    """Through the velocity, with the target and the weight as constants."""
    s, r, x = column(0.7, 3.0), column(0.1, 0.2), column(0.5, -1.0)
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def error(weight: Tensor) -> Tensor:
        return velocity(lambda y, s, tau: weight * exact(y, s, tau), x, s, r) - 0.3

    assert torch.autograd.gradcheck(lambda w: adaptive(error(w), 0.0), weight)
    left = error(weight).flatten()
    (slope,) = torch.autograd.grad(left.sum(), weight, retain_graph=True)
    (gradient,) = torch.autograd.grad(adaptive(left.view(-1, 1, 1, 1), 1.0).sum(), weight)
    slopes = torch.autograd.functional.jacobian(error, weight.detach()).flatten()
    torch.testing.assert_close(slopes.sum(), slope)
    expected = (2 * left * slopes / (left.square() + 1e-3)).sum()
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-6, atol=1e-6)


def test_hand_values_of_the_weight() -> None:
    error = torch.tensor([[0.3, 0.4], [0.0, 2.0]]).view(2, 1, 1, 2)
    assert adaptive(error, 0.0).tolist() == pytest.approx([0.25, 4.0])
    assert adaptive(error, 1.0).tolist() == pytest.approx([0.25 / 0.251, 4 / 4.001])
    assert adaptive(error, 0.5).tolist() == pytest.approx([0.25 / 0.251**0.5, 4 / 4.001**0.5])


def test_times_are_logit_normal_in_order_and_mostly_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 2, generator=generator)
    uniform = torch.rand(20_000, generator=generator)
    s, t, r = times(normal, uniform, p_mean=-0.4, p_std=1.0, share=0.25, highest=80.0)
    torch.testing.assert_close(t, s / (1 + s))
    chosen = uniform < 0.25
    assert torch.equal((r < t).flatten(), chosen)
    both = torch.cat([t[chosen], r[chosen]]).logit()
    assert both.mean().item() == pytest.approx(-0.4, abs=0.03)
    assert both.std().item() == pytest.approx(1.0, abs=0.03)
    far = times(9 * normal, uniform, p_mean=0.0, p_std=1.0, share=1.0, highest=80.0)
    assert far.s.max() == 80
    assert far.r.min() > 0


def objective(network: Any, *changes: str) -> MeanFlow:
    common = [*NETWORK, "p_mean=-0.4", "p_std=1.0"]
    return MeanFlow(
        load_settings("digits-meanflow", [*common, *changes], MeanFlowSettings), network
    )


def batch(network: Any, n: int = 6) -> Batch:
    shape = (n, network.img_channels, network.img_resolution, network.img_resolution)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    labels = torch.eye(10)[:n] if network.label_dim else None
    return Batch(images, labels, torch.arange(n))


DIT = {"img_resolution": 8, "img_channels": 4, "model_type": "DiT", "label_dim": 10}
DIT |= {"options": {"hidden_size": 16, "depth": 2, "num_heads": 2}}
ALL = {"DDPM++": PLAIN, "NCSN++": NCSNPP, "ADM": ADM, "DiT": DIT | {"prediction": {"kind": "flow"}}}


@pytest.fixture(scope="module", params=ALL)
def network(request: pytest.FixtureRequest) -> Any:
    """With random weights and a second time that counts."""
    made = small_network(NetworkSettings(**ALL[request.param]))
    second = add_second_time(made.model, 80 / 81, seed=0)
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_an_empty_interval_is_flow_matching(network: Any) -> None:
    """share=0 leaves |(x_t - D) / t - (e - x0)|^2, of a flow's network |F - (e - x0)|^2."""
    part = batch(network)
    own = objective(network, "share=0", "power=0").loss(part, seed=3)
    normal = latents(3, Stream.FLOW_LEVEL, part.index, (2,))
    s = (normal.max(dim=1).values - 0.4).exp().view(-1, 1, 1, 1)
    t = s / (1 + s)
    noise = latents(3, Stream.FLOW_NOISE, part.index, part.images.shape[1:])
    layer = network.model.get_submodule(network.model.noise_layer())
    with layer.second.told(torch.zeros(len(part))):
        y = part.images + s * noise
        estimate = network(y, s, part.class_labels)
        if isinstance(network.row, Prediction):
            said = network.model((1 - t) * y, t.flatten(), part.class_labels, None)
            torch.testing.assert_close(((1 - t) * y - estimate) / t, said, rtol=1e-3, atol=1e-4)
    error = ((1 - t) * y - estimate) / t - (noise - part.images)
    torch.testing.assert_close(own, error.square().flatten(1).sum(1).mean())


def test_the_networks_derivative_is_that_of_differences(network: Any) -> None:
    """In float32, whatever the activations are, and through frozen convolutions; all but the second
    time is frozen here."""
    network.activation_dtype = torch.bfloat16
    part, own = batch(network), objective(network)
    s = torch.tensor([0.1, 0.3, 0.5, 1.0, 2.0, 5.0]).view(-1, 1, 1, 1)
    t = s / (1 + s)
    when = Times(s, t, 0.4 * t)
    x, v = part.images, torch.randn(part.images.shape, generator=torch.Generator().manual_seed(2))
    found = own._shortfall(x, v, when, part.class_labels)
    assert network.activation_dtype == torch.bfloat16
    network.activation_dtype = torch.float32

    def moved(by: float) -> Tensor:
        step = by * (t - when.r)
        denoise = own._denoiser(part.class_labels)
        with torch.no_grad():
            return velocity(denoise, x + step * v, (t + step) / (1 - t - step), when.r)

    difference = (moved(1e-3) - moved(-1e-3)) / 2e-3
    scale = difference.abs().max().item()
    torch.testing.assert_close(found, difference, rtol=0, atol=2e-2 * scale)


def test_micro_batches_add_up_and_the_error_is_logged() -> None:
    network = small_network(NetworkSettings(**PLAIN))
    add_second_time(network.model, 80 / 81, seed=0)
    own, part = objective(network, "share=0.5", "power=0"), batch(network, 8)
    reset()
    whole = own.loss(part, seed=0)
    logged = collect(ONE_PROCESS)["loss/velocity"]
    assert logged == pytest.approx(whole.item() / 64, rel=1e-5)
    parts = [some.share * own.loss(some, seed=0) for some in part.split(2)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    reset()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sigma_mid=0.8", "sigma_mid: the average velocity is learnt for one step"),
        ("engine.zero_stage=3", "engine.zero_stage: ZeRO 3 gathers weights by hooks"),
        ("compile=true", "compile: a compiled network has no forward-mode derivatives"),
        ("network.prediction={kind: epsilon, time: iddpm}", "iddpm's networks know single noise"),
    ],
)
def test_what_cannot_be_learnt_is_refused(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_settings("digits-meanflow", [change], MeanFlowSettings)
