"""The machines of a job: the hosts in a hostfile, those that answer, and how many of their GPUs can
share a batch.

    hosts = Hosts(hostfile=Path("hosts"), min_gpus=8)
    slots = hosts.present(settings.process_counts())     # {"gpu01": 8, "gpu03": 8}: gpu02 is gone
    port = hosts.port(slots)
    options = hosts.options(slots, port, folder)         # for the `deepspeed` command
    hosts.clear(slots, port)                             # nothing of the job is left on them
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, TypeVar

from fasttrain.system.errors import UserError, is_machine_fault

__all__ = ["Hosts", "TooFew", "fit", "read_hostfile", "silent"]

T = TypeVar("T")
Slots = Mapping[str, int]
"""Host -> number of its processes, in the order of their ranks."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]*")
"""Names that ssh and pdsh read as one host: `^`, `-`, `[` and `,` have other meanings for pdsh."""
FREE_PORT = (
    f'{sys.executable} -c \'import socket; s = socket.socket(); s.bind(("", 0)); '
    "print(s.getsockname()[1])'"
)
KILL = (
    "p=$(pgrep -d, -u $(id -u) -f '[d]eepspeed.launcher.launch .*--master_port={port} ') || exit; "
    "pkill -KILL -P $p; kill -KILL $(echo $p | tr , ' ')"
)
"""A job's own processes on a host, by its port: DeepSpeed's starter and what it has started. The
brackets keep the shell of this line from finding itself."""
SAFE = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
"""Words that need no quoting in a shell."""


