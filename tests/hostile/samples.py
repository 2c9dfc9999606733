"""One sound file of each kind that is read, and the reader that takes it.

for target in targets():
    target.read(target.samples[0])
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fasttrain_data import DataError, Index, Options, load_index, parse_index, run_conversion
from fasttrain_data.images import BadImage, Wanted, read_header, read_pixels
from fasttrain_data.indexing import run_indexing
from fasttrain_data.reader import decode_record, read_records
from fasttrain_data.records import Format, encode_image
from fasttrain_data.sources import open_source
from fasttrain_data.tar_index import (
    RECORDS_NAME,
    decode_file,
    load_tar_index,
    parse_tar_index,
    read_rows,
)
from tests.hostile import files, mutations
from tests.hostile.mutations import Shape

__all__ = ["Target", "targets"]

OPTIONS = Options(resolution=6, channels=3, images_per_shard=4)


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        name: what it is.
        samples: sound files.
        read: raises what the reader raises that is not its own error.
        shape: what is known of the format.
        megabytes: what reading one may take.
    """

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[bytes], None]
    shape: Shape
    megabytes: int


def _index(record: Format) -> Index:
    table = files.index_of({"shard-000000.tar": bytes(4096)}, 2, record=record)
    table["classes"] = [{"name": "a", "images": 2}, {"name": "b", "images": 0}]
    return Index.model_validate_json(json.dumps(table))


def _shard(record: Format) -> Target:
    index = _index(record)
    pixels = np.arange(2 * 108, dtype=np.uint8).reshape(2, 6, 6, 3)
    if record == "raw":
        images = files.npy("|u1", np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        labels = files.npy("<i4", np.array([0, 1], np.int32))
        parts = [files.member("0.images.npy", images), files.member("0.labels.npy", labels)]
    else:
        parts = []
        for key, each in enumerate(pixels):
            parts += [files.member(f"{key}.{record}", encode_image(each, record))]
            parts += [files.member(f"{key}.cls", b"0")]

    def read(data: bytes) -> None:
        try:
            for each in read_records(io.BytesIO(data), index, name="x"):
                decode_record(each, index, name="x")
        except DataError as error:
            _look_at(error)

    return Target(f"shard of {record}", (files.tar(*parts),), read, mutations.TAR, 70)


def _tars() -> Target:
    """A tar of others, indexed and then read as training does."""
    picture = files.image()
    parts = [
        files.member(f"{n}.png", picture) + files.member(f"{n}.cls", b"%d" % n) for n in (0, 1)
    ]

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "in.tar"
            path.write_bytes(data)
            try:
                out = run_indexing(str(path), out=Path(folder) / "out", workers=1).folder
                index = load_tar_index(out)
                assert index is not None
                view = index.view(resolution=6, channels=3)
                with (out / RECORDS_NAME).open("rb") as records:
                    rows, keys = read_rows(records, index.shards[0])
                for key, (offset, size, _) in zip(keys, rows.tolist(), strict=True):
                    try:
                        decode_file(data[offset : offset + size], view, key)
                    except DataError as error:
                        _look_at(error)
            except DataError as error:
                _look_at(error)

    return Target("WebDataset's tar", (files.tar(*parts),), read, mutations.TAR, 200)


def _tar_index() -> Target:
    """An index of tars that came with them, and its rows."""
    table = {
        "tars_version": 1,
        "classes": [{"name": "a", "images": 1}],
        "images": 1,
        "shards": [{"name": "x.tar", "images": 1, "bytes": 9999, "sha256": "0" * 64, "length": 17}],
        "records_bytes": 17,
        "records_sha256": "0" * 64,
        "content_sha256": "0" * 64,
        "options": {},
    }

    def read(data: bytes) -> None:
        try:
            index = parse_tar_index(data, "x")
            index.view(resolution=6, channels=3)
            for shard in index.shards:
                read_rows(io.BytesIO(data), shard)
        except DataError as error:
            _look_at(error)

    return Target("index of tars", (json.dumps(table).encode(),), read, JSON, 100)


def _picture(name: str, samples: tuple[bytes, ...], shape: Shape) -> Target:
    def read(data: bytes) -> None:
        for wanted in (
            Wanted(channels=3, resolution=6),
            Wanted(channels=1, resolution=6, crop="adm"),
        ):
            try:
                read_header(io.BytesIO(data))
                read_pixels(io.BytesIO(data), wanted)
            except BadImage as error:
                _look_at(error)

    return Target(name, samples, read, shape, 1536)


def _look_at(error: BaseException) -> None:
    """An error is one printable line. A decoder's MemoryError becomes one too; here it means that
    the decoder asked for more than it may."""
    line, cause = str(error), error
    if not line.isprintable() or len(line) > 1000:
        raise AssertionError(f"not one printable line: {line!r}")
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise cause
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]


