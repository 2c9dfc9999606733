"""Tensors come out of torch's files exactly, and hostile or damaged files are refused."""

from __future__ import annotations

import copy
import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.files.torch_storage import StoredTensor
from fasttrain_data.pickle_data import Refused
from tests.edm_files import Persistent, as_edm, edm_modules
from tests.models.files.untrusted import assert_refused, little_memory


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, "state_dict"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_state_dict(
    legacy: bool, key: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = nn.Linear(3, 2).to(dtype).state_dict()
    value = {key: state, "epoch": 3} if key else state
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = read_model_file(tmp_path / "x.pth")
    assert found.info is None
    assert found.weights.keys() == state.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in state.items())


def test_strides_and_offsets(tmp_path: Path) -> None:
    row = torch.arange(48.0)
    state = {
        "last": torch.empty(2, 3, 4, 2)
        .copy_(row.view(2, 3, 4, 2))
        .to(memory_format=torch.channels_last),
        "transposed": row.view(6, 8).t(),
        "part": row[16:32].view(4, 4),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7.0),
        "counts": torch.arange(5),
    }
    torch.save(state, tmp_path / "x.pt")
    found = read_model_file(tmp_path / "x.pt").weights
    for name, value in state.items():
        assert torch.equal(found[name], value), name
        assert found[name].stride() == value.stride(), name
        assert found[name].data_ptr() % 16 == 0


def test_bytes_are_copied_no_more_often_than_they_are_there(tmp_path: Path) -> None:
    """A thousand tensors of one storage, or a thousand conversions of one text."""
    row = torch.zeros(1 << 20)
    torch.save({f"w{index}": row.view(1 << 20) for index in range(1000)}, tmp_path / "x.pt")
    assert_refused(tmp_path / "x.pt", "claims more bytes than the file has")
    text = b"\x80\x02X" + struct.pack("<I", 4 << 20) + b"x" * (4 << 20) + b"q\x000"
    call = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
    (tmp_path / "x.pkl").write_bytes(text + call * 1000 + b".")
    assert_refused(tmp_path / "x.pkl", "claims more bytes than the file has")


def rewritten(source: Path, change: Callable[[dict[str, bytes]], None], **how: Any) -> bytes:
    """A zip file with other records."""
    with zipfile.ZipFile(source) as file:
        records = {name: file.read(name) for name in file.namelist()}
    change(records)
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w", **how) as file:
            for name, data in records.items():
                file.writestr(name, data)
        return out.getvalue()


def renamed(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        for name in list(records):
            if name.endswith(old):
                records[name.removesuffix(old) + new] = records.pop(name)

    return change


def shortened(records: dict[str, bytes]) -> None:
    records.update({n: data[:-1] for n, data in records.items() if n.endswith("/data/0")})


def test_hostile_zip_files_are_refused(tmp_path: Path) -> None:
    source, path = tmp_path / "good.pt", tmp_path / "x.pt"
    torch.save({"weight": torch.arange(1000.0)}, source)
    path.write_bytes(rewritten(source, lambda records: None))
    assert torch.equal(read_model_file(path).weights["weight"], torch.arange(1000.0))
    for change, how, why in (
        (renamed("/data/0", "/data/1"), {}, "storage 0 is missing or cut short"),
        (shortened, {}, "storage 0 is missing or cut short"),
        (renamed("/data.pkl", "/other"), {}, "not of torch.save: it has no data.pkl"),
        (lambda records: None, {"compression": zipfile.ZIP_DEFLATED}, "compressed or encrypted"),
    ):
        path.write_bytes(rewritten(source, change, **how))
        assert_refused(path, why)
    data = source.read_bytes()
    numbers = data.index(torch.arange(1000.0).numpy().tobytes())
    path.write_bytes(data[: numbers + 7] + b"\x41" + data[numbers + 8 :])
    assert_refused(path, "data/0 is damaged: its checksum differs")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", bytes(10_000))
        for index in range(3):  # of the same bytes
            entry = copy.copy(file.filelist[0])
            entry.filename = str(index)
            file.filelist.append(entry)
    assert_refused(path, "is cut short")
    with zipfile.ZipFile(path, "w") as file:
        for index in range(150):
            file.writestr(f"{index:060000}", b"")
    assert_refused(path, "table of contents is larger than that of any model")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory\nat x.cpp:7")])
def test_what_does_not_fit_into_memory_is_refused(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt")
    monkeypatch.setattr(StoredTensor, "tensor", Mock(side_effect=error))
    assert_refused(tmp_path / "x.pt", "there is no memory for what it holds")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file with some bits turned over, or cut short, or with bytes of it elsewhere."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 20])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed)) :]
    if chance.random() < 0.2:
        start, to = chance.randrange(len(changed) + 1), chance.randrange(len(changed) + 1)
        changed[to:to] = changed[start : start + chance.randrange(40)]
    return bytes(changed)


@pytest.mark.parametrize("kind", ["protocol 2", "protocol 4", "zip", "legacy"])
def test_damaged_files_are_refused_or_read_but_nothing_else(kind: str, tmp_path: Path) -> None:
    layer = nn.ModuleDict({"layer": nn.Conv2d(2, 3, 1)})
    held = as_edm(layer)
    held.__dict__["_modules"] = OrderedDict(layer=as_edm(layer["layer"]))
    state = {"_modules": {"model": held}, "_init_args": (), "_init_kwargs": {"x": np.float64(3)}}
    value = {"net": Persistent("EDMPrecond", state, "#"), "optimizer_state": {0: torch.ones(3)}}
    with edm_modules(), io.BytesIO() as file:
        if kind == "zip":
            torch.save(value, file)
        elif kind == "legacy":
            torch.save(layer.state_dict(), file, _use_new_zipfile_serialization=False)
        else:
            pickle.dump(value, file, protocol=int(kind[-1]))
        data = file.getvalue()
    path, chance, read, reasons = tmp_path / "x.pkl", random.Random(0), 0, []
    names = set(read_checkpoint_of(path, data))
    assert len(names) == 2
    with little_memory(512):
        for _ in range(300):
            try:
                read_checkpoint_of(path, damaged(data, chance))
                read += 1
            except Refused as error:
                reasons.append(str(error))
    assert 0 < read < 300
    assert all(len(reason.splitlines()) == 1 for reason in reasons)


def read_checkpoint_of(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    path.write_bytes(data)
    return {name: stored.tensor() for name, stored in read_checkpoint(path).tensors.items()}
