"""Every reader, fed with sound files that were changed: only its own errors may come out, within
its memory. Runs until the time is up, and keeps what broke a reader.

    python -m tests.hostile.fuzz_readers --seconds 60
    python -m tests.hostile.fuzz_readers --seconds 600 zip parquet

With `atheris` installed (`pip install atheris`) mutations follow the lines that the readers run
through; without it they are drawn at random. `tests/data_tools/test_fuzz.py` is a short one.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.hostile.confined import Confined, bound_memory
from tests.hostile.mutations import mutated
from tests.hostile.samples import Target, targets

__all__ = ["Found", "main"]


class Found:
    """What broke a reader, one for each place, kept as files."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        self.places: set[str] = set()

    def add(self, data: bytes, problem: str) -> None:
        place = "\n".join(line for line in problem.splitlines() if line.startswith("  File"))
        if place in self.places:
            return
        self.places.add(place)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.target.name.replace(' ', '-')}-{len(self.places)}"
        (self.folder / name).write_bytes(data)
        (self.folder / f"{name}.txt").write_text(problem)
        print(f"{self.target.name}: {self.folder / name}: {problem.splitlines()[-1]}", flush=True)


def at_random(target: Target, seconds: float, found: Found, seed: int) -> int:
    """Mutations of the samples, in a confined process; how many."""
    draw, until, count = random.Random(seed), time.monotonic() + seconds, 0
    with Confined(target.read, target.samples, target.megabytes) as child:
        while time.monotonic() < until:
            pick = draw.choice
            data = mutated(pick(target.samples), draw, target.shape, pick(target.samples))
            if problem := child(data):
                found.add(data, problem)
            count += 1
    return count


def guided(target: Target, seconds: float, found: Found, seed: int) -> None:
    """Mutations that atheris keeps when they reach new lines. Does not return."""
    import atheris

    def one(data: bytes) -> None:
        try:
            target.read(data)
        except Exception:
            found.add(data, traceback.format_exc())

    def change(data: bytes, most: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, draw, target.shape, draw.choice(target.samples))[:most]

    corpus = found.folder / "corpus" / target.name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(target.samples):
        (corpus / f"sample-{number}").write_bytes(sample)
    options = [f"-max_total_time={seconds:.0f}", "-max_len=20000", "-rss_limit_mb=0"]
    options += [
        f"-artifact_prefix={found.folder}/",
        "-verbosity=0",
        f"-seed={seed + 1}",
        "-print_final_stats=1",
    ]
    os.fsync = lambda fd: None
    warnings.simplefilter("ignore")
    one(target.samples[0])
    atheris.instrument_all()
    atheris.Setup(["fuzz", *options, str(corpus)], one, custom_mutator=change)
    bound_memory(target.megabytes + 1024)
    atheris.Fuzz()


def in_a_child(work: Callable[[], None]) -> int:
    """Exit status of a forked process that runs `work`."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="kinds of files; all by default")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder")
    arguments = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: mutations are drawn at random")
        with_atheris = False
    else:
        with_atheris = True
    chosen = [each for each in targets() if not arguments.names or each.name in arguments.names]
    broken = 0
    for target in chosen:
        found = Found(arguments.keep, target)
        seconds = arguments.seconds / len(chosen)
        if with_atheris:
            before = set(arguments.keep.glob("*.txt"))
            status = in_a_child(partial(guided, target, seconds, found, arguments.seed))
            broken += len(set(arguments.keep.glob("*.txt")) - before)
            print(f"{target.name}: exit status {status}", flush=True)
        else:
            count = at_random(target, seconds, found, arguments.seed)
            broken += len(found.places)
            print(f"{target.name}: {count} files, {len(found.places)} problems", flush=True)
    print(f"{broken} problems")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