def _source(
    name: str,
    file: str,
    samples: tuple[bytes, ...],
    shape: Shape,
    *,
    beside: dict[str, bytes] | None = None,
    wrap: Callable[[bytes], bytes] = bytes,
    megabytes: int = 200,
) -> Target:
    """A file that is converted on its own, or `beside` others in a folder."""

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "in"
            for path, content in {**(beside or {}), file: wrap(data)}.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(content)
            source = root if beside is not None else root / file
            try:
                run_conversion(source, Path(folder) / "out", OPTIONS, max_bad=10**6, workers=1)
                load_index(Path(folder) / "out")
                open_source(source).layout(None, None, lambda *_: None, lambda *_: None)
            except DataError as error:
                _look_at(error)

    return Target(name, samples, read, shape, megabytes)


def _squeeze(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _parquet() -> tuple[bytes, ...]:
    import pyarrow
    from pyarrow.parquet import write_table

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pictures = [{"bytes": files.image(), "path": "x.png"} for _ in range(3)]
    table = pyarrow.table({"image": pictures, "label": [0, 1, 0]})
    made = []
    for codec in ("snappy", "none"):
        buffer = io.BytesIO()
        write_table(table.replace_schema_metadata(metadata), buffer, compression=codec)
        made.append(buffer.getvalue())
    return tuple(made)


def _words(text: str) -> Shape:
    return Shape(words=tuple(text.encode("latin1").split()) + mutations.NAMES)


JSON = _words(
    r'[ ] { } , : "" null -1 1e999 NaN true 99999999999999999999 "\ud800" "\n\u001b" [[ "a"'
)
CSV = Shape(
    words=(
        b",",
        b";",
        b'"',
        b"\n",
        b"\t",
        b"\r",
        b"\0",
        b"\xef\xbb\xbf",
        b"-1",
        b"file_name",
        b"label",
        b"9" * 20,
    )
)
PICKLE = _words(
    "\x96\xff\xff\xff\xff\x00\x00\x00 cos\nsystem\n c_codecs\nencode\n ] } ( . R b T\xff"
)
PARQUET = _words("PAR1 bytes image label binary \xff\xff\xff\xff\x07 \x15\xfe\xff\xff\xff\x0f")


def targets() -> tuple[Target, ...]:
    """All kinds."""
    picture = files.image()
    member, tar = files.member, files.tar
    inner = tar(member("n1_0.png", picture), member("n1_1.png", picture))
    cifar = {f"data_batch_{n}": files.cifar(2) for n in range(1, 6)}
    cifar["batches.meta"] = _meta()
    emoji = json.dumps([{"image": "a.png", "category": "Faces", "skin_variations": {}}]).encode()
    package = tar(member("package/emoji.json", emoji), member("package/img/g/64/a.png", picture))
    table = json.dumps({"labels": [["0/a.png", 0], ["0/b.png", 3]]}).encode()
    pair = {"0/a.png": picture, "0/b.png": picture}
    index = json.dumps(files.index_of({"shard-000000.tar": bytes(4096)}, 2)).encode()
    idx, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    return (
        _shard("png"),
        _shard("webp"),
        _shard("raw"),
        _tars(),
        _tar_index(),
        Target("index.json", (index,), _parse_index, JSON, 100),
        _picture("PNG", (picture, files.png(5, 4, depth=16, color=6), _animated()), mutations.PNG),
        _picture("WebP", (*_webp(), files.image("WEBP", lossless=True)), mutations.RIFF),
        _picture(
            "JPEG", (files.image("JPEG"), files.image("JPEG", progressive=True)), mutations.NOTHING
        ),
        _picture("BMP", (files.image("BMP"), files.image("BMP", mode="P")), mutations.NOTHING),
        _source("zip", "x.zip", _zips(pair, table), mutations.ZIP),
        _source(
            "tar",
            "x.tar",
            (tar(member("a/x.png", picture), member("b/y.png", picture)),),
            mutations.TAR,
        ),
        _source("tar of tars", "x.tar", (tar(member("n1.tar", inner)),), mutations.TAR),
        _source(
            "IDX images",
            idx,
            (files.idx((2, 6, 6)),),
            mutations.NOTHING,
            beside={labels: files.idx((2,))},
        ),
        _source(
            "IDX labels",
            labels,
            (files.idx((2,)),),
            mutations.NOTHING,
            beside={idx: files.idx((2, 6, 6))},
        ),
        _source(
            "gzip",
            idx + ".gz",
            (_squeeze(files.idx((2, 6, 6))),),
            mutations.NOTHING,
            beside={labels: files.idx((2,))},
        ),
        _source(
            "CIFAR batch", "data_batch_1", (files.cifar(2), files.cifar(2, 4)), PICKLE, beside=cifar
        ),
        _source("CIFAR classes", "batches.meta", (_meta(),), PICKLE, beside=cifar),
        _source(
            "CIFAR archive",
            "cifar.tar.gz",
            (tar(*(member(k, v) for k, v in cifar.items())),),
            mutations.TAR,
            wrap=_squeeze,
        ),
        _source("parquet", "x.parquet", _parquet(), PARQUET, megabytes=4500),
        _source("emoji package", "x.tgz", (package,), mutations.TAR, wrap=_squeeze),
        _source("emoji.json", "emoji.json", (emoji,), JSON, beside={"img/g/64/a.png": picture}),
        _source("dataset.json", "dataset.json", (table,), JSON, beside=pair),
        *_labels(pair),
        _source("CIFAR-100", "train", (_hundred(),), PICKLE, beside=_rest_of_hundred()),
        _source("small ImageNet", "train_data_batch_1", (_small_imagenet(),), PICKLE, beside={}),
    )


def _parse_index(data: bytes) -> None:
    try:
        parse_index(data, "x")
    except DataError as error:
        _look_at(error)


def _labels(pair: dict[str, bytes]) -> tuple[Target, ...]:
    """Files of labels."""
    rows = [{"file_name": name, "label": label} for label, name in enumerate(pair)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    table = b'file_name,label,text\n0/a.png,x,"1, 2"\n0/b.png,y,\n'
    celeba = b"2\nSmiling Male\na.png  1 -1\nb.png -1 -1\n"
    return (
        _source("metadata.jsonl", "metadata.jsonl", (lines,), JSON, beside=pair),
        _source("metadata.csv", "metadata.csv", (table,), CSV, beside=pair),
        _source("attributes", "list_attr_celeba.txt", (celeba,), CSV, beside=pair),
        _source(
            "annotations",
            "val_annotations.txt",
            (b"a.png\tn1\nb.png\tn2\n",),
            CSV,
            beside=pair,
        ),
        _source(
            "MATLAB", "imagelabels.mat", _matlab(), mutations.NOTHING, beside=pair, megabytes=1500
        ),
    )


def _matlab() -> tuple[bytes, ...]:
    import scipy.io

    made = []
    for squeezed in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"labels": np.array([[1, 2]], np.uint8)}, do_compression=squeezed)
        made.append(buffer.getvalue())
    return tuple(made)


