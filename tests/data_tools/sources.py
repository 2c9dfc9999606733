"""Seven small images as every kind of source, and what a shard set holds."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from fasttrain_data import convert, decode_record, load_index, open_shard, read_records
from tests.hostile.files import idx, tar_of

Images = dict[str, list[np.ndarray]]


def content(folder: Path) -> list[tuple[str, bytes]]:
    """(class, pixels) of every record, sorted."""
    index = load_index(folder)
    found = []
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                pixels = decode_record(record, index, name=shard.name)
                found.append((index.classes[record.label].name, pixels.tobytes()))
    return sorted(found)


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def expected(images: Images) -> list[tuple[str, bytes]]:
    return sorted((name, each.tobytes()) for name, group in images.items() for each in group)


def named(images: Images) -> dict[str, tuple[bytes, int]]:
    """File name -> PNG and label, as EDM's dataset tool names them."""
    pairs = [(each, int(name)) for name, group in images.items() for each in group]
    return {f"00000/img{n:08d}.png": (png(p), label) for n, (p, label) in enumerate(pairs)}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edm_members(images: Images) -> dict[str, bytes]:
    files = named(images)
    table = {"labels": [[name, label] for name, (_, label) in files.items()]}
    return {
        "dataset.json": json.dumps(table).encode(),
        **{name: data for name, (data, _) in files.items()},
    }


def make_zip(root: Path, images: Images) -> Path:
    return write_zip(root / "edm.zip", edm_members(images))


def make_deflated(root: Path, images: Images) -> Path:
    return write_zip(root / "edm.zip", edm_members(images), zipfile.ZIP_DEFLATED)


def make_edm_folder(root: Path, images: Images) -> Path:
    for name, data in edm_members(images).items():
        (root / "edm" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "edm" / name).write_bytes(data)
    return root / "edm"


def make_nested_tar(root: Path, images: Images) -> Path:
    inner = {
        f"{name}.tar": tar_of({f"{name}_{n}.png": png(p) for n, p in enumerate(group)})
        for name, group in images.items()
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    return root / "ILSVRC2012_img_train.tar"


def make_class_tars(root: Path, images: Images) -> Path:
    (root / "tars").mkdir()
    for name, group in images.items():
        members = {f"{name}_{n}.png": png(p) for n, p in enumerate(group)}
        (root / "tars" / f"{name}.tar").write_bytes(tar_of(members))
    return root / "tars"


def make_parquet(root: Path, images: Images) -> Path:
    rows = [(png(p), int(name)) for name, group in images.items() for p in group]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["0", "1"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "table/data").mkdir(parents=True)
    for part, chosen in enumerate((rows[:3], rows[3:])):
        columns = {
            "image": pyarrow.array([{"bytes": data, "path": "x.png"} for data, _ in chosen]),
            "label": pyarrow.array([label for _, label in chosen], pyarrow.int64()),
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        name = f"train-{part:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, root / "table/data" / name, row_group_size=2)
    other = pyarrow.table({"image": [b"not read"], "label": [0]})
    pyarrow.parquet.write_table(other, root / "table/data/test-00000-of-00001.parquet")
    return root / "table"


def make_shards(root: Path, images: Images) -> Path:
    convert(make_zip(root, images), root / "made", images_per_shard=3, record="webp")
    return root / "made"


def make_raw(root: Path, images: Images) -> Path:
    convert(make_zip(root, images), root / "made", images_per_shard=3, record="raw", seed=4)
    return root / "made"


KINDS: dict[str, Callable[[Path, Images], Path]] = {
    "zip": make_zip,
    "deflated zip": make_deflated,
    "EDM folder": make_edm_folder,
    "nested tar": make_nested_tar,
    "folder of class tars": make_class_tars,
    "parquet": make_parquet,
    "WebP shards": make_shards,
    "raw shards": make_raw,
}


def write_idx(folder: Path, pixels: np.ndarray, labels: np.ndarray, ending: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
        data = idx(array.shape, array.astype(np.uint8).tobytes())
        data = gzip.compress(data) if ending else data
        for prefix in ("train", "t10k"):
            (folder / f"{prefix}-{name}{ending}").write_bytes(data)
    return folder


def cifar_batch(pixels: np.ndarray, labels: list[int], protocol: int) -> bytes:
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    keys = {
        "data": np.ascontiguousarray(flat),
        "labels": labels,
        "filenames": ["x.png"] * len(labels),
    }
    return pickle.dumps({k.encode(): v for k, v in keys.items()}, protocol)


def write_cifar(folder: Path, pixels: np.ndarray, labels: list[int], protocol: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(1, 6):
        part = slice(number - 1, None, 5)
        batch = cifar_batch(pixels[part], labels[part], protocol)
        (folder / f"data_batch_{number}").write_bytes(batch)
    (folder / "test_batch").write_bytes(cifar_batch(pixels[:1], labels[:1], protocol))
    meta = {b"label_names": [b"cat", b"dog"], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return folder
