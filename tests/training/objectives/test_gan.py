"""Losses against hand values, and the gradient penalty against analytic and numeric gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.objectives.gan import (
    approximated_r1,
    centring,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)

LN2 = math.log(2)


def test_hand_values() -> None:
    """softplus(ln 3) = ln 4, softplus(-ln 3) = ln(4/3), softplus(0) = ln 2."""
    ln3 = math.log(3)
    one = torch.tensor([[ln3, -ln3], [0.0, 0.0]])
    two = torch.tensor([[0.0], [ln3]])
    mean_one = (math.log(4) + math.log(4 / 3) + 2 * LN2) / 4
    down, up = (LN2 + math.log(4 / 3)) / 2, (LN2 + math.log(4)) / 2
    assert generator_loss([one, two]).item() == pytest.approx(mean_one + down)
    loss = discriminator_loss(real=[one, two], fake=[one, two]).loss
    assert loss.item() == pytest.approx(2 * mean_one + down + up)


def test_gradients_saturate_for_whom_they_should() -> None:
    """Good fakes give the generator nothing; bad ones a full gradient: -sigmoid(-D) / N."""
    logits = torch.tensor([[-50.0], [50.0], [0.0], [0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss([logits]), logits)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([-0.25, 0.0, -0.125, -0.125]))
    fake, real = (torch.tensor([[50.0], [-50.0]], requires_grad=True) for _ in range(2))
    loss = discriminator_loss(real=[real], fake=[fake]).loss
    gradients = torch.autograd.grad(loss, [fake, real])
    torch.testing.assert_close(gradients[0].flatten(), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(gradients[1].flatten(), torch.tensor([0.0, -0.5]))


def test_backbones_add_and_samples_average() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5)
    whole = generator_loss([logits])
    torch.testing.assert_close(generator_loss([logits, logits]), 2 * whole)
    halves = torch.stack([generator_loss([part]) for part in logits.chunk(2)])
    torch.testing.assert_close(halves.mean(), whole)
    torch.testing.assert_close(generator_loss([logits.repeat(3, 2)]), whole)


def test_penalty_of_a_linear_discriminator_is_the_squared_weight() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)

    def linear(images: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        assert class_labels is None
        return [images.flatten(1) @ weight[:, None], 2 * images.flatten(1) @ weight[:, None]]

    penalty = r1_penalty(linear, torch.randn(5, 3, 1, 1), None)
    assert penalty.item() == pytest.approx(9 * 14)  # the backbones' gradients add before squaring
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 18 * weight.detach())


def test_penalty_of_a_quadratic_is_a_mean_over_samples() -> None:
    """D(x) = a sum x^2: gradient 2 a x, penalty 4 a^2 mean |x|^2, derivative 8 a mean |x|^2."""
    a = torch.tensor(0.5, requires_grad=True)
    images = torch.randn(4, 2, 3, 3)
    penalty = r1_penalty(lambda x, _: [a * x.square().flatten(1)], images, None)
    norm = images.square().flatten(1).sum(1).mean()
    torch.testing.assert_close(penalty, 4 * a.detach() ** 2 * norm)
    penalty.backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 8 * a.detach() * norm)


def test_penalty_gradient_against_finite_differences() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.Flatten()
    ).double()
    images = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    labels = torch.eye(4, dtype=torch.float64)

    def discriminator(x: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        assert class_labels is labels
        return [network(x) * class_labels.sum(1, keepdim=True)]

    def penalty_at(weight: Tensor) -> Tensor:
        network[0].weight.data = weight.data
        return r1_penalty(discriminator, images, labels).detach()

    weight = network[0].weight.detach().clone()
    r1_penalty(discriminator, images, labels).backward()
    gradient = network[0].weight.grad
    assert gradient is not None
    direction, step = torch.randn_like(weight), 1e-5
    slope = penalty_at(weight + step * direction) - penalty_at(weight - step * direction)
    torch.testing.assert_close(slope / (2 * step), (gradient * direction).sum(), rtol=1e-5, atol=0)


def test_penalty_leaves_the_images_alone() -> None:
    images = torch.randn(2, 1, 2, 2)
    scale = torch.ones((), requires_grad=True)
    r1_penalty(lambda x, _: [scale * x.flatten(1)], images, None).backward()
    assert not images.requires_grad
    assert images.grad is None
    assert scale.grad is not None


def test_hinge_hand_values() -> None:
    logits = torch.tensor([[2.0, -3.0], [0.5, 0.0]])
    assert generator_loss([logits, -logits], "hinge").item() == pytest.approx(0.0)
    assert generator_loss([logits], "hinge").item() == pytest.approx(0.125)
    # max(0, 1 + x): 3, 0, 1.5, 1;  max(0, 1 - x): 0, 4, 0.5, 1
    judged = discriminator_loss(real=[logits], fake=[logits], kind="hinge")
    assert judged.loss.item() == pytest.approx(5.5 / 4 + 5.5 / 4)
    assert judged.real.item() == judged.fake.item() == pytest.approx(-0.125)


def test_the_ratio_is_the_divergence_where_the_discriminator_is_the_best_one() -> None:
    """Two places, data (0.8, 0.2), generated (0.4, 0.6). The best logits are ln p / q: there the
    discriminator's gradient is 0, and the generator's loss is KL(q, p)."""
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6])
    best = (p / q).log().requires_grad_()
    counts = [[0] * 8 + [1] * 2, [0] * 4 + [1] * 6]
    real, fake = ([best[torch.tensor(places)][:, None]] for places in counts)
    judged = discriminator_loss(real=real, fake=fake, kind="ratio")
    (gradient,) = torch.autograd.grad(judged.loss, best, retain_graph=True)
    torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-6, rtol=0)
    divergence = (q * (q / p).log()).sum().item()
    assert generator_loss(fake, "ratio").item() == pytest.approx(divergence)


def test_mean_logits_come_with_the_loss() -> None:
    real = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0]])]
    fake = [torch.tensor([[-1.0, 0.0]]), torch.tensor([[2.0]])]
    judged = discriminator_loss(real=real, fake=fake)
    assert judged.real.item() == pytest.approx(3.5)
    assert judged.fake.item() == pytest.approx(0.75)


def test_relativistic_hand_values() -> None:
    """Differences ln 3, 0 and -ln 3, 0: softplus(-ln 3) = ln(4/3), softplus(ln 3) = ln 4."""
    ln3 = math.log(3)
    real = [torch.tensor([[ln3, 1.0]]), torch.tensor([[5.0], [2.0]])]
    fake = [torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0 + ln3], [2.0]])]
    of_real = (math.log(4 / 3) + LN2) / 2 + (math.log(4) + LN2) / 2
    judged = discriminator_loss(real=real, fake=fake, kind="relativistic")
    assert judged.loss.item() == pytest.approx(of_real)
    assert judged.real.item() == pytest.approx(((ln3 + 1) / 2 + 3.5) / 2)
    assert judged.fake.item() == pytest.approx((0.5 + 3.5 + ln3 / 2) / 2)
    # The generator's is the same with the parts exchanged, and moves its own logits alone.
    exchanged = generator_loss(real, "relativistic", lambda: fake)
    assert exchanged.item() == pytest.approx(judged.loss.item())
    logits = torch.tensor([[0.0]], requires_grad=True)
    loss = generator_loss([logits], "relativistic", lambda: [torch.tensor([[ln3]])])
    assert loss.item() == pytest.approx(math.log(4))  # a fake that looks less real
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.item() == pytest.approx(-0.75)  # -sigmoid(ln 3)


def test_centring_hand_values() -> None:
    real = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
    fake = [torch.tensor([[2.0, 2.0]], requires_grad=True), torch.tensor([[-3.0]])]
    penalty = centring(real=real, fake=fake)
    assert penalty.item() == pytest.approx((9 + 0) / 2 + 0)
    (gradient,) = torch.autograd.grad(penalty, fake[0])
    torch.testing.assert_close(gradient, torch.tensor([[3.0, 0.0]]))


def test_relativistic_loss_and_centring_to_the_second_order() -> None:
    torch.manual_seed(0)
    real, fake = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def relativistic(a: Tensor, b: Tensor) -> Tensor:
        better, worse = a.float(), b.float()  # the loss is float32: its own derivatives are exact
        return discriminator_loss(real=[better], fake=[worse], kind="relativistic").loss

    assert torch.autograd.gradgradcheck(lambda a, b: centring(real=[a], fake=[b]) + a.sum(), (
        real, fake), eps=1e-2, atol=1e-3, rtol=1e-3)  # fmt: skip
    inputs = (real, fake)
    assert torch.autograd.gradcheck(relativistic, inputs, eps=1e-2, atol=1e-3, rtol=1e-2)


def test_exact_penalties_of_reals_and_fakes_to_the_second_order() -> None:
    """The derivative of R1 and of R2 in the weights is of the second order in the discriminator."""
    torch.manual_seed(2)
    images = torch.randn(4, 3, dtype=torch.float64)
    labels = torch.eye(4, dtype=torch.float64)
    first, second = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        def judge(x: Tensor, class_labels: Tensor | None) -> list[Tensor]:
            assert class_labels is labels
            return [torch.tanh(x @ a.T) @ b * labels.sum(1, keepdim=True)]

        return r1_penalty(judge, images, labels)

    assert torch.autograd.gradcheck(penalty, (first, second))
    assert torch.autograd.gradgradcheck(penalty, (first, second))


def test_approximated_r1_of_a_linear_discriminator() -> None:
    """(w . sigma n)^2 has the mean sigma^2 |w|^2; summed over backbones."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    images = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def judge(x: Tensor) -> list[Tensor]:
        return [x @ weight[:, None], 2 * x @ weight[:, None]]

    sigma = 0.01
    penalty = approximated_r1(clean=judge(images), noisy=judge(images + sigma * noise))
    assert penalty.item() == pytest.approx(sigma**2 * 14 * (1 + 4), rel=0.03)
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(
        gradient, sigma**2 * 5 * 2 * weight.detach(), rtol=0.05, atol=sigma**2
    )


