"""What is derived from tensors that hardly ever change, for as long as they do not.

kept = Kept[Tensor]()
doubled = kept.get([weight], "doubled", lambda: 2 * weight)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Kept"]

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by key, made when they are first asked for and again after their tensors have changed:
    another tensor, a write in place (optimizers, `load_state_dict`, `copy_`), other memory.

    A write through `.data` leaves no trace, and is not noticed: what trains has no place here. A
    copy or a pickle of the object holds nothing.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, T] = {}
        # Views of the tensors: as long as they hold the memory, no other tensor can lie there.
        self._origin: list[tuple[Tensor, int]] = []

    def get(self, tensors: Iterable[Tensor], key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, of `make()` if need be: without gradient, and fit for a backward pass
        even when it is asked for under `torch.inference_mode`."""
        sources = list(tensors)
        if any(t.is_inference() for t in sources):  # they count no writes
            self.clear()
            return _plain(make)
        if not self._is_of(sources):
            self.clear()
            with torch.inference_mode(False):
                self._origin = [(t.detach(), t._version) for t in sources]
        if key not in self._values:
            self._values[key] = _plain(make)
        return self._values[key]

    def clear(self) -> None:
        self._values.clear()
        self._origin = []

    def _is_of(self, sources: list[Tensor]) -> bool:
        return len(sources) == len(self._origin) and all(
            new._version == version
            and new.data_ptr() == view.data_ptr()
            and new.dtype == view.dtype
            and new.device == view.device
            and new.stride() == view.stride()
            for new, (view, version) in zip(sources, self._origin, strict=True)
        )

    def __deepcopy__(self, memo: object) -> Kept[T]:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[()]]:
        return Kept, ()


def _plain(make: Callable[[], T]) -> T:
    with torch.inference_mode(False), torch.no_grad():
        return make()
