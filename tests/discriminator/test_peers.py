"""The three feature networks beside timm's and torchvision's own, on a machine that has them:
their weights into ours, the same maps. `benchmarks/gpu.sh` runs it where they can be imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.models.features.backbone import backbone

pytestmark = pytest.mark.peers

timm: Any = pytest.importorskip("timm", reason="compares with timm, which is not installed")
torchvision: Any = pytest.importorskip(
    "torchvision", reason="compares with torchvision, which cannot be imported", exc_type=Exception
)


def outputs_of(network: Any, modules: list[Any], x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda *call: found.append(call[2].clone())) for m in modules]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def with_statistics(network: Any) -> Any:
    """Batch norms with statistics that show."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_lite0_is_timms() -> None:
    theirs = with_statistics(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    ours = backbone("lite0").new(0).eval()
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({name: value for (name, _), value in pairs})
    x = torch.randn(2, 3, 224, 224)
    stages = [theirs.blocks[k] for k in (1, 2, 4, 6)]
    with torch.no_grad():
        assert_close(ours.stages(x), outputs_of(theirs, stages, x))


def test_deit_is_timms() -> None:
    theirs = timm.create_model("deit_base_distilled_patch16_224", pretrained=False).eval()
    ours = backbone("deit_base_distilled").new(0).eval()
    weights = theirs.state_dict()
    own = {name for name, _ in ours.named_parameters()}
    assert own <= set(weights)
    ours.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = outputs_of(theirs, [theirs.blocks[k] for k in (2, 5, 8, 11)], x)
        assert_close(list(ours._tokens(x, 14, 14)), tokens)


def test_vgg_is_torchvisions() -> None:
    theirs = with_statistics(torchvision.models.vgg16_bn(weights=None))
    ours = backbone("vgg16_bn").new(0).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if k.startswith("features.")}
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = [theirs.features[:cut](x) for cut in (13, 23, 33, 43)]
        assert_close(ours.stages(x), wanted)
