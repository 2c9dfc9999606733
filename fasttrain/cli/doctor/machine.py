"""Checks of Python, libraries, devices, Triton and launchers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from fasttrain.cli.doctor.line import Line, name_of, version_of
from fasttrain.training.engines.deepspeed_version import NEEDED, too_new, too_old

OWN_LINES = ("torch", "deepspeed", "webdataset", "efficientnet")
"""Required packages that have a separate check."""


def check_python() -> Iterator[Line]:
    from fasttrain import __version__

    yield Line("ok", "fasttrain", f"{__version__} in {Path(__file__).parent}")
    yield Line("ok", "Python", f"{platform.python_version()}, {sys.executable}")
    yield Line("ok", "platform", platform.platform())


def check_libraries() -> Iterator[Line]:
    """Packages that fasttrain's metadata requires, without its extras."""
    try:
        required = metadata.requires("fasttrain") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . in the checkout"
        yield Line("warn", "libraries", "fasttrain is not installed, so not checked", remedy)
        return
    names = [name_of(entry) for entry in required if ";" not in entry]
    missing = [name for name in names if version_of(name) is None]
    for name in missing:
        if not name.startswith(OWN_LINES):
            yield Line("fail", name, "not installed", f"pip install {name}")
    yield Line("ok", "libraries", f"{len(names) - len(missing)} of {len(names)} installed")


def check_torch() -> Iterator[Line]:
    try:
        import torch
    except ImportError as error:
        yield Line("fail", "torch", str(error).splitlines()[0], "pip install 'torch>=2.10'")
        return
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    numbers = [int(part) for part in re.findall(r"\d+", torch.__version__)[:2]]
    if numbers < [2, 10]:
        yield Line("fail", "torch", torch.__version__, "pip install 'torch>=2.10'")
    else:
        yield Line("ok", "torch", f"{torch.__version__}, {build}")
    yield Line("ok", "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        remedy = "check the driver with nvidia-smi" if built else ""
        yield Line("warn" if built else "ok", "GPU", "none; the CPU is used", remedy)
    for index in range(torch.cuda.device_count()):
        yield _device(index)


def _device(index: int) -> Line:
    """One GPU, after a small computation on it."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    found = (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB"
    )
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        right = bool((ones @ ones == 64).all())
    except RuntimeError as error:
        found, right = f"{found}: {str(error).splitlines()[0]}", False
    if right:
        return Line("ok", f"GPU {index}", f"{found}, computes")
    remedy = f"install a torch build for this GPU, or hide it: CUDA_VISIBLE_DEVICES without {index}"
    return Line("fail", f"GPU {index}", f"{found}, fails a small computation", remedy)


def check_triton() -> Iterator[Line]:
    import torch

    gpu = torch.cuda.is_available()
    needed: Literal["fail", "warn"] = "fail" if gpu else "warn"
    without = "" if gpu else " (only GPUs need it)"
    try:
        import triton
    except ImportError as error:
        reason = f"cannot be imported: {error}".splitlines()[0]
        yield Line(needed, "triton", reason + without, "pip install triton")
        return
    pin = next((e for e in metadata.requires("torch") or [] if e.startswith("triton==")), "")
    wanted = re.search(r"==([\w.]+)", pin)
    if wanted and wanted[1] != triton.__version__:
        found = f"{triton.__version__}, but this torch is built for {wanted[1]}"
        yield Line("warn", "triton", found, f"pip install triton=={wanted[1]}")
    else:
        yield Line("ok", "triton", f"{triton.__version__}, imports")
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    release = _ptxas_release(assembler)
    if release:
        yield Line("ok", "ptxas", f"{release}, runs")
    else:
        found = f"{assembler} does not run{without}"
        yield Line(needed, "ptxas", found, "pip install --force-reinstall triton")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        yield Line("ok", "C compiler", compiler)
    else:
        found = f"not found; Triton compiles its launchers with it{without}"
        yield Line(needed, "C compiler", found, "install gcc, or set CC")
    from fasttrain_kernels.dispatch import INTERPRETED

    if INTERPRETED:
        slow = "on: kernels run in Python, slowly"
        yield Line("warn", "interpreter", slow, "unset TRITON_INTERPRET, unless testing")


def _ptxas_release(path: Path) -> str:
    """`12.8`; empty when it does not run."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    release = re.search(r"release ([\d.]+)", answer.stdout)
    return release[1] if release and answer.returncode == 0 else ""


def check_deepspeed() -> Iterator[Line]:
    version = version_of("deepspeed")
    if version is None or importlib.util.find_spec("deepspeed") is None:
        found = "not installed (only several processes need it)"
        yield Line("warn", "deepspeed", found, f"pip install '{NEEDED}'")
        return
    if too_old(version) or too_new(version):
        why = (
            "refused: it drops micro-batches"
            if too_old(version)
            else "newer than the tested versions"
        )
        yield Line("warn", "deepspeed", f"{version}: {why}", f"pip install '{NEEDED}'")
        return
    yield Line("ok", "deepspeed", f"{version}, installed (not imported)")


def check_webdataset() -> Iterator[Line]:
    try:
        importlib.import_module("webdataset")
    except ImportError as error:
        reason = f"cannot be imported: {error}".splitlines()[0]
        yield Line("fail", "webdataset", reason, "pip install webdataset")
        return
    yield Line("ok", "webdataset", f"{version_of('webdataset')}, imports")


def check_launchers() -> Iterator[Line]:
    for tool, package in (("deepspeed", "deepspeed"), ("torchrun", "torch")):
        path = shutil.which(tool)
        beside = Path(sys.executable).parent / tool
        if path:
            yield Line("ok", f"{tool} command", path)
        elif beside.is_file():
            yield Line(
                "warn", f"{tool} command", f"{beside}, not on PATH", "activate the environment"
            )
        else:
            found = "not found (only several processes need it)"
            yield Line("warn", f"{tool} command", found, f"pip install {package}")
    for tool in ("pdsh", "ssh"):
        path = shutil.which(tool)
        if path:
            yield Line("ok", f"{tool} command", path)
        else:
            found = "not found (only `fasttrain launch --hostfile` needs it)"
            yield Line("warn", f"{tool} command", found, f"install {tool}")
