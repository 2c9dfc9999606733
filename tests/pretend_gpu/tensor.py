"""`PretendTensor`: a tensor that says it is on `cuda:N`, and whose values are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PretendTensor", "inside", "plain_data", "set_data"]

plain_data: Any = torch._C.TensorBase.data
"""The property `Tensor.data` as torch has it."""


class PretendTensor(torch.Tensor):
    """A wrapper whose C++ side has a device, sizes and strides, and no memory.

    Attributes:
        elem: the CPU tensor with the values.
        run: what every operator on it does; set by `operators`.
    """

    elem: torch.Tensor
    run: Callable[..., Any]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: torch.Tensor, index: int, requires_grad: bool = False) -> PretendTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=torch.device("cuda", index),
            requires_grad=requires_grad,
        )
        self.elem = elem
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return cls.run(func, *args, **(kwargs or {}))

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to "
                f"copy the tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __format__(self, how: str) -> str:
        return format(self.item() if self.dim() == 0 else str(self), how)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.detach().cpu()!r} on {self.device}"

    def record_stream(self, stream: Any) -> None:
        return None

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            new: torch.Tensor = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                new = torch.nn.Parameter(new)
            memo[id(self)] = new.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.elem.detach(), self.device.index, self.requires_grad)


def _rebuilt(elem: torch.Tensor, index: int, requires_grad: bool) -> torch.Tensor:
    return elem.to(torch.device("cuda", index)).requires_grad_(requires_grad)


def inside(value: Any) -> Any:
    """The values of a pretend tensor; anything else as it is."""
    return value.elem if isinstance(value, PretendTensor) else value


def set_data(self: torch.Tensor, new: torch.Tensor) -> None:
    """`parameter.data = new`, also from one device to another, as `Module.to` does it.

    `__tensor_flatten__` would have `Module.to` swap tensors instead, which refuses those with weak
    references to them (DeepSpeed keeps such).
    """
    if isinstance(self, PretendTensor) and isinstance(new, PretendTensor):
        plain_data.__set__(self, new)
        self.elem = new.elem
    elif isinstance(self, PretendTensor) or isinstance(new, PretendTensor):
        other = new.detach()
        if isinstance(self, torch.nn.Parameter):
            other = torch.nn.Parameter(other, self.requires_grad)
        torch.utils.swap_tensors(self, other)
    else:
        plain_data.__set__(self, new)
