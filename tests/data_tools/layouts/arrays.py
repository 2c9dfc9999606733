"""Sets of arrays: CIFAR, MNIST, STL-10 and ImageNet 64x64."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np

from tests.data_tools.layouts.packing import layout, old_pickle, planes, tar_gz, write
from tests.hostile.files import idx

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
    def packed(array: np.ndarray) -> bytes:
        return gzip.compress(idx(array.shape, array.tobytes()))

    for prefix, values, labels in (("train", [10, 20], [0, 2]), ("t10k", [30], [1])):
        images = np.stack([np.full((28, 28), value, np.uint8) for value in values])
        write(
            root / "mnist",
            {
                f"{prefix}-images-idx3-ubyte.gz": packed(images),
                f"{prefix}-labels-idx1-ubyte.gz": packed(np.asarray(labels, np.uint8)),
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
