"""Two hosts on one machine: network namespaces with an address and an sshd each.

    with two_hosts(folder) as hosts:
        hosts.run(0, ["deepspeed", "--hostfile", str(hosts.hostfile), ...])
        hosts.cut()

A pair of virtual network cards joins them, and nothing leads out of them: the only traffic is
between the two. Keys, configurations and logs lie in `folder`; nothing of the machine's own ssh is
read or changed. Needs root (`ip netns`), sshd, ssh and pdsh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Hosts", "missing", "two_hosts"]

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.213.7.1", "10.213.7.2")
CARD = "ft-link"
SSHD = "/usr/sbin/sshd"
PORT = 22222

SERVER = """
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
ClientAliveInterval 3
ClientAliveCountMax 3
"""

CLIENT = """
Host *
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
  ServerAliveInterval 3
  ServerAliveCountMax 3
"""


def missing() -> str:
    """What this machine lacks for it, in words; empty when it has everything."""
    tools = [tool for tool in ("ip", "ssh", "ssh-keygen", "pdsh") if not shutil.which(tool)]
    if not Path(SSHD).exists():
        tools.append("sshd")
    if tools:
        return f"{', '.join(tools)} missing (apt-get install iproute2 openssh-server pdsh)"
    probe = "ft-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return "no right to make network namespaces (needs root or CAP_SYS_ADMIN)"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class Hosts:
    """The two, numbered 0 and 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = tuple(f"ft-{os.getpid()}-{number}" for number in (0, 1))
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        self.servers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Make namespaces, link, keys and ssh servers."""
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        _ip("link", "add", CARD, "netns", first, "type", "veth", "peer", CARD, "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", CARD)
            _ip("-n", name, "link", "set", CARD, "up")
        for key in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key]
            subprocess.run(command, check=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd drops its privileges to there
        for number, address in enumerate(ADDRESSES):
            self._serve(number, address)
        self._client()

    def _serve(self, number: int, address: str) -> None:
        config = self.folder / f"sshd-{number}.conf"
        config.write_text(SERVER.format(address=address, port=PORT, folder=self.folder))
        log = self.folder / f"sshd-{number}.log"
        command = [SSHD, "-D", "-f", str(config), "-E", str(log)]
        self.servers.append(subprocess.Popen(["ip", "netns", "exec", self.names[number], *command]))

    def _client(self) -> None:
        """An `ssh` ahead of the machine's, because ssh takes its configuration from the user's
        home, whatever HOME says."""
        config = self.folder / "ssh.conf"
        config.write_text(CLIENT.format(port=PORT, folder=self.folder))
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        (tools / "ssh").chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(str(ROOT / part) for part in (".", "kernels", "data_tools")),
            "DS_ACCELERATOR": "cpu",
        }
        # What DeepSpeed hands on to the other hosts, besides variables like PYTHONPATH.
        handed_on = {
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": CARD,
            "OMP_NUM_THREADS": "1",
        }
        (self.folder / ".deepspeed_env").write_text(
            "".join(f"{name}={value}\n" for name, value in handed_on.items())
        )

    def run(self, number: int, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host, in the folder."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *command],
            cwd=self.folder,
            env=self.environment,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def cut(self) -> None:
        """Pull the cable: packets get lost silently."""
        _ip("-n", self.names[1], "link", "set", CARD, "down")

    def processes(self, number: int, word: str) -> list[int]:
        """Processes on a host with this word in their command line."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, check=True
        )
        return [pid for pid in map(int, found.stdout.split()) if word in _command_line(pid)]

    def stop(self) -> None:
        """Kill every process on both, and take them away."""
        for number, name in enumerate(self.names):
            for _ in range(50):
                pids = self.processes(number, "") if Path(f"/run/netns/{name}").exists() else []
                for pid in pids:
                    _kill(pid)
                if not pids:
                    break
                time.sleep(0.1)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for server in self.servers:
            server.wait(10)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """The hosts, gone afterwards whatever happened inside."""
    hosts = Hosts(folder)
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
