"""Folders of images: labels, colours, sizes, and files that are bad or hostile."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain_data import (
    DataError,
    Index,
    convert,
    decode_record,
    load_index,
    open_shard,
    read_records,
    run_conversion,
)


def save(path: Path, pixels: object, mode: str | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)


def read(folder: Path) -> list[tuple[np.ndarray, str]]:
    index: Index = load_index(folder)
    found = []
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                pixels = decode_record(record, index, name=shard.name)
                found.append((pixels, index.classes[record.label].name))
    return found


def test_classes_are_subfolders_at_any_depth(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(dogs=3, cats=2)
    save(root / "dogs/young/deep.png", np.full((6, 6), 77, np.uint8))
    (root / "dogs/notes.txt").write_text("passed over")
    (root / "dogs/.hidden.png").write_bytes(b"passed over")
    (root / "empty").mkdir()
    index = convert(root, tmp_path / "set")
    assert [(c.name, c.images) for c in index.classes] == [("cats", 2), ("dogs", 4)]
    assert index.channels == 1
    found = sorted((int(pixels[0, 0, 0]), name) for pixels, name in read(tmp_path / "set"))
    assert found == [(0, "dogs"), (1, "dogs"), (2, "dogs"), (3, "cats"), (4, "cats"), (77, "dogs")]


def test_flat_folder_is_one_class_and_a_mixture_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    for value in range(3):
        save(root / f"{value}.bmp", np.full((4, 4), value, np.uint8))
    index = convert(root, tmp_path / "set")
    assert [(c.name, c.images) for c in index.classes] == [("images", 3)]
    save(root / "cats/x.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"0\.bmp.*move it into a class folder"):
        convert(root, tmp_path / "other")


def test_one_colour_image_makes_the_set_colour(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=2)
    color = np.arange(108, dtype=np.uint8).reshape(6, 6, 3)
    save(root / "b/colour.png", color)
    assert convert(root, tmp_path / "set").channels == 3
    by_class = {name: pixels for pixels, name in read(tmp_path / "set")}
    np.testing.assert_array_equal(by_class["b"], color)
    assert (by_class["a"] == by_class["a"][..., :1]).all()
    grey = convert(root, tmp_path / "grey", channels=1)
    assert grey.channels == 1


@pytest.mark.parametrize(
    ("background", "expected"), [("white", 255), ("black", 0), ("#102030", (16, 32, 48))]
)
def test_alpha_is_composited_over_the_background(
    tmp_path: Path, background: str, expected: object
) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3] = 200, 255
    save(tmp_path / "in/a/x.png", pixels)
    convert(tmp_path / "in", tmp_path / "set", background=background)
    ((found, _),) = read(tmp_path / "set")
    assert (found[:2] == (200, 0, 0)).all()
    assert (found[2:] == expected).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 65535], [32768, 257 * 9]], np.uint16)
    save(tmp_path / "in/a/x.png", values)
    assert convert(tmp_path / "in", tmp_path / "set").channels == 1
    ((found, _),) = read(tmp_path / "set")
    assert found[..., 0].tolist() == [[0, 255], [128, 9]]


def test_palette_and_cmyk_become_colour(tmp_path: Path) -> None:
    color = np.zeros((4, 4, 3), np.uint8)
    color[..., 1] = 255
    save(tmp_path / "in/a/palette.png", color, "P")
    assert convert(tmp_path / "in", tmp_path / "set").channels == 3
    ((found, _),) = read(tmp_path / "set")
    np.testing.assert_array_equal(found, color)
    save(tmp_path / "cmyk/a/x.jpg", color, "CMYK", quality=100)
    convert(tmp_path / "cmyk", tmp_path / "set2")
    ((found, _),) = read(tmp_path / "set2")
    assert np.abs(found.astype(int) - color).max() <= 12


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    save(tmp_path / "in/a/x.jpg", pixels, quality=100, exif=exif)
    convert(tmp_path / "in", tmp_path / "set", resolution=8)
    ((found, _),) = read(tmp_path / "set")
    # 8 wide and 16 high now, dark above: the centre square is dark in its upper half.
    assert found[:4].max() < 30
    assert found[4:].min() > 225


def test_centre_crop_and_antialiased_resize(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (20, 33, 3), dtype=np.uint8)
    save(tmp_path / "in/a/x.png", pixels)
    convert(tmp_path / "in", tmp_path / "same", resolution=20)
    ((found, _),) = read(tmp_path / "same")
    np.testing.assert_array_equal(found, pixels[:, 6:26])  # a crop alone changes no pixel
    convert(tmp_path / "in", tmp_path / "small", resolution=5)
    ((found, _),) = read(tmp_path / "small")
    blocks = pixels[:, 6:26].reshape(5, 4, 5, 4, 3).mean(axis=(1, 3))
    # Noise of deviation 74: without antialiasing the error would be like that; with it, small.
    assert np.sqrt(np.mean((found - blocks) ** 2)) < 12


def test_sizes_must_agree_without_resolution(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=3)
    save(root / "b/odd.png", np.zeros((6, 7), np.uint8))
    with pytest.raises(DataError, match=r"b/odd\.png is 7x6 but .*a/00\.png is 6x6.*--resolution"):
        convert(root, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert convert(root, tmp_path / "set", resolution=6).images == 4
    save(tmp_path / "wide/a/x.png", np.zeros((6, 7), np.uint8))
    with pytest.raises(DataError, match=r"x\.png is 7x6, not square.*--resolution 6"):
        convert(tmp_path / "wide", tmp_path / "set2")


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def make_bad(root: Path, kind: str) -> Path:
    path = root / "a" / f"bad-{kind}.png"
    good = (root / "a/00.png").read_bytes()
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(good[: good.index(b"IDAT") + 6])
    elif kind == "bomb":
        path.write_bytes(bomb())
    elif kind == "outside":
        (root.parent / "secret.png").write_bytes(good)
        path.symlink_to(root.parent / "secret.png")
    elif kind == "dangling":
        path.symlink_to(root / "nowhere.png")
    elif kind == "folder":
        (root.parent / "elsewhere").mkdir()
        (root.parent / "elsewhere/x.png").write_bytes(good)
        path.symlink_to(root.parent / "elsewhere")
    elif kind == "fifo":
        import os

        os.mkfifo(path)
    elif kind == "tiff":
        Image.new("F", (6, 6)).save(path, "TIFF")
    return path


BAD = {
    "text": "not an image",
    "empty": "empty file",
    "truncated": "damaged image",
    "bomb": "too many pixels",
    "outside": "symbolic link out of the folder, see --follow-links",
    "dangling": "cannot be read",
    "folder": "symbolic link out of the folder, see --follow-links",
    "fifo": "not a regular file",
    "tiff": "TIFF with 32 bits a sample, not read",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_or_left_out_and_counted(
    tmp_path: Path, image_folder: Callable, kind: str
) -> None:
    root = image_folder(a=5)
    bad = make_bad(root, kind)
    with pytest.raises(DataError, match=rf"{bad.name}: {BAD[kind]}.*--max-bad") as caught:
        convert(root, tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()
    done = run_conversion(root, tmp_path / "set", max_bad=1)
    assert [(name, reason[:8]) for name, reason in done.bad_files] == [(str(bad), BAD[kind][:8])]
    assert done.index.images == 5
    assert sum(done.index.skipped.values()) == 1
    values = sorted(int(pixels[0, 0, 0]) for pixels, _ in read(tmp_path / "set"))
    assert values == [0, 1, 2, 3, 4]


def test_more_bad_files_than_allowed_fail(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=5)
    make_bad(root, "text"), make_bad(root, "truncated")
    with pytest.raises(DataError, match="bad files: 2, allowed: 1"):
        convert(root, tmp_path / "set", max_bad=1)


def test_a_link_inside_the_folder_is_read(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=2)
    (root / "a/again.png").symlink_to(root / "a/01.png")
    assert convert(root, tmp_path / "set").images == 3


def test_bad_places_and_options_are_named(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=2)
    with pytest.raises(DataError, match=r"no images at .*nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "none/a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images in .*none.*\.png"):
        convert(tmp_path / "none", tmp_path / "set")
    with pytest.raises(DataError, match="inside the folder of images"):
        convert(root, root / "set")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cats").symlink_to(root / "a")
    with pytest.raises(DataError, match="linked/cats is a symbolic link"):
        convert(linked, tmp_path / "set")
    for options, message in (
        ({"images_per_shard": 0}, "--images-per-shard is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"resolution": 0}, "--resolution is 0"),
        ({"channels": 2}, "--channels is 2"),
        ({"background": "nocolour"}, "--background 'nocolour'"),
        ({"max_bad": -1}, "--max-bad is -1"),
    ):
        with pytest.raises(DataError, match=message):
            convert(root, tmp_path / "set", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()
