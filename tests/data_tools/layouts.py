"""Public data sets as their publishers pack them, made small: `LAYOUTS` has a row for each way to
convert one, with the class and the first pixel of every image that must come out.

Images are of one value each, so that a value tells which image it is.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from PIL import Image

__all__ = ["LAYOUTS", "Layout"]


class Layout(NamedTuple):
    """A set, the options of its conversion, and (class, value) of each image."""

    name: str
    make: Callable[[Path], Path]
    expected: list[tuple[str, int]]
    options: Mapping[str, Any]


LAYOUTS: list[Layout] = []


def layout(name: str, expected: Iterable[tuple[str, int]], **options: Any) -> Callable[..., Any]:
    """For a function that makes the set; several may stand above one."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        LAYOUTS.append(Layout(name, make, sorted(expected), options))
        return make

    return add


def picture(value: int, kind: str = "PNG", side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, kind, quality=100)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def pictures(*names: str, kind: str = "PNG") -> dict[str, bytes | str]:
    """An image of value 10, 20, ... under each name."""
    return {name: picture(10 * n, kind) for n, name in enumerate(names, 1)}


def planes(values: Iterable[int], side: int = 32) -> np.ndarray:
    """uint8 [n, 3 * side * side]."""
    return np.stack([np.full(3 * side * side, value, np.uint8) for value in values])


