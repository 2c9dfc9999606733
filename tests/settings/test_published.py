"""Every recipe: what its header promises to say, networks of exactly the published size, numbers
that fit together."""

from __future__ import annotations

import re

import pytest

from fasttrain.models.audit import audit_of
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings, recipe_folder, recipe_names
from tests.models.test_freezing import COUNTS
from tests.shared import task_of

PUBLISHED = {
    "cifar10-uncond": COUNTS["cifar10-uncond"],
    "cifar10-cond": COUNTS["cifar10-cond"],
    "afhqv2-64": COUNTS["ffhq-64"],
    "ffhq64": COUNTS["ffhq-64"],
    "imagenet64": COUNTS["imagenet-64"],
}
SETS = [*PUBLISHED, "digits", "fashion-mnist", "emoji64"]
EDM = {  # batch, rate, dropout, augmentation, half-life, millions of images
    "cifar10-uncond": (512, 1e-3, 0.13, 0.12, 500_000, 200),
    "cifar10-cond": (512, 1e-3, 0.13, 0.12, 500_000, 200),
    "afhqv2-64": (256, 2e-4, 0.25, 0.15, 500_000, 200),
    "ffhq64": (256, 2e-4, 0.05, 0.15, 500_000, 200),
    "imagenet64": (4096, 1e-4, 0.10, 0.0, 50_000_000, 2500),
}

IMAGES = {
    "cifar10-uncond": 50_000,
    "cifar10-cond": 50_000,
    "afhqv2-64": 15_803,
    "ffhq64": 70_000,
    "imagenet64": 1_281_167,
    "digits": 1_797,
    "fashion-mnist": 60_000,
    "emoji64": 3_786,
}
"""Of each data set, as its recipe's header has it converted."""


def tuning(name: str, *overrides: str) -> FinetuneSettings:
    return load_settings(name, overrides, FinetuneSettings)


def training(name: str) -> PretrainSettings:
    return load_settings(name, [], PretrainSettings)


def test_each_set_has_its_pre_training_and_both_fine_tunings() -> None:
    kinds = ("edm", "d2o-f", "d2o")
    assert {f"{name}-{kind}" for name in SETS for kind in kinds} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_the_header_says_how_on_what_how_long_and_what_comes_out(name: str) -> None:
    lines = (recipe_folder() / f"{name}.yaml").read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    verb = task_of(name)
    assert f"#   fasttrain {verb} {name}" in head
    order = [
        line.split()[1] for line in head if re.match(r"# (Hardware|Time|Expected|Source):", line)
    ]
    assert order == ["Hardware:", "Time:", "Expected:", "Source:"]
    assert all(len(line) <= 100 for line in lines)
    for word in ("TIME", "EXPECTED", "SOURCE", "TODO"):
        assert word not in "\n".join(head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_size_at_every_freezing_level(name: str) -> None:
    parameters, trainable, _ = PUBLISHED[name]
    for level, count in zip((1, 2, 3), trainable, strict=True):
        total = audit_of(tuning(f"{name}-d2o-f", f"freeze={level}")).total
        assert (total.parameters, total.trainable) == (parameters, count)
    assert tuning(f"{name}-d2o-f").freeze == 1
    total = audit_of(tuning(f"{name}-d2o")).total
    assert (total.parameters, total.trainable) == (parameters, parameters)
    labels = 0 if name == "imagenet64" else 9 * 256  # for augmentation; fine-tuning drops them
    assert audit_of(training(f"{name}-edm")).total.parameters == parameters + labels


@pytest.mark.parametrize("name", SETS)
def test_the_three_recipes_of_a_set_fit_together(name: str) -> None:
    before, frozen, whole = training(f"{name}-edm"), tuning(f"{name}-d2o-f"), tuning(f"{name}-d2o")
    assert frozen.init == whole.init == before.run
    assert before.data.path == frozen.data.path
    there = before.network.model_copy(update={"augment_dim": 0, "dropout": 0.0})
    assert there == frozen.network
    assert whole == frozen.model_copy(update={"freeze": "none", "run": whole.run})
    assert whole.run != frozen.run


@pytest.mark.parametrize("name", SETS)
def test_evaluations_take_no_more_images_than_there_are_nor_all_of_a_large_set(name: str) -> None:
    for settings in (training(f"{name}-edm"), tuning(f"{name}-d2o-f"), tuning(f"{name}-d2o")):
        samples = settings.evaluate.samples or IMAGES[name] // 2
        assert settings.evaluate.components is not None
        assert settings.evaluate.components < samples <= 10_000
        assert 2 * samples <= IMAGES[name]  # as many again are the real floor


def test_headers_say_what_augmentation_does() -> None:
    for name in SETS:
        text = " ".join((recipe_folder() / f"{name}-edm.yaml").read_text().replace("#", "").split())
        if training(f"{name}-edm").augment:
            assert "a mirror image with probability 1/2, five more transformations each" in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_pre_training_has_the_published_numbers(name: str) -> None:
    settings = training(f"{name}-edm")
    batch, rate, dropout, augment, half_life, millions = EDM[name]
    assert (settings.batch, settings.images) == (batch, millions * 1_000_000)
    adam = settings.optimizer
    assert (adam.rate, adam.betas, adam.ramp_up) == (rate, (0.9, 0.999), 10_000_000)
    values = 3 * settings.network.img_resolution**2 * (100 if name == "imagenet64" else 1)
    assert adam.eps == pytest.approx(1e-8 / values, rel=1e-3)  # their sums, our means
    assert (settings.network.dropout, settings.augment) == (dropout, augment)
    assert settings.network.augment_dim == (9 if augment else 0)
    assert (settings.ema.half_life, settings.ema.fraction) == (half_life, 0.05)
    assert (settings.p_mean, settings.p_std) == (-1.2, 1.2)
