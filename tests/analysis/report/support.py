"""Fabricated runs, and a report's page taken apart."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.saved import keep_base
from fasttrain.models.build import new_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import FinetuneSettings, RunSettings
from fasttrain.settings.recipes import to_yaml

SMALL = ["network.model_channels=16", "network.num_blocks=1"]
FD = {"real_floor": 1.93, "teacher_18": 22.9, "one_step_before": 266.2, "one_step_after": 24.5}


class Page(HTMLParser):
    """Elements, attributes and the text under each id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.text: dict[str | None, str] = {}
        self.images: dict[str | None, list[Image.Image]] = {}
        self.styles = ""
        self.cells: dict[str | None, list[str]] = {}
        self.row: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "img":
            head, _, data = (values["src"] or "").partition(",")
            assert head == "data:image/png;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            assert (values["width"], values["height"]) == tuple(map(str, picture.size))
            assert values["alt"]
            for name in {name for _, name in self.open}:
                self.images.setdefault(name, []).append(picture)
        if tag == "tr":
            self.row = self.cells.setdefault(values.get("data-row"), [])
        if tag == "td":
            self.row.append("")
        if tag not in ("meta", "img"):
            self.open.append((tag, values.get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for name in {name for _, name in self.open}:
            self.text[name] = self.text.get(name, "") + data
        if any(tag == "td" for tag, _ in self.open):
            self.row[-1] += data
        if self.open and self.open[-1][0] == "style":
            self.styles += data


def fabricate(settings: RunSettings, seed: int, base: Any = None) -> Any:
    """A run directory of an untrained network whose average differs from its weights, begun with
    another network `base`. Returns the network that holds the average."""
    kind = "generator" if settings.task == "finetune" else "network"
    precond = "one_step" if settings.task == "finetune" else "edm"
    torch.manual_seed(seed)
    network = new_network(precond, settings.network)
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts at almost nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(settings, FinetuneSettings):
        apply_freezing(network.model, settings.freeze)
    weights = {f"module/{name}": value.clone() for name, value in network.state_dict().items()}
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(1.5)
    settings.run.mkdir(parents=True)
    (settings.run / "config.yaml").write_text(to_yaml(settings))
    state = {"images": settings.images, "seconds": 92.4, "evaluation": None}
    if base is not None:
        digest = keep_base(settings.run, base.state_dict())
        state["base"] = {"sha256": digest, "frozen": "float32"}
    tensors = {kind: weights, "ema": trained}
    checkpoint.save(settings.run / "checkpoints", settings.images, tensors, state)
    return network.eval().requires_grad_(False)


def new_audited(settings: FinetuneSettings) -> Any:
    network = new_network("one_step", settings.network).model
    apply_freezing(network, settings.freeze)
    return network


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))
