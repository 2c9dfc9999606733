"""A run directory that came from anyone: every command ends in one line or leaves out what it
cannot read, nothing is written outside of it, and no address that it names is asked."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fasttrain.analysis.report import grids
from fasttrain.analysis.report import page as report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.directory import OURS, open_directory
from fasttrain.checkpoints.lock import ask_to_stop
from fasttrain.checkpoints.saved import keep_base
from fasttrain.checkpoints.stats import Stats, sealed
from fasttrain.cli.app import main
from fasttrain.data import open_storage
from fasttrain.evaluation.result import write_result
from fasttrain.sampling.pictures import save_grid
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_run_settings, load_settings, to_yaml
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256, write_atomic
from fasttrain_data import DataError, convert
from tests.analysis.report.support import SMALL, fabricate

DEEP = "[" * 200_000
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a pre-training run, and a fine-tuning run of it."""
    root = tmp_path_factory.mktemp("hostile")
    convert("digits", root / "data")
    common = [f"data.path={root / 'data'}", *SMALL]
    diffusion = load_settings("digits-edm", [*common, f"run={root / 'edm'}"], PretrainSettings)
    changes = [*common, f"run={root / 'run'}", f"init={root / 'edm'}", "images=64"]
    tuned = load_settings("digits-d2o-f", changes, FinetuneSettings)
    fabricate(diffusion, 1)
    fabricate(tuned, 2)
    shutil.copy(root / "run" / "config.yaml", root / "recipe.yaml")
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A pipe that is opened waits for ever."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def command(verb: str, made: Path, run: Path) -> list[str]:
    tune = ["finetune", str(made / "recipe.yaml")]
    return {
        "init": [*tune, f"run={run.parent / 'new'}", f"init={run}"],
        "resume": [*tune, f"run={run}"],
        "sample": ["sample", str(run), "--seeds", "0", "--out", str(run.parent / "grid.png")],
        "export": ["export", str(run), "--out", str(run.parent / "out.safetensors")],
    }.get(verb, [verb, str(run)])


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line of a command that ends with status 2."""
    before, sys.argv = sys.argv, ["fasttrain", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("fasttrain: error: ")]
    assert ended.value.code == 2, said
    assert len(lines) == 1, said
    assert lines[0].isprintable()
    assert len(lines[0]) < 900
    return lines[0]


def the_step(run: Path) -> Path:
    return checkpoint.steps(run / "checkpoints")[-1].path


def state_of(content: str) -> Callable[[Path], None]:
    """Plant a state that its manifest describes: only what it says can be wrong."""

    def plant(run: Path) -> None:
        step = the_step(run)
        (step / "state.json").write_text(content)
        manifest = json.loads((step / "manifest.json").read_text())
        entry = {"bytes": len(content), "sha256": sha256(step / "state.json")}
        (step / "manifest.json").write_text(json.dumps(manifest | {"state.json": entry}))

    return plant


def content_of(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: void((run / name).write_text(content))


def pipe_at(name: str) -> Callable[[Path], None]:
    def plant(run: Path) -> None:
        path = the_step(run) / name if name in ("state.json", "manifest.json") else run / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return plant


def vast(name: str) -> Callable[[Path], None]:
    """A file of a terabyte, all holes."""

    def plant(run: Path) -> None:
        with (run / name).open("w") as file:
            os.truncate(file.fileno(), 1 << 40)

    return plant


def void(_: object) -> None: ...


READ = ("report", "evaluate", "export", "sample")
ALL = (*READ, "init", "resume")
CASES: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "config: a pipe": (pipe_at("config.yaml"), "config.yaml is not a regular", (*READ, "resume")),
    "config: a bomb": (content_of("config.yaml", BOMB), "more than 10,000 values", READ),
    "config: vast": (vast("config.yaml"), "config.yaml is larger than", ("report", "resume")),
    "state: a pipe": (pipe_at("state.json"), "no intact checkpoint", READ),
    "manifest: a pipe": (pipe_at("manifest.json"), "no intact checkpoint", ("report", "sample")),
    "state: deep": (state_of(DEEP), "state.json is not valid JSON", ALL),
    "state: a list": (state_of("[1]"), "state.json does not hold a mapping", ("sample", "resume")),
    "state: its base": (state_of('{"base": [3]}'), "its base has a wrong type", ALL),
    "state: no base": (state_of('{"images": 64}'), "does not name the run's base", ("resume",)),
    "no base to measure": (state_of('{"images": 64}'), "does not hold the model", ("evaluate",)),
    "stats: a pipe": (pipe_at("stats.jsonl"), "stats.jsonl is not a regular file", ("report",)),
    "stats: vast": (vast("stats.jsonl"), "stats.jsonl is larger than", ("report",)),
}


@pytest.mark.parametrize(
    ("case", "verb"), [(case, verb) for case, (_, _, verbs) in CASES.items() for verb in verbs]
)
def test_it_ends_in_one_line(
    case: str, verb: str, made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, why, _ = CASES[case]
    plant(run)
    assert why in refused(capsys, command(verb, made, run))


@pytest.mark.parametrize(
    "state",
    [
        '{"images": NaN}',
        '{"images": -1}',
        '{"images": true}',
        '{"seconds": Infinity}',
        '{"seconds": "1"}',
        '{"data": [1]}',
        '{"base": {"sha256": 3}}',
        '{"base": {"sha256": "", "frozen": "load"}}',
        '{"evaluation": 5}',
        '{"images": 1' + "0" * 5000 + "}",
        '{"images": 1' + "0" * 400 + "}",
        '{"images": \xff}',
    ],
)
def test_a_state_of_other_kinds_is_named(state: str, run: Path) -> None:
    state_of(state)(run)
    step = checkpoint.steps(run / "checkpoints")[-1]
    if step.damage() is None:  # not UTF-8 is one
        with pytest.raises(UserError, match=r"^[^\n]*state\.json (is|holds) n[^\n]*$"):
            _ = step.state


@pytest.mark.parametrize(
    "config",
    [
        MERGED,
        "&a [*a]",
        "x: " + DEEP,
        "- 3",
        "batch: 1" + "0" * 5000,
        "batch: !!int ''",
        "batch: !!timestamp x",
        "data: [1]",
        "network: {model_channels: 1099511627776}",
        "network: {num_blocks: 1099511627776}",
        "network: {img_resolution: 8, \x1b[2J: 1}",
        "".join(f"unknown{i}: 1\n" for i in range(100)),
        "\0",
    ],
)
def test_settings_of_other_kinds_are_named(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError) as caught:
        load_run_settings(tmp_path)
    assert str(tmp_path / "config.yaml") in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_network_larger_than_the_weights_takes_no_memory(run: Path, capsys, made: Path) -> None:
    settings = load_run_settings(run)
    large = settings.network.model_copy(update={"model_channels": 16_384})
    (run / "config.yaml").write_text(to_yaml(settings.model_copy(update={"network": large})))
    assert "does not fit the network" in refused(capsys, command("sample", made, run))


HOSTILE: list[Any] = [[], 3, {"rows": [1]}, {"backbones": [{"name": 1}]}, {"fd": {"a": []}}]
HOSTILE += [{"fd": {"a": 10**400}, "fd_full": {}, "kd": {}, "protocol": {}, "seconds": 1}]
HOSTILE += [{"fd": {}, "fd_full": {}, "kd": {}, "protocol": {}, "seconds": float("inf")}]
HOSTILE += [{"rows": [{}], "parameters": 1, "trainable": "x", "trainable_fraction": 0.5}]


@pytest.mark.filterwarnings("ignore:.*damaged lines are skipped")
def test_a_report_leaves_out_what_it_cannot_print(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(report, "compare", lambda *_: [])
    names = ["audit.json", "discriminator.json", "evaluation.json", "evaluation-x.json"]
    (run / "stats.jsonl").write_text(
        '{"images": 1, "seconds": 1e308}\n{"images": 2, "fd": 5e-324}\n{"images": 3, "fd": []}\n'
        '{"images": 4, "seconds": 1' + "0" * 400 + '}\n{"images": 5, "fd": NaN}\n'
    )
    (run / "samples").mkdir()
    os.mkfifo(run / "samples" / "0000000001.png")
    save_grid(torch.zeros(1, 1, 8, 8), run / "samples" / "0000000002.png")
    for content in [*map(json.dumps, HOSTILE), DEEP]:
        for name in names:
            (run / name).write_text(content)
        page = report.write_report(run).read_text()
        assert "evaluation.json cannot be read." in page
        assert 'id="judge"' not in page
    for name in names:
        (run / name).unlink()
        os.mkfifo(run / name)
    page = report.write_report(run).read_text()
    assert "evaluation.json cannot be read." in page
    assert page.count("Grid of fixed seeds at") == 1


def plainly(name: str) -> Callable[[Path], None]:
    return lambda run: write_atomic(run / name, "{}")


TENSORS = {"a": torch.zeros(2)}


def write_config(run: Path) -> None:
    settings = load_settings("digits-edm", [f"run={run}", f"data.path={run}"], PretrainSettings)
    open_directory(settings).release()


def write_stats(run: Path) -> None:
    stats = Stats(run, 64)
    stats.write(96, {"x": 1.0})
    stats.close()


WRITERS: dict[str, Callable[[Path], None]] = {
    "audit.json": plainly("audit.json"),
    "base.safetensors": lambda run: void(keep_base(run, TENSORS)),
    "checkpoints": write_config,
    "config.yaml": write_config,
    "discriminator.json": plainly("discriminator.json"),
    "evaluation.json": lambda run: write_result(run / "evaluation.json", {"rows": {}}),
    "lock": write_config,
    "memory.json": plainly("memory.json"),
    "report.html": plainly("report.html"),
    "samples": write_config,
    "stats.jsonl": write_stats,
    "stop": ask_to_stop,
    "tensorboard": write_config,
}
"""What writes each thing of a run directory; `report.html` by `write_report` itself is below."""
INNER: dict[str, Callable[[Path], None]] = {
    "samples/0000000064.png": lambda run: save_grid(
        torch.zeros(1, 1, 8, 8), run / "samples" / "0000000064.png"
    ),
    "checkpoints/step-0000000064": lambda run: void(
        checkpoint.save(run / "checkpoints", 64, {"ema": TENSORS}, {})
    ),
    "checkpoints/step-0000000032": lambda run: checkpoint.prune(run / "checkpoints", 1, 16),
    "checkpoints/step-0000000016.old": lambda run: checkpoint.tidy(run / "checkpoints"),
}


def test_every_name_in_a_run_directory_has_its_writer() -> None:
    assert {name for name in OURS if not name.endswith(".tmp")} == set(WRITERS)


@pytest.mark.parametrize("name", [*WRITERS, *INNER])
def test_a_link_inside_a_run_directory_leads_nothing_astray(name: str, tmp_path: Path) -> None:
    """Planted at the name and at that of its unfinished file, to a file, a folder, and nothing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    os.utime(outside / "file", (1, 1))
    for planted in (name, f"{name}.tmp"):
        for target in ("file", ".", "new"):
            run = tmp_path / "run"
            (run / planted).parent.mkdir(parents=True)
            (run / planted).symlink_to(outside / target)
            with suppress(UserError):  # refused, by name
                {**WRITERS, **INNER}[name](run)
                replaced = planted == name and name in WRITERS
                assert not (replaced and (run / name).is_symlink())
            assert [path.name for path in outside.iterdir()] == ["file"]
            assert (outside / "file").read_text() == "precious"
            assert (outside / "file").stat().st_mtime == 1
            shutil.rmtree(run)


