"""What a user gets wrong ends in one clear line, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fasttrain.checkpoints import checkpoint
from tests.faults.child import Child, command
from tests.runs.calling import call


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command in this process; its one line on standard error."""
    status, _, error = call(capsys, *arguments)
    lines = [line for line in error.splitlines() if line.startswith("fasttrain: error: ")]
    assert status == 2, error
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0].removeprefix("fasttrain: error: ")


@pytest.fixture
def task(quick: list[str], tmp_path: Path) -> list[str]:
    return ["finetune", "digits-d2o-f", *quick, f"run={tmp_path / 'run'}"]


def no_run_left(tmp_path: Path) -> bool:
    run = tmp_path / "run"
    return not run.exists() or not checkpoint.steps(run / "checkpoints")


def test_unknown_recipe_and_key_and_type(capsys, task, tmp_path) -> None:
    assert "did you mean digits-d2o?" in refuse(capsys, "finetune", "digits-d20")
    assert "did you mean digits-d2o?" in refuse(capsys, "profile", "digits-d20")
    assert "did you mean images?" in refuse(capsys, *task, "image=3")
    assert "batch" in refuse(capsys, *task, "batch=many")
    assert not (tmp_path / "run").exists()


def test_missing_shards_say_how_to_make_them(capsys, task, tmp_path) -> None:
    message = refuse(capsys, *task, f"data.path={tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in message
    assert "fasttrain-data convert" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_too_few_images_to_evaluate_are_said_before_anything(
    verb: str, capsys, digits: Path, tmp_path: Path
) -> None:
    recipe = "digits-edm" if verb == "pretrain" else "digits-d2o-f"
    changes = ["evaluate={every: 64, samples: 899}", f"run={tmp_path / 'run'}"]
    message = refuse(capsys, verb, recipe, f"data.path={digits}", *changes)
    assert "evaluate.samples=899: the data set has 1797 images, which allows at most 898" in message
    assert not (tmp_path / "run").exists()


def test_a_shard_that_does_not_match_its_manifest(capsys, task, digits, tmp_path) -> None:
    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    for shard in copy.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[700] ^= 1
        shard.write_bytes(data)
    message = refuse(capsys, *task, f"data.path={copy}")
    assert "shard-" in message
    assert "sha" in message.lower()
    assert no_run_left(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "culprits"),
    [
        (["network.img_resolution=16"], ["8x8", "16x16"]),
        (["network.img_channels=3"], ["1 channel", "3"]),
        (["network.label_dim=7"], ["10 classes", "7"]),
    ],
)
def test_images_that_the_settings_do_not_describe(capsys, task, overrides, culprits) -> None:
    message = refuse(capsys, *task, *overrides)
    for culprit in culprits:
        assert culprit in message


def test_labels_outside_the_class_range(capsys, digits, tmp_path) -> None:
    """An index that names fewer classes than the records use."""
    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    index = json.loads((copy / "index.json").read_text())
    lost = index["classes"].pop()
    first = index["classes"][0]
    first["images"] += lost["images"]
    (copy / "index.json").write_text(json.dumps(index))
    message = refuse(
        capsys,
        *("pretrain", "digits-edm", f"run={tmp_path / 'run'}", f"data.path={copy}"),
        *("network.label_dim=9", "report_every=64", "data.max_skipped=0"),
    )
    assert "shard-" in message
    assert "label 9" in message
    assert no_run_left(tmp_path)


def test_a_run_directory_of_other_settings(capsys, task, tmp_path) -> None:
    from fasttrain.checkpoints.directory import open_directory
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings

    open_directory(load_settings(task[1], task[2:], FinetuneSettings))
    checkpoint.save(tmp_path / "run" / "checkpoints", 64, {}, {"images": 64})
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    message = refuse(capsys, *task, "r1.gamma=3.0", "seed=5")
    assert "r1.gamma was 0.001 and is 3.0" in message
    assert "seed was 0 and is 5" in message
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("discriminator.resolutions=[100]", "discriminator.resolutions.0"),
        ("discriminator.resolutions=[512, 256]", "discriminator.resolutions"),
        ("discriminator.backbones=[]", "discriminator.backbones"),
        ("discriminator.backbones=[{name: lite0, resolution: 100}]", "resolution"),
        ("evaluate.extractor=resnet", "evaluate.extractor"),
        ("generator.betas=[0, 1.5]", "generator.betas.1"),
        ("network.channel_mult=[]", "network.channel_mult"),
        ("network.model_channels=33", "network.model_channels"),
        ("engine.deepspeed={optimizer: 3}", "optimizer: fasttrain sets this"),
        ("engine.deepspeed={zero_optimization: {stage: 3}}", "stage: fasttrain sets this"),
        ("engine.deepspeed={memory_brakedown: true}", "did you mean memory_breakdown?"),
        ("engine.deepspeed={wall_clock_breakdown: true}", "see `fasttrain profile`"),
        (
            "engine.deepspeed={zero_optimization: {round_robin_gradients: true}}",
            "Adam's moments to the wrong ones",
        ),
        (
            "engine={zero_stage: 1, deepspeed: {zero_optimization: {overlap_comm: true}}}",
            "overlap_comm needs ZeRO 2 or 3",
        ),
        (
            "engine.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
            "offload_optimizer is not passed on to DeepSpeed",
        ),
        ("engine.deepspeed={zero_optimization: 3}", "write it as {key: value}"),
        ("engine={zero_stage: 4}", "engine.zero_stage"),
        ("generator.eps=0", "generator.eps"),
        ("seed=99999999999999999999", "seed"),
        ("batch=[", "not valid YAML"),
    ],
)
def test_settings_that_cannot_work(capsys, task, tmp_path, override: str, culprit: str) -> None:
    assert culprit in refuse(capsys, *task, override)
    assert not checkpoint.steps(tmp_path / "run" / "checkpoints")


