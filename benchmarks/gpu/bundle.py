"""The folder that a GPU machine without a network needs beside a checkout, torch and triton.

    bash benchmarks/gpu_bundle.sh          # makes it, where there is a network
    python -m benchmarks.gpu.bundle site   # there: what that Python lacks, installed from it

Wheels are found from pyproject.toml, each package's own requirements followed, at the versions of
constraints.txt. This file imports nothing but Python and pip.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

__all__ = ["chosen", "main", "make", "site", "wheels_of"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "gpu-bundle"
LIMIT = 64 << 20
VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
THERE = (
    *("torch", "triton", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx"),
    *("setuptools", "sympy", "typing-extensions", "numpy"),
)
"""What a machine with torch has."""
SPARED = ("grpcio", "scikit-learn", "tensorboard-data-server")
"""Large, and imported by no training: the digits come as files."""
TESTS = ("pytest", "pytest-xdist")

Wheels = dict[str, Path]


def requirements() -> list[Requirement]:
    """Of the package, and of the kernels' tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in (*project["dependencies"], *TESTS)]


def wheels_of(folder: Path) -> Wheels:
    """Wheels by canonical name."""
    return {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}


def needed_by(wheel: Path) -> list[Requirement]:
    """What a wheel's metadata ask for on the GPU machine, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    there = {"python_version": VERSION, "python_full_version": f"{VERSION}.0", "extra": ""}
    there |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    asked = map(Requirement, HeaderParser().parsestr(text).get_all("Requires-Dist") or ())
    return [r for r in asked if r.marker is None or r.marker.evaluate(there)]


def chosen(
    wheels: Wheels, version_of: Callable[[str], str | None], first: Iterable[Requirement]
) -> tuple[list[Path], list[str]]:
    """The wheels that a Python needs, and the names that are neither in it nor among the wheels.

    version_of: the installed version of a package, or None.
    """
    taken: dict[str, Path] = {}
    missing: list[str] = []
    queue = list(first)
    while queue:
        asked = queue.pop(0)
        name = canonicalize_name(asked.name)
        installed = version_of(name)
        if name in taken or (installed and asked.specifier.contains(installed, prereleases=True)):
            continue
        if name in wheels:
            taken[name] = wheels[name]
            queue += needed_by(wheels[name])
        elif installed is None and name not in missing:
            missing.append(name)
    return list(taken.values()), missing


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def site(folder: Path) -> Path:
    """Installs what this Python lacks into FOLDER/site, from FOLDER/wheels alone; the path."""
    place = folder / "site"
    paths, missing = chosen(wheels_of(folder / "wheels"), installed, requirements())
    lacking = [name for name in missing if name not in SPARED]
    if lacking:
        print(f"gpu bundle: neither here nor in {folder}: {', '.join(lacking)}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if paths:
        options = ["--no-index", "--no-deps", "--find-links", str(folder / "wheels")]
        options += ["--target", str(place), "--no-warn-script-location", "--no-compile"]
        pip("install", *options, *map(str, paths))
    print(f"gpu bundle: {len(paths)} packages installed into {place}", file=sys.stderr)
    return place


def make(folder: Path, without: Sequence[str], version: str) -> int:
    """Fills FOLDER; the bytes in it."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    pins = _pins()
    left = {canonicalize_name(name) for name in (*THERE, *SPARED, *without)}
    asked = {canonicalize_name(r.name) for r in requirements()} - left
    done: set[str] = set()
    while asked:
        built = asked & {"deepspeed"}  # published as source only
        download = [f"{name}=={pins[name]}" if name in pins else name for name in asked - built]
        if download:
            options = ["--only-binary=:all:", "--implementation", "cp"]
            options += ["--python-version", version, "--abi", "cp" + version.replace(".", "")]
            options += ["--abi", "abi3", "--abi", "none"]
            for platform in PLATFORMS:
                options += ["--platform", platform]
            pip("download", "--no-deps", *options, "--dest", str(wheels), *sorted(download))
        for name in built:
            pip("wheel", "--no-deps", "--wheel-dir", str(wheels), f"{name}=={pins[name]}")
        done |= asked
        found = wheels_of(wheels)
        asked = {
            canonicalize_name(r.name) for name in asked for r in needed_by(found[name])
        } - (done | left)  # fmt: skip
    _digits(folder / "digits")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def _digits(place: Path) -> None:
    """The smallest real data, as an IDX set, where this Python has scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print("left out: digits, for the parts fd and runs: this Python has no scikit-learn")
        return
    digits = load_digits()
    pixels = ((digits.images.astype("uint32") * 255 + 8) // 16).astype("uint8")
    place.mkdir()
    for name, array in (("images-idx3", pixels), ("labels-idx1", digits.target.astype("uint8"))):
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        packed = gzip.compress(header + array.tobytes(), mtime=0)
        (place / f"train-{name}-ubyte.gz").write_bytes(packed)


def pip(*arguments: str) -> None:
    """Raises SystemExit with pip's last words."""
    command = [sys.executable, "-m", "pip", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if re.match("error", line, re.I)]
        said = errors or done.stderr.strip().splitlines() or ["no output"]
        raise SystemExit(f"error: pip {arguments[0]}: {said[-1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu_bundle.sh")
    parser.add_argument("verb", choices=("make", "site"))
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--without", nargs="*", default=[], help="packages that are there")
    parser.add_argument("--python-version", default=VERSION, help=f"there; default: {VERSION}")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.verb == "site":
        print(site(folder))
        return 0
    if folder.exists() and any(folder.iterdir()) and not (folder / "wheels").is_dir():
        print(f"error: {folder} holds something else: name an empty folder", file=sys.stderr)
        return 2
    size = make(folder, options.without, options.python_version)
    for path in sorted((folder / "wheels").iterdir(), key=lambda p: -p.stat().st_size):
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.name}")
    print(f"{size / 2**20:7.2f} MiB  {folder}, for Python {options.python_version}")
    print(f"not in it: {', '.join((*THERE, *SPARED, *options.without))}")
    if size > LIMIT:
        print(
            f"error: over {LIMIT >> 20} MiB: leave out what the machine has, --without NAME ...",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
