"""Hostfiles, hosts that do not answer, how many processes they are enough for, and words on their
way through shells."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fasttrain.cli import hosts
from fasttrain.cli.hosts import Hosts, TooFew, fit, read_hostfile
from fasttrain.system.errors import UserError
from tests.faults.stopped import alive, descendants

POWERS = [1, 2, 4, 8, 16, 32]


@pytest.fixture
def hostfile(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "hosts"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` in front of the machine's, to which only hosts named in `gone` and `hung` do not
    answer, and a `pdsh`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(
        f"#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\n"
        f'if grep -qx "$1" {folder}/hung; then exec sleep 60; fi\n'
        f'if grep -qx "$1" {folder}/gone; then exit 255; fi\n'
    )
    (folder / "pdsh").write_text("#!/bin/sh\n")
    for tool in folder.iterdir():
        tool.chmod(0o755)
    for name in ("gone", "hung"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_hostfile_is_read_as_deepspeed_reads_it(hostfile) -> None:
    path = hostfile("# two racks\n\n gpu01  slots=8\nroot@10.0.0.2 slots=4  # smaller\n")
    assert read_hostfile(path) == {"gpu01": 8, "root@10.0.0.2": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=8\nb slots=8\na slots=8\n", "line 3: a occurs twice"),
        ("a slots=8\nb slots=0\n", "line 2: b has no slots: remove it"),
        ("a slots=8\nb 8\n", "line 2: 'b 8' is not like `gpu01 slots=8`"),
        ("gpu[01-04] slots=8\n", "line 1: 'gpu[01-04] slots=8' is not like `gpu01 slots=8`"),
        ("-oProxyCommand=x slots=8\n", "line 1: '-oProxyCommand=x slots=8' is not like"),
        ("a slots=8 max=9\n", "line 1: 'a slots=8 max=9' is not like"),
        ("# nobody\n", "names no host"),
    ],
)
def test_mistakes_in_a_hostfile_name_the_line(hostfile, text: str, said: str) -> None:
    path = hostfile(text)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_hostfile(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hostfile_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "nothere", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("/bin/true"), "not a text file"),
    ):
        with pytest.raises(UserError, match=f"cannot read the hostfile {path}: {why}"):
            Hosts(hostfile=path).check(POWERS)


def test_options_that_contradict_each_other(hostfile, tools: Path) -> None:
    path = hostfile("a slots=8\nb slots=4\n")
    for given, said in (
        (Hosts(nodes=2), "--nodes 2: --hostfile must name them"),
        (Hosts(gpus=8, min_gpus=4), "--min-gpus 4: --hostfile must name the hosts"),
        (Hosts(hostfile=path, nodes=3), "--nodes 3: .* names 2"),
        (Hosts(hostfile=path, gpus=8), "--gpus 8: .* says b slots=4"),
        (Hosts(hostfile=path, min_gpus=16), "--min-gpus 16: the hosts have 12"),
        (Hosts(hostfile=path), "12 processes cannot share .* use one of 1, 2, 4, 8, 16, 32"),
        (Hosts(hostfile=path, min_gpus=9), "12 processes cannot share"),
        (Hosts(gpus=3), "3 processes cannot share"),
    ):
        with pytest.raises(UserError, match=said):
            given.check(POWERS)
    Hosts(hostfile=path, nodes=2, gpus=4).check(POWERS)
    Hosts(hostfile=path, min_gpus=8).check(POWERS)
    Hosts().check([1])  # only DeepSpeed can count this machine's GPUs


def test_what_remote_processes_need_is_looked_for_first(
    hostfile, tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    far = Hosts(hostfile=hostfile("a slots=8\n"))
    far.check(POWERS)
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    monkeypatch.chdir(spaced)
    with pytest.raises(UserError, match="would not reach the other hosts unchanged"):
        far.check(POWERS)
    monkeypatch.setenv("PATH", str(spaced))
    with pytest.raises(UserError, match="several hosts need pdsh on this machine"):
        far.check(POWERS)
    Hosts(hostfile=hostfile(f"{socket.gethostname()} slots=8\n")).check(POWERS)


def test_the_largest_number_that_can_share_a_batch_is_taken_from_the_first() -> None:
    assert fit({"a": 8, "b": 8, "c": 8}, POWERS) == {"a": 8, "b": 8}
    assert fit({"a": 6, "b": 6, "c": 6}, POWERS) == {"a": 6, "b": 6, "c": 4}
    assert fit({"a": 8}, [3, 1]) == {"a": 3}
    assert fit({"a": 2}, [4]) == fit({}, POWERS) == {}


def test_hosts_that_do_not_answer_are_left_out(
    hostfile, tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = hostfile("".join(f"gpu0{n} slots=8\n" for n in (1, 2, 3, 4)))
    plan = Hosts(hostfile=four, min_gpus=16, master_addr="10.0.0.1", patience=5)
    whole = plan.present(POWERS)
    assert whole is not None
    assert sum(whole.values()) == 32
    assert capsys.readouterr().err == ""
    assert "--master_addr=10.0.0.1" in plan.options(whole, 29500, tmp_path)

    (tools / "gone").write_text("gpu01\n")
    left = plan.present(POWERS)
    assert left == {"gpu02": 8, "gpu03": 8}
    assert capsys.readouterr().err == (
        "fasttrain: no answer from gpu01: continuing with 16 of 32 GPUs "
        "(gpu02 slots=8, gpu03 slots=8)\n"
    )
    options = plan.options(left, 29500, tmp_path)
    file = next(o for o in options if o.startswith("--hostfile=")).removeprefix("--hostfile=")
    assert Path(file).read_text() == "gpu02 slots=8\ngpu03 slots=8\n"
    assert not any("--master_addr" in option for option in options)  # that of gpu01, which is gone

    (tools / "gone").write_text("gpu01\ngpu03\ngpu04\n")
    with pytest.raises(TooFew, match="8 GPUs can be used, not 16: no answer from gpu01, gpu03, g"):
        plan.present(POWERS)
    assert Hosts(hostfile=four).present(POWERS) == whole  # not asked for: nobody is asked


def test_a_host_that_hangs_is_waited_for_briefly(hostfile, tools: Path) -> None:
    (tools / "hung").write_text("a\n")
    began = time.monotonic()
    assert hosts.silent(["a", "b"], 0.5) == ["a"]
    assert time.monotonic() - began < 20


def test_one_host_alone_is_started_over_ssh_unless_it_is_this_one(hostfile, tmp_path: Path) -> None:
    """DeepSpeed takes a single host for this machine, whatever its name."""
    far = Hosts(hostfile=hostfile("gpu02 slots=8\n"))
    assert "--force_multi" in far.options(far.slots(), 29500, tmp_path)
    for near in (
        Hosts(hostfile=hostfile(f"{socket.gethostname()} slots=8\n")),
        Hosts(hostfile=hostfile("localhost slots=8\n")),
        Hosts(gpus=8),
    ):
        options = near.options(near.slots(), 29500, tmp_path)
        assert {"--num_gpus=8", "--hostfile="} <= set(options)
        assert "--force_multi" not in options
    assert not any("--num_gpus" in option for option in Hosts().options(None, 29500, tmp_path))


STARTER = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"


def test_what_is_left_of_a_job_on_its_hosts_is_killed(tools: Path) -> None:
    """ssh's death reaches nothing that it has started; jobs of other ports stay."""
    (tools / "ssh").write_text(
        '#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\n[ "$1" = a ] && exec sh -c "$2"\nexit 255\n'
    )
    words = [sys.executable, "-c", STARTER, "-m", "deepspeed.launcher.launch", "--node_rank=0"]
    started = [
        subprocess.Popen([*words, f"--master_port={port}", "--module"]) for port in (29511, 29512)
    ]
    families = [[process.pid] for process in started]
    try:
        for family in families:
            while len(family) == 1:
                family += descendants(family[0])
        Hosts().clear({"a": 1, "b": 1}, 29511)
        assert started[0].wait(10) == -9
        assert [alive(family[1]) for family in families] == [False, True]
        assert started[1].poll() is None
    finally:
        for family in families:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_the_port_is_free_on_the_first_host(tools: Path) -> None:
    two = {"gpu07": 1, "gpu08": 1}
    (tools / "ssh").write_text(
        "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\n"
        '[ "$1" = gpu07 ] && echo Welcome && exec sh -c "$2"\n'
    )
    ours, theirs = (Hosts(master_port=port).port(two) for port in (29500, None))
    assert ours == 29500
    with socket.socket() as probe:
        probe.bind(("", theirs))
    (tools / "ssh").write_text("#!/bin/sh\necho 31234\n")
    assert Hosts().port(two) == 31234
    assert Hosts().port({"localhost": 2}) != 31234