def test_a_run_directory_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    write_config(tmp_path / "run")
    assert (tmp_path / "scratch" / "config.yaml").is_file()


class Counting(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Counting.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}/set"
    server.shutdown()
    server.server_close()


def test_no_address_that_a_run_names_is_asked(
    url: str, made: Path, run: Path, capsys, monkeypatch
) -> None:
    settings = load_run_settings(run)
    data = settings.data.model_copy(update={"path": url})
    (run / "config.yaml").write_text(to_yaml(settings.model_copy(update={"data": data})))
    evaluate = ["evaluate", str(run)]
    for more in ([], ["--extractor", "lite2", "--samples", "4"]):
        line = refused(capsys, [*evaluate, *more])
        assert url in line
        assert "add --trust-urls" in line
    monkeypatch.setattr(grids, "generate", lambda *_, **__: torch.zeros(50, 1, 8, 8))
    page = report.write_report(run).read_text()
    assert "a URL in a run is not opened: add --trust-urls" in page
    for verb in ("sample", "export"):
        monkeypatch.setattr(sys, "argv", ["fasttrain", *command(verb, made, run)])
        main_ends_well()
    assert Counting.asked == []
    assert "index.json is missing" in refused(capsys, [*evaluate, "--trust-urls"])
    assert Counting.asked


