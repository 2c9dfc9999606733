"""Names of files that are read as images."""

from __future__ import annotations

__all__ = ["DATA", "EXTENSIONS", "IMAGE_ENDINGS", "LISTED", "PICTURES"]

IMAGE_ENDINGS = frozenset({"png", "jpg", "jpeg", "jfif", "webp", "bmp", "gif", "tif", "tiff"})
EXTENSIONS = frozenset(f".{ending}" for ending in IMAGE_ENDINGS)
LISTED = ", ".join(sorted(EXTENSIONS))
"""For a message."""
PICTURES = frozenset(
    f".{ending}"
    for ending in ("avif", "cr2", "dng", "heic", "heif", "ico", "jp2", "jxl", "nef", "psd", "svg")
)
"""Names of pictures that are not read."""
DATA = frozenset(
    f".{ending}"
    for ending in (
        "arrow",
        "gz",
        "h5",
        "hdf5",
        "mdb",
        "npy",
        "npz",
        "parquet",
        "tar",
        "tfrecord",
        "tfrecords",
        "tgz",
        "zip",
    )
)
"""Names of archives, tables and arrays, which may hold images, too."""
