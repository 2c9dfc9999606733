"""docs/extending.md does what it says: each example is written as a new file and one line of a
registry into a copy of the packages, and used by the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from tests.runs.conftest import BRIEFLY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n# (\S+?)(?:, (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PACKAGES = ("fasttrain", "kernels", "data_tools", "configs")
SHORT = ["batch=16", "images=32", "checkpoint.every=32", "report_every=16", BRIEFLY]
SHORT.append("precision=float32")
"""Two iterations."""
FINETUNE = [
    *SHORT,
    "discriminator.precision=float32",
    "discriminator.norm_group=8",
    "discriminator.resolutions=[32, 16]",
    "discriminator.width=32",
    "discriminator.channels=8",
    "discriminator.class_embedding=random",
    "r1.interval=2",
    "sample.count=4",
]
REWARD = "reward={name: brightness, weight: 10}"
LITE0 = "discriminator.backbones=[{name: lite0, resolution: 32}]"
WEIGHTS = """
import sys
from fasttrain.models.features.backbone import backbone
from safetensors.torch import save_file
save_file(backbone("pyramid").new(3).state_dict(), sys.argv[1])
"""
EXPORTED = """
import sys
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
folder, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
assert not any(name.split(".")[0].startswith("fasttrain") for name in sys.modules)
for seed, image in zip(range(3), pipeline(seeds=range(3)).images):
    image.save(Path(out, f"{seed}.png"))
"""


SERVER = """
import importlib, json, os, runpy, sys
from pathlib import Path
from tests.faults.child import forked
for name in (
    "fasttrain.cli.app",
    "fasttrain.discriminator.class_means",
    "fasttrain.evaluation.measure",
    "fasttrain.models.export",
    "fasttrain.sampling.sample",
    "fasttrain.training.finetune",
    "fasttrain.training.pretrain",
    "fasttrain_data.cli",
    "torch._dynamo",
    "torch.utils.tensorboard",
):
    importlib.import_module(name)
import fasttrain, fasttrain_data
for module in (fasttrain, fasttrain_data):
    assert Path(module.__file__).is_relative_to(os.getcwd())
for line in sys.stdin:
    words, environment = json.loads(line)
    def work():
        os.environ |= environment
        kind, what, *sys.argv[1:] = words
        if kind == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    print(forked(Path("said"), work).wait(1500), flush=True)
