"""Sets of image files, with their labels in folders, tables and archives."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import scipy.io

from tests.data_tools.layouts.packing import layout, picture, pictures, tar_gz, write
from tests.hostile.files import tar_of


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
    inner = {f"n0{n}.tar": tar_of({f"n0{n}_5.JPEG": picture(10 * n, "JPEG")}) for n in (1, 2)}
    return write(root, {"ILSVRC2012_img_train.tar": tar_of(inner)}) / "ILSVRC2012_img_train.tar"


@layout("ImageNet, val", [("n01", 10), ("n02", 20), ("n03", 30)])
def imagenet_val(root: Path) -> Path:
    files = pictures(*(f"ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)), kind="JPEG")
    files["ILSVRC2012_validation_ground_truth.txt"] = "2\n1\n3\n"
    return write(root / "val", {**files, "meta.mat": meta_mat()})


@layout("ImageNet, val tar", [("n01", 10), ("n02", 20)], labels="ILSVRC2012_devkit_t12")
def imagenet_val_tar(root: Path) -> Path:
    kit = {"ILSVRC2012_validation_ground_truth.txt": b"2\n1\n", "meta.mat": meta_mat()}
    write(root / "ILSVRC2012_devkit_t12/data", kit)
    names = ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    tar = tar_of(pictures(*names, kind="JPEG"))
    return write(root, {"ILSVRC2012_img_val.tar": tar}) / "ILSVRC2012_img_val.tar"


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
