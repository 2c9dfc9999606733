"""What the exit status says of an error, and the line beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fasttrain.cli import app as cli
from fasttrain.discriminator.class_means import _stored
from fasttrain.evaluation.metrics.statistics import load_statistics
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.efficientnet_lite import load_pretrained
from fasttrain.models.features.weights import read_weights
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.files.torch_storage import _records
from fasttrain.system.errors import Stopped, Unavailable, UserError
from fasttrain.system.processes import ONE_PROCESS, World
from fasttrain.system.tensors import read_tensors
from tests.checkpoints.test_checkpoint import without_descriptors


def torch_without_memory(**_: object) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def gpu_without_memory(**_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore of it")


def python_without_memory(**_: object) -> None:
    bytearray(1 << 60)


def error(kind: type[Exception], *args: object) -> object:
    def act(**_: object) -> None:
        raise kind(*args)

    return act


def system(number: int) -> object:
    return error(OSError, number, os.strerror(number), "/data/file")


@pytest.mark.parametrize(
    ("act", "status", "line"),
    [
        (error(UserError, "a mistake"), 2, "error: a mistake"),
        (error(Unavailable, "/data is gone"), 75, "error: /data is gone"),
        (error(Stopped, "stopped"), 85, "stopped"),
        *(
            (
                system(number),
                75,
                f"error: {os.strerror(number)}: /data/file; run the same command again",
            )
            for number in (errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
        ),
        *(
            (system(number), 2, f"error: {os.strerror(number)}: /data/file")
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ENOENT, errno.EROFS)
        ),
        (python_without_memory, 75, "error: not enough memory"),
        (torch_without_memory, 75, "error: not enough memory"),
        (
            gpu_without_memory,
            2,
            "error: not enough memory (CUDA out of memory. Tried to allocate 20.00 GiB); set a "
            "smaller micro_batch, or --batch",
        ),
    ],
)
def test_an_error_has_a_status_and_one_line(
    act: object,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", act)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(f"fasttrain: {line}")
    assert said.count("\n") == 1


def test_another_runtime_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", error(RuntimeError, "a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main()


@pytest.mark.parametrize("kind", [UserError, Unavailable, OSError])
def test_what_the_main_process_cannot_do_is_raised_by_all(kind: type[Exception]) -> None:
    class Box(World):
        sent: object = None

        def from_main(self, value: object) -> object:
            if self.is_main:
                type(self).sent = value
            return type(self).sent

    for rank in (0, 1):
        with pytest.raises(kind, match="not now"):
            Box(rank, 2, ONE_PROCESS.device).on_main(error(kind, "not now"))  # type: ignore[arg-type]


READERS: list[Callable[[Path], object]] = [
    lambda folder: read_tensors(folder / "vgg16_bn.safetensors"),
    lambda folder: read_model_file(folder / "vgg16_bn.safetensors"),
    lambda folder: read_weights(backbone("vgg16_bn").published, folder / "vgg16_bn.safetensors"),
    lambda folder: read_weights(backbone("vgg16_bn").published, folder / "vgg16_bn.pth"),
    lambda folder: load_statistics(folder / "vgg16_bn.pth"),
    lambda folder: _records(folder / "vgg16_bn.pth", memoryview(b"")),
    lambda folder: _stored(folder / "vgg16_bn.safetensors", "", 0),
    lambda folder: load_pretrained("lite0"),
]


def test_what_cannot_be_opened_for_now_is_not_damaged(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "vgg16_bn.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "vgg16_bn.pth")
    for read in READERS:
        with without_descriptors(), pytest.raises(OSError, match="Too many open") as caught:
            read(tmp_path)
        assert caught.value.errno == errno.EMFILE