def _hundred() -> bytes:
    import pickle

    rows = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({"data": rows, "fine_labels": [0, 1], "coarse_labels": [0, 0]}, 2)


def _rest_of_hundred() -> dict[str, bytes]:
    import pickle

    meta = {"fine_label_names": ["a", "b"], "coarse_label_names": ["c"]}
    return {"test": _hundred(), "meta": pickle.dumps(meta, 2)}


def _small_imagenet() -> bytes:
    import pickle

    rows = np.zeros((2, 192), np.uint8)
    return pickle.dumps({"data": rows, "labels": [1, 1000], "mean": np.zeros(192)}, 4)


def _meta() -> bytes:
    import pickle

    return pickle.dumps({b"label_names": [b"cat", b"dog"], b"num_vis": 3072}, 2)


def _animated() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    frames = [Image.new("RGBA", (6, 6), color) for color in ("red", "blue")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _webp() -> tuple[bytes, ...]:
    return files.image("WEBP"), files.image(
        "WEBP", mode="RGBA", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"
    )


def _zips(pair: dict[str, bytes], table: bytes) -> tuple[bytes, ...]:
    import zipfile

    members = {"dataset.json": table, **pair}
    return tuple(
        bytes(files.zip_of(each, method))
        for each in (members, pair)
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