def tar_gz(path: Path, folder: str, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            content = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# As Python 2 wrote them: texts are bytes there, and so they are in the original files.
def old_pickle(table: dict[str, Any]) -> bytes:
    """A dictionary of arrays, numbers and texts with Python 2's opcodes."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else long(text)

    def long(data: bytes) -> bytes:
        return b"T" + len(data).to_bytes(4, "little") + data

    def dump(value: Any) -> bytes:
        if isinstance(value, str):
            return short(value.encode())
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        shape = b"".join(dump(int(side)) for side in value.shape)
        kind = (
            b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        )
        return head + shape + b"\x86" + kind + b"K\0tb\x89" + short(value.tobytes()) + b"tb"

    items = b"".join(dump(key) + dump(value) for key, value in table.items())
    return b"\x80\x02}(" + items + b"u."


CIFAR10 = [("cat", 10), ("dog", 20), ("dog", 30), ("cat", 40), ("dog", 50)]
FISH = [("shark", 10), ("trout", 20), ("oak", 30)]
BIG = [("fish", 10), ("fish", 20), ("trees", 30)]


@layout("CIFAR-10, python", CIFAR10)
@layout("CIFAR-10, python, test", [("dog", 60)], split="test")
@layout("CIFAR-10 as one class", [("images", value) for _, value in CIFAR10], label_column="none")
def cifar10(root: Path) -> Path:
    def batch(label: int, value: int) -> bytes:
        names = {"batch_label": "training", "labels": [label], "filenames": ["a_s_000001.png"]}
        return old_pickle({**names, "data": planes([value])})

    labels = (0, 1, 1, 0, 1)
    files = {f"data_batch_{n + 1}": batch(k, 10 * n + 10) for n, k in enumerate(labels)}
    files["test_batch"] = batch(1, 60)
    meta = {"num_cases_per_batch": 1, "label_names": ["cat", "dog"], "num_vis": 3072}
    files["batches.meta"] = old_pickle(meta)
    return tar_gz(root / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)


@layout("CIFAR-10, binary", CIFAR10)
def cifar10_binary(root: Path) -> Path:
    files: dict[str, bytes | str] = {
        f"data_batch_{n + 1}.bin": bytes([label]) + planes([10 * n + 10]).tobytes()
        for n, label in enumerate((0, 1, 1, 0, 1))
    }
    files["test_batch.bin"] = b"\1" + planes([60]).tobytes()
    files |= {"batches.meta.txt": "cat\ndog\n\n", "readme.html": "<html>"}
    return tar_gz(root / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)


@layout("CIFAR-100, python", FISH)
@layout("CIFAR-100, python, coarse", BIG, label_column="coarse_labels")
@layout("CIFAR-100, python, test", [("oak", 40)], split="test")
def cifar100(root: Path) -> Path:
    train = {"fine_labels": [1, 2, 0], "coarse_labels": [0, 0, 1], "data": planes([10, 20, 30])}
    test = {"fine_labels": [0], "coarse_labels": [1], "data": planes([40])}
    meta = {"fine_label_names": ["oak", "shark", "trout"], "coarse_label_names": ["fish", "trees"]}
    tables = {"train": train, "test": test, "meta": meta}
    files = {name: old_pickle(table) for name, table in tables.items()}
    return write(root / "cifar-100-python", {**files, "file.txt~": ""})


@layout("CIFAR-100, binary", FISH)
@layout("CIFAR-100, binary, coarse", BIG, label_column="coarse_labels")
def cifar100_binary(root: Path) -> Path:
    rows = zip((b"\0\1", b"\0\2", b"\1\0"), planes([10, 20, 30]), strict=True)
    train = b"".join(labels + pixels.tobytes() for labels, pixels in rows)
    files = {"train.bin": train, "test.bin": b"\1\0" + planes([40]).tobytes()}
    names = {
        "fine_label_names.txt": "oak\nshark\ntrout\n",
        "coarse_label_names.txt": "fish\ntrees\n",
    }
    return tar_gz(root / "cifar-100-binary.tar.gz", "cifar-100-binary", {**files, **names})


@layout("MNIST", [("0", 10), ("2", 20)])
@layout("MNIST, test", [("1", 30)], split="test")
@layout(
    "MNIST, named",
    [("T-shirt/top", 10), ("Pullover", 20)],
    class_names=["T-shirt/top", "Trouser", "Pullover"],
)
def mnist(root: Path) -> Path:
    def idx(array: np.ndarray) -> bytes:
        sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
        return gzip.compress(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())

    for prefix, values, labels in (("train", [10, 20], [0, 2]), ("t10k", [30], [1])):
        images = np.stack([np.full((28, 28), value, np.uint8) for value in values])
        write(
            root / "mnist",
            {
                f"{prefix}-images-idx3-ubyte.gz": idx(images),
                f"{prefix}-labels-idx1-ubyte.gz": idx(np.asarray(labels, np.uint8)),
            },
        )
    return root / "mnist"


@layout("STL-10", [("airplane", 10), ("bird", 20)])
@layout("STL-10, unlabeled", [("images", 40)], split="unlabeled")
def stl10(root: Path) -> Path:
    files: dict[str, bytes | str] = {
        "train_X.bin": planes([10, 20], 96).tobytes(),
        "train_y.bin": b"\1\2",
        "unlabeled_X.bin": planes([40], 96).tobytes(),
        "class_names.txt": "airplane\nbird\n",
        "fold_indices.txt": "0 1\n",
    }
    return write(root / "stl10_binary", files)


@layout("ImageNet 64x64", [("n01", 10), ("n03", 20), ("n02", 30)])
@layout("ImageNet 64x64, val", [("n02", 40)], split="val")
def imagenet64(root: Path) -> Path:
    def batch(values: list[int], labels: list[int]) -> bytes:
        table = {"data": planes(values, 64), "labels": labels, "mean": np.zeros(12288)}
        return pickle.dumps(table, 4)

    names = {1: "n01", 2: "n03", 3: "n02"}
    lines = [f"{names.get(n, f'n1{n:04d}')} {n} thing_{n}" for n in range(1, 1001)]
    files: dict[str, bytes | str] = {
        "train_data_batch_1": batch([10, 20], [1, 2]),
        "train_data_batch_2": batch([30], [3]),
        "val_data": batch([40], [3]),
        "map_clsloc.txt": "\n".join(lines),
    }
    return write(root / "Imagenet64", files)


def meta_mat() -> bytes:
    """The development kit's: numbers in another order than names, and ranks above the classes."""
    names = {1: "n02", 2: "n01", 3: "n03", 1001: "n00"}
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    table = np.array([(n, name, "words") for n, name in names.items()], dtype=kinds)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": table[:, None]}, do_compression=True)
    return buffer.getvalue()


@layout("ImageNet, train", [("n01", 10), ("n02", 20)])
def imagenet_train(root: Path) -> Path:
    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    inner = {f"n0{n}.tar": tar({f"n0{n}_5.JPEG": picture(10 * n, "JPEG")}) for n in (1, 2)}
    return write(root, {"ILSVRC2012_img_train.tar": tar(inner)}) / "ILSVRC2012_img_train.tar"


@layout("ImageNet, val", [("n01", 10), ("n02", 20), ("n03", 30)])
def imagenet_val(root: Path) -> Path:
    files = pictures(*(f"ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)), kind="JPEG")
    files["ILSVRC2012_validation_ground_truth.txt"] = "2\n1\n3\n"
    return write(root / "val", {**files, "meta.mat": meta_mat()})


@layout("ImageNet, val tar", [("n01", 10), ("n02", 20)], labels="ILSVRC2012_devkit_t12")
def imagenet_val_tar(root: Path) -> Path:
    kit = {"ILSVRC2012_validation_ground_truth.txt": b"2\n1\n", "meta.mat": meta_mat()}
    write(root / "ILSVRC2012_devkit_t12/data", kit)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        names = ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
        for name, data in pictures(*names, kind="JPEG").items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(bytes(data)))
    return root / "ILSVRC2012_img_val.tar"


@layout("ImageNet, val, Kaggle", [("n02", 10), ("n01", 20)])
def imagenet_kaggle(root: Path) -> Path:
    files = pictures("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG", kind="JPEG")
    rows = "ILSVRC2012_val_00000002,n01 1 2 3 4 n02 5 6 7 8\nILSVRC2012_val_00000001,n02 9 9 9 9\n"
    return write(
        root / "val", {**files, "LOC_val_solution.csv": f"ImageId,PredictionString\n{rows}"}
    )


@layout("Tiny ImageNet", [("n01", 10), ("n02", 20)], split="train")
@layout("Tiny ImageNet, val", [("n02", 30), ("n01", 40)], split="val")
@layout("Tiny ImageNet, test", [("images", 50)], split="test")
def tiny_imagenet(root: Path) -> Path:
    files = pictures(
        "train/n01/images/n01_0.JPEG",
        "train/n02/images/n02_0.JPEG",
        "val/images/val_0.JPEG",
        "val/images/val_1.JPEG",
        "test/images/test_0.JPEG",
        kind="JPEG",
    )
    files["val/val_annotations.txt"] = (
        "val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t5\t6\t7\t8\n"
    )
    files |= {"train/n01/n01_boxes.txt": "n01_0.JPEG\t0\t10\t63\t58\n", "wnids.txt": "n01\nn02\n"}
    return write(root / "tiny-imagenet-200", files)


@layout("CelebA", [("images", 10), ("images", 20), ("images", 30)])
@layout(
    "CelebA, an attribute",
    [("Smiling", 10), ("not Smiling", 20), ("Smiling", 30)],
    label_column="Smiling",
)
@layout("CelebA, val", [("not Male", 20)], label_column="Male", split="val")
def celeba(root: Path) -> Path:
    names = [f"00000{n}.jpg" for n in (1, 2, 3)]
    files = pictures(*(f"img_align_celeba/{name}" for name in names), kind="JPEG")
    others = " ".join(f"Attribute_{n}" for n in range(10))
    rows = zip(names, (" 1 -1", "-1 -1", " 1  1"), strict=True)
    lines = [f"{name} {two} {'-1 ' * 10}" for name, two in rows]
    files["list_attr_celeba.txt"] = "\n".join(["3", f"Smiling Male {others}", *lines])
    files["list_eval_partition.txt"] = f"{names[0]} 0\n{names[1]} 1\n{names[2]} 2\n"
    return write(root / "celeba", files)


@layout("AFHQ, train", [("cat", 10), ("dog", 20)], split="train")
@layout("AFHQ, val", [("cat", 30), ("dog", 40)], split="val")
def afhq(root: Path) -> Path:
    names = [f"afhq/{s}/{c}/flickr_{c}_1.jpg" for s in ("train", "val") for c in ("cat", "dog")]
    with zipfile.ZipFile(root / "afhq.zip", "w") as archive:
        for name, data in pictures(*names, kind="JPEG").items():
            archive.writestr(name, data)
    return root / "afhq.zip"


@layout("FFHQ", [("images", 10), ("images", 20), ("images", 30)])
def ffhq(root: Path) -> Path:
    names = ("00000/00000.png", "00000/00999.png", "01000/01000.png")
    return write(root / "thumbnails128x128", {**pictures(*names), "LICENSE.txt": "CC"})


EDM = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png")


@layout("EDM's zip", [("0", 10), ("2", 20), ("0", 30)])
def edm(root: Path) -> Path:
    with zipfile.ZipFile(root / "set-64x64.zip", "w") as archive:
        for name, data in pictures(*EDM).items():
            archive.writestr(name, data)
        rows = [[name, label] for name, label in zip(EDM, (0, 2, 0), strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": rows}))
    return root / "set-64x64.zip"


@layout("EDM's zip, unlabelled", [("images", 10), ("images", 20), ("images", 30)])
def edm_unlabelled(root: Path) -> Path:
    with zipfile.ZipFile(root / "set-64x64.zip", "w") as archive:
        for name, data in pictures(*EDM).items():
            archive.writestr(name, data)
    return root / "set-64x64.zip"


@layout("Oxford flowers", [("0", 10), ("2", 20), ("1", 30)])
def flowers(root: Path) -> Path:
    files = pictures(*(f"jpg/image_0000{n}.jpg" for n in (1, 2, 3)), kind="JPEG")
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"labels": np.array([[1, 3, 2]], np.uint8)})
    return write(root / "102flowers", {**files, "imagelabels.mat": buffer.getvalue()})


@layout("Oxford pets", [("1", 10), ("2", 20)], labels="annotations/trainval.txt")
def pets(root: Path) -> Path:
    files = pictures("images/Abyssinian_1.jpg", "images/beagle_1.jpg", kind="JPEG")
    rows = "Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n"
    return write(root / "pets", {**files, "annotations/trainval.txt": rows})


@layout("imagefolder, CSV", [("red", 10), ("blue", 20)])
@layout("imagefolder, CSV, another", [("0", 10), ("10", 20)], label_column="age")
def imagefolder_csv(root: Path) -> Path:
    table = 'file_name,label,age,text\na/1.png,red,0,"one, two"\nb/2.png,blue,10,\n'
    return write(root / "in", {**pictures("a/1.png", "b/2.png"), "metadata.csv": table})


@layout("imagefolder, JSON lines", [("1", 10), ("0", 20), ("1", 30)])
@layout("imagefolder, JSON lines, train", [("1", 10), ("0", 20)], split="train")
def imagefolder_lines(root: Path) -> Path:
    files = pictures("train/1.png", "train/2.png", "test/3.png")
    rows = [{"file_name": "1.png", "label": 1}, {"file_name": "2.png", "label": 0}]
    files["train/metadata.jsonl"] = "\n".join(map(json.dumps, rows))
    files["test/metadata.jsonl"] = json.dumps({"file_name": "3.png", "label": 1}) + "\n"
    return write(root / "in", files)


@layout("captions beside class folders", [("a", 10), ("b", 20)])
def captions(root: Path) -> Path:
    files = pictures("a/1.png", "b/2.png")
    return write(root / "in", {**files, "metadata.csv": "file_name,text\na/1.png,x\nb/2.png,y\n"})


@layout("Kaggle's CSV", [("boxer", 10), ("beagle", 20)], labels="labels.csv", label_column="breed")
def kaggle(root: Path) -> Path:
    files = pictures("train/00ab.jpg", "train/00cd.jpg", kind="JPEG")
    rows = "id,breed\n00cd,beagle\n00ab,boxer\n00ff,boxer\n"
    return write(root / "dogs", {**files, "labels.csv": rows})


@layout("COCO", [("cat", 10), ("dog", 20)], labels="annotations/instances_train.json")
def coco(root: Path) -> Path:
    table = {
        "images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 9, "file_name": "000009.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 17, "bbox": [0, 0, 1, 1]},
            {"image_id": 7, "category_id": 17, "bbox": [1, 1, 1, 1]},
            {"image_id": 9, "category_id": 18, "bbox": [0, 0, 1, 1]},
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    files = pictures("train/000007.jpg", "train/000009.jpg", kind="JPEG")
    files["annotations/instances_train.json"] = json.dumps(table)
    return write(root / "coco", files)


@layout("the Hub's parquet", [("beech", 20), ("oak", 10)])
@layout("the Hub's parquet, test", [("oak", 30)], split="test")
def hub(root: Path) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    feature = {"_type": "ClassLabel", "names": ["beech", "oak"]}
    features = {"img": {"_type": "Image"}, "species": feature}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "hub/data").mkdir(parents=True)
    for name, values, labels in (("train", [10, 20], [1, 0]), ("test", [30], [1])):
        images = [{"bytes": picture(value), "path": "x.png"} for value in values]
        table = pyarrow.table({"img": images, "species": labels})
        path = root / f"hub/data/{name}-00000-of-00001.parquet"
        write_table(table.replace_schema_metadata(metadata), path)
    return root / "hub"


@layout("emoji", [("Faces", 10), ("Flags", 20)])
def emoji(root: Path) -> Path:
    rows = [{"image": "a.png", "category": "Faces"}, {"image": "b.png", "category": "Flags"}]
    files: dict[str, bytes | str] = {
        "package.json": "{}",
        "emoji.json": json.dumps(rows),
        "img/google/64/a.png": picture(10, side=64),
        "img/google/64/b.png": picture(20, side=64),
    }
    return tar_gz(root / "emoji-datasource-google-16.0.0.tgz", "package", files)
