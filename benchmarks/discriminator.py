"""Times of the discriminator alone: its own step, the generator's pass through it, exact R1.

    python -m benchmarks.discriminator                          # on a CPU: the demo's size, 64 px
    python -m benchmarks.discriminator --device cuda            # 128 images at 224 px
    python -m benchmarks.discriminator --quick --out FILE       # a rehearsal

Columns run in turns in one process, every step with its optimizer's gradients but without the
optimizer. `plain`: the published composition of plain operators
(`tests.discriminator.plain_discriminator`), fakes and real images one after the other, in float32;
on a GPU also in bfloat16, and that compiled
by torch.compile. `ours`: `ProjectedDiscriminator` as the loop calls it, in the precision of the
column that it is compared with; on a GPU in bfloat16.

Before anything is timed, the columns must agree: relative error of the logits and of the image
gradients against `plain` in float32. The features' weights are those that the machine has, random
ones where it has none; they change no time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.parts import machine
from fasttrain.analysis.profiling.meter import Meter, summarise
from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.models.features.network import build_features
from fasttrain.system.errors import UserError
from fasttrain.system.switches import exact_float32
from fasttrain.training.objectives import gan as objectives
from tests.discriminator.plain_discriminator import PlainDiscriminator

__all__ = ["CASES", "Case", "measured"]

RESULTS = Path(__file__).parent / "results"
WEIGHTS_SEED = 0


@dataclass(frozen=True)
class Case:
    """One discriminator and its images."""

    name: str
    backbones: tuple[str, ...]
    resolution: int
    batch: int
    image: tuple[int, int, int]
    label_dim: int
    resolutions: tuple[int, ...]
    width: int
    norm_group: int


DEMO = Case("digits demo", ("lite0",), 64, 64, (1, 8, 8), 10, (64, 32, 16), 256, 16)
COLOUR = Case("64 px, 3 channels", ("lite0",), 64, 32, (3, 64, 64), 10, (64, 32, 16), 256, 16)
FULL = (128, 64, 32, 16)
IMAGENET = Case(
    "ImageNet-64", ("deit_base_distilled", "lite0"), 224, 128, (3, 64, 64), 1000, FULL, 512, 128
)
CIFAR = Case("CIFAR-10", ("vgg16_bn", "lite0"), 224, 64, (3, 32, 32), 0, FULL, 512, 64)
CASES = {"cpu": (DEMO, COLOUR), "cuda": (IMAGENET, CIFAR)}
TINY = Case("rehearsal", ("lite0",), 64, 8, (3, 8, 8), 3, (32, 16), 16, 4)


class Column:
    """A way to compute the discriminator: `plain`, or where there is none ours in `dtype`."""

    def __init__(
        self, ours: ProjectedDiscriminator, dtype: torch.dtype, plain: PlainDiscriminator | None
    ) -> None:
        self.ours, self.dtype, self.plain = ours, dtype, plain

    def judge(self, images: Tensor, labels: Tensor | None) -> list[Tensor]:
        if self.plain is not None:
            return self.plain(images, labels)
        with self.ours.in_precision(self.dtype):
            return cast(list[Tensor], self.ours(images, labels))

    def own_step(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> None:
        """Loss on real images and fakes, gradients of the heads, spectral norms."""
        if self.plain is None:
            with self.ours.in_precision(self.dtype):
                seen = self.ours.together([real, fake], labels)
            loss = objectives.discriminator_loss(real=seen[0], fake=seen[1]).loss
        else:
            pair = [self.judge(images, labels) for images in (fake, real)]
            loss = torch.stack(
                [F.softplus(f).mean() + F.softplus(-r).mean() for f, r in zip(*pair, strict=True)]
            ).sum()
        loss.backward()
        self.ours.heads.zero_grad(set_to_none=True)
        (self.plain or self.ours).iterate_spectral_norm()

    def generators_pass(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        """The generator's loss and its gradient with respect to the images."""
        images = fake.detach().requires_grad_()
        with self.ours.frozen():
            logits = self.judge(images, labels)
            loss = torch.stack([F.softplus(-x).mean() for x in logits]).sum()
            return torch.autograd.grad(loss, images)[0]

    def r1_step(self, real: Tensor, labels: Tensor | None) -> None:
        objectives.r1_penalty(self.judge, real, labels).backward()
        self.ours.heads.zero_grad(set_to_none=True)


