"""What runs in processes of its own, each with a time limit, and what machine it ran on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.profiling.meter import Meter, cpu_name, version_of

__all__ = [
    "Budget",
    "discriminator",
    "kernel_tests",
    "machine",
    "profile",
    "run_limited",
    "runs",
    "slug",
]

ROOT = Path(__file__).parents[2]
_FAILURE = re.compile(r"(?:FAILED|ERROR) (tests/\S+).*|(tests/\S+) (?:FAILED|ERROR)\b")
"""A line of the summary or of a worker, and of pytest without workers."""


class Budget:
    """Seconds for the whole command, from when this is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.seconds - self.spent()


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were made on, and from which state of the code."""
    facts = Meter(device).machine()
    name, cuda = facts.pop("device"), device.type == "cuda"
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": name if cuda else None,
        "driver": _output(*driver) if cuda else None,
        "cpu": cpu_name(),
        **facts,
        **{package: version_of(package) for package in ("apex", "liger-kernel")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # A copy of the tree without its history can be told the commit.
        "commit": os.environ.get("COMMIT") or _output("git", "rev-parse", "HEAD"),
        "modified_files": len((_output("git", "status", "--porcelain") or "").splitlines()),
    }


def slug(name: str) -> str:
    """NVIDIA H100 80GB HBM3 -> nvidia-h100-80gb-hbm3"""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def run_limited(command: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """Run it with its output in `log`; at the limit, end it with all that it started."""
    paths = [str(ROOT / name) for name in ("", "kernels", "data_tools")]
    given = os.environ.get("PYTHONPATH")  # where packages may lie that the machine has not
    paths += [given] if given else []
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0",
        "PYTHONUNBUFFERED": "1",  # what was said is there, too, where the limit ends it
    }  # fmt: skip
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    return {
        "command": " ".join(command),
        "exit_status": code,
        "timed_out": code is None,
        "seconds": round(time.monotonic() - start, 1),
        "limit_s": round(seconds, 1),
    }


def kernel_tests(seconds: float, log: Path) -> dict[str, Any]:
    """The tests of the kernels, compiled for this GPU. In several processes where pytest-xdist is
    installed: most of the time goes into compiling."""
    command = [sys.executable, "-m", "pytest", "tests/kernels", "tests/discriminator/test_peers.py"]
    command += ["-v", "--maxfail=20", "-p", "no:cacheprovider"]  # -v: each failure at once
    if find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(8, os.cpu_count() or 1)))]
    result = run_limited(command, seconds, log)
    lines = log.read_text(errors="replace").splitlines()
    counts = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    found = [match for match in map(_FAILURE.search, lines) if match]
    failures = list({match[1] or match[2]: match[0] for match in found}.values())
    cut = result["timed_out"] and not failures  # says nothing about those that were not reached
    said = counts[-1] if counts else (lines[-1] if lines else "no output")
    return result | {
        "result": f"the time limit ended them: {said}" if cut else said,
        "failures": failures,
        "passed": None if cut else result["exit_status"] == 0,
    }


def discriminator(device: str, seconds: float, folder: Path, *, compiled: bool) -> dict[str, Any]:
    """`python -m benchmarks.discriminator`: its own step, the generator's pass and exact R1."""
    written, log = folder / "discriminator.json", folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.discriminator", "--device", device]
    command += ["--out", str(written), *([] if compiled else ["--no-compile"])]
    command += ["--quick"] if device == "cpu" else []
    result = run_limited(command, seconds, log)
    if written.is_file():
        result |= json.loads(written.read_text())
    if result["exit_status"] == 0:
        return result
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    if result["timed_out"]:
        return result | {"left_out": "the time limit ended it"}
    return result | {"error": " | ".join(tail)[:600] or "it ended without a word"}


def runs(steps: str, device: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Steps of `benchmarks/gpu_smoke.py`: real trainings; `lines` has what each says."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    command = [sys.executable, "-m", "benchmarks.gpu_smoke", "--device", device, "--steps", steps]
    command += ["--budget", str(max(1, round(seconds - 5))), "--folder", str(folder / "kept")]
    result = run_limited(command, seconds, log)
    lines = log.read_text(errors="replace").splitlines()
    result["lines"] = [line for line in lines if line.startswith(("ok ", "FAIL ", "two "))]
    if any("out of time" in line for line in lines):
        result["timed_out"] = True
    elif result["exit_status"]:
        result["error"] = " | ".join(lines[-3:])[:600] or "it ended without a word"
    return result


def profile(
    recipe: str, device: str, seconds: float, folder: Path, *, compiled: bool
) -> dict[str, Any]:
    """`fasttrain profile RECIPE`, whose profile.json is the generator and the whole step, with or
    without torch.compile's column, which takes minutes to compile at the published size."""
    command = [sys.executable, "-m", "fasttrain", "profile", recipe, "--device", device]
    command += ["--out", str(folder), "--compile" if compiled else "--no-compile"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    result = run_limited(command, seconds, log)
    written = folder / "profile.json"
    if written.is_file():
        result["profile"] = json.loads(written.read_text())
        if result["exit_status"] == 0:
            return result
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    why = "the time limit ended it" if result["timed_out"] else " | ".join(tail)
    return result | {"error": why[:600] or "it wrote no profile.json"}
