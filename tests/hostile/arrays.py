"""Files of pixels and tables: IDX, CIFAR-10's pickles, parquet; and what is gzipped."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.cases import CONVERT, case, write
from tests.hostile.files import cifar, idx, image, zeros
from tests.hostile.pictures import Touches

__all__ = ["meta"]

IMAGES, LABELS = "in/train-images-idx3-ubyte", "in/train-labels-idx1-ubyte"


def arrays(what: str, expect: str, files: dict[str, Callable[[], bytes]], **more: Any) -> None:
    """Files of an IDX set."""

    def make(folder: Path) -> None:
        for name, data in files.items():
            write(folder / name, data())

    case("IDX", what, expect=expect, **more)(make)


ONE = {LABELS: lambda: idx((1,))}
arrays(
    "4,294,967,295 cubed",
    "claims the shape [4294967295, 4294967295, 4294967295]: too large",
    {IMAGES: lambda: idx((2**32 - 1,) * 3, b""), **ONE},
)
arrays(
    "1,000 images in a file of 100 bytes",
    "claims the shape [1000, 28, 28]: too large, or cut short",
    {IMAGES: lambda: idx((1000, 28, 28), bytes(100)), **ONE},
)
arrays(
    "gzip of 1 image and then 1 GiB of zeros",
    "out: 1 images of 8x8x1",
    {IMAGES + ".gz": lambda: zeros(1 << 30, gzipped=True, head=idx((1, 8, 8))), **ONE},
    status=0,
)
arrays(
    "gzip of 256 MiB of zeros, as it says",
    "are not the images and the labels of one set",
    {IMAGES + ".gz": lambda: zeros(1 << 28, gzipped=True, head=idx((1 << 18, 32, 32), b"")), **ONE},
    megabytes=400,
)
arrays(
    "gzip that claims 2 GiB",
    "claims the shape [2097152, 32, 32]: too large",
    {IMAGES + ".gz": lambda: zeros(1 << 20, gzipped=True, head=idx((1 << 21, 32, 32), b"")), **ONE},
)
arrays(
    "labels of 3 dimensions",
    "are not the images and the labels of one set",
    {IMAGES: lambda: idx((1, 8, 8)), LABELS: lambda: idx((1, 1, 1))},
)


def meta(names: Any = (b"cat", b"dog")) -> bytes:
    """CIFAR-10's names of classes."""
    return pickle.dumps({b"label_names": list(names), b"num_vis": 3072}, 2)


def batch(what: str, data: Callable[[], bytes], expect: str, *, name: str = "data_batch_3") -> None:
    """A batch of CIFAR-10 that is another pickle."""

    def make(folder: Path) -> None:
        for number in range(1, 6):
            write(folder / f"in/data_batch_{number}", cifar(2))
        write(folder / "in/batches.meta", meta())
        write(folder / "in" / name, data())

    case("CIFAR-10", what, expect=expect)(make)


def encoded_again(times: int) -> bytes:
    """One text of 10 MB, which the pickle asks to encode again and again."""
    text = b"X" + struct.pack("<I", 10_000_000) + b"a" * 10_000_000 + b"q\0"
    call = b"c_codecs\nencode\nq\1X\x06\0\0\0latin1q\2"
    return b"\x80\x02" + text + call + b"]" + b"h\1h\0h\2\x86Ra" * times + b"."


def doubled(times: int) -> bytes:
    """A name that is a list of two lists, each of which is a list of two lists..."""
    names: Any = ["x" * 100]
    for _ in range(times):
        names = [names, names]
    return meta([names])


class Rows:
    """An array whose rows are counted by a text: 3,072 times as long, it would have 92 GB."""

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, _ = tuple(np.zeros(1, np.uint8).__reduce__())
        return make, arguments, (1, ("x" * 30_000_000, 3072), np.dtype("u1"), False, "")


