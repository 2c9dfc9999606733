"""`fasttrain watch`: the page of a run that goes on."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fasttrain.analysis.report.live import Pace, follow, live_page, serve
from fasttrain.checkpoints.lock import Lock
from fasttrain.sampling.pictures import save_grid
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError
from tests.analysis.report.support import Page
from tests.runs.calling import call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run before its first checkpoint: settings, two reports, a grid."""
    run = tmp_path / "photos-edm"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load_settings("digits-edm", [], PretrainSettings)))
    write_stats(run, 2)
    save_grid(torch.zeros(4, 1, 8, 8), run / "samples" / "0000003200.png")
    return run


def write_stats(run: Path, reports: int) -> None:
    lines = [
        {"images": 3200 * n, "seconds": 10.0 * n, "loss/denoising": 1 / n, "data/waiting": 0.1}
        for n in range(1, reports + 1)
    ]
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def trained(run: Path) -> Iterator[Path]:
    lock = Lock(run)
    lock.sign()
    yield run
    lock.release()


def refresh_of(page: Page) -> str | None:
    found = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "refresh"]
    return found[0] if found else None


def test_before_the_first_checkpoint(trained: Path) -> None:
    page = Page(live_page(trained, 10))
    facts = " ".join(page.text["facts"].split())
    assert "training by process" in page.text["state"]
    assert "6,400" in facts
    assert "of 64,000" in facts
    assert "time left3 min 0 s" in facts  # 57,600 images at 320 a second
    assert "denoising: 1 to 0.5 at 6.4k images" in page.text["chart-denoising"]
    assert len(page.images["newest"]) == 1
    assert refresh_of(page) == "10"
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}


def test_pace_is_that_of_the_last_reports() -> None:
    slow = [{"images": n, "seconds": 10.0 * n} for n in range(100)]
    fast = [{"images": 99 + n, "seconds": 990.0 + n / 10} for n in range(1, 21)]
    pace = Pace.of(slow + fast, 119, 319)
    assert pace.rate == pytest.approx(10)
    assert pace.left == pytest.approx(20)
    assert Pace.of([], 0, 10).rate is None


def test_a_file_is_written_until_the_run_ends(trained: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "page.html", []

    def rest(seconds: float) -> None:
        seen.append((seconds, Page(out.read_text())))
        write_stats(trained, 20)
        if len(seen) == 2:
            (trained / "lock").unlink()  # as when its process has gone

    follow(trained, out, 7, rest)
    assert [seconds for seconds, _ in seen] == [7, 7]
    assert refresh_of(seen[0][1]) == "7"
    assert "64,000" in seen[1][1].text["facts"]
    last = Page(out.read_text())
    assert refresh_of(last) is None
    assert "training by" not in last.text["state"]


def test_served_to_this_machine_alone(trained: Path) -> None:
    with serve(trained) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"

        def get(path: str, **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        status, text = get("/")
        assert (status, "photos-edm" in text) == (200, True)
        write_stats(trained, 4)
        assert "12,800" in get("/", Host=f"localhost:{port}")[1]
        assert get("/", Host=f"evil.example:{port}")[0] == 421
        assert get("/config.yaml")[0] == 404
        (trained / "config.yaml").unlink()
        assert get("/")[0] == 503
        server.shutdown()


def test_mistakes(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    status, _, error = call(capsys, "watch", tmp_path / "nowhere")
    assert (status, error.count("\n")) == (2, 1)
    status, _, error = call(capsys, "watch", tmp_path / "nowhere", "--out", tmp_path / "p.html")
    assert (status, error.count("\n")) == (2, 1)
    status, _, error = call(capsys, "watch", run, "--out", tmp_path)
    assert (status, error.count("\n")) == (2, 1)
    assert call(capsys, "watch", run, "--out", tmp_path / "p.html", "--port", "8000")[0] == 2
    with serve(run) as server, pytest.raises(UserError, match="--port"):
        serve(run, server.server_port)
    status, out, _ = call(capsys, "watch", run, "--out", tmp_path / "p.html")
    assert (status, "nobody trains" in out) == (0, True)
