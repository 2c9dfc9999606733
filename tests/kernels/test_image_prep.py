"""image_prep against its definition in float64: resizing, normalisation, bytes, grey images, and
gradients of two orders. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import HALF, IMAGENET, Normalisation, image_prep
from fasttrain_kernels.dispatch import in_channels_last
from tests.kernels.support import DEVICE, TOLERANCE, assert_matches, compiled_ops, guarded

op_file: Any = import_module("fasttrain_kernels.image_prep")

ODD = Normalisation((0.1, 0.7, 0.4), (0.3, 0.9, 0.2))
NORMS = {"one": [IMAGENET], "two": [HALF, IMAGENET], "three": [HALF, IMAGENET, ODD]}
# samples, channels, image, result: up by broken and whole factors, unchanged, one pixel, down. The
# far reach of a pixel under large factors is test_the_adjoint_misses_no_output's.
CASES = [
    (2, 3, (5, 7), (6, 11)),
    (1, 1, (4, 3), (8, 9)),
    (1, 3, (6, 6), (6, 6)),
    (2, 1, (1, 3), (2, 4)),
    (1, 3, (9, 8), (4, 5)),
]
IMPLS = ("triton", "reference")


def definition(images: Tensor, size: tuple[int, int], norms: list[Normalisation]) -> list[Tensor]:
    """[-1, 1] -> [0, 1] -> normalise -> resize, as published."""
    unit = (images.expand(-1, 3, -1, -1) + 1) / 2
    results = []
    for norm in norms:
        mean, std = (unit.new_tensor(v).view(3, 1, 1) for v in norm)
        x = (unit - mean) / std
        results.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    return results


def make_images(
    channels: int, size: tuple[int, int], dtype: torch.dtype = torch.float32, samples: int = 2
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(samples, channels, *size, generator=generator) * 2 - 1
    return guarded(values, dtype).requires_grad_()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("norms", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(("samples", "channels", "size", "out"), CASES)
def test_equals_the_definition(
    impl: Any, norms: Any, samples: int, channels: int, size: Any, out: Any
) -> None:
    assert_matches(
        lambda x: image_prep(x, out, norms, impl=impl),
        lambda x: definition(x, out, norms),
        make_images(channels, size, samples=samples),
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("source", list(TOLERANCE))
@pytest.mark.parametrize("target", list(TOLERANCE))
def test_dtypes(impl: Any, source: torch.dtype, target: torch.dtype) -> None:
    images = make_images(3, (3, 4), source, samples=1)
    results = image_prep(images, (4, 7), NORMS["two"], dtype=target, impl=impl)
    assert all(y.dtype == target and in_channels_last(y) for y in results)
    assert_matches(
        lambda x: image_prep(x, (4, 7), NORMS["two"], dtype=target, impl=impl),
        lambda x: definition(x, (4, 7), NORMS["two"]),
        images,
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_taken_as_they_are(impl: Any, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, 4, 5), generator=generator, dtype=torch.uint8)
    got = image_prep(images.to(DEVICE), (8, 12), NORMS["two"], impl=impl)
    for y, wanted in zip(
        got, definition(images.double() / 127.5 - 1, (8, 12), NORMS["two"]), strict=True
    ):
        torch.testing.assert_close(y.double().cpu(), wanted, rtol=1e-5, atol=1e-5)


def test_half_leaves_images_as_they_are() -> None:
    images = make_images(3, (6, 6)).detach()
    for impl in IMPLS:
        (same,) = image_prep(images, (6, 6), [HALF], impl=impl)  # type: ignore[arg-type]
        assert torch.equal(same, images)


@pytest.mark.parametrize("out", [1, 2, 3, 7, 16])
def test_the_adjoint_misses_no_output(out: int) -> None:
    """<F x, y> = <x, F^T y> for random x and y: a weight that is missing anywhere would show."""
    for size in (1, 2, 3, 5, 8):
        images = make_images(1, (1, size)).detach()[:1]
        y = op_file._prepare(images, [1, out], [1.0] * 3, [0.0] * 3, torch.float32)[0]
        grads = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        grads = grads.contiguous(memory_format=torch.channels_last)
        dx = op_file._adjoint(grads, None, list(images.shape), [1.0] * 3, torch.float32)
        left, right = (y.double() * grads).sum(), (images.double() * dx).sum()
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_only_one_result_has_a_gradient() -> None:
    images = make_images(3, (4, 4))
    for k in (0, 1):
        got = image_prep(images, (8, 8), NORMS["two"], impl="triton")[k]
        wanted = image_prep(images, (8, 8), NORMS["two"], impl="reference")[k]
        a, b = (torch.autograd.grad(y.square().sum(), images)[0] for y in (got, wanted))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_second_order_through_the_kernels(channels: int) -> None:
    images = make_images(channels, (3, 4))
    exact = images.detach().double().requires_grad_()

    def second(x: Tensor, results: list[Tensor]) -> Tensor:
        total = sum(y.pow(3).sum() for y in results)
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    got = second(images, image_prep(images, (6, 8), NORMS["two"], impl="triton"))
    wanted = second(exact, definition(exact, (6, 8), NORMS["two"]))
    torch.testing.assert_close(
        got.double(), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item()
    )


def test_second_order_of_the_reference() -> None:
    x = torch.rand(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def op(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(image_prep(x, (4, 5), NORMS["two"], dtype=torch.float64))

    assert torch.autograd.gradcheck(op, (x,))
    assert torch.autograd.gradgradcheck(op, (x,))


def test_compiled_graphs_hold_the_op_whole() -> None:
    forward, backward = compiled_ops(
        lambda x: image_prep(x, (4, 6), NORMS["two"], impl="triton"), make_images(3, (2, 3))
    )
    assert forward == {"fasttrain.image_prep.default"}
    assert backward == {"fasttrain.image_prep_adjoint.default"}


def test_registration_is_sound() -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for images in (make_images(3, (2, 3)), make_images(1, (2, 3))[:0]):
        arguments = (images, [4, 6], [1.0] * 6, [0.5] * 6, torch.bfloat16)
        torch.library.opcheck(op_file._prepare.custom, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(1, 2, 4, 4)}, r"\[N, 1 or 3, H, W\], got \[1, 2, 4, 4\]"),
        ({"images": torch.zeros(3, 4, 4)}, r"\[N, 1 or 3, H, W\]"),
        ({"images": torch.zeros(1, 3, 0, 4)}, r"without pixels.*\[1, 3, 0, 4\]"),
        ({"images": torch.zeros(1, 3, 0, 4), "impl": "triton"}, "without pixels"),
        ({"images": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, "floating dtype or uint8"),
        (
            {
                "images": torch.zeros(1, 3, 4, 4, device=DEVICE),
                "dtype": torch.float64,
                "impl": "triton",
            },
            "not torch.float64",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"images": torch.zeros(1, 3, 4, 4), "size": (8, 8), "norms": [HALF], **changes}
    with pytest.raises(ValueError, match=message):
        image_prep(**arguments)
