"""What `benchmarks/gpu_smoke.sh` does, which says how it is called.

Each step is a command of its own with a log of its own; the first that fails ends it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from fasttrain.checkpoints.stats import read_stats
from fasttrain.system.errors import UserError
from tests.tiny import DISCRIMINATOR, NETWORK

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
BATCH, ITERATIONS = 32, 30
IMAGES, KILLED_AT, EVERY = BATCH * ITERATIONS, BATCH * 15, BATCH * 5
NARROW = [*NETWORK, *DISCRIMINATOR]


class Failed(Exception):
    """A step did not do what it should; says what."""


class Smoke:
    """The commands, one after the other, within the time that is left."""

    def __init__(self, folder: Path, seconds: float, device: str, extra: Sequence[str]) -> None:
        self.folder, self.device = folder, device
        self.until = time.monotonic() + seconds
        self.extra = list(extra)
        self.environment = dict(os.environ)
        if device == "cpu":
            self.environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
            self.environment.setdefault("OMP_NUM_THREADS", "1")

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """A command in a session of its own, its output in a file."""
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(
        self, process: subprocess.Popen[bytes], *, done: Callable[[], bool] | None = None
    ) -> int | None:
        """The exit status, or None as soon as `done()`. Raises Failed when the time is up."""
        while process.poll() is None:
            if done is not None and done():
                return None
            if self.left < 0:
                kill(process)
                raise Failed("out of time")
            time.sleep(0.1)
        return process.returncode

    def run(self, log: str, *command: str) -> None:
        """Raises Failed when the command does not end with status 0 in time."""
        status = self.wait(self.start(log, *command))
        if status:
            raise Failed(f"ended with status {status}")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def pretrain(self) -> str:
        source = os.environ.get("DIGITS") or "digits"  # a folder of them, without scikit-learn
        self.run("pretrain", "fasttrain_data", "convert", source, str(self.folder / "digits"))
        run = self.folder / "digits-edm"
        narrow = NETWORK if self.device == "cpu" else []
        self.run(
            *("pretrain", "fasttrain", "pretrain", "digits-edm", f"run={run}"),
            *(f"data.path={self.folder / 'digits'}", "batch=128", f"images={128 * 20}"),
            *("report_every=640", "checkpoint.every=2560", "sample.count=16"),
            "evaluate.every=null",
            *(*narrow, *self.extra),
        )
        return f"loss/denoising {ended_well(run, 2560)['loss/denoising']:.3f} after 20 iterations"

    def command(self, run: Path, *changes: str) -> list[str]:
        return [
            *("finetune", "digits-d2o-f", f"run={run}", f"init={self.folder / 'digits-edm'}"),
            *(f"data.path={self.folder / 'digits'}", f"batch={BATCH}", f"images={IMAGES}"),
            *(f"report_every={EVERY}", f"checkpoint.every={2 * EVERY}", "r1.interval=4"),
            *("discriminator.norm_group=8", "sample.count=16"),
            "evaluate={samples: 256, components: 16}",
            *(*(NARROW if self.device == "cpu" else []), *changes, *self.extra),
        ]

    def finetune(self) -> str:
        """Killed as hard as can be, and the same command again."""
        run = self.folder / "one"
        command = ["fasttrain", *self.command(run)]
        process = self.start("one", *command)
        status = self.wait(process, done=lambda: images(run) >= KILLED_AT)
        if status is not None:
            raise Failed(f"ended with status {status} before it was killed")
        kill(process)
        self.run("one", *command)
        self.was_resumed("one")
        return f"killed after {KILLED_AT} of {IMAGES} images, resumed; {said(run)}"

    def launch(self) -> str:
        """One of two processes is killed: `launch` ends the other, and starts both again."""
        run = self.folder / "two"
        command = self.command(run, "engine.zero_stage=2")
        options = ["--gpus", "2", "--max-restarts", "1", "--"]
        process = self.start("two", "fasttrain", "launch", *options, *command)
        status = self.wait(process, done=lambda: images(run) >= KILLED_AT)
        if status is not None:
            raise Failed(f"ended with status {status} before one of it was killed")
        os.kill(rank_of(process, "1"), signal.SIGKILL)
        status = self.wait(process)
        if status:
            raise Failed(f"ended with status {status}")
        self.was_resumed("two")
        return f"one killed after {KILLED_AT} of {IMAGES} images, both resumed; {said(run)}"

    def beside_float32(self) -> str:
        """Fine-tuning as on this machine, and in float32 on plain operators: fd of both."""
        exact = ["precision=float32", "discriminator.precision=float32", "kernels=reference"]
        found = {}
        for name, changes in (("float32", exact), ("here", [])):
            run = self.folder / name
            images = BATCH * (300 if self.device == "cuda" else 10)
            self.run("fd", "fasttrain", *self.command(run, f"images={images}", *changes))
            found[name] = ended_well(run, images)["fd"]
        return f"fd {found['here']:.1f}, in float32 on plain operators {found['float32']:.1f}"

    def was_resumed(self, log: str) -> None:
        if "resumed at" not in self.log(log):
            raise Failed("did not go on from a checkpoint")

    def look(self) -> str:
        run = str(self.folder / "one")
        self.run("look", "fasttrain", "evaluate", run, "--seeds", "0-127", "--metrics", "fd,kd")
        self.run("look", "fasttrain", "sample", run, "--out", str(self.folder / "grid.png"))
        self.run("look", "fasttrain", "report", run)
        for path in (self.folder / "grid.png", self.folder / "one" / "report.html"):
            if not path.stat().st_size:
                raise Failed(f"{path} is empty")
        return "numbers, pictures and report are there"


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all that the command started, which may be in sessions of their own."""
    family = [process.pid]
    with suppress(psutil.Error):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def rank_of(process: subprocess.Popen[bytes], rank: str) -> int:
    """The training process of that rank below a launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            trains = "finetune" in child.cmdline() and child.environ().get("RANK") == rank
        except psutil.Error:
            continue
        if trains:
            return child.pid
    raise Failed(f"no process of rank {rank} is there")


def images(run: Path) -> int:
    return max((line["images"] for line in read_stats(run)), default=0)


def ended_well(run: Path, expected: int) -> dict[str, Any]:
    """The last line. Raises Failed unless the run reached its end with all its lines."""
    found = read_stats(run)
    if not found or found[-1]["images"] != expected:
        raise Failed(f"{run}: ended at {images(run)} images instead of {expected}")
    seen = [line["images"] for line in found]
    if seen != sorted(set(seen)):
        raise Failed(f"{run}: lines are missing or doubled: {seen}")
    bad = [n for line in found for n, value in line.items() if not math.isfinite(value)]
    if bad or any(name.startswith("skipped/") for line in found for name in line):
        raise Failed(f"{run}: numbers that are not finite, or steps that were skipped: {bad}")
    return found[-1]


def said(run: Path) -> str:
    last = ended_well(run, IMAGES)
    if len(read_stats(run)) != IMAGES // EVERY:
        raise Failed(f"{run}: {len(read_stats(run))} lines instead of {IMAGES // EVERY}")
    return f"loss/generator {last['loss/generator']:.3f}, fd {last['fd']:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; the exit status."""
    options = _options(arguments)
    gpus = torch.cuda.device_count() if options.device == "cuda" else 0
    if options.device == "cuda" and not gpus:
        print(f"gpu_smoke: {sys.executable} sees no GPU (--device cpu rehearses)", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if gpus else "CPU, a rehearsal"
    print(f"gpu_smoke: {gpus} x {name}" if gpus else f"gpu_smoke: {name}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        smoke = Smoke(folder.resolve(), options.budget, options.device, options.extra)
        wanted = options.steps.split(",")
        if gpus == 1 and "two" in wanted:
            print("two processes are not tried: there is one GPU", flush=True)
            wanted.remove("two")
        return run_steps(smoke, wanted)


def run_steps(smoke: Smoke, wanted: Sequence[str]) -> int:
    """Run what is wanted, a line each; the exit status."""
    began = time.monotonic()
    for name, (title, step) in STEPS.items():
        if name not in wanted:
            continue
        since = time.monotonic()
        try:
            result, good = step(smoke), True
        except (Failed, UserError, OSError, KeyError, ValueError) as problem:
            result, good = f"{problem}", False
        mark = "ok  " if good else "FAIL"
        print(f"{mark} {time.monotonic() - since:6.1f} s  {title}: {result}", flush=True)
        if not good:
            for line in smoke.log(name).splitlines()[-30:]:
                print(f"    {line}", flush=True)
            return 1
    print(f"gpu_smoke: all is well, {time.monotonic() - began:.0f} s", flush=True)
    return 0


STEPS: dict[str, tuple[str, Callable[[Smoke], str]]] = {
    "pretrain": ("pre-training", Smoke.pretrain),
    "one": ("fine-tuning", Smoke.finetune),
    "look": ("evaluate, sample, report", Smoke.look),
    "two": ("two processes, ZeRO 2", Smoke.launch),
    "fd": ("a short run beside float32", Smoke.beside_float32),
}
"""By the name of their log."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu_smoke.sh")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=float(os.environ.get("BUDGET", 240)))
    parser.add_argument("--folder", type=Path, help="where everything is written, and kept")
    parser.add_argument("--steps", default="pretrain,one,look,two")
    parser.add_argument("extra", nargs="*", help="settings for all trainings")
    options = parser.parse_args(arguments)
    if unknown := set(options.steps.split(",")) - set(STEPS):
        parser.error(f"--steps knows {', '.join(STEPS)}, not {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