"""
"""Runs what comes on its stdin as `python ARGUMENTS` would, in forked processes, which need not
import everything again."""


class Copy:
    """The packages in another folder, and their commands there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in PACKAGES:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignore)

    def extend(self) -> list[str]:
        """Write what the page shows: new files, a line in front of each registry's others, and the
        digits' recipes with the network shown. Returns what was written into packages."""
        written = []
        page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
        for path, registry, code in BLOCK.findall(page):
            file = self.root / path
            if registry:
                before = file.read_text(encoding="utf-8")
                opening = re.compile(rf"^{registry} = [({{]\n", re.MULTILINE)
                assert len(opening.findall(before)) == 1
                assert len(code.splitlines()) == 1
                file.write_text(opening.sub(lambda found, code=code: found[0] + code, before))
            else:
                assert not file.exists()
                file.write_text(code, encoding="utf-8")
            written.append(f"{path} {registry}".strip())
        (network,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for kind in ("edm", "d2o-f"):
            recipe = yaml.safe_load((self.root / "configs" / f"digits-{kind}.yaml").read_text())
            text = yaml.safe_dump(recipe | yaml.safe_load(network))
            (self.root / "configs" / f"mixer-{kind}.yaml").write_text(text)
        return written

    def start(self) -> subprocess.Popen[str]:
        packages = [self.root, self.root / "kernels", self.root / "data_tools", ROOT]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=self.root,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(map(str, packages)), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self.server

    def run(self, *arguments: object, expect: int = 0, **environment: str) -> str:
        """Standard output and error of `python ARGUMENTS`."""
        assert self.server.stdin
        assert self.server.stdout
        print(json.dumps([[*map(str, arguments)], environment]), file=self.server.stdin, flush=True)
        status = self.server.stdout.readline()
        said = (self.root / "said").read_text()
        assert status == f"{expect}\n", said
        return said

    def fasttrain(self, *arguments: object, **options: str) -> str:
        return self.run("-m", "fasttrain", *arguments, **options)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    copy = Copy(tmp_path_factory.mktemp("extended"))
    assert copy.extend() == [
        "fasttrain/models/networks/mixer.py",
        "fasttrain/settings/registry.py NETWORKS",
        "fasttrain/models/features/pyramid.py",
        "fasttrain/settings/registry.py BACKBONES",
        "fasttrain/evaluation/colours.py",
        "fasttrain/settings/registry.py EXTRACTORS",
        "fasttrain/training/objectives/least_squares.py",
        "fasttrain/settings/registry.py LOSSES",
        "fasttrain/training/objectives/brightness.py",
        "fasttrain/settings/registry.py REWARDS",
        "data_tools/fasttrain_data/sources/npy.py",
        "data_tools/fasttrain_data/sources/__init__.py SOURCES",
    ]
    with copy.start():
        yield copy


@pytest.fixture(scope="module")
def data(extended: Copy) -> Path:
    """64 images by the new data source."""
    draws = np.random.default_rng(0)
    labels = np.arange(64) % 10
    images = draws.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.save(extended.root / "photos.npy", images)
    np.save(extended.root / "photos.labels.npy", labels)
    extended.run("-m", "fasttrain_data", "convert", "photos.npy", "data/photos")
    extended.run("-m", "fasttrain_data", "verify", "data/photos")
    return extended.root / "data" / "photos"


@pytest.fixture(scope="module")
def diffusion(extended: Copy, data: Path) -> Path:
    """The new network, pre-trained."""
    run = extended.root / "runs" / "mixer"
    changes = [f"run={run}", f"data.path={data}", "ema.half_life=500", *SHORT]
    extended.fasttrain("pretrain", "mixer-edm", *changes)
    return run


@pytest.fixture(scope="module")
def generator(extended: Copy, data: Path, diffusion: Path) -> Path:
    """The new network, fine-tuned."""
    run = extended.root / "runs" / "one-step"
    changes = [f"run={run}", f"init={diffusion}", f"data.path={data}", *FINETUNE]
    extended.fasttrain("finetune", "mixer-d2o-f", LITE0, *changes)
    return run


def test_a_source_converts(data: Path) -> None:
    index = json.loads((data / "index.json").read_text())
    assert (index["images"], index["resolution"], index["channels"]) == (64, 8, 1)
    assert index["source"]["kind"] == "npy"
    assert [c["images"] for c in index["classes"]] == [7] * 4 + [6] * 6


def test_a_network_trains_with_what_its_levels_freeze(generator: Path, diffusion: Path) -> None:
    audit = json.loads((generator / "audit.json").read_text())
    assert 0 < audit["trainable"] < audit["parameters"]
    (step,) = (generator / "checkpoints").iterdir()
    held = {key.removeprefix("module/model.") for key in load_file(step / "generator.safetensors")}
    assert "layers.0.tokens0.weight" in held
    assert "layers.0.channels0.weight" not in held  # level 1
    base = load_file(generator / "base.safetensors")
    average = load_file(step / "ema.safetensors")
    assert average.keys() == {name for name in base if ".channels" not in name}
    assert any((average[name] != base[name]).any() for name in average)


def test_a_network_is_exported_as_it_is(extended: Copy, generator: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    extended.fasttrain("export", generator, "--to", "diffusers", "--out", tmp_path / "pipeline")
    extended.fasttrain("sample", generator, "--seeds", "0-2", "--out", f"{tmp_path / 'ours'}/")
    (tmp_path / "theirs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED, str(tmp_path / "pipeline"), str(tmp_path / "theirs")],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours = sorted((tmp_path / "ours").rglob("*.png"))
    theirs = sorted((tmp_path / "theirs").iterdir())
    assert len(ours) == len(theirs) == 3
    from PIL import Image

    for a, b in zip(ours, theirs, strict=True):
        pixels = np.asarray(Image.open(a))
        assert np.array_equal(pixels, np.asarray(Image.open(b)))
        assert pixels.std() > 0


def test_what_the_network_does_not_take_is_refused(extended: Copy, data: Path) -> None:
    changes = [f"run={extended.root / 'runs' / 'none'}", f"data.path={data}", *SHORT]
    for setting, message in (
        ("network.options={patch: 3}", "options.patch 3 does not divide img_resolution"),
        ("network.options={pach: 2}", "a Mixer has no such option: did you mean patch?"),
        ("network.dropout=0.1", "dropout: a Mixer has no such setting; remove it"),
    ):
        said = extended.fasttrain("pretrain", "mixer-edm", *changes, setting, expect=2)
        assert message in said
        assert "Traceback" not in said
    assert not (extended.root / "runs" / "none").exists()


def test_a_backbone_a_loss_and_a_reward(extended: Copy, data: Path, diffusion: Path) -> None:
    extended.run("-c", WEIGHTS, extended.root / "pyramid.safetensors")
    losses = {}
    for loss in ("least_squares", "non_saturating"):
        run = extended.root / "runs" / loss
        changes = [f"run={run}", f"init={diffusion}", f"data.path={data}", *FINETUNE]
        backbone = "discriminator.backbones=[{name: pyramid, resolution: 32}]"
        extended.fasttrain(
            *("finetune", "mixer-d2o-f", backbone, f"loss={loss}", REWARD, *changes),
            FASTTRAIN_WEIGHTS=str(extended.root),
        )
        lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
        losses[loss] = [line["loss/generator"] for line in lines if "loss/generator" in line]
        assert len(losses[loss]) == 2
        assert np.isfinite(losses[loss]).all()
        assert all(0 < line["loss/reward"] < 1 for line in lines if "loss/generator" in line)
        held = load_file(next((run / "checkpoints").iterdir()) / "discriminator.safetensors")
        assert any("pyramid" in key for key in held)
    assert losses["least_squares"][0] != losses["non_saturating"][0]


def test_an_extractor(extended: Copy, generator: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = ["--data", data, "--samples", 60, "--extractor", "colours", "--out", out]
    extended.fasttrain("evaluate", generator, *options)
    result = json.loads(out.read_text())
    assert result["protocol"]["extractor"]["extractor"] == "colours"
    assert result["rows"]["model"]["metrics"]["fd"]["value"] > 0
