"""Compare the trainings of this checkout with those of another commit, bit by bit: the proof that a
change of structure changed no number.

python -m benchmarks.same_bits HEAD~1      # exit status 1 if a tensor, a cursor or a line differs

Three runs on the digits, a few iterations and checkpoints each: pre-training; fine-tuning with
exact R1; fine-tuning with approximated R1, augmentation, reused fakes and micro-batches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.tiny import DISCRIMINATOR, FLOAT32, NETWORK

ROOT = Path(__file__).parents[1]
CLOCK = {"seconds", "data/waiting", "crc32"}
"""What two equal runs need not have in common."""
PRETRAIN = ["images=640", "batch=32", "ema.half_life=500", "checkpoint.every=320", *NETWORK]
PRETRAIN += FLOAT32[:1]
FINETUNE = [
    *NETWORK,
    "batch=32",
    "images=256",
    "discriminator.norm_group=8",
    *DISCRIMINATOR,
    *FLOAT32,
    "report_every=32",
    "checkpoint.every=64",
    "checkpoint.keep=9",
    "r1.interval=2",
    "sample.count=16",
]
EVALUATE = "evaluate={every: 128, samples: 80, components: 8}"
OTHER = [
    "r1={kind: approximated, weight: 100, sigma: 0.01}",
    "discriminator.augment=[flip, color, translation, cutout]",
    "reuse_fakes=true",
    "micro_batch=16",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="What to compare with.")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as name, checked_out(commit, Path(name)) as other:
        folder = Path(name)
        command = ["-m", "fasttrain_data", "convert", "digits", str(folder / "digits")]
        run(ROOT, command)
        for side, checkout in (("before", other), ("after", ROOT)):
            train_all(checkout, folder / side, folder / "digits")
        differences = []
        for training in sorted(path.name for path in (folder / "after").iterdir()):
            found = compare(folder / "before" / training, folder / "after" / training)
            print(f"{training:24} {found or 'the same'}")
            differences += [found] if found else []
    sys.exit(bool(differences))


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A checkout of a commit, for as long as it is needed."""
    path = folder / "checkout"
    subprocess.run(
        ["git", "worktree", "add", "--quiet", "--detach", path, commit], cwd=ROOT, check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


def run(checkout: Path, command: list[str]) -> None:
    """`python COMMAND` on one thread with a checkout's packages."""
    packages = [checkout, checkout / "kernels", checkout / "data_tools"]
    subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, packages)), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_all(checkout: Path, runs: Path, data: Path) -> None:
    """The three trainings, each fine-tuning from its own side's pre-training."""
    fasttrain = ["-m", "fasttrain"]
    pretrained = runs / "pretraining"
    path = [f"data.path={data}", EVALUATE]
    run(checkout, [*fasttrain, "pretrain", "digits-edm", *path, f"run={pretrained}", *PRETRAIN])
    start = [*fasttrain, "finetune", "digits-d2o-f", *path, f"init={pretrained}", *FINETUNE]
    run(checkout, [*start, f"run={runs / 'exact-r1'}"])
    run(checkout, [*start, f"run={runs / 'approximated-r1'}", *OTHER])


def compare(before: Path, after: Path) -> str:
    """The first difference of two runs, or an empty string."""
    runs = (before, after)
    folders = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in runs]
    if folders[0] != folders[1] or not folders[0]:
        return f"checkpoints {folders[0]} and {folders[1]}"
    for name in folders[0]:
        steps = [run / "checkpoints" / name for run in runs]
        for file in sorted(path.name for path in steps[0].glob("*.safetensors")):
            ours, theirs = (load_file(step / file) for step in steps)
            if ours.keys() != theirs.keys():
                return f"{name}/{file}: other names"
            for key in ours:
                if ours[key].dtype != theirs[key].dtype or not torch.equal(ours[key], theirs[key]):
                    return f"{name}/{file}: {key}"
        states = [json.loads((step / "state.json").read_text()) for step in steps]
        earlier, now = (state["data"] for state in states)
        if not earlier.items() <= now.items():  # a cursor may have learned more since
            return f"{name}: the data cursor, {earlier} and {now}"
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if key not in CLOCK}
            for line in (run / "stats.jsonl").read_text().splitlines()
        ]
        for run in runs
    ]
    if lines[0] != lines[1]:
        return "stats.jsonl"
    return ""


if __name__ == "__main__":
    main()
