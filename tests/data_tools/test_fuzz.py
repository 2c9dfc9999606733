"""Sound files of every kind, changed at random: nothing but the readers' own errors comes out, as
one printable line, and no more memory is asked for than is allowed.

A reader runs in a forked process under a bound on its addresses (`tests/hostile/confined.py`).
`python -m tests.hostile.fuzz_readers --seconds 600` does the same for as long as one likes.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
from collections.abc import Callable

import numpy as np
import pyarrow.parquet  # noqa: F401 (once, not in each process that reads a table)
import pytest
import scipy.io  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fasttrain_data import DataError, parse_index
from fasttrain_data.images import BadImage, Wanted, read_header, read_pixels
from fasttrain_data.records import parse_npy
from fasttrain_data.sources import open_source
from tests.hostile import files
from tests.hostile.confined import LIBC, Confined
from tests.hostile.mutations import mutated
from tests.hostile.samples import Target, targets

TARGETS = {target.name: target for target in targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_give_the_readers_own_errors(name: str) -> None:
    target: Target = TARGETS[name]
    samples, examples = st.sampled_from(target.samples), 60 if name == "parquet" else 200
    with Confined(target.read, target.samples, target.megabytes) as child:

        @settings(max_examples=examples, deadline=None, database=None)
        @given(st.randoms(use_true_random=False), samples, samples)
        def check(draw: random.Random, sample: bytes, other: bytes) -> None:
            problem = child(mutated(sample, draw, target.shape, other))
            assert not problem, problem

        check()


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda _: os.environ["X?"], "KeyError: 'X?'"),
        (lambda _: bytearray(300 << 20), "MemoryError"),
        (lambda _: np.empty(300 << 20, np.uint8), "Unable to allocate 300"),
        (lambda _: Image.new("RGB", (10_000, 10_000)), "MemoryError"),
        (lambda _: os._exit(3), "the process died with status 3"),
        (lambda _: bytearray(100 << 20), ""),
    ],
)
def test_the_bound_is_kept_and_what_breaks_it_is_seen(
    read: Callable[[bytes], object], problem: str
) -> None:
    with Confined(read, (), megabytes=200) as child:
        for _ in range(2):  # it goes on after a death
            found = child(b"x")
            assert problem in found
            assert bool(found) == bool(problem)


def test_what_a_parent_has_freed_does_not_widen_the_bound() -> None:
    LIBC.free(LIBC.malloc(31 << 20))  # from here on blocks of so much come from the heap
    *blocks, above = (LIBC.malloc(30 << 20) for _ in range(20))  # the last: no shrinking
    for block in blocks:
        LIBC.free(block)
    with Confined(lambda _: Image.new("RGB", (10_000, 10_000)), (), megabytes=200) as child:
        assert "MemoryError" in child(b"x")
    with Confined(lambda _: bytearray(100 << 20), (), megabytes=200) as child:
        assert not child(b"x")
    LIBC.free(above)


def test_mutations_differ_and_keep_checksums() -> None:
    target = TARGETS["tar"]
    made = {mutated(target.samples[0], random.Random(n), target.shape) for n in range(200)}
    assert len(made) > 150
    sound = 0
    for data in made:
        blocks = [data[at : at + 512] for at in range(0, len(data) - 511, 512)]
        heads = [block for block in blocks if block[257:262] == b"ustar"]
        sums = [sum(block) - sum(block[148:156]) + 256 for block in heads]
        written = [
            block[148:156] == f"{n:06o}\0 ".encode() for block, n in zip(heads, sums, strict=True)
        ]
        sound += all(written)
    assert sound > 120


HEAD = b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (%s), }   \n"


@pytest.mark.parametrize("data", [HEAD % b" " + b"1234", HEAD % b"1," + b"12345", HEAD % b","])
def test_labels_without_a_shape_or_with_half_a_number(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x (is not a <i4 array|has .* bytes, not those)"):
        parse_npy(data, "<i4", (), "x")


def test_a_key_of_an_index_is_not_printed_as_it_is() -> None:
    with pytest.raises(DataError) as caught:
        parse_index(files_index(**{"\x1b[2J\n": 1}), "x")
    assert r"\x1b[2J\n: Extra inputs are not permitted" in str(caught.value)
    with pytest.raises(DataError) as caught:
        parse_index(files_index(**{"k" * 100_000: 1}), "x")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).endswith("convert again")


def files_index(**more: object) -> bytes:
    return json.dumps(files.index_of({"shard-000000.tar": bytes(4096)}, 2, **more)).encode()


def test_a_phones_picture_with_others_behind_it_is_turned() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (16, 8), "red")
    picture.paste("blue", (8, 0, 16, 8))
    options = {"save_all": True, "append_images": [picture], "exif": exif, "quality": 100}
    picture.save(buffer, "MPO", **options)
    assert read_header(buffer)[:2] == (8, 16)
    pixels = read_pixels(buffer, Wanted(channels=3))
    assert pixels.shape == (16, 8, 3)
    assert pixels[2, 4].argmax() == 0
    assert pixels[13, 4].argmax() == 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_flattened_in_strips_to_the_same_pixels(
    mode: str, channels: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (40, 30), dtype=np.uint16))
    else:
        pixels = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": b"\x40" * 256} if mode == "P" else {}))
    whole = read_pixels(buffer, Wanted(channels=channels))
    monkeypatch.setattr("fasttrain_data.images._STRIP_PIXELS", 100)
    buffer.seek(0)
    np.testing.assert_array_equal(read_pixels(buffer, Wanted(channels=channels)), whole)


def test_a_table_that_kills_its_reader_is_an_error(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.path.join(tmp_path, "x.parquet")
    with open(path, "wb") as file:
        file.write(TARGETS["parquet"].samples[0])
    dies = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    monkeypatch.setattr("fasttrain_data.sources.parquet._copy", dies)
    with pytest.raises(DataError, match=r"reading .*x\.parquet ended with status -9: is it dam"):
        open_source(path)


def test_a_progressive_picture_may_have_a_hundred_scans() -> None:
    from tests.hostile.pictures import scans

    wanted = Wanted(channels=1, resolution=8)
    assert read_pixels(io.BytesIO(scans(90, side=64)), wanted).shape == (8, 8, 1)
    with pytest.raises(BadImage, match="more than 100 scans"):
        read_pixels(io.BytesIO(scans(101, side=64)), wanted)
