"""The page's numbers against Python's: its latents, its operators and its samplers, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fasttrain.models.load import load_model
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import Tile, draw
from fasttrain.sampling.playground import build_page
from fasttrain.sampling.sampler import Sampler
from tests.small_models import ADM, NCSNPP, PLAIN, write_model

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None,
    reason="node is not installed: no numbers of the page",
)

WEB = Path(__file__).parents[2] / "fasttrain" / "sampling" / "playground" / "web"
RUNNER = Path(__file__).with_name("run_pages.js")
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpmpp": PLAIN,
    "ncsnpp": NCSNPP,
    "adm": ADM,
    "skips": NCSNPP | {"encoder_type": "skip", "decoder_type": "skip", "label_dim": 3},
    "odd": PLAIN | {"img_resolution": 14, "model_channels": 12, "embedding_type": "zero"},
}
TEACHER = "ddpmpp"
SEEDS = (0, 3, 63, 2**32 + 5, 2**53 - 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A generator of each kind of network, one of two steps; and a diffusion model."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        name: write_model(folder / f"{name}.safetensors", network)
        for name, network in NETWORKS.items()
    }
    paths["two steps"] = write_model(folder / "two.safetensors", PLAIN, sigma_mid="0.8")
    paths["teacher"] = write_model(folder / "teacher.safetensors", PLAIN, task="pretrain")
    return paths


@pytest.fixture(scope="module")
def results(
    models: dict[str, Path], expected: list[Tensor], tmp_path_factory: pytest.TempPathFactory
) -> list[Tensor]:
    """Latents of SEEDS, then the images of JOBS, all from one node process."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {}
    for name in (*NETWORKS, "two steps"):
        teacher = models["teacher"] if name == TEACHER else None
        pages[name] = str(folder / f"{name}.html")
        Path(pages[name]).write_text(build_page(models[name], teacher=teacher).html())
    jobs = {
        "latents": [[seed, 13] for seed in SEEDS],
        "images": [
            {"page": pages[TEACHER if each == "teacher" else each], "name": kind, **more}
            for each, kind, more in JOBS
        ],
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = ["node", RUNNER, WEB, folder / "jobs.json", folder / "out.bin"]
    subprocess.run(command, check=True, timeout=120)
    numbers = torch.from_numpy(np.fromfile(folder / "out.bin", np.float32))
    sizes = [13] * len(SEEDS) + [image.numel() for image in expected]
    return list(numbers.split(sizes))


JOBS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "generator", {"seed": 5, "label": 2}) for name in NETWORKS),
    ("two steps", "generator", {"seed": 5, "label": 7}),
    ("teacher", "teacher", {"seed": 9, "label": 4}),
    (TEACHER, "generator", {"seed": 1, "label": 3, "to": 8, "at": 0.3}),
    (TEACHER, "generator", {"seed": 1, "label": 3, "turn": [0.6, -0.4]}),
]


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[Tensor]:
    """The images of JOBS, of Python."""
    images = []
    for name, _, job in JOBS:
        network, info = load_model(models[name])
        sampler, classes = Sampler.of(info), info.network.label_dim
        label = job["label"] if classes else 0
        if "turn" in job:
            images.append(_turned(sampler, network, job))
            continue
        tile = Tile("", job["seed"], job.get("to", job["seed"]), job.get("at", 0.0), label)
        images.append(next(draw(sampler, network, [tile], batch=1)))
    return images


@torch.no_grad()
def _turned(sampler: Sampler, network: Any, job: dict[str, Any]) -> Tensor:
    """The formula of docs/playground.md."""
    x, y = torch.tensor(job["turn"], dtype=torch.float64)
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    z, east, north = sample_latents(torch.tensor([job["seed"], 900001, 900002]), shape).double()
    r = torch.hypot(x, y)
    z = r.cos() * z + r.sin() / r * (x * east + y * north)
    hot = torch.eye(network.label_dim)[job["label"]][None]
    return sampler(network, z.float()[None], hot)


def test_latents_of_a_seed(results: list[Tensor]) -> None:
    expected = sample_latents(torch.tensor(SEEDS), (13,))
    assert (torch.stack(results[: len(SEEDS)]) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("k", range(len(JOBS)), ids=[f"{j[0]} {i}" for i, j in enumerate(JOBS)])
def test_images(k: int, results: list[Tensor], expected: list[Tensor]) -> None:
    image, same = results[len(SEEDS) + k], expected[k].flatten()
    assert same.std() > 0.05
    assert (image - same).abs().max() <= 2e-5
