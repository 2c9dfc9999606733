"""TensorBoard and Weights & Biases get a run's numbers and grids from the same calls.

Weights & Biases is the real package where it is installed (offline: nothing is sent), elsewhere a
stand-in with the signatures of its release 0.31.
"""

from __future__ import annotations

import inspect
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.dry_run import missing
from fasttrain.training.run.boards import check_boards
from fasttrain.training.run.opened import Opened
from fasttrain.training.run.progress import Progress

REAL = find_spec("wandb") is not None


class StandIn(ModuleType):
    """What a run calls of the package, with its parameters; what was logged is kept."""

    class Error(Exception):
        pass

    class Settings:
        def __init__(self, **given: Any) -> None:
            self.given = given

    class Image:
        def __init__(self, data_or_path: np.ndarray) -> None:
            self.pixels = data_or_path

    class Run:
        def __init__(self) -> None:
            self.rows: list[dict[str, Any]] = []
            self.axes: dict[str, str | None] = {}

        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            self.axes[name] = step_metric

        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            self.rows.append(data)

        def finish(self, exit_code: int | None = None) -> None:
            self.axes["finished"] = None

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[StandIn.Run] = []
        self.given: list[dict[str, Any]] = []

    def init(
        self,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        mode: str | None = None,
        resume: str | None = None,
        settings: Settings | None = None,
    ) -> Run:
        if mode == "online":
            raise self.Error("No API key configured.\nUse `wandb login` to log in.")
        assert dir is not None
        stamp = f"offline-run-20261129_16511{len(self.runs)}-{id}"
        (Path(dir) / "wandb" / stamp / "files/media/images").mkdir(parents=True)
        self.runs.append(self.Run())
        self.given.append({"project": project, "name": name, "config": config, "resume": resume})
        return self.runs[-1]


@pytest.fixture
def settings(digits: Path, tmp_path: Path) -> PretrainSettings:
    return load_settings(
        "digits-edm",
        [
            f"run={tmp_path / 'watched'}",
            f"data.path={digits}",
            "data.storage={key: secret}",
            "log={wandb: offline, project: tried}",
            "images=64000",
        ],
        PretrainSettings,
    )


def grid(seed: int, path: Path) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def train(settings: PretrainSettings, images: int, loss: float) -> np.ndarray:
    """What a run tells the boards, in one session."""
    shown = Progress(settings, ONE_PROCESS, images, 0.0)
    try:
        shown.report(images + 64, {"loss/denoising": loss})
        path = settings.run / f"samples/{images + 64:010d}.png"
        pixels = grid(images, path)
        shown.picture(images + 64, path)
    finally:
        shown.close()
    return pixels


def test_both_boards_get_numbers_and_grids_and_go_on_with_the_same_run(
    settings: PretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn()
    if not REAL:
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        monkeypatch.setattr("fasttrain.training.run.boards.find_spec", lambda _: True)
    Opened(settings, ONE_PROCESS).close()  # the directory, as a run makes it
    grids = [train(settings, 0, 0.5), train(settings, 64, 0.25)]

    board = EventAccumulator(str(settings.run / "tensorboard"))
    board.Reload()
    assert [(row.step, row.value) for row in board.Scalars("loss/denoising")] == [
        (64, 0.5),
        (128, 0.25),
    ]
    assert [row.step for row in board.Images("samples")] == [64, 128]

    sessions = sorted((settings.run / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in sessions}) == 1, "another run"
    if REAL:
        assert len(sessions) in (1, 2)  # of the same second, one
        for pixels in grids:
            found = (settings.run / "wandb").glob("offline-run-*/files/media/images/*.png")
            assert any(np.array_equal(np.asarray(Image.open(path)), pixels) for path in found)
        content = b"".join(path.read_bytes() for path in settings.run.glob("wandb/*/run-*.wandb"))
        assert b"loss/denoising" in content
        assert b"img_resolution" in content
        assert b"secret" not in content
        return
    assert [given["resume"] for given in stand_in.given] == ["allow", "allow"]
    assert {(given["project"], given["name"]) for given in stand_in.given} == {("tried", "watched")}
    config = stand_in.given[0]["config"]
    assert config["network"]["img_resolution"] == 8
    assert "storage" not in config["data"]
    for run, loss, pixels, images in zip(stand_in.runs, (0.5, 0.25), grids, (64, 128), strict=True):
        assert run.axes == {"images": None, "*": "images", "finished": None}
        numbers, picture = run.rows
        assert (numbers["loss/denoising"], numbers["images"]) == (loss, images)
        assert picture["images"] == images
        np.testing.assert_array_equal(picture["samples"].pixels, pixels)


def test_without_an_account_it_is_one_line(
    settings: PretrainSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if REAL:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "wandb", StandIn())
        monkeypatch.setattr("fasttrain.training.run.boards.find_spec", lambda _: True)
    online = settings.model_copy(
        update={"log": settings.log.model_copy(update={"wandb": "online"})}
    )
    Opened(online, ONE_PROCESS).close()
    with pytest.raises(
        UserError, match=r"log\.wandb online: No API key configured.*to offline"
    ) as e:
        train(online, 0, 0.5)
    assert len(str(e.value).splitlines()) == 1


def test_a_missing_package_is_said_before_anything_is_written(
    settings: PretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasttrain.training.run.boards.find_spec", lambda _: None)
    line = "log.wandb is offline: pip install 'fasttrain[wandb]', or set it to false"
    with pytest.raises(UserError) as caught:
        Opened(settings, ONE_PROCESS)
    assert str(caught.value) == line
    assert not settings.run.exists()
    assert line in missing(settings)
    check_boards(settings.model_copy(update={"log": type(settings.log)()}))


@pytest.mark.skipif(not REAL, reason="wandb is not installed")
def test_the_stand_in_has_the_real_parameters() -> None:
    import wandb

    for ours, theirs in (
        (StandIn.init, wandb.init),
        (StandIn.Run.log, wandb.Run.log),
        (StandIn.Run.define_metric, wandb.Run.define_metric),
        (StandIn.Run.finish, wandb.Run.finish),
        (StandIn.Image.__init__, wandb.Image.__init__),
    ):
        known = inspect.signature(theirs).parameters
        assert set(inspect.signature(ours).parameters) - {"self"} <= set(known)


def test_a_run_shows_its_grids(diffusion: Path) -> None:
    board = EventAccumulator(str(diffusion / "tensorboard"))
    board.Reload()
    (shown,) = board.Images("samples")
    assert shown.step == 6400
    drawn = Image.open(diffusion / "samples/0000006400.png")
    assert (shown.width, shown.height) == drawn.size
