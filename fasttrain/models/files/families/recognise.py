"""Which family a state dict is of, by its names; and what other well-known ones are, so that the
refusal says it.

    foreign = read_foreign(path, tensors, options)          # None: it is none of another family's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from fasttrain.models.files.families.adm import is_adm, read_adm
from fasttrain.models.files.families.dit import is_dit, read_dit
from fasttrain.models.files.families.foreign import Foreign
from fasttrain.models.files.families.ldm import is_ldm, read_ldm
from fasttrain.models.files.families.options import Options
from fasttrain.models.files.families.score_sde import is_score_sde, read_score_sde
from fasttrain.system.errors import UserError

__all__ = ["bare", "reader_of"]

AnyTensor = TypeVar("AnyTensor")
Reader = Callable[[Mapping[str, Tensor], Options], Foreign]

READERS: tuple[tuple[Callable[[Mapping[str, object]], bool], Reader], ...] = (
    (is_ldm, read_ldm),
    (is_adm, read_adm),
    (is_dit, read_dit),
    (is_score_sde, read_score_sde),
)
WRAPPERS = ("module.", "_orig_mod.", "ema.", "ema_model.", "online_model.")
"""What DDP, torch.compile and averages put before every name."""
AVERAGES = ("ema.", "ema_model.")
REFUSED = {
    "inner_model.": "a model of k-diffusion, whose config is in another file",
    "cond_stage_model.": "a text-to-image model",
    "double_blocks.": "a text-to-image transformer (FLUX)",
    "joint_blocks.": "a text-to-image transformer (Stable Diffusion 3)",
    "down_blocks.": "a network of diffusers without its config: name the folder it lies in",
    "transformer_blocks.": "a network of diffusers without its config: name the folder it lies in",
    "synthesis.": "a GAN of the StyleGAN family",
    "first_stage_model.": "an autoencoder with what it was trained for",
    "encoder.down.": "an autoencoder",
    "decoder.up_blocks.": "an autoencoder of diffusers'",
}
"""How names begin, without a wrapper's -> what the file is."""


def bare(tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    """Without what wraps every name. Where an average lies beside the raw weights it is taken."""
    named = dict(tensors)
    for _ in range(4):
        for wrapper in WRAPPERS:
            inside = {n.removeprefix(wrapper): v for n, v in named.items() if n.startswith(wrapper)}
            if inside and (len(inside) == len(named) or wrapper in AVERAGES):
                named = inside
                break
        else:
            break
    return named


def reader_of(tensors: Mapping[str, object], path: object) -> Reader | None:
    """The reader of a family's state dict, whose names are bare.

    Raises UserError for one that is known to be something else.
    """
    for recognises, reader in READERS:
        if recognises(tensors):
            return reader
    for start, what in REFUSED.items():
        if any(name.startswith(start) for name in tensors):
            raise UserError(f"{path} is refused: it is {what}")
    return None