WORDS = [
    "discriminator.backbones=[{name: lite0}]",
    "discriminator.resolutions=[32,16]",
    "run=/a dir/x",
    "run=/data/été/日本 語/💾",
    "run=/日本語",
    *(f"a={mark}b" for mark in "'\"\\$`;&|<>()*?[]{}~#!%^="),
    *(f"a= {mark} b" for mark in "'\"\\$`;&|<>()*?[]{}~#!%^="),
    "a=$(touch broken) `touch broken`",
    "a='\"$HOME\"'\\",
    "a='\"$HOME\"' \\",
    "a=100%n %h %u %% %",
    "100%n%h%%",
    "~",
    "",
]


def test_words_arrive_as_they_are_through_deepspeed_pdsh_and_a_shell(tmp_path: Path) -> None:
    """DeepSpeed's and pdsh's rules as they are in 0.19 and 2.34: test_launch.py has DeepSpeed
    itself, tests/cluster pdsh."""
    far = Hosts(hostfile=None).words({"a": 1, "b": 1}, WORDS)
    said = ['"{}"'.format(w.replace('"', '\\"')) if " " in w else w for w in far]
    line = re.sub(r"%([hnu%])", lambda m: "%" if m[1] == "%" else "REPLACED", " ".join(said))
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, cwd=tmp_path, check=True
        )
        assert done.stdout.decode().split("\0")[:-1] == WORDS
    assert not list(tmp_path.iterdir())
    assert Hosts().words(None, WORDS) == WORDS  # no shell on this machine
