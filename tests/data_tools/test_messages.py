"""What the command says of a file or folder that it does not read, and what to do: every line here
was read aloud."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fasttrain_data import DataError, load_index
from fasttrain_data.sources import open_source
from tests.data_tools.conftest import write_image
from tests.data_tools.layouts.packing import picture
from tests.data_tools.test_cases import write_tar

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123\n"
PAGE = b"\n<!doctype html>\n<html><body>Sign in</body></html>"
FILES = {
    "a parquet that is a Git LFS pointer": (
        "x.parquet",
        LFS,
        "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    "a zip that is a web page": (
        "x.zip",
        PAGE,
        "is a web page, saved under this name: the download failed or asks for a login",
    ),
    "a tar that is a web page": (
        "x.tar",
        PAGE + bytes(1000),
        "is a web page, saved under this name: the download failed or asks for a login",
    ),
    "an Arrow file": (
        "data-00000-of-00001.arrow",
        b"\xff\xff\xff\xff\x08\x02\0\0",
        "is an Arrow file, which is not read: in Python, datasets.load_from_disk(FOLDER)"
        ".to_parquet(FILE), and convert that",
    ),
    "an HDF5 file": (
        "x.h5",
        b"\x89HDF\r\n\x1a\n",
        "is an HDF5 file, which is not read: write its images as PNG files into class folders",
    ),
    "an LMDB database": (
        "data.mdb",
        bytes(16) + struct.pack("<I", 0xBEEFC0DE),
        "is an LMDB database, as LSUN's, which is not read: write its images as PNG files into "
        "class folders",
    ),
    "a pickle": (
        "x.pkl",
        b"\x80\x04.",
        "is a pickle, which is not run: write its images as PNG files into class folders",
    ),
    "an image": ("x.png", picture(1), "is one image: name the folder that holds it"),
    "an AVIF picture": (
        "x.avif",
        b"\0\0\0\x1cftypavif",
        "is one file (AVIF, not read: convert it to PNG or JPEG): name a folder of images",
    ),
    "a 7z archive": (
        "x.7z",
        b"7z\xbc\xaf\x27\x1c",
        "is a 7z archive: unpack it, and name the folder",
    ),
    "an xz archive": ("x.tar.xz", b"\xfd7zXZ\0", "is compressed: unpack it, and name the folder"),
    "an empty file": ("x.zip", b"", "is empty: download or copy it again"),
    "a gzip": (
        "x.bin.gz",
        gzip.compress(b"x"),
        "is compressed: unpack it with gunzip, and name what",
    ),
    "a text": ("x.txt", b"hello", "is neither a zip, a tar nor a parquet file of images"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_read(name: str, tmp_path: Path) -> None:
    file, data, says = FILES[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file} {says}")


def test_a_compressed_tar_of_photographs(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", ["cat/1.png"])
    for name in ("photos.tgz", "photos.tar.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
        with pytest.raises(DataError) as caught:
            open_source(path)
        assert str(caught.value) == (
            f"{path} is a compressed tar: unpack it, and name the folder: mkdir photos && "
            f"tar -xzf {path} -C photos"
        )


def lmdb(root: Path) -> None:
    (root / "bedroom_train_lmdb").mkdir()
    (root / "bedroom_train_lmdb/data.mdb").write_bytes(bytes(8192))


def arrow(root: Path) -> None:
    (root / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff\x08\x02\0\0")
    (root / "dataset_info.json").write_text("{}")


def hdf5(root: Path) -> None:
    (root / "camelyon.h5").write_bytes(b"\x89HDF\r\n\x1a\n")


def heic(root: Path) -> None:
    for number in range(3):
        (root / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lmdb, "bedroom_train_lmdb is an LMDB database, as LSUN's, which is not read: write its"),
        (
            arrow,
            "holds Arrow files, which are not read: in Python, datasets.load_from_disk(FOLDER)",
        ),
        (hdf5, "holds HDF5 files, camelyon.h5 for one, which are not read: write its images as"),
        (
            heic,
            ".jpg, .png, .tif, .tiff, .webp files, and there are 3 .heic",
        ),
    ],
)
def test_a_folder_that_is_not_read(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_photographs_named_as_a_set_get_their_command(tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a/b/1.jpg", 1)
    write_tar(tmp_path / "set.tar", ["1.png"])
    for path in (tmp_path / "photos", tmp_path / "set.tar"):
        out = tmp_path / f"{path.name.partition('.')[0]}-shards"
        with pytest.raises(DataError, match=r"not a shard set: make one of it") as caught:
            load_index(path)
        assert f"`fasttrain-data convert {path} {out}`" in str(caught.value)
        assert str(caught.value).endswith(f"and name {out}")
    for name, source in (("nowhere", "SOURCE"), ("digits", "digits")):
        with pytest.raises(DataError, match=f"convert {source} "):
            load_index(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_column": "breed"}, "no file of labels with columns lies in"),
        ({"labels": Path("nowhere.csv")}, "--labels nowhere.csv is not there"),
        ({"unlabelled": "drop"}, "--unlabelled is drop: it must be one of refuse, skip"),
        ({"split": "test"}, "has no splits, name the images of that one"),
    ],
)
def test_choices_that_a_folder_does_not_have(
    options: dict[str, object], says: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "a/1.png", 1)
    with pytest.raises(DataError, match=says):
        open_source(tmp_path, **options)  # type: ignore[arg-type]


TABLES = {
    "no row": ("file_name,label\n", "has no rows"),
    "no file_name": (
        "name,label\n1.png,a\n",
        "has no column file_name, its columns are name, label: name that of the",
    ),
    "two columns": (
        "file_name,label,class\n1.png,a,b\n",
        "several columns of labels, label, class",
    ),
    "a missing file": ("file_name,label\n1.png,a\nx.png,b\n", "names x.png, which is not there"),
    "an image without a row": (
        "file_name,label\n2.png,a\n",
        "does not name 1 of 2 images, 1.png for",
    ),
    "a name in another folder": (
        "file_name,label\na/1.png,a\n",
        "names a/1.png, which is not there, but 1.png is: write paths from the table's folder",
    ),
    "capital letters": ("file_name,label\n1.PNG,a\n", "which is not there, but 1.png is"),
    "no line of names": (
        "1.png,a\n2.png,b\n",
        "has no column file_name, its columns are 1.png, a: name that of the",
    ),
    "an empty cell": (
        "file_name,label\n1.png,a\n2.png,\n",
        "does not name 1 of 2 images, 2.png for",
    ),
    "a line of a million": ("file_name,label\n" + "," * (2 << 20), "or one of more than 1,048,576"),
    "an open quote": ('file_name,label\n"1.png,a\n', "is not a table with a line of column names"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_do_not_fit(name: str, tmp_path: Path) -> None:
    text, says = TABLES[name]
    for number in (1, 2):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    assert says in str(caught.value)
    assert "metadata.csv" in str(caught.value)


def test_imagenets_own_numbers_are_not_taken_for_the_order_of_names(tmp_path: Path) -> None:
    write_image(tmp_path / "ILSVRC2012_val_00000001.png", 1)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n")
    with pytest.raises(DataError, match=r"an order of its own: put the development kit's meta.mat"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\na.png,x\nb.png,y\na.png,z\n"),
        ("labels.txt", "a.png x\nb.png y\n./a.png z\na.png z\n"),
        ("dataset.json", '{"labels": [["a.png", 0], ["b.png", 1], ["a.png", 1]]}'),
    ],
)
def test_an_image_with_two_labels_is_named(tmp_path: Path, name: str, text: str) -> None:
    for number, image in enumerate(("a.png", "b.png")):
        write_image(tmp_path / "in" / image, number)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"gives a\.png several labels: give each image one"):
        open_source(tmp_path / "in", labels=tmp_path / name)


def test_a_text_of_commas_is_no_list_of_labels(tmp_path: Path) -> None:
    """Each of its lines would be a class."""
    write_image(tmp_path / "in/a.png", 1)
    (tmp_path / "labels.txt").write_text("a.png,cat\n")
    with pytest.raises(
        DataError, match=r"labels\.txt has commas: name it \.csv, with a first line"
    ):
        open_source(tmp_path / "in", labels=tmp_path / "labels.txt")


def test_labels_numbered_from_one_are_pointed_out(tmp_path: Path) -> None:
    from fasttrain_data import run_conversion

    for number in (1, 2):
        write_image(tmp_path / f"in/{number}.png", number)
    (tmp_path / "in/metadata.csv").write_text("file_name,label\n1.png,1\n2.png,2\n")
    done = run_conversion(tmp_path / "in", tmp_path / "set")
    assert done.notes == (
        "no image has the class 0, all others have some: are the labels numbered from 1?",
    )
    assert [(info.name, info.images) for info in done.index.classes] == [
        ("0", 0),
        ("1", 1),
        ("2", 1),
    ]


def test_images_of_one_name_in_two_folders_need_their_paths(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        write_image(tmp_path / "in" / name, 1)
    (tmp_path / "labels.csv").write_text("file,label\n1.png,x\n")
    with pytest.raises(DataError, match=r"names 1\.png, and 2 images are so called"):
        open_source(tmp_path / "in", labels=tmp_path / "labels.csv")


def test_objects_of_several_categories_are_no_label(tmp_path: Path) -> None:
    import json

    write_image(tmp_path / "in/1.png", 1)
    both = [{"image_id": 1, "category_id": n} for n in (1, 2)]
    table = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": both}
    (tmp_path / "x.json").write_text(json.dumps(table))
    with pytest.raises(
        DataError, match=r"objects of several categories in 1\.png: give each image"
    ):
        open_source(tmp_path / "in", labels=tmp_path / "x.json")
