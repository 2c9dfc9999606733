"""Every multi-process command that README, docs, recipes and --help print works as it is printed,
given the files that it names: its options exist, its recipe and overrides load, and this number of
processes can share the recipe's batch. The jobs for SLURM and Kubernetes do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

from fasttrain.cli.app import app
from fasttrain.cli.hosts import Hosts
from fasttrain.cli.launcher import KINDS
from fasttrain.settings.recipes import load_settings

ROOT = Path(__file__).parents[1]
MANUAL = ROOT / "docs" / "multi-node.md"
LAUNCHER = re.compile(r"(?:\w+=\S+ )?(?:exec )?(?:fasttrain launch|deepspeed|torchrun|srun) ")
VERB = re.compile(r"\b(?:pretrain|finetune|evaluate) [a-zA-Z.]")
HOSTFILES = (8, 16, 32)
"""GPUs of the hostfiles that a command with --hostfile is tried with, eight a host."""


@dataclass(frozen=True)
class Command:
    """What starts processes, and the `fasttrain` command that each of them is."""

    where: str
    launcher: str
    counts: tuple[int, ...]
    inner: tuple[str, ...]


def commands(where: str, text: str) -> Iterator[Command]:
    """Those of a text: lines of a code block or a comment, and words between backticks."""
    joined = re.sub(r"\\\n[ #]*", "", text)
    blocks = re.findall(r"^(?:#? {2,}|\[)(\S.*)$", joined, re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`", joined)]
    for line in [*blocks, *spans]:
        line = line.partition("  #")[0].strip("` ")
        if LAUNCHER.match(line) and VERB.search(line):
            yield parse(where, line, text)


def parse(where: str, line: str, text: str) -> Command:
    words = [w for w in shlex.split(line) if w != "exec" and not re.match(r"[A-Z_]+=", w)]
    words = [{"RECIPE": "imagenet64-d2o-f", "...": "RUN"}.get(word, word) for word in words]
    if words[0] == "fasttrain":
        split = words.index("--")
        context = command_of("launch").make_context("launch", [*words[2:split], "--", "x"])
        options = context.params
        counts = (options["gpus"],) if options["hostfile"] is None else HOSTFILES
        return Command(where, "launch", counts, tuple(words[split + 1 :]))
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert given.module
        assert given.training_script == "fasttrain"
        count = parse_min_max_nnodes(given.nnodes)[1] * int(given.nproc_per_node)
        return Command(where, "torchrun", (count,), tuple(given.training_script_args))
    at = words.index("fasttrain")
    if words[0] == "srun":
        tasks = [int(n) for n in re.findall(r"#SBATCH --(?:nodes|ntasks-per-node)=(\d+)", text)]
        assert len(tasks) == 2
        return Command(where, "srun", (tasks[0] * tasks[1],), tuple(words[at + 1 :]))
    assert words[1:at] == ["--hostfile", "hosts", "--module"]
    return Command(where, "deepspeed", HOSTFILES, tuple(words[at + 1 :]))


def command_of(verb: str) -> Any:
    return typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def published() -> list[Command]:
    found: list[Command] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found += commands(path.name, path.read_text())
    job = next(d for d in kubernetes() if d["kind"] == "Job")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    found += commands("kubernetes", "    " + arguments[0].replace("$JOB_COMPLETION_INDEX", "3"))
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        header = "".join(line + "\n" for line in path.read_text().splitlines() if line[:1] == "#")
        found += commands(path.name, header)
    for verb in ("launch", "evaluate"):
        found += commands(f"{verb} --help", textwrap.indent(prose(verb), "    "))
    return found


def prose(verb: str) -> str:
    """A command's words in --help; a command begins a line of its own, after a colon or not."""
    text = " ".join((command_of(verb).callback.__doc__ or "").split())
    return re.sub(r"(?<=[:.]) (?=fasttrain launch |torchrun )", "\n", text)


