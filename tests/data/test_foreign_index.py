"""The index of WebDataset's tars: of which bytes it is; a set that changed under it, or that has
none, is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from fasttrain.data.foreign import View
from fasttrain.system.errors import UserError
from fasttrain_data import DataError, VerificationError
from fasttrain_data.index_folder import Task
from fasttrain_data.indexing import run_indexing
from fasttrain_data.samples import Fields
from fasttrain_data.tar_verification import verify_tars
from tests.data.tars import IMAGES, seen, stream_of
from tests.foreign import photo, write_shards

pytestmark = pytest.mark.usefixtures("home")


def test_an_index_goes_on_after_a_kill_and_reads_each_tar_once(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (tars / "fasttrain-index/index.json").read_bytes()
    shutil.rmtree(tars / "fasttrain-index")
    read = Task.read
    numbers: list[int] = []

    def counted(self: Task, number: int, rows: BinaryIO) -> Any:
        numbers.append(number)
        if len(numbers) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, number, rows)

    monkeypatch.setattr(Task, "read", counted)
    limit = 4
    child = os.fork()
    if not child:
        run_indexing(str(tars), workers=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tars / "fasttrain-index").exists()
    limit = -1
    (tars / "set-000001.tar").touch()  # written to meanwhile
    run_indexing(str(tars), workers=1)
    assert numbers == [1, 3, 4]
    assert (tars / "fasttrain-index/index.json").read_bytes() == whole
    assert run_indexing(str(tars)).already_there
    assert numbers == [1, 3, 4]
    assert sorted(path.name for path in tars.glob(".*")) == []


def test_an_index_is_of_the_bytes_that_went_by(tars: Path) -> None:
    index = run_indexing(str(tars)).index
    for info in index.shards:
        content = (tars / info.name).read_bytes()
        assert (info.bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [info.images for info in index.shards] == [6, 6, 6, 6, 2]
    assert {info.name: info.images for info in index.classes} == {"0": 9, "1": 9, "2": 8}


def change_a_byte(tars: Path) -> None:
    content = bytearray((tars / "set-000002.tar").read_bytes())
    content[600] ^= 1
    (tars / "set-000002.tar").write_bytes(content)


def grow(tars: Path) -> None:
    with (tars / "set-000002.tar").open("ab") as file:
        file.write(bytes(10240))


def lose(tars: Path) -> None:
    (tars / "set-000002.tar").unlink()


def add(tars: Path) -> None:
    shutil.copy(tars / "set-000002.tar", tars / "set-000009.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_byte, r"set-000002\.tar does not have the SHA-256 of its index.*fasttrain-data"),
        (grow, r"set-000002\.tar has 40960 bytes, its index says 30720"),
        (lose, r"set-000002\.tar is not there any more.*fasttrain-data index --force"),
        (add, r"set-000009\.tar is new.*fasttrain-data index --force"),
    ],
)
def test_a_set_that_changed_under_its_index_is_named(
    tars: Path, change: Callable[[Path], None], message: str
) -> None:
    change(tars)
    with pytest.raises(UserError, match=message):
        seen(stream_of(tars), 10)
    run_indexing(str(tars), force=True, workers=1)
    if change is not change_a_byte:
        seen(stream_of(tars), 10)


def test_verify_hashes_every_tar_and_decodes_every_image(tars: Path, tmp_path: Path) -> None:
    assert verify_tars(str(tars), workers=1).images == IMAGES
    change_a_byte(tars)
    with pytest.raises(VerificationError, match=r"set-000002\.tar does not have the SHA-256"):
        verify_tars(str(tars), workers=1)
    path = tars / "set-000000.tar"
    path.write_bytes(path.read_bytes().replace(photo(3), b"x" * len(photo(3))))
    run_indexing(str(tars), workers=1, force=True)
    with pytest.raises(VerificationError, match=r"set-000000\.tar: 00003: not an image"):
        verify_tars(str(tars), workers=1)
    lose(tars)
    with pytest.raises(VerificationError, match=r"set-000002\.tar is not both in .*index\.json"):
        verify_tars(str(tars), workers=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{tars}/set-{{000000..000009}}.tar", "cannot read .*set-000005.tar: No such file"),
        ("{tars}/nothing", "it is neither a folder nor a .tar"),
        ("{tars}/set-000000.tar::{tars}/set-000000.tar", "is named twice"),
        ("{tars}/fasttrain-index", "no tars at"),
        ("{tars}/{{0..99999999}}.tar", "are more than 1000000 tars"),
    ],
)
def test_what_names_no_tars_is_told(tars: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_indexing(spec.format(tars=tars), workers=1)


def test_tars_without_an_index_name_the_command(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "my tars", images=4, per_shard=2)
    with pytest.raises(UserError, match=r"has no index .*`fasttrain-data index '.*/my tars'`"):
        stream_of(folder)


def test_sizes_must_be_chosen(tars: Path) -> None:
    with pytest.raises(UserError, match=r"data\.resolution"):
        stream_of(tars, View())


def test_an_index_of_other_fields_is_replaced_by_force_alone(tars: Path) -> None:
    with pytest.raises(DataError, match="index of other tars or fields: replace it with --force"):
        run_indexing(str(tars), fields=Fields(label=".cls"))
    assert not run_indexing(str(tars), fields=Fields(label=".cls"), force=True).already_there
