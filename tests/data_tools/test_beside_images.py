"""Other data in a folder of images: images are read, and one line says what is not."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import convert, run_conversion
from fasttrain_data.sources import FolderSource, open_source
from fasttrain_data.survey import look_at
from tests.data_tools.conftest import write_image


def tar(path: Path) -> None:
    image = write_image(path.parent.parent / "elsewhere.png", 2)
    with tarfile.open(path, "w") as file:
        file.add(image, "x.png")


def table(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "label": [2]}), path)


STRAY: dict[str, Callable[[Path], object]] = {
    "old.tar": tar,
    "embeddings.parquet": table,
    "mask.npy": lambda path: np.save(path, np.zeros(3)),
    "stats.npz": lambda path: np.savez(path, mu=np.zeros(3)),
    "features.h5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "a.tfrecord": lambda path: path.write_bytes(bytes(16)),
    "cache.arrow": lambda path: path.write_bytes(b"ARROW1\0\0"),
    "data.mdb": lambda path: path.write_bytes(bytes(8192)),
    "old.zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "index.json": lambda path: path.write_text(json.dumps({"pages": []})),
}


@pytest.mark.parametrize("place", ["a.png", "cat/a.png", "train/cat/a.png"])
@pytest.mark.parametrize("name", STRAY)
def test_data_beside_images_hide_none(tmp_path: Path, name: str, place: str) -> None:
    root = tmp_path / "photos"
    write_image(root / place, 1)
    STRAY[name](root / name)
    source = open_source(root)
    assert isinstance(source, FolderSource)
    assert [source.member(item) for item in range(len(source))] == [place]
    survey = look_at(root)
    assert (survey.images, survey.shards) == (1, False)
    assert survey.passed_over == {Path(name).suffix: 1}
    if name != "index.json":
        (note,) = (note for note in source.notes if "images are read" in note)
        assert note == (
            f"{root}: its images are read, and 1 {Path(name).suffix} beside them are not: to "
            f"convert these, move them to a folder of their own, or name one, such as {root / name}"
        )


def test_a_few_pictures_beside_far_more_data_are_none(tmp_path: Path) -> None:
    """A clone of a dataset with a picture for its README, and tars with a preview."""
    write_image(tmp_path / "hub/assets/logo.png", 1)
    image = write_image(tmp_path / "real.png", 2).read_bytes()
    (tmp_path / "hub/data").mkdir()
    column = pyarrow.array([{"bytes": image}] * 2000)
    images = pyarrow.table({"image": column, "label": [0, 1] * 1000})
    parquet = tmp_path / "hub/data/train-0-of-1.parquet"
    pyarrow.parquet.write_table(images, parquet, use_dictionary=False, compression="none")
    assert len(open_source(tmp_path / "hub")) == 2000

    write_image(tmp_path / "tars/preview.png", 1)
    with tarfile.open(tmp_path / "tars/0.tar", "w") as file:
        for number in range(200):
            file.add(tmp_path / "real.png", f"{number}.png")
    assert look_at(tmp_path / "tars").images == 200


def test_hidden_images_are_none(tmp_path: Path) -> None:
    write_image(tmp_path / "in/.thumbnails/a.png", 1)
    tar(tmp_path / "in/cats.tar")
    source = open_source(tmp_path / "in")
    assert [source.member(item) for item in range(len(source))] == ["cats/x.png"]


def test_a_picture_beside_shards_hides_none(
    tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    convert(image_folder(a=2, b=1), tmp_path / "set")
    write_image(tmp_path / "set/preview.png", 1)
    assert look_at(tmp_path / "set").shards
    assert run_conversion(tmp_path / "set", tmp_path / "again").index.images == 3
