"""The C++ part, compiled once for a build of torch and loaded before it.

torch asks for CUDA's hooks once, while it is imported: a library loaded later comes too late.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["library"]

SOURCE = Path(__file__).with_name("native.cpp")


def _build() -> Path:
    """The compiled library, in the temporary folder; g++ takes about ten seconds the first time.

    Raises ImportError when there is no torch or no compiler.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("torch is not installed")
    home = Path(spec.origin).parent
    version = (home / "version.py").read_text()
    key = hashlib.sha256((SOURCE.read_text() + version + str(home)).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"pretend-gpu-{os.getuid()}-{key}.so"
    if library.exists() and library.stat().st_uid == os.getuid():
        return library
    made = library.with_suffix(f".{os.getpid()}")
    command = ["g++", "-std=c++20", "-O0", "-w", "-shared", "-fPIC", str(SOURCE)]
    command += [f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-lc10"]
    command += ["-ltorch_cpu", "-o", str(made)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ImportError("the pretend GPU needs g++ for its C++ part") from None
    except subprocess.CalledProcessError as error:
        raise ImportError(f"g++ refused {SOURCE}:\n{error.stderr[-2000:]}") from None
    made.rename(library)
    return library


def _load() -> ctypes.PyDLL:
    if "torch" in sys.modules:
        raise ImportError("import pretend_gpu before torch, which asks once whether there is CUDA")
    library = ctypes.PyDLL(str(_build()))
    library.pretend_install.argtypes = [ctypes.c_size_t]
    library.pretend_allocated.restype = library.pretend_peak.restype = ctypes.c_size_t
    return library


library = _load()
