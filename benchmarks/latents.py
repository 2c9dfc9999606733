"""The way through latents on a CPU: a small autoencoder trained on Fashion-MNIST, the latents of a
set, a diffusion model of these, and two fine-tunings of it, judged by decoded pixels and by the
diffusion model itself.

    python -m benchmarks.latents --data data/fashion-mnist WORK

Writes `benchmarks/results/latents.json`: what the autoencoder loses, the distances of each row to
real images (`fd`), and seconds. Short runs of one seed: they show that the way works, not how good
it gets. What is finished in WORK is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from benchmarks.demo import machine
from fasttrain.data import RealImages
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.models.files.vae import Config, load_vae
from fasttrain.models.latents import LatentEncoder
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain
from fasttrain_data.encoding import encode

__all__ = ["latents_part"]

RESULTS = Path(__file__).parent / "results" / "latents.json"
STEPS, BATCH, KL = 600, 32, 1e-4
CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
NETWORK = [
    "network.img_resolution=14",
    "network.img_channels=4",
    "network.channel_mult=[2, 2]",
    "sample.every=0",
    "evaluate={every: null, samples: 1000}",
]
JUDGES = {
    "decoded pixels": [],
    "the diffusion model itself": [
        "discriminator.backbones=[{name: self}]",
        "discriminator.resolutions=[14, 7]",
        "discriminator.class_embedding=random",
        "r1={gamma: 1e-3, interval: 4, inputs: features}",
    ],
}


def train_vae(images: Path, out: Path) -> None:
    """L1 and a small KL term; its scaling factor makes the latents' deviation 1."""
    torch.manual_seed(0)
    network = Config.model_validate(CONFIG).build()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    stream = RealImages(images)
    for step in range(STEPS):
        x = stream.take(BATCH).to("cpu").images
        mean, deviation = network.encode(x)
        z = mean + deviation * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
        loss = F.l1_loss(network.decode(z), x) + KL * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"autoencoder: step {step}, loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        mean, _ = network.encode(stream.take(500).to("cpu").images)
    out.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), out / "diffusion_pytorch_model.safetensors")
    config = CONFIG | {"scaling_factor": 1 / float(mean.std())}
    (out / "config.json").write_text(json.dumps(config, indent=1))


def reconstruction(images: Path, vae: Path) -> float:
    """Peak signal-to-noise ratio of decoded means, in dB."""
    network, x = load_vae(vae).network, RealImages(images, seed=1).take(500).to("cpu").images
    with torch.no_grad():
        error = F.mse_loss(network.decode(network.encode(x)[0]).clamp(-1, 1), x)
    return float(10 * torch.log10(4 / error))


def latents_part(result: Mapping[str, Any]) -> str:
    """The table of docs/models.md."""
    about, fd = result["machine"], result["rows"]
    names = {
        "real_floor": "other real images",
        "teacher_18": "diffusion model, 18 Heun steps",
        "one_step_before": "one step, before fine-tuning",
        **{name: f"one step, judged by {name}" for name in JUDGES},
    }
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        "`benchmarks/results/latents.json`: an autoencoder of 28 px to 4 channels of 14 px "
        f"({result['reconstruction_db']:.1f} dB), 51,200 images of pre-training, 8,000 of each "
        "fine-tuning:",
        "",
        "| images | fd |",
        "|---|---|",
        *(f"| {names[name]} | {value:.1f} |" for name, value in fd.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST, converted")
    arguments = parser.parse_args()
    work, images = arguments.work.absolute(), arguments.data.absolute()
    latents, vae = work / "latents", work / "vae"
    seconds = {}

    def timed(name: str, done: Path, run: Any) -> None:
        began = time.monotonic()
        if not done.exists():
            run()
            seconds[name] = round(time.monotonic() - began, 1)

    timed("autoencoder", vae, lambda: train_vae(images, vae))
    encoder = LatentEncoder(load_vae(vae), torch.device("cpu"))
    timed("encode", latents, lambda: encode(images, latents, encoder, batch=64))

    data = [f"data.path={latents}", f"latents={{vae: {vae}, pictures: {images}}}", *NETWORK]
    first, world = work / "diffusion", start()
    said = [f"run={first}", "images=51200"]
    first_settings = load_settings("fashion-mnist-cpu-edm", [*said, *data], PretrainSettings)
    timed("pretrain", first / "checkpoints", lambda: pretrain(first_settings, world))
    rows: dict[str, Any] = {}
    for name, judge in JUDGES.items():
        run = work / name.replace(" ", "-")
        said = [f"run={run}", f"init={first}", "images=8000"]
        settings = load_settings(
            "fashion-mnist-cpu-d2o-f", [*said, *data, *judge], FinetuneSettings
        )
        timed(name, run / "checkpoints", lambda settings=settings: finetune(settings, world))
        values = values_of(evaluate_run(run), "fd")
        if not rows:
            for part in ("real_floor", "teacher_18", "one_step_before"):
                rows[part] = values[part]
        rows[name] = values["one_step_after"]
    result = {
        "machine": machine(),
        "reconstruction_db": round(reconstruction(images, vae), 2),
        "rows": rows,
        "seconds": seconds,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
