"""Boards that show a run elsewhere: TensorBoard always, Weights & Biases where `log.wandb` asks.

    boards = Boards(settings, images)               # lines after `images` go
    boards.scalars(images, {"loss/generator": 0.7})
    boards.picture(images, Path("samples/0000001024.png"))
    boards.close()

Both get the same calls. TensorBoard's files are in `RUN/tensorboard`, those of Weights & Biases in
`RUN/wandb`, where they stay in offline mode until `wandb sync`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import own_folder

__all__ = ["Board", "Boards", "check_boards"]

GRID = "samples"
"""Name of the grid of fixed seeds on a board."""


class Board(Protocol):
    """Where numbers and pictures of a run go, by the images seen so far."""

    def scalars(self, images: int, values: Mapping[str, float]) -> None: ...

    def picture(self, images: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """pixels: [H, W, 3]."""
        ...

    def close(self) -> None: ...


class Boards:
    """All boards of a run, on rank 0."""

    def __init__(self, settings: RunSettings, images: int) -> None:
        self.boards: list[Board] = [TensorBoard(settings.run, images)]
        if settings.log.wandb:
            self.boards.append(WandB(settings))

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        for board in self.boards:
            board.scalars(images, values)

    def picture(self, images: int, path: Path) -> None:
        """Show the grid that was written to a PNG file."""
        with Image.open(path, formats=("PNG",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for board in self.boards:
            board.picture(images, GRID, pixels)

    def close(self) -> None:
        for board in self.boards:
            board.close()


class TensorBoard:
    """Event files; those of an earlier session are cut after `images`."""

    def __init__(self, run: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # A file's name cannot be known in advance, so that no link can lie there.
        suffix = f".{secrets.token_hex(8)}"
        folder = str(run / "tensorboard")
        self.writer = SummaryWriter(folder, purge_step=images + 1, filename_suffix=suffix)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)

    def picture(self, images: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        self.writer.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, which every session of a run directory continues.

    `images` is its axis, not its own count of calls, which may not go back. Raises UserError when
    it does not start: no account, no connection.
    """

    def __init__(self, settings: RunSettings) -> None:
        check_boards(settings)
        import wandb

        self.wandb, how = wandb, settings.log
        own_folder(settings.run / "wandb")
        try:
            self.run: Any = wandb.init(
                dir=str(settings.run),
                project=how.project,
                name=settings.run.name,
                id=_identity(settings.run / "wandb"),
                resume="allow",
                mode=how.wandb,
                config=_config(settings),
                settings=wandb.Settings(
                    silent=True,
                    console="off",  # its own progress is on the terminal
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_meta=True,
                ),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"log.wandb {how.wandb}: {reason}; or set it to offline") from None
        self.run.define_metric("images")
        self.run.define_metric("*", step_metric="images")

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "images": images})

    def picture(self, images: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        self.run.log({name: self.wandb.Image(pixels), "images": images})

    def close(self) -> None:
        self.run.finish()


def check_boards(settings: RunSettings) -> None:
    """Raises UserError for a board whose package is missing."""
    if settings.log.wandb and find_spec("wandb") is None:
        raise UserError(
            f"log.wandb is {settings.log.wandb}: pip install 'fasttrain[wandb]', or set it to false"
        )


def _identity(folder: Path) -> str:
    """Of the run that earlier sessions wrote to this folder, or another one."""
    known = re.compile(r"(?:offline-)?run-[0-9]{8}_[0-9]{6}-([0-9a-f]{16})")
    names = sorted(os.listdir(folder))
    return next((found[1] for name in names if (found := known.fullmatch(name))), None) or (
        secrets.token_hex(8)
    )


def _config(settings: RunSettings) -> dict[str, Any]:
    """The settings without options of storage, which may hold keys."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    values["data"].pop("storage", None)
    return values