def test_zero_3_and_compile_exclude_each_other(capsys, task) -> None:
    message = refuse(capsys, *task, "engine.zero_stage=3", "compile=true")
    assert "set engine.zero_stage to 2 at most" in message


def test_nothing_is_launched_with_a_mistake_in_the_settings(capsys, task, tmp_path) -> None:
    assert "finetune RECIPE" in refuse(capsys, "launch", "--", "sample", tmp_path)
    message = refuse(capsys, "launch", "--gpus", 2, "--", *task, "r1.gama=3")
    assert "did you mean gamma?" in message
    assert no_run_left(tmp_path)


def test_settings_may_be_mended_until_the_first_checkpoint(capsys, task, tmp_path) -> None:
    """An interrupted start or a mistake found late must not spoil the directory."""
    refuse(capsys, *task, "discriminator.resolutions=[512, 256]")  # found by the first batch
    run = tmp_path / "run"
    (run / "config.yaml").unlink(missing_ok=True)
    (run / "config.yaml.tmp").write_text("half")
    from fasttrain.checkpoints.directory import open_directory
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.of_run import load_run_settings
    from fasttrain.settings.recipes import load_settings

    settings = load_settings(task[1], task[2:], FinetuneSettings)
    open_directory(settings)
    assert load_run_settings(run) == settings


def test_a_folder_that_is_no_run(capsys, task, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    assert "not a run directory" in refuse(capsys, *task)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["thesis.tex"]
    for verb in ("sample", "evaluate", "report"):
        assert "not a run directory" in refuse(capsys, verb, tmp_path / "run")


def test_weights_that_do_not_fit_name_the_first_key(capsys, task, diffusion, tmp_path) -> None:
    message = refuse(capsys, *task, "network.num_blocks=2")
    assert "it has no model." in message
    message = refuse(capsys, *task, "network.model_channels=32")
    assert "model.map_layer0.weight is" in message or "model.map_label.weight is" in message
    step = checkpoint.find(diffusion / "checkpoints")
    weights = {
        k.removeprefix("module/"): v
        for k, v in load_file(step.path / "network.safetensors").items()
        if k.startswith("module/")
    }
    surplus = tmp_path / "surplus.safetensors"
    save_file(weights | {"model.extra": weights["model.map_layer0.bias"].clone()}, surplus)
    assert "the network has no model.extra" in refuse(capsys, *task, f"init={surplus}")
    surplus.write_bytes(b"not a tensor file")
    assert "not a safetensors file" in refuse(capsys, *task, f"init={surplus}")
    assert "fasttrain pretrain" in refuse(capsys, *task, f"init={tmp_path / 'missing'}")
    assert not (tmp_path / "run").exists()


def test_a_damaged_base_model_is_refused(capsys, task, diffusion, tmp_path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(diffusion, copy)
    for step in checkpoint.steps(copy / "checkpoints"):
        with (step.path / "ema.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
    with pytest.warns(UserWarning, match="ema.safetensors is corrupt"):
        assert "no intact checkpoint" in refuse(capsys, *task, f"init={copy}")


def test_sampling_mistakes(capsys, diffusion, tmp_path) -> None:
    out = tmp_path / "grid.png"
    assert "0-63" in refuse(capsys, "sample", diffusion, "--seeds", "a-b", "--out", out)
    assert "classes 0 to 9" in refuse(capsys, "sample", diffusion, "--class", 10, "--out", out)
    assert "it has: 6400" in refuse(capsys, "sample", diffusion, "--checkpoint", 99, "--out", out)
    assert not out.exists()


def limited(task: list[str], megabytes: float, log: Path) -> Child:
    """Run with a limit on the size of any file written: the kernel refuses the write for real."""

    def limit() -> None:
        size = int(megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    child = command(log, *task, before=limit)
    child.wait()
    return child


@pytest.mark.slow
def test_a_failing_write_ends_cleanly_and_keeps_what_was_there(task, tmp_path) -> None:
    whole = limited([*task, "images=64"], 1000, tmp_path / "whole.log")
    assert whole.status == 0, whole.said()
    before = checkpoint.find(tmp_path / "run" / "checkpoints")
    full = limited([*task, "images=128"], 0.1, tmp_path / "full.log")
    assert full.status == 2, full.said()
    errors = [line for line in full.said().splitlines() if line.startswith("fasttrain: error")]
    assert len(errors) == 1
    assert "step-" in errors[0]
    assert "Traceback" not in full.said()
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert before.path.name in left
    assert not any(name.endswith(".tmp") for name in left)
    assert checkpoint.find(tmp_path / "run" / "checkpoints") == before


def test_no_write_access(capsys, task, tmp_path) -> None:
    """A path below a file cannot be made by anyone, root included."""
    (tmp_path / "file").write_text("x")
    message = refuse(capsys, *task[:-1], f"run={tmp_path / 'file' / 'run'}")
    assert "cannot write the run directory" in message
    assert (tmp_path / "file").read_text() == "x"


def test_a_device_that_is_not_there(capsys, tmp_path) -> None:
    out = tmp_path / "profile"
    message = refuse(capsys, "profile", "digits-d2o-f", "--device", "cuda:7", "--out", out)
    assert "use --device cpu" in message
    assert not out.exists()
