"""Variants of the discriminator's ops at the published shapes: EfficientNet-Lite0, VGG16-BN and
DeiT-B at 224 px, 128 images a GPU, bfloat16, channels_last."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchmarks.compiled import Variant, signature_of
from benchmarks.variants.group_norm import Norm, split
from fasttrain_kernels import spectral_norm
from fasttrain_kernels._bilinear import Axis

__all__ = ["variants"]

# The modules, which functions of the same names hide in the package.
scale_mixing = import_module("fasttrain_kernels.scale_mixing")
image_prep = import_module("fasttrain_kernels.image_prep")
logit_losses = import_module("fasttrain_kernels.logit_losses")
bias_activation = import_module("fasttrain_kernels.bias_activation")

IMAGES = 128
PROJECTED = (64, 64, 128, 256)
"""Channels of the projected maps, from the largest on."""
SIZES = {"vgg16_bn": (112, 56, 28, 14), "lite0": (56, 28, 14, 7)}
"""Sides of the feature maps; DeiT-B's are those of Lite0."""


def variants() -> Iterator[Variant]:
    yield from _scale_mixing()
    yield from _image_prep()
    yield from _ghost_batch_norms()
    yield from _bias_activations()
    yield from _logit_losses()
    yield from _spectral_norm()


def _scale_mixing() -> Iterator[Variant]:
    """out_i = up(y_i), and y_i = up(V_i y_{i+1}) + lateral_i; and their adjoints."""
    calls = {
        (channels, side, False)
        for sides in SIZES.values()
        for channels, side in zip(PROJECTED, sides, strict=True)
    }
    calls |= {
        (channels, side // 2, True)
        for sides in SIZES.values()
        for channels, side in zip(PROJECTED[:3], sides[:3], strict=True)
    }
    for channels, side, lateral in sorted(calls):
        for last in (True, False) if side == 56 else (True,):
            name = f"{channels}x{side}x{side}-bf16-{'nhwc' if last else 'nchw'}"
            sizes = {"C": channels, "H": side, "W": side, "LAST": last}
            plan = scale_mixing.plan(channels, 4 * side**2, 2, last)
            constants: dict[str, Any] = {
                **sizes, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p,
                **({} if lateral else {"lateral": None}),
            }  # fmt: skip
            pointers = dict.fromkeys(("x", "lateral", "y"), "bf16")
            kernel = scale_mixing._up_kernel
            yield Variant(
                kernel,
                "upsample_add",
                name + ("-lateral" if lateral else ""),
                signature_of(kernel, pointers, constants, floats=("ratio_h", "ratio_w")),
                constants,
                plan.num_warps,
                # In contiguous memory neighbours are read one by one, from the cache.
                wide=(4 if last else 0) + (1 if lateral else 0),
            )
            if lateral:
                continue  # its adjoint is that of the other
            plan = scale_mixing.plan(channels, side**2, 2, last)
            constants = {**sizes, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p}
            kernel = scale_mixing._adjoint_kernel
            floats = ("ratio_h", "ratio_w")
            yield Variant(
                kernel,
                "upsample_add_adjoint",
                name,
                signature_of(kernel, dict.fromkeys(("dy", "dx"), "bf16"), constants, floats=floats),
                constants,
                plan.num_warps,
                wide=16 if last else 0,
            )


def _image_prep() -> Iterator[Variant]:
    """To 224 px for one network and for two; what is read is small and comes from the cache."""
    for side in (32, 64):
        for two in (False, True):
            for image in ("bf16", "fp32", "u8"):
                name = f"{side}-to-224-{image}{'-two' if two else ''}"
                sizes = {"C": 3, "H": side, "W": side, "OH": 224, "OW": 224}
                constants: dict[str, Any] = {
                    **sizes, "BLOCK": image_prep.BLOCK, **({} if two else {"y1": None}),
                }  # fmt: skip
                kernel = image_prep.forward_kernel
                pointers = {"images": image, "y0": "bf16", "y1": "bf16"}
                yield Variant(
                    kernel,
                    "image_prep",
                    name,
                    signature_of(kernel, pointers, constants, floats=_floats(kernel)),
                    constants,
                    4,
                    wide=0,
                )
                if image == "u8":
                    continue
                axis = Axis.of(side, 224, align_corners=False)
                constants = {
                    **sizes, "REACH_H": axis.reach, "REACH_W": axis.reach,
                    "BLOCK": image_prep.BLOCK, **({} if two else {"dy1": None}),
                }  # fmt: skip
                kernel = image_prep.adjoint_kernel
                pointers = {"dy0": "bf16", "dy1": "bf16", "dx": image}
                yield Variant(
                    kernel,
                    "image_prep_adjoint",
                    name,
                    signature_of(kernel, pointers, constants, floats=_floats(kernel)),
                    constants,
                    4,
                    wide=0,
                )


def _floats(kernel: Any) -> list[str]:
    """Coordinates, scales and offsets: all arguments that are neither pointers nor constants."""
    starts = ("ratio", "offset", "inverse", "a0", "a1", "b0", "b1")
    return [name for name in kernel.arg_names if name.startswith(starts)]


def _ghost_batch_norms() -> Iterator[Variant]:
    """After each halving of each head: a group of 128 images is one of 128 times the height, a
    channel a group."""
    found = set()
    for sides in SIZES.values():
        for side, nominal in zip(sides, (128, 64, 32, 16), strict=True):
            resolution = 2 * side
            while nominal > 8:
                nominal, resolution = nominal // 2, resolution // 2
                found.add((512 * 8 // nominal, resolution))
    for channels, resolution in sorted(found):
        norm = Norm(
            channels,
            resolution,
            (),
            False,
            activation="leaky_relu",
            images=IMAGES,
            op="ghost_batch_norm",
        )
        yield from split(norm)


def _bias_activations() -> Iterator[Variant]:
    """VGG16's first maps and Lite0's widest, in place."""
    for channels, side, activation in (
        (64, 224, "relu"),
        (128, 112, "relu"),
        (512, 14, "relu"),
        (96, 112, "relu6"),
        (1152, 7, "relu6"),
    ):
        for last in (True, False):
            plan = bias_activation.plan(side**2, last)
            constants: dict[str, Any] = {
                "C": channels, "HW": side**2, "LAST": last,
                "ACTIVATION": activation, "BLOCK": plan.block,
            }  # fmt: skip
            kernel = bias_activation._kernel
            yield Variant(
                kernel,
                "bias_activation",
                f"{channels}x{side}x{side}-{activation}-bf16-{'nhwc' if last else 'nchw'}",
                signature_of(kernel, dict.fromkeys(("y", "bias"), "bf16"), constants),
                constants,
                plan.num_warps,
                # Rows of 7 x 7 or 14 x 14 values do not begin on 16 bytes.
                wide=1 if last or side**2 % 8 == 0 else 0,
            )


def _logit_losses() -> Iterator[Variant]:
    for hinge in (False, True):
        for backward in (False, True):
            kernel = logit_losses._backward_kernel if backward else logit_losses._forward_kernel
            constants = {"HINGE": hinge, "BLOCK": logit_losses.BLOCK}
            pointers = {
                "logits": "bf16", "dlogits": "bf16", "ends": "i64", "signs": "fp32",
                "out": "fp32", "dout": "fp32",
            }  # fmt: skip
            yield Variant(
                kernel,
                "logit_losses_backward" if backward else "logit_losses",
                "hinge-bf16" if hinge else "softplus-bf16",
                signature_of(kernel, pointers, constants),
                constants,
                4 if backward else 8,
                wide=0,  # parts begin anywhere
            )


def _spectral_norm() -> Iterator[Variant]:
    """Addresses come from a table: nothing is known of their alignment."""
    pointers = {"places": "i64", "tiles": "i64", "scratch": "fp32"}
    for kernel, op, constants in (
        (spectral_norm._columns_kernel, "power_iteration_columns", _tile(spectral_norm.COLUMNS)),
        (spectral_norm._rows_kernel, "power_iteration_rows", _tile(spectral_norm.ROWS)),
        (
            spectral_norm._normalise_kernel,
            "power_iteration_normalise",
            {"EPS": spectral_norm.EPS, "BLOCK": 1024},
        ),
    ):
        signature = signature_of(kernel, pointers, constants)
        yield Variant(kernel, op, "fp32", signature, constants, 4, wide=0)


def _tile(sizes: tuple[int, int]) -> dict[str, int]:
    return {"BLOCK_R": sizes[0], "BLOCK_C": sizes[1]}
