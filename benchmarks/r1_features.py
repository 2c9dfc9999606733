"""Errors of R1 whose feature networks compute in fewer bits: of the penalty, and of its gradient.

    python -m benchmarks.r1_features        # benchmarks/results/r1-features.json, a few minutes

EfficientNet-Lite0 with its published weights sees scikit-learn's digits; the heads are new, or have
had some steps against noise. float64 is the truth, and float32's own error the yardstick. A CPU has
no TF32: each input of a product or convolution of the features is rounded as a GPU's tensor cores
round it, to 11 bits, halves away from zero, in all passes; sums are float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.demo import machine
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.models.features.network import build_features
from fasttrain.training.objectives.gan import discriminator_loss
from fasttrain.training.objectives.pulled import pulled_r1

__all__ = ["r1_features_part"]

RESULT = Path(__file__).parent / "results" / "r1-features.json"
IMAGES, RESOLUTION, STEPS = 16, 64, 10
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")


class RoundedProducts(TorchDispatchMode):
    """Products and convolutions of inputs that are rounded to TF32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").removesuffix("_backward")
        if name in PRODUCTS:
            args = tree_map_only(Tensor, rounded, args)
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """float32 with the low 13 bits of its fraction rounded away."""
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).view_as(x)


def images_and_labels() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.tensor(digits.images[:IMAGES], dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(pixels, size=(RESOLUTION, RESOLUTION), mode="bilinear")
    return images, F.one_hot(torch.tensor(digits.target[:IMAGES]).long(), 10).float()


def train(judge: ProjectedDiscriminator, images: Tensor, labels: Tensor) -> None:
    """A few steps against noise, so that the heads are not those of the start."""
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.0, 0.99))
    for step in range(STEPS):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(step))
        real, fake = judge.together([images, noise], labels)
        optimizer.zero_grad()
        discriminator_loss(real=real, fake=fake).loss.backward()
        optimizer.step()
        judge.iterate_spectral_norm()


def errors(judge: ProjectedDiscriminator, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Of each choice of numbers, against float64."""

    @contextmanager
    def of(dtype: torch.dtype, tf32: bool = False) -> Iterator[None]:
        with judge.in_precision(dtype):
            if not tf32:
                yield
                return
            with RoundedProducts():
                yield

    scopes: dict[str, Callable[[], Any]] = {
        "float64": lambda: of(torch.float64),
        "float32": lambda: of(torch.float32),
        "tf32": lambda: of(torch.float32, tf32=True),
        "bfloat16": lambda: of(torch.bfloat16),
    }
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, scope in scopes.items():
        x = images.double() if name == "float64" else images
        penalty = pulled_r1(
            lambda x: judge.look(x, labels),
            lambda maps: (judge.judge(maps, labels), judge.judged(maps)),
            x,
            scope,
        )
        parameters = [p for p in judge.parameters() if p.requires_grad]
        grads = torch.autograd.grad(penalty, parameters, allow_unused=True)
        flat = torch.cat([g.double().flatten() for g in grads if g is not None])
        found[name] = penalty.detach().double(), flat
    truth, gradient = found.pop("float64")
    return {
        name: {
            "penalty": _digits(float((penalty - truth).abs() / truth)),
            "gradient": _digits(float((flat - gradient).norm() / gradient.norm())),
            "cosine": round(float(F.cosine_similarity(flat, gradient, dim=0)), 6),
        }
        for name, (penalty, flat) in found.items()
    }


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def r1_features_part(result: Mapping[str, Any]) -> str:
    """The page's table: a choice a line."""
    lines = [
        f"From `benchmarks/results/{RESULT.name}`: Lite0 at {result['resolution']} px, "
        f"{result['images']} digits, TF32 imitated on a CPU; relative errors against float64:",
        "",
        "| heads | `r1.features` | penalty | gradient | cosine of the gradients |",
        "|---|---|---|---|---|",
    ]
    for heads, rows in result["rows"].items():
        for name, row in rows.items():
            cells = f"{row['penalty']:.1e} | {row['gradient']:.1e} | {row['cosine']:.6f}"
            lines.append(f"| {heads} | {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    torch.manual_seed(0)
    images, labels = images_and_labels()
    judge = ProjectedDiscriminator(
        [build_features("lite0", RESOLUTION)], label_dim=10, norm_group=8,
        resolutions=(64, 32, 16), width=128,
    )  # fmt: skip
    rows = {"new": errors(judge, images, labels)}
    train(judge, images, labels)
    rows[f"after {STEPS} steps"] = errors(judge, images, labels)
    result = {"machine": machine(), "images": IMAGES, "resolution": RESOLUTION, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(r1_features_part(result))


if __name__ == "__main__":
    main()
