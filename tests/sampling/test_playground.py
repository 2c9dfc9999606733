"""`fasttrain playground` without a browser: the page's file, the server, what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fasttrain.data import RealImages
from fasttrain.sampling.playground import Page, build_page, open_server
from fasttrain.sampling.playground import page as page_module
from fasttrain.sampling.playground.memory import Weights
from fasttrain.sampling.playground.nearest import TrainingImages
from fasttrain.sampling.playground.operators import OPERATORS
from fasttrain.sampling.playground.server import Server
from fasttrain.settings import DataSettings, FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain_data import convert
from tests.analysis.report.support import SMALL, fabricate
from tests.runs.calling import call
from tests.small_models import ADM, PLAIN, write_model

ROOT = Path(__file__).parents[2]
WEB = ROOT / "fasttrain" / "sampling" / "playground" / "web"
HOSTILE = ["</script><script>alert(1)</script>", "<b>", "{{weights}}", *map(str, range(7))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder / "small.safetensors", PLAIN, classes=json.dumps(HOSTILE))


@pytest.fixture(scope="module")
def page(model: Path) -> Page:
    return build_page(model)


def about(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="about">(.*?)</script>', html)[1])  # type: ignore[index]


def test_a_generator_of_another_prediction(tmp_path: Path) -> None:
    """Its noise level with its own row: c_skip, c_out, c_in and what the network is told."""
    flow = PLAIN | {"prediction": {"kind": "flow"}}
    page = build_page(write_model(tmp_path / "flow.safetensors", flow, sigma="2.5"))
    (level,) = page.about["samplers"]["generator"]["levels"]
    assert level == pytest.approx([2.5, 1 / 3.5, -2.5 / 3.5, 1 / 3.5, 2.5 / 3.5])
    sid = PLAIN | {"prediction": {"kind": "edm", "eps": 0.0}}
    page = build_page(write_model(tmp_path / "sid.safetensors", sid, sigma="2.5"))
    assert page.about["samplers"]["generator"]["levels"][0][1] == pytest.approx(0.25 / 6.5)


def test_the_page_asks_no_other_address(page: Page) -> None:
    html = page.html()
    assert set(re.findall(r"\w+://[^\s\"'`]*", html)) == set()
    assert "default-src 'none'" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "{{" not in re.sub(r'id="about">.*?</script>', "", html)


def test_a_name_of_a_class_is_text(page: Page) -> None:
    html = page.html()
    assert HOSTILE[0] not in html
    assert about(html)["classes"] == HOSTILE
    assert html.count("<script") == 5


def test_the_commands_name_the_checkpoint_that_is_shown(tmp_path: Path) -> None:
    """Else they would draw the images of another one."""
    changes = [f"run={tmp_path / 'run'}", f"init={tmp_path}", "data.path=none", *SMALL]
    settings = load_settings("digits-d2o-f", [*changes, "images=64"], FinetuneSettings)
    fabricate(settings, 1)
    assert "checkpoint" not in about(build_page(settings.run).html())
    assert about(build_page(settings.run, which="64").html())["checkpoint"] == 64
    script = (WEB / "app.js").read_text()
    assert script.count("fasttrain sample ${model()} --") == script.count("fasttrain sample ") == 2
    assert "--checkpoint ${about.checkpoint}" in script


def test_weights_are_stored_once_and_no_longer_than_they_are() -> None:
    weights = Weights()
    exact, long = torch.tensor([1.5, -2.0, 0.25]), torch.tensor([0.1, 0.2])
    kept = [weights.add(x) for x in (long, exact, exact.clone(), exact[None])]
    assert kept[1] is kept[2] is kept[3]
    assert weights.counts() == (3, 2)
    assert [weights.offset(x) for x in kept] == [3, 0, 0, 0]
    packed = np.frombuffer(weights.bytes(), np.uint8)
    assert len(packed) == 3 * 2 + 2 * 4
    whole = packed[6:].reshape(4, 2)[::-1].T.copy().view("<f4")[:, 0]
    assert whole.tolist() == long.tolist()


def test_the_kernels_are_those_of_their_source() -> None:
    """`make playground-kernels` builds them and writes the hash."""
    source = WEB / "kernels.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (WEB / "kernels.sha256").read_text().split()[0] == digest
    assert len((WEB / "kernels.wasm").read_bytes()) < 40_000


def test_no_file_of_the_page_is_over_300_lines() -> None:
    for path in WEB.iterdir():
        if path.suffix != ".wasm":
            assert len(path.read_text().splitlines()) <= 300, path


def test_the_published_page_has_the_code_of_today() -> None:
    html = (ROOT / "docs" / "playground" / "index.html").read_text()
    assert len(html) < 4e6
    for name in (*page_module.SCRIPTS, *page_module.WORKER, "style.css"):
        assert (WEB / name).read_text() in html, f"fasttrain playground fashion-mnist: {name}"
    assert base64.b64encode((WEB / "kernels.wasm").read_bytes()).decode() in html
    assert about(html)["samplers"]["teacher"]["evaluations"] == 35


# ------------------------------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    convert("digits", folder)
    return folder


@pytest.fixture(scope="module")
def images(shards: Path, page: Page) -> TrainingImages:
    return TrainingImages(DataSettings(path=str(shards)), page.info.network)


@pytest.fixture(scope="module")
def server(page: Page, images: TrainingImages) -> Iterator[Server]:
    with open_server(page, 0, images) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_sends_one_page_to_this_machine(server: Server, page: Page) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, body = ask(server, "GET", "/")
    assert (status, body.decode()) == (200, page.html(nearest=True))
    assert about(body.decode())["nearest"] is True
    assert ask(server, "GET", "/../pyproject.toml")[0] == 404
    assert ask(server, "GET", "/", Host="attacker.example")[0] == 403
    assert ask(server, "POST", "/nearest", bytes(64), Host="attacker.example:80")[0] == 403


def test_the_nearest_image_of_a_training_image_is_itself(server: Server, shards: Path) -> None:
    known = RealImages(shards, seed=7).take(3)
    for k in range(3):
        pixels = known.images[k].flatten().numpy().copy()
        status, body = ask(server, "POST", "/nearest", pixels.tobytes())
        found = json.loads(body)
        assert (status, found["distance"], found["count"]) == (200, 0.0, 1797)
        assert base64.b64decode(found["pixels"]) == pixels.tobytes()
        assert known.class_labels is not None
        assert found["label"] == int(known.class_labels[k].argmax())
        pixels[:32] ^= 2  # half of the pixels are 2 off
        near = json.loads(ask(server, "POST", "/nearest", pixels.tobytes())[1])
        assert near["distance"] == pytest.approx(2**0.5)
    assert ask(server, "POST", "/nearest", bytes(63)) == (400, b"an image has 64 bytes\n")
    assert ask(server, "POST", "/nearest", b"", **{"Content-Length": "9" * 30})[0] == 400


# ------------------------------------------------------------------------------------ the command


def test_export_is_one_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "site"
    status, said, _ = call(capsys, "playground", model, "--export", out)
    assert status == 0
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert f"page: {out}/index.html" in said
    assert "without a diffusion model beside it: name one with --teacher MODEL" in said
    html = (out / "index.html").read_text()
    assert about(html)["nearest"] is False
    assert str(tmp_path) not in html  # of this machine


def test_mistakes(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line each, status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    diffusion = write_model(tmp_path / "diffusion.safetensors", PLAIN, task="pretrain")
    other = write_model(tmp_path / "other.safetensors", ADM, task="pretrain")
    tokens = {"model_type": "DiT", "options": {"hidden_size": 32, "depth": 1, "num_heads": 2}}
    tokens |= {key: PLAIN[key] for key in ("img_resolution", "img_channels", "label_dim")}
    transformer = write_model(tmp_path / "dit.safetensors", tokens)
    variance = {"prediction": {"kind": "epsilon", "learned_variance": True}}
    varied = write_model(tmp_path / "variance.safetensors", ADM | variance, sigma="2.5")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ((model, "--no-browser", "--port", port), f"--port {port}: Address already in use"),
            ((model,), "no browser can be opened here: add --no-browser"),
            ((diffusion, "--export", "site"), "is a diffusion model, and the playground shows"),
            ((transformer, "--export", "site"), "a DiT has no form that runs in a browser"),
            ((varied, "--export", "site"), "its network makes a variance, too, which the page"),
            ((model, "--teacher", model, "--export", "site"), "it is a one-step generator"),
            ((model, "--teacher", other, "--export", "site"), "images of another size"),
            ((model, "--export", "file"), "file is a file: name the folder"),
            ((model, "--export", "site", "--port", "80"), "serves nothing: leave --port"),
            ((model, "--no-browser", "--data", "none"), "none"),
            (("nothing",), "no browser"),
            (("nothing", "--export", "site"), "no model at nothing"),
        ):
            status, _, error = call(capsys, "playground", *arguments)
            assert status == 2, arguments
            assert message in error, arguments
            assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_operator_that_the_page_lacks_is_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OPERATORS, "silu")
    status, _, error = call(capsys, "playground", model, "--export", "site")
    assert (status, error.count("\n")) == (2, 1)
    assert "the page cannot run this SongUNet: it needs silu" in error