def test_every_place_is_looked_at(published: list[Command]) -> None:
    assert len(published) >= 30
    places = {command.where for command in published}
    assert {
        "README.md",
        "multi-node.md",
        "kubernetes",
        "launch --help",
        "evaluate --help",
    } <= places
    assert {"launch", "deepspeed", "torchrun", "srun"} == {c.launcher for c in published}
    headers = [path for path in (ROOT / "configs").glob("*.yaml") if "launch" in path.read_text()]
    assert {path.name for path in headers} <= places
    by_count = {n for command in published for n in command.counts}
    assert {8, 32} <= by_count
    for name in ("README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))):
        said = len(re.findall(r"launch [^`\n]*-- (?:finetune|pretrain)", (ROOT / name).read_text()))
        mine = [c for c in published if c.where == Path(name).name and c.launcher == "launch"]
        assert len(mine) == said, name


def test_every_published_command_works(published: list[Command], tmp_path: Path) -> None:
    for command in published:
        verb, *words = command.inner
        command_of(verb).make_context(verb, list(words))  # its options and arguments exist
        if verb == "evaluate":
            continue  # any number of processes shares that
        settings = load_settings(words[0], words[1:], KINDS[verb])
        for count in command.counts:
            hosts = Hosts(gpus=count)
            if count > 8:
                file = tmp_path / "hosts"
                file.write_text("".join(f"gpu{n:02} slots=8\n" for n in range(count // 8)))
                hosts = Hosts(hostfile=file)
                assert sum((hosts.slots() or {}).values()) == count
            hosts.check(settings.process_counts())


def block(first: str) -> str:
    """An indented block of the manual, from its first line on."""
    lines = MANUAL.read_text().splitlines()
    rest = lines[lines.index(f"    {first}") :]
    end = next(i for i, line in enumerate(rest) if line and not line.startswith("    "))
    return textwrap.dedent("\n".join(rest[:end]))


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(block("apiVersion: v1")))


@pytest.mark.parametrize("status", [0, 2, 75, 85, 130, 134, 137])
def test_the_slurm_job_is_queued_again_where_that_helps(status: int, tmp_path: Path) -> None:
    tools, said = tmp_path / "bin", tmp_path / "said"
    tools.mkdir()
    (tmp_path / "activate").touch()
    (tools / "srun").write_text(f'#!/bin/sh\necho srun "$@" >> {said}\nexit {status}\n')
    (tools / "scontrol").write_text(f'#!/bin/sh\necho scontrol "$@" >> {said}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(
        block("#!/bin/bash").replace("/shared/fasttrain/.venv/bin/activate", f"{tmp_path}/activate")
    )
    again = ["scontrol requeue 4711"] if status in (75, 85, 134, 137) else []
    variables = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "4711"}
    for restarts, expected in (({}, again), ({"SLURM_RESTART_COUNT": "100"}, [])):
        said.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", script], env={**variables, **restarts}, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (status, b"")
        started, *then = said.read_text().splitlines()
        assert started.startswith("srun --kill-on-bad-exit=1 fasttrain finetune imagenet64-d2o-f")
        assert then == expected


def test_the_kubernetes_job_is_given_up_for_mistakes_alone() -> None:
    service, job = kubernetes()
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    def action(status: int) -> str:
        """The Job controller's: the first rule that matches, else a try is used up."""
        for rule in spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes")
            if codes and codes["operator"] == "In" and status in codes["values"]:
                assert codes["containerName"] == container["name"]
                return rule["action"]
        return "Count"

    assert {n: action(n) for n in (1, 2, 75, 85, 134, 137, 143)} == {
        **dict.fromkeys((1, 75, 85, 134, 137, 143), "Count"),
        2: "FailJob",
    }
    assert spec["backoffLimit"] >= 100
    assert pod["restartPolicy"] == "Never"  # the policy is refused with another
    conditions = [r for r in spec["podFailurePolicy"]["rules"] if "onPodConditions" in r]
    assert conditions == [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    ]


def test_the_kubernetes_pods_find_each_other() -> None:
    service, job = kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"] == {"clusterIP": "None", "selector": {"job-name": name}}
    assert pod["subdomain"] == service["metadata"]["name"]
    words = shlex.split(container["args"][0])
    assert words[:2] == ["exec", "torchrun"]
    words[words.index("--node-rank") + 1] = "3"  # where the shell puts $JOB_COMPLETION_INDEX
    given = get_args_parser().parse_args(words[2:])
    assert given.master_addr == f"{name}-0.{pod['subdomain']}"
    assert int(given.nnodes) == spec["completions"] == spec["parallelism"]
    assert int(given.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert "--node-rank $JOB_COMPLETION_INDEX " in container["args"][0]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
