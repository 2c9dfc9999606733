"""Why distillation falls short: is a student that comes closer to its teacher better? Students by
each distillation, by the GAN alone and by both, after equally many images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.landscape import (
    along_line,
    barrier,
    paired_distance,
    rank_correlation,
)
from fasttrain.analysis.findings.result import Curve, Result, Table
from fasttrain.data import Batch, RealImages
from fasttrain.evaluation.extractors import extract, load_extractor
from fasttrain.evaluation.metrics.distances import frechet_distance_pca
from fasttrain.models.build import new_network
from fasttrain.models.load import load_model
from fasttrain.sampling.draws import Stream, latents
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.training.objectives.diffusion import edm_loss

__all__ = ["closeness", "experiment"]

METHODS = ("pd", "cd", "ctm", "rcd")
STEPS = (1, 2, 4, 8, 18)
COMPONENTS = 64


def experiment(lab: Lab) -> Result:
    """Students of the first seed."""
    runs = {method: lab.distilled(method, 0) for method in METHODS}
    runs["GAN"] = lab.tuned("gan", 0, "freeze=none")
    runs["cd and GAN"] = lab.distilled("cd", 0, beside_gan=True)
    count = lab.settings("gan", 0).evaluate.samples or 512
    teacher = lab.teacher()
    batch = RealImages.of(lab.data).take(count).to("cpu")
    look = load_extractor("lite2")

    def features(images: Tensor) -> Tensor:
        return extract(look, images.split(64))

    def distance(one: Tensor, other: Tensor) -> float:
        return frechet_distance_pca(one, other, min(COMPONENTS, count - 1))

    real = features(batch.images)
    drawn = {n: generate(Sampler("heun", steps=n), teacher, range(count)).float() for n in STEPS}
    seen = {n: features(images) for n, images in drawn.items()}
    last = max(STEPS)
    rows: list[dict[str, Any]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    gan_features = None
    for name, run in runs.items():
        student, info = load_model(run)
        images = generate(Sampler.of(info), student, range(count)).float()
        own = features(images)
        if name == "GAN":
            gan_features = own
        rows.append(
            {
                "name": name,
                "to data": distance(real, own),
                "to teacher": distance(seen[last], own),
                "pixels": paired_distance(images, drawn[last]),
                "features": paired_distance(own, seen[last]),
            }
        )
        weights = {n: w.clone() for n, w in student.state_dict().items()}
        lines[name] = _line(lab, teacher.state_dict(), weights, batch)
    assert gan_features is not None
    steps = {
        n: {"to data": distance(real, seen[n]), "to student": distance(gan_features, seen[n])}
        for n in STEPS
    }
    students = [
        (r["name"], *(f"{r[key]:.1f}" for key in ("to data", "to teacher")),
         *(f"{r[key]:.3f}" for key in ("pixels", "features")), f"{barrier(lines[r['name']]):.3f}")
        for r in rows
    ]  # fmt: skip
    teachers = [(f"{n}", f"{s['to data']:.1f}", f"{s['to student']:.1f}") for n, s in steps.items()]
    return Result(
        name="minima",
        title="Why distillation falls short",
        claim=(
            "Teacher and student sit in different minima: a student need not come close to its "
            "teacher's images to be good, and forcing it to limits it."
        ),
        found=closeness(rows),
        protocol=(
            f"students after equally many images, nothing frozen, one seed; {count} images of the "
            "same latents; fd on the leading 64 components of lite2's features, to real images and "
            "to the teacher's of 18 Heun steps; paired: root mean square of student less teacher; "
            "barrier: rise of the denoising loss between the teacher's weights and the student's "
            "above the straight line."
        ),
        about=lab.about(),
        data={"students": rows, "teachers": steps, "lines": lines},
        tables=[
            Table(
                ("student", "fd to data", "fd to teacher", "pixels", "features", "barrier"),
                students,
            ),
            Table(("teacher's steps", "fd to data", "fd to the GAN's student"), teachers),
        ],
        curves=[
            Curve(
                "denoising loss from the teacher (0) to the student (1)",
                lines,
                across="share of the way",
            )
        ],
    )


def closeness(rows: list[dict[str, Any]]) -> str:
    """The sentence, from the students' `to data` and `pixels`."""
    correlation = rank_correlation([r["to data"] for r in rows], [r["pixels"] for r in rows])
    best = min(rows, key=lambda r: r["to data"])
    closest = min(rows, key=lambda r: r["pixels"])
    same = (
        "the same one is closest to the teacher's images"
        if best is closest
        else f"{closest['name']} is closest to the teacher's images"
    )
    how = "goes" if correlation > 0.5 else "does not go"
    return (
        f"{best['name']} has the best fd, {best['to data']:.1f}, and {same}; over "
        f"{len(rows)} students closeness {how} with quality (rank correlation {correlation:.2f})."
    )


def _line(
    lab: Lab, teacher: dict[str, Tensor], student: dict[str, Tensor], batch: Batch
) -> list[tuple[float, float]]:
    """The denoising loss of weights between both, on fixed draws."""
    shape = lab.described.network.model_copy(update={"augment_dim": 0})
    network = new_network("edm", shape).eval()
    teacher = {name: teacher[name] for name in student}  # which is told of no augmentation
    levels = latents(0, Stream.NOISE_LEVEL, batch.index, (1, 1, 1))
    noise = latents(0, Stream.NOISE, batch.index, batch.images.shape[1:])

    @torch.no_grad()
    def loss(weights: dict[str, Tensor]) -> float:
        network.load_state_dict(weights)
        data = lab.described.network.prediction.sigma_data
        found = edm_loss(network, batch.images, levels, noise, batch.class_labels, sigma_data=data)
        return float(found.mean())

    return along_line(teacher, student, loss)
