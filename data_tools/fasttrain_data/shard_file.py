"""The bytes of one shard: images and labels as records of a tar, hashed as they go by.

    labels, digests, sha256 = write_records(file, "png", [("000000000", pixels, 3), ...])

Members have no times or owners: the same images are the same bytes.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fasttrain_data.records import (
    ENDINGS,
    Stored,
    chunk_images,
    digest,
    encode_image,
    npy_header,
)

__all__ = ["Item", "write_records"]

Item = tuple[str, npt.NDArray[np.uint8], int]
"""Key, uint8 [H, W, C] pixels or latents' bytes (`fasttrain_data.index.Index.shape`), label."""


def write_records(
    file: BinaryIO, record: Stored, items: Iterable[Item]
) -> tuple[list[int], str, str]:
    """Write a tar; return the labels, the pixels' digests in hex one after another, and the tar's
    SHA-256."""
    hashed = hashlib.sha256()
    labels: list[int] = []
    digests: list[str] = []
    with tarfile.open(  # type: ignore[call-overload,unused-ignore]
        fileobj=_Hashing(file, hashed), mode="w", format=tarfile.USTAR_FORMAT
    ) as tar:
        for group in _groups(items, record):
            _add_record(tar, record, group)
            labels += [label for _, _, label in group]
            digests += [digest(pixels).hex() for _, pixels, _ in group]
            tar.members.clear()  # of all that went by
    return labels, "".join(digests), hashed.hexdigest()


class _Hashing:
    """What tarfile needs of a file to write to, hashed as it goes by."""

    def __init__(self, file: BinaryIO, digests: Any) -> None:
        self._file, self._digests = file, digests
        self.tell = file.tell

    def write(self, data: bytes) -> int:
        self._digests.update(data)
        return self._file.write(data)


def _groups(items: Iterable[Item], record: Stored) -> Iterable[list[Item]]:
    """The images of each record."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        _, pixels, _ = item
        if record in ("png", "webp") or len(group) == chunk_images(pixels.size):
            yield group
            group = []
    if group:
        yield group


def _add_record(tar: tarfile.TarFile, record: Stored, group: Sequence[Item]) -> None:
    key, pixels, label = group[0]
    image_ending, label_ending = ENDINGS[record]
    if record == "png" or record == "webp":
        _add_member(tar, f"{key}.{image_ending}", encode_image(pixels, record))
        _add_member(tar, f"{key}.{label_ending}", str(label).encode())
        return
    images = np.stack([pixels.transpose(2, 0, 1) for _, pixels, _ in group])
    labels = np.asarray([label for _, _, label in group], "<i4")
    if record == "latents":
        images = images.view("<f2")
    header = npy_header("<f2" if record == "latents" else "|u1", images.shape)
    _add_member(tar, f"{key}.{image_ending}", header + images.tobytes())
    header = npy_header("<i4", labels.shape)
    _add_member(tar, f"{key}.{label_ending}", header + labels.tobytes())


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime 0, uid 0, gid 0, mode 0644: the same bytes every time
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
