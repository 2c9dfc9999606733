"""Every network, with frozen layers and with adapters, under ZeRO 0 to 3 on two processes: the
weights, the optimizer's state and the average of the local engine. And fine-tuning that is judged
by the diffusion model itself: the same losses, gradients and weights."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats
from fasttrain.models.adapters import ADAPTER
from fasttrain.models.build import new_network, prepare_network
from fasttrain.models.freezing import select_trained
from fasttrain.settings import FinetuneSettings, NetworkSettings
from fasttrain.settings.adapt import AdaptSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import ONE_PROCESS, World, start, stop
from fasttrain.training.ema import EMA
from fasttrain.training.engines.make import make_engine
from fasttrain.training.finetune import finetune
from tests.faults.child import WARM, WITH_DEEPSPEED, forked, free_port, warm_up
from tests.models.test_adapters import ALL

STAGES = (0, 1, 2, 3)
WITH_ADAPTERS = (
    ("DDPM++", "lora"),
    ("EDM2", "rotate"),
    ("DiT", "lora"),
    ("DiffusersUNet", "rotate"),
)
NETWORKS = ("ADM", "EDM2", "DiT", "DiffusersUNet", "DiffusersTransformer")
CELLS = [
    (name, kind) for name, kind in (*((n, None) for n in NETWORKS), *WITH_ADAPTERS) if name in ALL
]


def settings_of(name: str, kind: str | None, stage: int) -> FinetuneSettings:
    changes = ["generator={rate: 1e-2, eps: 1e-2}", f"engine.zero_stage={stage}"]
    if stage == 3:  # small weights too, of which there are no others here
        none_small = "{zero_optimization: {stage3_param_persistence_threshold: 0}}"
        changes.append(f"engine.deepspeed={none_small}")
    settings = load_settings("digits-d2o-f", changes, FinetuneSettings)
    adapt = kind and AdaptSettings(kind=kind, rank=2)  # type: ignore[arg-type]
    return settings.model_copy(update={"network": NetworkSettings(**ALL[name]), "adapt": adapt})


def trained(name: str, kind: str | None, stage: int, world: World) -> dict[str, Tensor]:
    """What two steps on four images leave, on the main process."""
    settings = settings_of(name, kind, stage)
    torch.manual_seed(0)
    network: Any = new_network("one_step", settings.network).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    select_trained(network, settings)
    prepare_network(network, settings, world.device)
    engine = make_engine(network, settings.generator, settings.engine, world)
    ema = EMA(engine, half_life=4)
    generator = torch.Generator().manual_seed(1)
    share = slice(4 // world.size * world.rank, 4 // world.size * (world.rank + 1))
    for images in (4, 8):
        x = torch.randn(4, network.img_channels, 8, 8, generator=generator)[share]
        labels = torch.eye(network.label_dim)[:4][share] if network.label_dim else None
        engine.backward(engine(x, 2.0, labels).square().mean())
        assert engine.step()
        ema.update(images=4, seen=images)
    average = {f"ema/{name}": value for name, value in ema.state_dict().items()}
    constants = {f"constant/{name}": value for name, value in engine.constants().items()}
    state = {**engine.state_dict(), **average, **constants}
    return {name: value.clone() for name, value in state.items()} if world.is_main else {}


def judged(quick: list[str], run: Path, stage: int, world: World) -> None:
    """Three iterations, of which one has an exact R1 on the frozen copy's maps."""
    changes = [
        *quick,
        "discriminator.backbones=[{name: self}]",
        "discriminator.resolutions=[8, 4]",
        "discriminator.class_embedding=random",
        "r1={gamma: 1.0e-3, interval: 2, inputs: features}",
        "generator={rate: 1e-4, eps: 1e-2}",
        "discriminator.optimizer={rate: 1e-4, eps: 1e-2}",
        "images=96",
        "checkpoint.every=96",
        "evaluate.every=null",
        f"engine.zero_stage={stage}",
        f"run={run}",
    ]
    if stage == 3:
        none_small = "{zero_optimization: {stage3_param_persistence_threshold: 0}}"
        changes.append(f"engine.deepspeed={none_small}")
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), world)


def train_all(rank: int, port: int, folder: Path, quick: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = start()
    for name, kind in CELLS:
        for stage in STAGES:
            state = trained(name, kind, stage, world)
            if state:
                save_file(state, folder / f"{name}-{kind}-{stage}.safetensors")
    for stage in STAGES[1:]:
        judged(quick, folder / f"judged-{stage}", stage, world)
    stop()


@pytest.mark.slow
def test_stages_equal_the_local_engine_for_every_network(tmp_path: Path, quick: list[str]) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    others = ["diffusers"] if importlib.util.find_spec("diffusers") else []
    warm_up([*WARM, *WITH_DEEPSPEED, *others])
    port = free_port()
    children = [
        forked(tmp_path / f"rank-{rank}.log", partial(train_all, rank, port, tmp_path, quick))
        for rank in (0, 1)
    ]
    for child in children:
        assert child.wait(1500) == 0, child.said()[-4000:]
    for name, kind in CELLS:
        expected = trained(name, kind, 0, ONE_PROCESS)
        moved = {key for key in expected if key.startswith("exp_avg/")}
        assert moved
        assert kind is None or all(ADAPTER in key for key in moved)  # they train alone
        for stage in STAGES:
            state = load_file(tmp_path / f"{name}-{kind}-{stage}.safetensors")
            assert state.keys() == expected.keys(), (name, kind, stage)
            for key, value in expected.items():
                torch.testing.assert_close(
                    state[key],
                    value,
                    rtol=1e-3,
                    atol=2e-5,
                    msg=lambda text, at=(name, kind, stage, key): f"{at}: {text}",
                )
    judged(quick, tmp_path / "judged", 1, ONE_PROCESS)
    lines = read_stats(tmp_path / "judged")
    assert [line["images"] for line in lines if "loss/r1" in line] == [96]
    weights = checkpoint.find(tmp_path / "judged" / "checkpoints").tensors("ema")
    for stage in STAGES[1:]:
        run = tmp_path / f"judged-{stage}"
        for line, expected in zip(read_stats(run), lines, strict=True):
            for name in expected.keys() - TIMES:
                assert line[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), (
                    stage,
                    name,
                )
        theirs = checkpoint.find(run / "checkpoints").tensors("ema")
        assert theirs.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-6)
