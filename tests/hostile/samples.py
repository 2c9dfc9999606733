"""One sound file of each kind that is read, and the reader that takes it.

for target in targets():
    target.read(target.samples[0])
"""

from __future__ import annotations

import io
import json

import numpy as np

from tests.hostile import files, mutations
from tests.hostile.readers import (
    CSV,
    JSON,
    PARQUET,
    PICKLE,
    Target,
    picture_target,
    read_index,
    shard_target,
    source_target,
    squeeze,
    tar_index_target,
    tars_target,
)

__all__ = ["Target", "targets"]


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
        shard_target("png"),
        shard_target("webp"),
        shard_target("raw"),
        tars_target(),
        tar_index_target(),
        Target("index.json", (index,), read_index, JSON, 100),
        picture_target(
            "PNG", (picture, files.png(5, 4, depth=16, color=6), _animated()), mutations.PNG
        ),
        picture_target("WebP", (*_webp(), files.image("WEBP", lossless=True)), mutations.RIFF),
        picture_target(
            "JPEG", (files.image("JPEG"), files.image("JPEG", progressive=True)), mutations.NOTHING
        ),
        picture_target(
            "BMP", (files.image("BMP"), files.image("BMP", mode="P")), mutations.NOTHING
        ),
        picture_target("GIF", (files.image("GIF"), _animated("GIF")), mutations.NOTHING),
        picture_target("TIFF", _tiffs(), mutations.NOTHING),
        source_target("zip", "x.zip", _zips(pair, table), mutations.ZIP),
        source_target(
            "tar",
            "x.tar",
            (tar(member("a/x.png", picture), member("b/y.png", picture)),),
            mutations.TAR,
        ),
        source_target("tar of tars", "x.tar", (tar(member("n1.tar", inner)),), mutations.TAR),
        source_target(
            "IDX images",
            idx,
            (files.idx((2, 6, 6)),),
            mutations.NOTHING,
            beside={labels: files.idx((2,))},
        ),
        source_target(
            "IDX labels",
            labels,
            (files.idx((2,)),),
            mutations.NOTHING,
            beside={idx: files.idx((2, 6, 6))},
        ),
        source_target(
            "gzip",
            idx + ".gz",
            (squeeze(files.idx((2, 6, 6))),),
            mutations.NOTHING,
            beside={labels: files.idx((2,))},
        ),
        source_target(
            "CIFAR batch", "data_batch_1", (files.cifar(2), files.cifar(2, 4)), PICKLE, beside=cifar
        ),
        source_target("CIFAR classes", "batches.meta", (_meta(),), PICKLE, beside=cifar),
        source_target(
            "CIFAR archive",
            "cifar.tar.gz",
            (tar(*(member(k, v) for k, v in cifar.items())),),
            mutations.TAR,
            wrap=squeeze,
        ),
        source_target("parquet", "x.parquet", _parquet(), PARQUET, megabytes=4500),
        source_target("emoji package", "x.tgz", (package,), mutations.TAR, wrap=squeeze),
        source_target(
            "emoji.json", "emoji.json", (emoji,), JSON, beside={"img/g/64/a.png": picture}
        ),
        source_target("dataset.json", "dataset.json", (table,), JSON, beside=pair),
        *_labels(pair),
        source_target("CIFAR-100", "train", (_hundred(),), PICKLE, beside=_rest_of_hundred()),
        source_target(
            "small ImageNet", "train_data_batch_1", (_small_imagenet(),), PICKLE, beside={}
        ),
    )


def _labels(pair: dict[str, bytes]) -> tuple[Target, ...]:
    """Files of labels."""
    rows = [{"file_name": name, "label": label} for label, name in enumerate(pair)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    table = b'file_name,label,text\n0/a.png,x,"1, 2"\n0/b.png,y,\n'
    celeba = b"2\nSmiling Male\na.png  1 -1\nb.png -1 -1\n"
    return (
        source_target("metadata.jsonl", "metadata.jsonl", (lines,), JSON, beside=pair),
        source_target("metadata.csv", "metadata.csv", (table,), CSV, beside=pair),
        source_target("attributes", "list_attr_celeba.txt", (celeba,), CSV, beside=pair),
        source_target(
            "annotations",
            "val_annotations.txt",
            (b"a.png\tn1\nb.png\tn2\n",),
            CSV,
            beside=pair,
        ),
        source_target(
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


def _animated(kind: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    frames = [Image.new("RGBA", (6, 6), color) for color in ("red", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _webp() -> tuple[bytes, ...]:
    return files.image("WEBP"), files.image(
        "WEBP", mode="RGBA", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"
    )


def _tiffs() -> tuple[bytes, ...]:
    modes = {"tiff_lzw": "RGB", "jpeg": "RGB", "tiff_deflate": "L", "group4": "1", "packbits": "P"}
    packed = (files.image("TIFF", mode=modes[each], compression=each) for each in modes)
    return (*packed, files.image("TIFF", big_tiff=True), _animated("TIFF"))


def _zips(pair: dict[str, bytes], table: bytes) -> tuple[bytes, ...]:
    import zipfile

    members = {"dataset.json": table, **pair}
    return tuple(
        bytes(files.zip_of(each, method))
        for each in (members, pair)
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
