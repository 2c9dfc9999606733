"""`deepspeed --hostfile` over ssh and pdsh: one rank on each of two hosts, and a cable pulled."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from tests.cluster.hosts import ADDRESSES, Hosts, missing, two_hosts
from tests.faults.lab import Lab

SMOOTH = [
    "generator={rate: 1e-4, eps: 1e-2}",
    "discriminator.optimizer={rate: 1e-4, eps: 1e-2}",
]
"""See tests/runs/test_deepspeed.py: the usual eps would blow rounding up to whole steps."""
TIMEOUT = 12


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[Hosts]:
    lacking = missing()
    if lacking:
        pytest.skip(f"TWO HOSTS NOT TESTED: {lacking}")
    with two_hosts(lab.folder) as pair:
        yield pair


def overrides(lab: Lab, run: Path, *changes: str) -> list[str]:
    """What follows the verb."""
    limit = f"engine.timeout_minutes={TIMEOUT / 60}"
    return lab.settings(run, *SMOOTH, limit, *changes)[1:]


def recipe(lab: Lab, run: Path) -> Path:
    """The same in a file: DeepSpeed's command does not quote words for the shell on a far host."""
    name, *changes = overrides(lab, run)
    settings = load_settings(name, changes, FinetuneSettings)
    path = lab.folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return path


def train(hosts: Hosts, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """By DeepSpeed's own command."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = ["deepspeed", "--hostfile", str(hosts.hostfile), "--master_addr", ADDRESSES[0]]
    command += ["--master_port", str(port), "--module", "fasttrain", "finetune", str(recipe)]
    return hosts.run(0, command, log)


def launch(hosts: Hosts, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """By ours, which does, and which goes on without a host that does not answer."""
    command = ["fasttrain", "launch", "--hostfile", str(hosts.hostfile)]
    command += ["--master-addr", ADDRESSES[0], "--max-restarts=1", "--min-gpus=1", "--pause=1"]
    return hosts.run(0, [*command, "--", "finetune", *words], log)


def ended(process: subprocess.Popen[bytes], log: Path, seconds: float) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        pytest.fail(f"no end within {seconds} s:\n{log.read_text(errors='replace')[-4000:]}")


def written(run: Path) -> int:
    """The images of the newest finished checkpoint; -1 before the first.

    Not the last line of stats.jsonl, which is written before its checkpoint.
    """
    return max((step.images for step in checkpoint.steps(run / "checkpoints")), default=-1)


def no_rank_left(hosts: Hosts) -> bool:
    return not any(hosts.processes(number, "fasttrain finetune") for number in (0, 1))


@pytest.mark.slow
def test_one_rank_on_each_of_two_hosts_computes_what_one_process_does(
    lab: Lab, hosts: Hosts
) -> None:
    run, log = lab.folder / "hosts", lab.folder / "hosts.log"
    status = ended(train(hosts, recipe(lab, run), log), log, 120)
    assert status == 0, log.read_text(errors="replace")[-4000:]
    said = log.read_text(errors="replace")
    assert all(f"{address}: " in said for address in ADDRESSES)  # pdsh's prefix of each line
    assert no_rank_left(hosts)

    alone = lab.folder / "alone"
    settings = load_settings(str(recipe(lab, alone)), [f"run={alone}"], FinetuneSettings)
    finetune(settings, start())
    for line, expected in zip(read_stats(run), read_stats(alone), strict=True):
        for name in ("loss/generator", "loss/discriminator"):
            assert line[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.slow
def test_a_cut_cable_ends_all_ranks_and_the_host_that_is_left_goes_on(
    lab: Lab, hosts: Hosts
) -> None:
    run, log = lab.folder / "cut at 50%n; $5 'cable'", lab.folder / "cut.log"
    process = launch(hosts, overrides(lab, run, "images=240"), log)
    until = time.monotonic() + 120
    while written(run) < 64:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    hosts.cut()
    status = ended(process, log, 180)
    said = log.read_text(errors="replace")
    assert status == 0, said[-4000:]
    assert "has lost contact with another process" in said
    assert "Traceback" not in said
    broke = re.search(
        r"the job ended with status (\d+); starting it again .* of (\d+) images", said
    )
    assert broke is not None, said[-4000:]
    assert int(broke[1]) not in (0, 2)
    assert 64 <= int(broke[2]) < 240
    alone = f"no answer from {ADDRESSES[1]}: continuing with 1 of 2 GPUs ({ADDRESSES[0]} slots=1)"
    assert alone in said
    assert f"resumed at {broke[2]} images" in said
    assert [line["images"] for line in read_stats(run)] == list(range(16, 241, 16))
    last = checkpoint.newest(run / "checkpoints")
    assert last is not None
    assert last.images == 240
    began = time.monotonic()
    while not no_rank_left(hosts):  # the far one could not say that it has ended
        assert time.monotonic() - began < 60
        time.sleep(0.2)
