"""GIF and TIFF files, and of files with several pictures the first."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

from fasttrain_data import DataError
from fasttrain_data.cli import app
from fasttrain_data.conversion import run_conversion
from fasttrain_data.images import BadImage, Wanted, read_header, read_picture, read_pixels
from fasttrain_data.options import Options
from fasttrain_data.sources import base
from fasttrain_data.survey import look_at
from tests.data_tools.sources import content, png

Pixels = npt.NDArray[np.uint8]
GREY, COLOUR = Wanted(channels=1), Wanted(channels=3)


def colours(seed: int = 0, shape: tuple[int, ...] = (9, 14, 4)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def saved(image: Image.Image, kind: str, **more: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return io.BytesIO(buffer.getvalue())


def over_white(image: Image.Image) -> Pixels:
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(canvas, image).convert("RGB"))


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        ("1", "group4"),
        *itertools.product(
            ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
            (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"),
        ),
    ],
)
def test_every_kind_of_tiff(mode: str, compression: str | None, big: bool) -> None:
    through = "RGB" if mode in ("P", "CMYK") else "RGBA"
    image = Image.fromarray(colours()).convert(through).convert(mode)
    file = saved(image, "TIFF", compression=compression, big_tiff=big, software="x" * 5000)
    assert read_header(file) == (14, 9, mode in ("1", "L", "LA"), False)
    np.testing.assert_array_equal(read_pixels(file, COLOUR), over_white(image))


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_jpeg_within_a_tiff(mode: str) -> None:
    ramp = np.mgrid[:32, :48].sum(0).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp * 3, ramp, 255 - ramp], -1)).convert(mode)
    file = saved(image, "TIFF", compression="jpeg", quality=95)
    assert np.abs(read_pixels(file, COLOUR).astype(int) - over_white(image)).max() <= 12


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_of_sixteen_bits_is_scaled(compression: str | None) -> None:
    values = colours(shape=(5, 4)).astype(np.uint16) * 257
    file = saved(Image.fromarray(values), "TIFF", compression=compression)
    assert read_header(file).grey
    np.testing.assert_array_equal(read_pixels(file, GREY)[..., 0], values // 257)


@pytest.mark.parametrize(
    ("turn", "compression"), [*itertools.product(range(1, 9), (None, "tiff_lzw")), (9, None)]
)
def test_every_orientation_of_a_tiff(turn: int, compression: str | None) -> None:
    from PIL import ImageOps

    image = Image.fromarray(colours()[..., :3])
    file = saved(image, "TIFF", tiffinfo={274: turn}, compression=compression)
    exif = Image.Exif()
    exif[274] = turn
    plain = Image.open(saved(image, "PNG", exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(plain) if turn < 9 else plain)
    assert read_header(file)[:2] == expected.shape[1::-1]
    np.testing.assert_array_equal(read_pixels(file, COLOUR), expected)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compression": "lzma"}, "TIFF with compression 34925, not read"),
        ({"compression": "zstd"}, "TIFF with compression 50000, not read"),
        ({"tiffinfo": {258: (12,)}}, "TIFF with 12 bits a sample, not read"),
    ],
)
def test_kinds_of_tiff_that_are_not_read(options: dict[str, Any], why: str) -> None:
    file = saved(Image.fromarray(colours()[..., 0].copy()), "TIFF", **options)
    if "tiffinfo" in options:  # Pillow writes no such file
        data = bytearray(file.getvalue())
        at = data.index(b"\x02\x01\x03\0")
        data[at + 8] = 12
        file = io.BytesIO(bytes(data))
    for read in (read_header, lambda file: read_pixels(file, GREY)):
        with pytest.raises(BadImage, match=why):
            read(file)


def test_a_damaged_tiff_is_said_by_us_alone(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(Image.fromarray(colours()), "TIFF", compression="tiff_lzw").getvalue())
    data[8:40] = b"\xff" * 32
    with pytest.raises(BadImage, match="damaged image"):
        read_pixels(io.BytesIO(bytes(data)), COLOUR)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_gif_is_its_first_picture(mode: str) -> None:
    first, second = (Image.fromarray(colours(seed)).convert(mode) for seed in (0, 1))
    alone = saved(first, "GIF", comment=b"x" * 1000)
    file = saved(first, "GIF", save_all=True, append_images=[second], comment=b"x" * 1000)
    for each in (alone, file):
        assert read_header(each) == (14, 9, mode in ("1", "L"), each is file)
        np.testing.assert_array_equal(read_pixels(each, COLOUR), over_white(Image.open(each)))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pictures_is_taken_and_that_is_said_once(
    kind: str, tmp_path: Path
) -> None:
    ending = kind.lower()
    grid = np.arange(64, dtype=np.uint8).reshape(8, 8)
    first, *more = (Image.fromarray(np.stack([grid * n] * 3, -1)) for n in (1, 2, 3))
    (tmp_path / "in/a").mkdir(parents=True)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    for name in "xy":
        path = tmp_path / f"in/a/{name}.{ending}"
        first.save(path, kind, save_all=True, append_images=more, **options)
    (tmp_path / "in/a/z.png").write_bytes(png(grid))
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "in"), str(tmp_path / "set")])
    assert done.exit_code == 0
    said = f"note: 2 files have several pictures, a/x.{ending} for one: the first of each is taken"
    assert done.output.count("several pictures") == done.output.count(said) == 1
    rows = {pixels for _, pixels in content(tmp_path / "set")}
    assert rows in ({np.stack([grid] * 3, -1).tobytes()}, {grid.tobytes()})
    assert "2 have several pictures: the first of each is taken" in look_at(tmp_path / "in").lines()


def test_what_a_stopped_conversion_counted_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that an earlier run finished are not read again, and their files are counted."""
    (tmp_path / "in").mkdir()
    frames = [Image.fromarray(colours(n, (8, 8, 3))) for n in range(3)]
    for n in range(4):
        frames[0].save(tmp_path / f"in/{n}.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "in/4.png").write_bytes(b"x")
    options = Options(images_per_shard=1, resolution=8, channels=3)
    with pytest.raises(DataError, match="not an image"):
        run_conversion(tmp_path / "in", tmp_path / "set", options)
    files: list[object] = []
    monkeypatch.setattr(
        base, "read_picture", lambda *args: (files.append(args), read_picture(*args))[1]
    )
    done = run_conversion(tmp_path / "in", tmp_path / "set", options, max_bad=1)
    assert len(files) < 4
    assert done.notes == (
        "4 files have several pictures, 0.gif for one: the first of each is taken",
    )
