"""Bytes gone bad on disk, disks that are full, two commands in one place."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fasttrain.checkpoints import checkpoint
from tests.faults.killed import SAME
from tests.faults.lab import Lab, fault, intact, reached, slowly, wait_for

SKIPPED = "is skipped and named; " + SAME


def newest(run: Path) -> Path:
    return checkpoint.steps(run / "checkpoints")[-1].path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damaged_checkpoint(lab: Lab, name: str, file: str, damage: Callable[[Path], None]) -> None:
    run = lab.half_done(name)
    damage(newest(run) / file)
    said = lab.assert_ends_like_unbroken(run)
    assert f"warning: checkpoint {run}/checkpoints/step-0000000064 is skipped: " in said
    assert file in said
    assert "resumed at 32 images" in said


@fault("damage", "a flipped bit in the newest checkpoint's generator", SKIPPED)
def flipped_generator(lab: Lab) -> None:
    damaged_checkpoint(lab, "flip-g", "generator.safetensors", flip)


@fault("damage", "the newest checkpoint's discriminator cut in half", SKIPPED)
def truncated_discriminator(lab: Lab) -> None:
    damaged_checkpoint(lab, "cut-d", "discriminator.safetensors", cut)


@fault("damage", "the newest checkpoint's average missing", SKIPPED)
def missing_average(lab: Lab) -> None:
    damaged_checkpoint(lab, "no-ema", "ema.safetensors", Path.unlink)


@fault("damage", "a flipped bit in the newest checkpoint's counters", SKIPPED)
def flipped_state(lab: Lab) -> None:
    damaged_checkpoint(lab, "flip-state", "state.json", flip)


@fault("damage", "the newest checkpoint's manifest cut in half", SKIPPED)
def truncated_manifest(lab: Lab) -> None:
    damaged_checkpoint(lab, "cut-manifest", "manifest.json", cut)


@fault("damage", "every checkpoint cut in half", "all are named; starts over; " + SAME)
def every_checkpoint(lab: Lab) -> None:
    run = lab.half_done("all-cut")
    for step in checkpoint.steps(run / "checkpoints"):
        cut(step.path / "ema.safetensors")
    said = lab.assert_ends_like_unbroken(run)
    assert said.count("is skipped: ema.safetensors") == 2
    assert "resumed" not in said


@fault(
    "damage",
    "a flipped bit in the run's base model",
    "restored from `init`, with a message; " + SAME,
)
def flipped_base(lab: Lab) -> None:
    run = lab.half_done("flip-base")
    flip(run / "base.safetensors")
    said = lab.assert_ends_like_unbroken(run)
    assert "base.safetensors was missing or damaged: restored" in said
    assert (run / "base.safetensors").read_bytes() == (
        lab.reference(1, 1) / "base.safetensors"
    ).read_bytes()


@fault(
    "damage",
    "the run's base model missing, and `init` trained on meanwhile",
    "status 2, one line that names both; the checkpoints stay, and with the file back " + SAME,
)
def base_gone_for_good(lab: Lab) -> None:
    run = lab.half_done("no-base")
    kept = run.with_name("kept-base.safetensors")
    (run / "base.safetensors").replace(kept)
    other = lab.folder / "trained-on"
    shutil.copytree(lab.base, other, dirs_exist_ok=True)
    step = checkpoint.find(other / "checkpoints")
    tensors = {p.stem: step.tensors(p.stem) for p in step.path.glob("*.safetensors")}
    next(iter(tensors["ema"].values())).add_(1)
    checkpoint.save(other / "checkpoints", step.images + 32, tensors, step.state)
    said = lab.train(run, f"init={other}", expect=[2])
    assert f"{other} is another model" in said
    assert "Traceback" not in said
    assert intact(run) == [32, 64]
    kept.replace(run / "base.safetensors")
    lab.assert_ends_like_unbroken(run)


@fault("damage", "leftovers of an unfinished checkpoint", "deleted; " + SAME)
def leftovers(lab: Lab) -> None:
    run = lab.half_done("leftovers")
    rest = run / "checkpoints" / "step-0000000096.tmp"
    rest.mkdir()
    (rest / "generator.safetensors").write_bytes(b"half")
    lab.assert_ends_like_unbroken(run)
    assert not rest.exists()


@fault("damage", "stats.jsonl with a last line cut short", SAME + ", line by line")
def truncated_stats(lab: Lab) -> None:
    run = lab.half_done("cut-stats")
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"images": 80, "loss/')
    lab.assert_ends_like_unbroken(run)


@contextmanager
def truncated_shard(lab: Lab, number: int) -> Iterator[Path]:
    shard = sorted(lab.data.glob("*.tar"))[number]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    try:
        yield shard
    finally:
        shard.write_bytes(content)


@fault("damage", "a shard cut in half", "status 2 before anything runs, the shard named; " + SAME)
def shard_cut_before(lab: Lab) -> None:
    run = lab.half_done("shard")
    with truncated_shard(lab, 3) as shard:
        said = lab.train(run, expect=[2])
    assert shard.name in said
    assert "Traceback" not in said
    assert intact(run) == [32, 64]
    lab.assert_ends_like_unbroken(run)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of this size at `folder`; False where none may be mounted."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@fault(
    "full disk",
    "no space left while a checkpoint is written",
    "status 2, one line; the checkpoint before is whole, and with space " + SAME,
)
def full_disk(lab: Lab) -> None:
    source = lab.half_done("before-full")
    shutil.rmtree(newest(source))
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) // 1024
    mount = lab.folder / "small"
    with small_disk(mount, size + 700) as mounted:
        run = mount / "run"
        shutil.copytree(source, run, dirs_exist_ok=True)
        if mounted:
            said = lab.train(run, expect=[2])
        else:  # no right to mount: the kernel refuses large files instead
            said = lab.train(run, expect=[2], inject=limit_files)
        assert "Traceback" not in said
        assert "No space left" in said or "File too large" in said
        assert intact(run) == [32]
        assert not list((run / "checkpoints").glob("*.tmp"))
        again = lab.new_run("after-full")
        shutil.copytree(run, again)
    lab.assert_ends_like_unbroken(again)


def limit_files() -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@fault(
    "two commands",
    "a second command in the run directory of one that is training",
    "the second ends with status 2 and names the first, which is not disturbed",
)
def second_command(lab: Lab) -> None:
    run = lab.new_run("twice")
    (first,) = lab.start(run, inject=slowly)
    wait_for(reached(run, 16))
    said_by_first = first.log.rename(first.log.with_suffix(".first"))
    said = lab.train(run, expect=[2])
    assert f"{run} is being trained by process {first.pid} on " in said
    assert first.wait() == 0, said_by_first.read_text()
    lab.assert_ends_like_unbroken(run)
