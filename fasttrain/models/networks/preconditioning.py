"""Preconditioned denoisers: a network F wrapped so that its input and target have unit variance,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma)).

One class serves all families; their coefficients are rows of the table in
`fasttrain.models.networks.coefficients`, or of the one of what a network predicts, in
`fasttrain.models.networks.prediction`. State dicts are the same for every row, so that a
diffusion model's weights initialise a one-step generator as they are.

Use:

    net = build_network("edm", "SongUNet", img_resolution=32, img_channels=3, label_dim=10)
    denoised = net(x, sigma, class_labels)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from fasttrain.models.networks.coefficients import FAMILIES, Row
from fasttrain.models.networks.network import Plain
from fasttrain.models.networks.prediction import Prediction
from fasttrain.models.networks.registry import network_class

__all__ = ["Precond", "PrecondName", "build_network"]

PrecondName = Literal["edm", "vp", "ve", "one_step"]


class Precond(nn.Module):
    """A network behind one of the table's rows.

    Args:
        row: the coefficients.
        img_resolution, img_channels: of the (square) images.
        label_dim: number of classes, 0 for unconditional.
        model_type: a network of the registry.
        learned_variance: F has twice the channels; the second half is not used.
        model_kwargs: the network's other arguments.
    Attributes:
        model: the network F.
        sigma_min, sigma_max: the noise levels it serves; samplers clamp their range to them.
        activation_dtype, memory_format: what F computes in; may be set at any time. Parameters
            keep their own.
        decoder: of a network that makes latents, from these to images; set by who loads it.
    Raises:
        ValueError: an unknown `model_type`.
    """

    def __init__(
        self,
        row: Row,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        learned_variance: bool = False,
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        self.row = row
        self.sigma_min, self.sigma_max = row.sigma_min, row.sigma_max
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.activation_dtype = torch.float32
        self.memory_format = torch.contiguous_format
        self.decoder: Callable[[Tensor], Tensor] | None = None
        self.model = network_class(model_type)(
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels * (1 + learned_variance),
            label_dim=label_dim,
            **model_kwargs,
        )

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: [N, C, H, W], any float dtype, of noise level sigma.
            sigma: a number, or a tensor of one or N elements in any shape.
            class_labels: [N, label_dim] one-hot; None means no class (zeros). Ignored by an
                unconditional network.
            augment_labels: [N, augment_dim] or None.
        Returns:
            The denoised images, float32 [N, C, H, W].
        Raises:
            ValueError: class labels of another width than `label_dim`.
        """
        x = x.to(torch.float32)
        c_skip, c_out, c_in, c_noise = self._coefficients(sigma, x)
        raw = self.model(
            (c_in * x).to(self.activation_dtype, memory_format=self.memory_format),
            c_noise,
            self._labels(x, class_labels),
            augment_labels,
        )
        raw = raw.to(torch.float32, memory_format=torch.contiguous_format)
        return c_skip * x + c_out * raw[:, : self.img_channels]

    def _coefficients(
        self, sigma: Tensor | float, x: Tensor
    ) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        """In float32, c_noise [N]. On a GPU the row is evaluated once at a number, on the host: for
        N samples it would be twenty launches and no more information."""
        n = len(x)
        if not isinstance(sigma, Tensor) and _launches(x):
            level = torch.full((1,), float(sigma), dtype=self.row.dtype, device="cpu")
            numbers = [_number(coefficient) for coefficient in self.row.coefficients(level)]
            return numbers[0], numbers[1], numbers[2], x.new_full((n,), numbers[3])
        if isinstance(sigma, Tensor):
            sigma = sigma.to(x.device, self.row.dtype).reshape(-1, 1, 1, 1).expand(n, 1, 1, 1)
        else:
            sigma = x.new_full((n, 1, 1, 1), float(sigma), dtype=self.row.dtype)
        c_skip, c_out, c_in, c_noise = self.row.coefficients(sigma)
        return _float32(c_skip), c_out.float(), _float32(c_in), c_noise.float().flatten()

    def _labels(self, x: Tensor, class_labels: Tensor | None) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return x.new_zeros(len(x), self.label_dim)
        if class_labels.shape != (len(x), self.label_dim):
            raise ValueError(
                f"class_labels have shape {tuple(class_labels.shape)} but the network takes "
                f"one-hot labels of shape {(len(x), self.label_dim)}"
            )
        return class_labels.to(torch.float32)

    def blocks(self) -> Sequence[nn.Module]:
        """The network's own."""
        return self.model.blocks()

    def freezing(self) -> dict[int, list[str]]:
        """The network's own, by the names that its parameters have here."""
        groups = self.model.freezing()
        return {level: [f"model.{name}" for name in names] for level, names in groups.items()}

    def changes_after_step(self) -> list[nn.Parameter]:
        """The network's own."""
        return self.model.changes_after_step()

    def after_step(self) -> None:
        """The network's own."""
        self.model.after_step()

    def plain(self) -> Plain | None:
        """The network's plain form, whose wrapper is a one-step generator's of EDM's kind; None for
        a network of another prediction."""
        if isinstance(self.row, Prediction):
            said = self.row.settings
            if not said.is_edm or said.learned_variance:
                return None
        return self.model.plain()

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network knows; a number becomes a float64 tensor."""
        if not isinstance(sigma, Tensor):
            sigma = torch.tensor(sigma, dtype=torch.float64)
        return self.row.round(sigma)


def _launches(x: Tensor) -> bool:
    """Whether an operation on x is a launch, and numbers of the host have values."""
    return x.device.type != "cpu" and not is_fake(x) and not torch.compiler.is_compiling()


def _number(coefficient: Tensor | float) -> float:
    """Of one noise level, rounded to float32."""
    return float(coefficient.float()) if isinstance(coefficient, Tensor) else coefficient


def _float32(coefficient: Tensor | float) -> Tensor | float:
    return coefficient.float() if isinstance(coefficient, Tensor) else coefficient


def build_network(
    precond: PrecondName,
    model_type: str,
    img_resolution: int,
    img_channels: int,
    label_dim: int,
    **kwargs: Any,
) -> Precond:
    """A preconditioned network by name; `kwargs` are constants of the family and arguments of the
    network, or `prediction`, the settings of another row, in the place of constants. Under
    `torch.device("meta")` it costs no memory.

    Raises:
        ValueError: an unknown `precond` or `model_type`.
    """
    if precond not in FAMILIES:
        raise ValueError(f"precond is {precond!r}: choose one of {', '.join(FAMILIES)}")
    prediction = kwargs.pop("prediction", None)
    if prediction is not None:
        row: Row = Prediction(prediction, one_step=precond == "one_step")
        kwargs["learned_variance"] = prediction.learned_variance
        return Precond(row, img_resolution, img_channels, label_dim, model_type, **kwargs)
    family = FAMILIES[precond]
    constants = {name: kwargs.pop(name) for name in family.constants if name in kwargs}
    row = family.row(**constants)
    return Precond(row, img_resolution, img_channels, label_dim, model_type, **kwargs)
