"""A rank's part of a global batch, and its split into micro-batches.

batch = next(stream).to(device)
for part in batch.split(micro_batch):
    loss = part.share * objective(part.images, part.class_labels)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fasttrain.system.errors import UserError

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Images with their labels, indices and weight.

    Attributes:
        images: [n, C, H, W], uint8 from the stream; after `to` float32 in [-1, 1]. Of latents
            float16 [n, K C, H, W], means and deviations (`fasttrain_data.records`), until
            `Run.read` has drawn from them.
        class_labels: float32 one-hot [n, label_dim], or None without classes.
        index: int64 [n], the index of each image in the run: images seen before this batch plus
            the position in the global batch. The key of every random draw.
        share: this part's fraction of the rank's batch; 1.0 for the whole. Losses are means over
            samples, so the sum of share * loss over the parts is the loss of the whole.
    """

    images: Tensor
    class_labels: Tensor | None
    index: Tensor
    share: float = 1.0

    def __len__(self) -> int:
        return self.images.shape[0]

    def split(self, micro_batch: int | None) -> list[Batch]:
        """Split into parts of `micro_batch` images (the last may be smaller), as views; None: one
        part.

        Raises UserError when `micro_batch` is less than 1.
        """
        if micro_batch is not None and micro_batch < 1:
            raise UserError(f"micro_batch is {micro_batch}: it must be at least 1")
        if micro_batch is None or micro_batch >= len(self):
            return [self]
        labels = self.class_labels
        return [
            Batch(
                images=self.images[start : start + micro_batch],
                class_labels=None if labels is None else labels[start : start + micro_batch],
                index=self.index[start : start + micro_batch],
                share=self.share * len(self.index[start : start + micro_batch]) / len(self),
            )
            for start in range(0, len(self), micro_batch)
        ]

    def to(self, device: torch.device | str) -> Batch:
        """Move to a device, and convert bytes to float32 in [-1, 1] there: images / 127.5 - 1."""
        labels = self.class_labels
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float().div_(127.5).sub_(1)
        return Batch(
            images=images,
            class_labels=None if labels is None else labels.to(device, non_blocking=True),
            index=self.index.to(device, non_blocking=True),
            share=self.share,
        )