def main_ends_well() -> None:
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_other_protocols_are_asked_for_by_name(capsys, made: Path) -> None:
    why = "is not opened: use one of http, https, s3, s3a, gs, gcs, hf"
    for scheme in ("ftp", "sftp", "ssh", "smb", "github", "file", "zip", "HTTP"):
        for address in (f"{scheme}://host/set", f"simplecache::{scheme}://host/set"):
            with pytest.raises(DataError, match=f"^{address} {why}"):
                open_storage(address)
    address, run = "simplecache::https://host/set", made / "nowhere"
    tune = ["finetune", str(made / "recipe.yaml"), f"run={run}", f"data.path={address}"]
    for arguments in (tune, ["evaluate", str(made / "run"), "--data", address]):
        line = refused(capsys, arguments)
        assert f"{address} {why}" in line
        assert "data.any_protocol=true" in line
    assert not run.exists()


def test_damaged_lines_of_a_run_are_said_by_the_command(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(report, "compare", lambda *_: [])
    lines = [sealed({"images": images, "loss/r1": 1.0}) for images in (16, 32, 48)]
    (run / "stats.jsonl").write_text("".join(lines).replace('48, "loss', '40, "loss'))
    monkeypatch.setattr(sys, "argv", ["fasttrain", "report", str(run)])
    with pytest.warns(UserWarning, match=r"stats\.jsonl: damaged lines are skipped: 3$"):
        main_ends_well()
