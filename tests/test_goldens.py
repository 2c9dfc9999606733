"""The published implementations' numbers, reproduced: networks, their gradients, the Heun sampler,
the diffusion loss and the one-step preconditioning. tests/goldens/README.md describes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fasttrain.models.networks import Precond, build_network
from fasttrain.sampling.solvers import heun_sampler
from fasttrain.training.objectives.diffusion import edm_loss
from fasttrain_kernels import using

NETWORKS = [
    "edm-ddpmpp-uncond",
    "edm-ncsnpp-cond",
    "edm-adm-cond",
    "vp-ddpmpp-uncond",
    "ve-ncsnpp-uncond",
]
PRECONDS: dict[str, Any] = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}


def network_of(case: Any) -> Precond:
    net = build_network(
        PRECONDS[case.setting("precond")],
        img_resolution=case.setting("img_resolution"),
        img_channels=case.setting("img_channels"),
        label_dim=case.setting("label_dim"),
        **case.setting("kwargs"),
    )
    net.load_state_dict(case.group("state"), strict=True)
    return net.eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("name", NETWORKS)
def test_denoised_loss_and_every_gradient(
    name: str, kernels: str, memory_format: torch.memory_format, golden: Any
) -> None:
    case = golden(name)
    net = network_of(case)
    net.memory_format = memory_format
    with using(kernels):  # type: ignore[arg-type]
        check_loss_and_gradients(net, case)


def check_loss_and_gradients(net: Precond, case: Any) -> None:
    x = case.input("x").requires_grad_()
    denoised = net(x, case.input("sigma"), case.input("labels"), case.input("augment_labels"))
    case.assert_close(denoised, case.output("denoised"), "denoised")
    loss = (denoised - case.input("target")).square().mean()
    case.assert_close(loss.reshape(1), case.output("loss"), "loss")

    loss.backward()
    gradients = {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    expected = case.group("grad")
    assert expected.keys() <= gradients.keys()
    for key, actual in gradients.items():
        assert actual is not None, f"{key} has no gradient"
        assert actual.isfinite().all(), f"the gradient of {key} is not finite"
        if key in expected:
            case.assert_close(actual, expected[key], f"gradient of {key}")


@pytest.mark.parametrize("name", NETWORKS)
def test_heun_sampler(name: str, golden: Any) -> None:
    case = golden(name)
    labels = case.input("labels")
    images = heun_sampler(
        network_of(case),
        case.input("latents"),
        None if labels is None else labels[:2],
        num_steps=5,
    )
    case.assert_close(images, case.output("heun5"), "heun5")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("edm-")])
def test_edm_loss(name: str, golden: Any) -> None:
    case = golden(name)
    with torch.no_grad():
        loss = edm_loss(
            network_of(case),
            case.input("images"),
            case.input("rnd_normal"),
            case.input("noise"),
            case.input("labels"),
        )
    case.assert_close(loss, case.output("edm_loss"), "edm_loss")


class TanhPlusNoiseLabel(nn.Module):
    """The inner function of the preconditioning case."""

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor, augment_labels: Tensor
    ) -> Tensor:
        return x.tanh() + 0.1 * noise_labels.reshape(-1, 1, 1, 1)


def test_folder_of_the_environment_wins(
    golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTTRAIN_GOLDENS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        golden("d2o-preconditioning")
    save_file({"input/x": torch.tensor([0.5]).half()}, tmp_path / "d2o-preconditioning.safetensors")
    assert torch.equal(golden("d2o-preconditioning").input("x"), torch.tensor([0.5]))


def test_one_step_preconditioning(golden: Any) -> None:
    case = golden("d2o-preconditioning")
    net = build_network(
        "one_step", "SongUNet", 8, 3, 0, model_channels=8, channel_mult=[1], num_blocks=1
    )
    net.model = TanhPlusNoiseLabel()
    sigma = case.input("sigma")
    denoised = net(case.input("x") * sigma.reshape(-1, 1, 1, 1), sigma)
    case.assert_close(denoised, case.output("denoised"), "denoised")