BATCH = "is not one of CIFAR-10's batches: "
NAMES, CALL = f"{BATCH}it names", "which is not allowed"
batch(
    "calls os.system",
    lambda: pickle.dumps({b"data": Touches()}),
    f"{NAMES} posix.system, {CALL}",
)
batch(
    "calls eval",
    lambda: b"cbuiltins\neval\n(X\x05\0\0\x001 + 1tR.",
    f"{NAMES} builtins.eval, {CALL}",
)
batch(
    "asks for 1 TiB (BYTEARRAY8)",
    lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    BATCH,
)
batch("a memo of 16 GiB (LONG_BINPUT)", lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "does not hold")
batch("a memo of 16 GiB (PUT)", lambda: b"\x80\x02}p2147483647\n.", f"{BATCH}it uses")
batch("a text of 2 GiB that is not there", lambda: b"\x80\x02X\xff\xff\xff\x7f.", BATCH)
batch("10 MB encoded 10,000 times", lambda: encoded_again(10_000), f"{BATCH}it claims more")
batch(
    "60 million empty dictionaries",
    lambda: b"\x80\x02" + b"}" * 60_000_000,
    f"{BATCH}it takes more operations",
)
batch("a persistent id", lambda: b"\x80\x02Px\n.", f"{BATCH}it uses the opcode PERSID")
batch(
    "a state for a function",
    lambda: b"\x80\x02c_codecs\nencode\n}b.",
    f"{BATCH}it gives a Named a state",
)
batch(
    "an array whose number of rows is a text of 30 MB",
    lambda: pickle.dumps({b"data": Rows(), b"labels": []}, 2),
    "does not hold what",
)
batch("a class name of 2^40 lists", lambda: doubled(40), "does not hold what", name="batches.meta")
batch("257 MiB", lambda: bytes(257 << 20), "is larger than 256 MiB")


@case(
    "CIFAR-10",
    "gzip of 600 MiB of zeros",
    expect="cifar.tar.gz holds more than 512 MiB",
    command=("convert", "cifar.tar.gz", "out"),
)
def _(folder: Path) -> None:
    write(folder / "cifar.tar.gz", zeros(600 << 20, gzipped=True))


def table(
    what: str, expect: str, make: Callable[[], tuple[dict[str, Any], dict[str, Any]]], **more: Any
) -> None:
    """A parquet table of these columns, written with these options."""

    def write_it(folder: Path) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        columns, options = make()
        buffer = io.BytesIO()
        write_table(pyarrow.table(columns), buffer, **options)
        write(folder / "in.parquet", buffer.getvalue())

    command = ("convert", "in.parquet", "out", *CONVERT[3:])
    case("parquet", what, expect=expect, command=command, **more)(write_it)


def repeated(size: int, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One value, N times, of which the file holds one."""
    import pyarrow

    indices = pyarrow.array([0] * rows, pyarrow.int32())
    values = pyarrow.array([bytes(size)], pyarrow.binary())
    column = pyarrow.DictionaryArray.from_arrays(indices, values)
    return {"image": column}, {"compression": "none", "store_schema": False}


def nothing(rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows without an image."""
    import pyarrow

    return {"image": pyarrow.nulls(rows, pyarrow.binary())}, {}


def one(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One value of zeros, well compressed, beside a picture."""
    return {"image": [image(), bytes(size)], "label": [0, 0]}, {"compression": "zstd"}


table(
    "20 MB, 50,000 times",
    "takes more memory to read than is allowed",
    lambda: repeated(20_000_000, 50_000),
    megabytes=1500,
)
table(
    "300 KB, 18,000 times",
    "cannot copy in.parquet: File too large",
    lambda: repeated(300_000, 18_000),
    megabytes=1000,
)
table(
    "10 million rows of nothing",
    "claims 10000000 rows: it is too small for them",
    lambda: nothing(10_000_000),
)
table(
    "a value of 256 MiB in 20 KB",
    "left out: in.parquet/row 1: more than 64 MiB",
    lambda: one(256 << 20),
    status=0,
    megabytes=2500,
)
table(
    "labels of 2^62",
    "holds no class numbers or names",
    lambda: ({"image": [image()], "label": [1 << 62]}, {}),
)


@case(
    "parquet",
    "every hundredth byte another",
    expect="is not a sound table",
    command=("convert", "in.parquet", "out"),
)
def _(folder: Path) -> None:
    data = bytearray(_sound_table())
    for place in range(4, len(data) - 8, 100):
        data[place] ^= 0x55
    write(folder / "in.parquet", bytes(data))


def _sound_table() -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(pyarrow.table({"image": [image()] * 20, "label": [0] * 20}), buffer)
    return buffer.getvalue()


@case(
    "parquet",
    "a footer that claims 2 GiB",
    expect="is not a sound table",
    command=("convert", "in.parquet", "out"),
)
def _(folder: Path) -> None:
    write(folder / "in.parquet", b"PAR1" + bytes(100) + struct.pack("<I", 2**31 - 1) + b"PAR1")
