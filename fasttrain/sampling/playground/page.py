"""The page: a model's programs, weights and description, and the files of `web/`, as one HTML file
that asks no other address for anything.

    page = build_page(Path("runs/digits-d2o-f"))
    page.html, page.notes
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.files.model_file import ModelFile, ModelInfo
from fasttrain.models.files.shelf import base_of
from fasttrain.models.load import load_base_model, load_model, open_model
from fasttrain.sampling.playground.memory import Weights
from fasttrain.sampling.playground.program import compile_network
from fasttrain.sampling.sampler import HEUN_STEPS, Sampler
from fasttrain.sampling.solvers import noise_levels
from fasttrain.settings import DataSettings
from fasttrain.settings.registry import SHELF
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic

__all__ = ["Page", "build_page", "export_page"]

SCRIPTS = ("noise.js", "runtime.js", "pool.js", "app.js", "actions.js")
WORKER = ("runtime.js", "worker.js")
MOST_WEIGHTS = 400_000_000
"""Bytes of weights of a page, in memory: every worker has them."""
WORKERS_MEMORY = 1_000_000_000
"""Bytes of weights that all workers of a page hold."""
TILES = ((1e9, 24), (4e9, 12), (float("inf"), 6))
"""(multiplications of an image, images of the grid)."""


@dataclass(frozen=True)
class Page:
    """A page and what belongs to it.

    Attributes:
        about: what its scripts know of the model.
        notes: lines for the user.
        data: the run's training data, where it is known.
        network: size and channels of images, for those who read `data`.
    """

    about: dict[str, Any]
    weights: Weights
    texts: Mapping[str, str]
    info: ModelInfo
    notes: list[str] = field(default_factory=list)
    data: DataSettings | None = None

    def html(self, *, nearest: bool = False) -> str:
        """The file. nearest: whether the server that sends it finds training images."""
        about = json.dumps(self.about | {"nearest": nearest}).replace("<", "\\u003c")
        parts = {name: html.escape(text) for name, text in self.texts.items()} | {
            "about": about,
            "style": _read("style.css"),
            "script": '"use strict";\n' + "\n".join(map(_read, SCRIPTS)),
            "worker": '"use strict";\n' + "\n".join(map(_read, WORKER)),
            "kernels": _base64(_file("kernels.wasm")),
            "weights": _base64(gzip.compress(self.weights.bytes(), 9, mtime=0)),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def build_page(
    model: Path,
    *,
    which: str = "latest",
    teacher: Path | None = None,
    name: str | None = None,
) -> Page:
    """The page of a one-step generator.

    which: checkpoint of a run. teacher: the diffusion model beside it; by default the one that a
    run or a model of the shelf began with.
    name: of the model in commands that the page shows; default: as the user named it.

    Raises UserError when the model is none that the page can run.
    """
    source = open_model(model, which)
    network, info = load_model(source)
    if not info.training.generator:
        raise UserError(
            f"{info.name} is a diffusion model, and the playground shows a one-step generator: "
            f"fine-tune it first"
        )
    if info.latents is not None:
        raise UserError(f"{info.name} makes latents, whose decoder does not run in a browser")
    weights = Weights()
    programs = {"generator": compile_network(network, info, weights)}
    samplers = {"generator": _sampler(network, Sampler.of(info))}
    beside, notes = _teacher(source, info, teacher)
    if beside is not None:
        their_network, their_info = beside
        _check_same(info, their_info)
        programs["teacher"] = compile_network(their_network, their_info, weights)
        samplers["teacher"] = _sampler(their_network, Sampler("heun"))
    if 4 * sum(weights.counts()) > MOST_WEIGHTS:
        raise UserError(
            f"{info.name} has {4 * sum(weights.counts()) / 1e6:,.0f} MB of weights, and the page "
            f"holds {MOST_WEIGHTS / 1e6:.0f} MB at most"
        )
    about = {
        "name": name or _shown(model),
        "size": info.network.img_resolution,
        "channels": info.network.img_channels,
        "classes": info.classes or [str(i) for i in range(info.network.label_dim)],
        "programs": {key: program.to_json(weights) for key, program in programs.items()},
        "samplers": samplers,
        "counts": weights.counts(),
        "tiles": next(n for most, n in TILES if programs["generator"].multiplications <= most),
        "workers": max(1, min(8, WORKERS_MEMORY // (4 * sum(weights.counts())))),
    }
    if isinstance(source, SavedRun) and which != "latest":
        about["checkpoint"] = source.images
    data = source.settings.data if isinstance(source, SavedRun) else None
    texts = _texts(about, network, Sampler.of(info))
    return Page(about, weights, texts, info, notes, data)


def export_page(page: Page, folder: Path) -> Path:
    """Write FOLDER/index.html, completely or not at all, and return its path. Raises UserError."""
    path = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name the folder of the page with --export")
    probe(path)
    write_atomic(path, page.html())
    return path


def _teacher(
    source: SavedRun | ModelFile, info: ModelInfo, named: Path | None
) -> tuple[tuple[Any, ModelInfo] | None, list[str]]:
    """The diffusion model beside a generator, and a note where there is none."""
    if named is None and isinstance(source, ModelFile) and source.path.stem in SHELF:
        base = base_of(source.path)
        named = None if base is None else Path(base)
    if named is not None:
        network, theirs = load_model(named)
        if theirs.training.generator:
            raise UserError(f"--teacher {named}: it is a one-step generator, no diffusion model")
        return (network, theirs), []
    if isinstance(source, SavedRun):
        try:
            return (load_base_model(source, "edm"), replace(info, task="pretrain")), []
        except UserError as error:
            return None, [f"without the diffusion model beside it: {error}"]
    return None, ["without a diffusion model beside it: name one with --teacher MODEL"]


def _check_same(info: ModelInfo, theirs: ModelInfo) -> None:
    one, other = (
        (n.img_resolution, n.img_channels, n.label_dim) for n in (info.network, theirs.network)
    )
    if one != other:
        raise UserError(
            f"{theirs.name} makes images of another size, or other classes, than {info.name}: name "
            f"the model that it began with"
        )


def _sampler(network: Any, sampler: Sampler) -> dict[str, Any]:
    """Noise levels, each with its row of the preconditioning table: (level, c_skip, c_out, c_in,
    c_noise)."""
    if sampler.kind == "heun":
        low, high = max(0.002, network.sigma_min), min(80.0, network.sigma_max)
        levels = [float(network.round_sigma(t)) for t in noise_levels(HEUN_STEPS, low, high)]
    else:
        levels = [sampler.sigma]
        if sampler.sigma_mid is not None:
            levels.append(sampler.sigma_mid)
    rows = []
    for level in levels:
        row = network.row.coefficients(torch.tensor(level, dtype=network.row.dtype))
        rows.append([level, *map(float, row)])
    return {
        "kind": sampler.kind,
        "levels": rows,
        "title": sampler.title,
        "evaluations": sampler.evaluations,
    }


def _texts(about: Mapping[str, Any], network: Any, sampler: Sampler) -> dict[str, str]:
    """What the page says in words."""
    size, count = about["size"], sum(p.numel() for p in network.parameters())
    colours = {1: "grey", 3: "colour"}.get(about["channels"], f"{about['channels']} channels")
    kinds = f", {len(about['classes'])} classes" if about["classes"] else ""
    heun = Sampler("heun")
    return {
        "title": Path(about["name"]).name,
        "summary": f"A {sampler.adjective} generator of {size}×{size} images, {colours}{kinds}; "
        f"{count / 1e6:.2f} M weights, running in this page",
        "compare": f"Compare with {heun.title}",
        "one_step": f"{sampler.title.capitalize()}, {_evaluations(sampler)}",
        "many_steps": f"{heun.title}, {_evaluations(heun)}",
    }


def _evaluations(sampler: Sampler) -> str:
    return f"{sampler.evaluations} evaluation{'s' if sampler.evaluations > 1 else ''}"


def _shown(model: Path) -> str:
    """As the user named it; without the folders of this machine."""
    return model.name if model.is_absolute() or ".." in model.parts else str(model)


def _file(name: str) -> bytes:
    return (resources.files(__package__) / "web" / name).read_bytes()


def _read(name: str) -> str:
    return _file(name).decode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