def measured(case: Case, device: torch.device, repetitions: int, compiled: bool) -> dict[str, Any]:
    """Times, peak memory and agreement of all columns for a case."""
    meter = Meter(device)
    torch.manual_seed(0)
    features = [with_weights(name, case.resolution) for name in case.backbones]
    ours = ProjectedDiscriminator(
        [network for network, _ in features],
        label_dim=case.label_dim,
        norm_group=case.norm_group,
        resolutions=case.resolutions,
        width=case.width,
    ).to(device)
    given: dict[str, Any] = {n.name: "random" for n, random in features if random}
    columns = columns_of(ours, given, device, compiled)
    real, fake = (torch.rand(case.batch, *case.image, device=device) * 2 - 1 for _ in range(2))
    labels = None
    if case.label_dim:
        classes = torch.arange(case.batch, device=device) % case.label_dim
        labels = F.one_hot(classes, case.label_dim).float()
    steps: dict[str, Callable[[Column], Any]] = {
        "discriminator step": lambda column: column.own_step(real, fake, labels),
        "generator's pass": lambda column: column.generators_pass(fake, labels),
        "exact R1": lambda column: column.r1_step(real, labels),
    }
    agreement = agreements(columns, fake, labels)
    result: dict[str, Any] = {
        "case": asdict(case),
        "random_features": sorted(given),
        "agreement": agreement,
        "steps": {},
        "out_of_memory": {},
    }
    for step in steps:
        run = partial(_run, steps[step])
        left_out: list[str] = []
        taken: dict[str, list[float]] = {
            name: [] for name in columns if not (step == "exact R1" and "bfloat16" in name)
        }
        for name in taken:
            try:
                run(columns[name])()  # warm-up
            except torch.OutOfMemoryError:
                left_out.append(name)
        taken = {name: times for name, times in taken.items() if name not in left_out}
        for _ in range(repetitions):
            for name in taken:
                taken[name] += meter.time(run(columns[name]))
        result["steps"][step] = {
            name: asdict(summarise(times)) | {"peak_bytes": meter.peak_bytes(run(columns[name]))}
            for name, times in taken.items()
        }
        if left_out:
            result["out_of_memory"][step] = left_out
    return result


def _run(step: Callable[[Column], Any], column: Column) -> Callable[[], Any]:
    return partial(step, column)


def with_weights(name: str, resolution: int) -> tuple[Any, bool]:
    """The feature network, and whether it had to be random."""
    try:
        return build_features(name, resolution), False
    except UserError:
        return build_features(name, resolution, weights="random", seed=WEIGHTS_SEED), True


def columns_of(
    ours: ProjectedDiscriminator, given: dict[str, Any], device: torch.device, compiled: bool
) -> dict[str, Column]:
    """Plain float32 first; ours float32 is there on a GPU too, for exact R1."""
    full, low = torch.float32, torch.bfloat16

    def plain(dtype: torch.dtype, *, compiled: bool = False) -> Column:
        judge = PlainDiscriminator(ours, given, WEIGHTS_SEED, dtype, compiled=compiled)
        return Column(ours, dtype, judge)

    columns = {"plain float32": plain(full)}
    if device.type == "cuda":
        columns["plain bfloat16"] = plain(low)
        if compiled:
            columns["compiled bfloat16"] = plain(low, compiled=True)
        columns["ours bfloat16"] = Column(ours, low, None)
    columns["ours float32"] = Column(ours, full, None)
    return columns


def agreements(
    columns: dict[str, Column], fake: Tensor, labels: Tensor | None
) -> dict[str, dict[str, float]]:
    """Relative L2 error of logits and image gradients against plain float32."""
    found: dict[str, dict[str, float]] = {}
    exact: tuple[Tensor, Tensor] | None = None
    for name, column in columns.items():
        with torch.no_grad():
            logits = torch.cat([x.float() for x in column.judge(fake, labels)], dim=1)
        gradient = column.generators_pass(fake, labels)
        exact = exact or (logits, gradient)
        found[name] = {
            "logits": float((logits - exact[0]).norm() / exact[0].norm()),
            "gradient": float((gradient - exact[1]).norm() / exact[1].norm()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny case, few repetitions")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    exact_float32()  # as in training, and as published
    device = torch.device(options.device)
    cases = (TINY,) if options.quick else CASES[device.type]
    repetitions = 3 if options.quick else options.repetitions
    out = options.out or RESULTS / f"discriminator-{device.type}.json"
    result: dict[str, Any] = {
        "machine": machine(device),
        "cases": [],
    }
    for case in cases:  # written after each, so that a run cut short leaves what it had
        result["cases"].append(measured(case, device, repetitions, not options.no_compile))
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(as_markdown(result))
    print(f"written: {out}")


def as_markdown(result: dict[str, Any]) -> str:
    """A table a case: medians in ms, and how many times faster than plain float32."""
    lines = []
    for case in result["cases"]:
        facts = case["case"]
        columns = list(case["agreement"])
        lines += [
            f"{facts['name']}: {facts['batch']} images of {facts['image']}, "
            f"{' and '.join(facts['backbones'])} at {facts['resolution']} px",
            "",
            f"| step | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for step, row in case["steps"].items():
            base = row.get("plain float32", {}).get("median_ms")
            cells = []
            for column in columns:
                if column not in row:
                    lost = column in case["out_of_memory"].get(step, ())
                    cells.append("out of memory" if lost else "-")
                    continue
                ms = row[column]["median_ms"]
                peak = row[column]["peak_bytes"]
                remarks = [f"{base / ms:.2f}x"] if base else []
                remarks += [f"{peak / 1e9:.1f} GB"] if peak else []
                cells.append(f"{ms:.1f} ms ({', '.join(remarks)})")
            lines.append(f"| {step} | {' | '.join(cells)} |")
        worst = {k: max(v.values()) for k, v in case["agreement"].items()}
        errors = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
        lines += ["", f"Largest relative error of logits and image gradients: {errors}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