class TooFew(Exception):
    """Fewer GPUs answer than `--min-gpus`; they may answer later."""


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The hosts of the processes; without a hostfile this machine, with `gpus` processes or one for
    each GPU that DeepSpeed counts.

    min_gpus: run without the hosts that do not answer, as long as this many GPUs can be used.
    patience: seconds to wait for a host's answer.
    """

    hostfile: Path | None = None
    nodes: int | None = None
    gpus: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    min_gpus: int | None = None
    patience: float = 10

    def check(self, counts: Sequence[int]) -> None:
        """Raise UserError, before anything starts, when these hosts or their number of processes
        cannot work; counts: numbers of processes that can."""
        if self.hostfile is None and (self.nodes or 1) > 1:
            raise UserError(f"--nodes {self.nodes}: --hostfile must name them")
        if self.hostfile is None and self.min_gpus is not None:
            raise UserError(f"--min-gpus {self.min_gpus}: --hostfile must name the hosts")
        slots = self.slots()
        if slots is None:
            return
        total = sum(slots.values())
        if self.min_gpus is not None and self.min_gpus > total:
            raise UserError(f"--min-gpus {self.min_gpus}: the hosts have {total}")
        if total not in counts and sum(fit(slots, counts).values()) < (self.min_gpus or total):
            raise UserError(
                f"{total} processes cannot share a batch of these settings: use one of "
                f"{', '.join(map(str, counts))}"
            )
        if _far(slots):
            _check_remote()

    def slots(self) -> Slots | None:
        """Slots of all hosts, whether they answer or not; None: DeepSpeed counts this machine's
        GPUs.

        Raises UserError, naming the line, when the hostfile cannot be used.
        """
        if self.hostfile is None:
            return None if self.gpus is None else {"localhost": self.gpus}
        listed = read_hostfile(self.hostfile)
        if (self.nodes or 1) > len(listed):
            raise UserError(f"--nodes {self.nodes}: {self.hostfile} names {len(listed)}")
        listed = dict(list(listed.items())[: self.nodes])
        for host, number in listed.items():
            if (self.gpus or 1) > number:
                raise UserError(f"--gpus {self.gpus}: {self.hostfile} says {host} slots={number}")
        return {host: self.gpus or number for host, number in listed.items()}

    def present(self, counts: Sequence[int]) -> Slots | None:
        """The slots to use now: with `min_gpus` those of hosts that answer, as many as a batch
        allows.

        Raises TooFew, with the hosts that do not answer.
        """
        slots = self.slots()
        if slots is None or self.min_gpus is None:
            return slots
        gone = silent(slots, self.patience)
        usable = fit({host: n for host, n in slots.items() if host not in gone}, counts)
        total, missing = sum(usable.values()), ", ".join(gone)
        if total < self.min_gpus:
            raise TooFew(f"{total} GPUs can be used, not {self.min_gpus}: no answer from {missing}")
        if usable != slots:
            why = f"no answer from {missing}: " if gone else ""
            using = ", ".join(f"{host} slots={n}" for host, n in usable.items())
            print(
                f"fasttrain: {why}continuing with {total} of {sum(slots.values())} GPUs ({using})",
                file=sys.stderr,
                flush=True,
            )
        return usable

    def port(self, slots: Slots | None) -> int:
        """The port in the settings, else a free one of the first host, because the last job's may
        still be in use."""
        if self.master_port is not None:
            return self.master_port
        told = _over_ssh(next(iter(slots)), FREE_PORT, self.patience) if _far(slots) else ""
        last = (told or "").split()[-1:]  # a shell may say something before
        return int(last[0]) if last and last[0].isdecimal() else free_port()

    def options(self, slots: Slots | None, port: int, folder: Path) -> list[str]:
        """Options of the `deepspeed` command. Writes a hostfile for it into the folder."""
        values: dict[str, object] = {"--master_port": port}
        if not _far(slots):
            # With an empty name it does not look for /job/hostfile.
            values |= {"--hostfile": "", "--num_gpus": sum(slots.values()) if slots else None}
        else:
            path = folder / "hostfile"
            path.write_text("".join(f"{host} slots={n}\n" for host, n in slots.items()))
            values["--hostfile"] = path
            if next(iter(slots)) == next(
                iter(self.slots() or {})
            ):  # else it is another host's address
                values["--master_addr"] = self.master_addr
        words = [f"{name}={value}" for name, value in values.items() if value is not None]
        # DeepSpeed would take a single host for this machine.
        return [*words, "--force_multi"] if _far(slots) else words

    def clear(self, slots: Slots | None, port: int) -> None:
        """Kill the processes of a job that are left on its hosts: when ssh is killed, what it
        started there goes on. Another job may have the same port where the user chose it, and then
        nothing is killed."""
        if _far(slots) and self.master_port is None:
            _on_each(slots, lambda host: _over_ssh(host, KILL.format(port=port), self.patience))

    def words(self, slots: Slots | None, command: Sequence[str]) -> list[str]:
        """The command's words, quoted for the `deepspeed` command so that the processes receive
        them unchanged."""
        return list(map(_through_pdsh, command)) if _far(slots) else list(command)


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host: lines like `gpu01 slots=8`, comments and empty lines.

    Raises UserError, naming the line; OSError for a machine's fault.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if is_machine_fault(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"cannot read the hostfile {path}: {reason}") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].split()
        if not entry:
            continue
        said = re.fullmatch(r"slots=(\d{1,6})", entry[1]) if len(entry) == 2 else None
        if said is None or not NAME.fullmatch(entry[0]):
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not like `gpu01 slots=8`")
        if int(said[1]) == 0:
            raise UserError(f"{path}, line {number}: {entry[0]} has no slots: remove it")
        if entry[0] in slots:
            raise UserError(f"{path}, line {number}: {entry[0]} occurs twice")
        slots[entry[0]] = int(said[1])
    if not slots:
        raise UserError(f"the hostfile {path} names no host")
    return slots


def fit(slots: Slots, counts: Iterable[int]) -> dict[str, int]:
    """The first of the slots, as many as the largest count that they suffice for."""
    left = max((n for n in counts if n <= sum(slots.values())), default=0)
    taken: dict[str, int] = {}
    for host, number in slots.items():
        if left:
            taken[host] = min(number, left)
            left -= taken[host]
    return taken


def silent(hosts: Iterable[str], seconds: float) -> list[str]:
    """The hosts that do not answer by ssh within this time."""

    names = list(hosts)
    told = _on_each(names, lambda host: _over_ssh(host, "true", seconds))
    return [host for host, said in zip(names, told, strict=True) if said is None]


def _on_each(hosts: Iterable[str], work: Callable[[str], T]) -> list[T]:
    names = list(hosts)
    with ThreadPoolExecutor(min(32, len(names))) as threads:
        return list(threads.map(work, names))


def _over_ssh(host: str, command: str, seconds: float) -> str | None:
    """The output of a shell's command on a host; None if it fails, or takes longer."""
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(seconds))}"]
    try:
        done = subprocess.run(
            [*ssh, host, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=seconds + 1,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _far(slots: Slots | None) -> TypeGuard[Slots]:
    """Whether other machines take part, so that DeepSpeed uses pdsh."""
    here = {"localhost", "127.0.0.1", socket.gethostname()}
    return slots is not None and not (len(slots) == 1 and here.issuperset(slots))


def _check_remote() -> None:
    """Raise UserError when DeepSpeed could not start anything by pdsh from here."""
    for tool in ("pdsh", "ssh"):
        if shutil.which(tool) is None:
            raise UserError(f"several hosts need {tool} on this machine: install it")
    for path in (str(Path.cwd()), sys.executable):  # it writes them unquoted into a shell command
        if not SAFE.fullmatch(path):
            raise UserError(
                f"the path {path!r} would not reach the other hosts unchanged: start from a "
                f"folder, and with a Python, whose path has only letters, digits and _@+=:,./-"
            )


def _through_pdsh(word: str) -> str:
    """`word` quoted for DeepSpeed's pdsh command, so that a remote shell reads it unchanged.

    DeepSpeed puts words with a space between double quotes, escapes quotes inside, and leaves all
    other words unchanged; pdsh replaces %h, %n and %u, and turns %% into %.
    """
    quoted = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
