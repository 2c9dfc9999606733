"""Fine-tuning from every family's file: two iterations, resumed, sampled and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fasttrain.discriminator.class_means import store_class_features
from fasttrain.models.files.model_file import read_model_file
from fasttrain_data import convert
from tests.latents import VAE, squares
from tests.model_goldens import ModelCase, cases
from tests.runs.calling import call
from tests.shared import made_once

pytestmark = pytest.mark.slow

PIXELS = [c for c in cases() if c.about["image"][0] == 3 and c.about["classes"] in (0, 10)]
"""Those that the digits, in colour, are images for."""
LATENTS = [c for c in cases() if c.about["image"][0] == 4 and not c.name.endswith("-train")]
"""And those that a small autoencoder makes latents for; DiT's and SiT's training files hold the
same networks as their plain ones."""
SMALL = ["batch=16", "report_every=16", "checkpoint.every=16", "sample.count=4"]


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`coloured(size)`: the digits in colour, with the classes' mean features, made once."""

    def of(size: int) -> Path:
        def make(folder: Path) -> None:
            convert("digits", folder / "digits", resolution=size, channels=3)
            store_class_features(folder / "digits", 32, torch.device("cpu"))

        return made_once(tmp_path_factory, f"coloured-{size}", make) / "digits"

    return of


def latent_data(low: float, root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Settings of a set of latents and the images that it is of."""
    images, out = root / "images", root / "latents"
    convert(squares(root / "squares", 40, 16, 10), images)
    said = ("encode", images, out, "--vae", VAE, "--low", int(low), "--batch", 64)
    status, _, error = call(capsys, *said)
    assert status == 0, error
    return [f"data.path={out}", f"latents.pictures={images}", f"latents.vae={VAE}"]


@pytest.mark.parametrize("case", PIXELS + LATENTS, ids=lambda case: case.name)
def test_a_family_is_imported_tuned_resumed_and_exported(
    case: ModelCase,
    quick: list[str],
    coloured: Callable[[int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "diffusers" in case.about["family"]:
        pytest.importorskip("diffusers")
    model, network, run = tmp_path / "m.safetensors", tmp_path / "network.yaml", tmp_path / "run"
    said = [*case.arguments(tmp_path / "config.json"), "--out", model, "--network", network]
    status, out, error = call(capsys, "import", *said)
    assert status == 0, error
    assert "prediction: " in out
    assert f"network's settings: {network}, for a recipe with `extends: {network}`" in out

    info = read_model_file(model).info
    assert info is not None
    latents = info.latents
    vae = [] if latents is None else ["--vae", VAE]
    picture = tmp_path / "a.png"
    status, out, error = call(capsys, "sample", model, "--out", picture, "--seeds", "0-3", *vae)
    assert status == 0, error

    recipe = tmp_path / "tune.yaml"
    settings = (Path(__file__).parents[2] / "configs" / "digits-d2o-f.yaml").read_text()
    start, _, rest = settings.partition("network:\n")
    rest = rest[rest.index("freeze:") :]
    recipe.write_text(f"extends: {network}\n{start}{rest}")
    changes = [item for item in quick if not item.startswith(("network.", "data.path=", "init="))]
    changes += [f"init={model}", f"run={run}", *SMALL]
    if latents is None:
        changes.append(f"data.path={coloured(case.about['image'][1])}")
    else:
        changes += latent_data(latents.low, tmp_path, capsys)
    status, out, error = call(capsys, "finetune", recipe, *changes, "images=32")
    assert status == 0, error
    status, out, error = call(capsys, "finetune", recipe, *changes, "images=48")
    assert status == 0, error

    exported = tmp_path / "generator.safetensors"
    status, out, error = call(capsys, "export", run, "--out", exported)
    assert status == 0, error
    before, after = load_file(model), load_file(exported)
    moved = [n for n in after if not torch.equal(before[n].float(), after[n].float())]
    assert moved
    assert all(value.isfinite().all() for value in after.values())
    status, out, error = call(capsys, "sample", exported, "--out", tmp_path / "b.png", *vae)
    assert status == 0, error


NETWORKS = {
    "DiT-flow": """
  model_type: DiT
  prediction: {kind: flow}
  options: {patch_size: 2, hidden_size: 32, depth: 2, num_heads: 2}""",
    "DiT-epsilon": """
  model_type: DiT
  prediction: {kind: epsilon, learned_variance: true}
  options: {patch_size: 2, hidden_size: 32, depth: 2, num_heads: 2}""",
    "EDM2-v": """
  model_type: EDM2UNet
  model_channels: 16
  channel_mult: [1, 2]
  num_blocks: 1
  attn_resolutions: [4]
  prediction: {kind: v, betas: cosine}
  options: {channels_per_head: 16}""",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_pretrained_and_tuned(
    name: str, digits: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From scratch under another preconditioning, then a one-step generator of it at every stage of
    ZeRO in one process: the stages see the same weights."""
    text = f"network:\n  img_resolution: 8\n  img_channels: 1\n  label_dim: 10{NETWORKS[name]}\n"
    configs, made = Path(__file__).parents[2] / "configs", {}
    for task, shipped in (("pretrain", "digits-edm"), ("finetune", "digits-d2o-f")):
        start, _, rest = (configs / f"{shipped}.yaml").read_text().partition("network:\n")
        lines = rest.splitlines(keepends=True)
        rest = "".join(lines[next(i for i, line in enumerate(lines) if line[0] != " ") :])
        made[task] = tmp_path / f"{task}.yaml"
        made[task].write_text(start + text + rest)
    first = tmp_path / "diffusion"
    small = [f"data.path={digits}", f"run={first}", "batch=32", "images=320", "report_every=32"]
    small.append("precision=float32")
    status, _, error = call(
        capsys, "pretrain", made["pretrain"], *small, "evaluate={samples: 8, components: null}"
    )
    assert status == 0, error
    changes = [item for item in quick if not item.startswith(("network.", "init="))]
    results = {}
    for stage in (None, 1, 3):
        run = tmp_path / f"stage-{stage}"
        zero = [] if stage is None else ["engine.kind=deepspeed", f"engine.zero_stage={stage}"]
        said = [*changes, *SMALL, f"init={first}", f"run={run}", "images=32", *zero]
        status, _, error = call(capsys, "finetune", made["finetune"], *said)
        assert status == 0, error
        exported = tmp_path / f"{stage}.safetensors"
        status, _, error = call(capsys, "export", run, "--out", exported)
        assert status == 0, error
        results[stage] = load_file(exported)
    for key, value in results[None].items():
        for stage in (1, 3):
            torch.testing.assert_close(results[stage][key], value, rtol=1e-3, atol=1e-4)
