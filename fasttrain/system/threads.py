"""How long OpenMP's threads wait by spinning, which is decided when torch is imported.

Between two parallel regions a thread of GNU's OpenMP, which torch's CPU build uses, spins for
300,000 turns before it sleeps, or for none with OMP_WAIT_POLICY=PASSIVE. On an idle machine that
saves it from being woken; where other work wants the core, the thread that the others wait for does
not get it, and an iteration takes many times as long: docs/performance.md has the seconds
(`benchmarks/threads.py`).

Use: `spin_briefly(os.environ)` before torch is imported. Child processes inherit it.
"""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["spin_briefly"]

TURNS = 20_000
OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Set how long OpenMP's threads spin, unless the user has."""
    if not any(name in environment for name in OWN):
        environment["GOMP_SPINCOUNT"] = str(TURNS)