@pytest.mark.parametrize(
    ("recipe", "per_gpu"),
    [("imagenet64-d2o-f", 128), ("cifar10-cond-d2o-f", 64), ("ffhq64-d2o-f", 64)],
)
def test_published_gammas_give_the_published_ratio_to_the_loss(recipe: str, per_gpu: int) -> None:
    """Published: losses summed over a GPU's images (each backbone's logits averaged), R1 a mean
    over them, gamma 1e-4, times 16. Ours are means; what counts is the gradients' ratio."""
    r1 = load_settings(recipe, [], FinetuneSettings).r1
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    real, fake = (torch.randn(per_gpu, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    parameters = list(network.parameters())

    def gradient(value: Tensor) -> Tensor:
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None])

    softplus = nn.functional.softplus
    published_loss = (softplus(network(fake)).mean(1) + softplus(-network(real)).mean(1)).sum()
    leaf = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
    published_r1 = slope.square().sum((1, 2, 3)).mean() * (1e-4 / 2) * 16

    loss = discriminator_loss(real=[network(real)], fake=[network(fake)]).loss
    penalty = r1_penalty(lambda x, _: [network(x)], real, None) * (r1.gamma / 2) * r1.interval
    for ours, published in ((loss, published_loss), (penalty, published_r1)):
        torch.testing.assert_close(gradient(ours) * per_gpu, gradient(published))
