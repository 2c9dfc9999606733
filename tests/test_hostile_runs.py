"""A run directory that came from anyone: every command ends in one line or leaves out what it
cannot read, and no address that it names is asked."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fasttrain.analysis.report import grids
from fasttrain.analysis.report import page as report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import sealed
from fasttrain.data import open_storage
from fasttrain.sampling.pictures import save_grid
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError
from fasttrain_data import DataError, convert
from tests.analysis.report.support import SMALL, fabricate
from tests.hostile.runs import (
    BOMB,
    DEEP,
    MERGED,
    alarm,
    command,
    content_of,
    main_ends_well,
    pipe_at,
    refused,
    state_of,
    vast,
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
    with alarm(120):
        yield


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
