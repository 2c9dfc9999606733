"""Triton's interpreter without what it does for nothing, in a third of the time.

- A launch puts the interpreter's functions in place of those of `triton.language`, and takes them
  out at its end. Each call of a device function inside of it does the first half again: where that
  has been done for the modules that the function sees, it changes nothing.
- Every sum, difference and product of integers is computed a second time, in int64, for an
  assertion that no option of the interpreter turns on.
- What follows from a type alone (its NumPy type, the shape of its tensors) is worked out for each
  tensor.
- Operands of one type and shape are asked whether they fit as all others are, a number is made a
  tensor twice for each operation, and a single number is copied to each place of a block.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

__all__ = ["without_waste"]


def without_waste() -> None:
    """From now on, in this process."""
    from triton.runtime import interpreter

    assert not interpreter.interpreter_builder.options.debug
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.interpreter_builder.options = options
    _patch_once_a_launch(interpreter)
    _call_directly(interpreter)
    _remember_types(interpreter)
    _fit_operands(interpreter)


def _patch_once_a_launch(interpreter: Any) -> None:
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[frozenset[str]] = set()

    @cache
    def modules(function: Any) -> frozenset[str]:
        """The names of the language's modules that a function sees, as Triton looks for them."""
        values = function.__globals__.values()
        return frozenset(
            module.__name__
            for module in (interpreter.tl, interpreter.tl.core)
            if any(value is module for value in values)
        )

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    def once(function: Any) -> Any:
        seen = modules(function)
        if seen in patched:
            return None  # of a device function, which does not take the scope
        patched.add(seen)
        return patch(function)

    interpreter.GridExecutor.__call__ = launched
    interpreter._patch_lang = once


def _call_directly(interpreter: Any) -> None:
    """The language's functions without the wrapper that asks whether they were called outside."""
    wrapper = interpreter.tl.core.builtin(lambda: None).__code__
    semantic = interpreter.interpreter_semantic

    def patch(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        outside = getattr(member, "__code__", None) is wrapper
        function = member.__wrapped__ if outside else member

        def called(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        scope.set_attr(obj, name, called)

    interpreter._patch_attr = patch


def _remember_types(interpreter: Any) -> None:
    tl = interpreter.tl
    numpy_type, new_block_type = interpreter._get_np_dtype, tl.block_type.__init__
    numpy_types: dict[str, Any] = {}
    blocks: dict[tuple[str, tuple[Any, ...]], tuple[Any, int, str]] = {}
    integers = frozenset(tl.dtype.SINT_TYPES + tl.dtype.UINT_TYPES)

    def remembered(type_: Any) -> Any:
        if type_.name not in numpy_types:
            numpy_types[type_.name] = numpy_type(type_)
        return numpy_types[type_.name]

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        if not isinstance(shape, list | tl.tuple):
            new_block_type(self, element_ty, shape)
            return
        sizes = tuple(s.value if isinstance(s, tl.constexpr) else s for s in shape)
        found = blocks.get((element_ty.name, sizes))
        if found is None:
            new_block_type(self, element_ty, shape)
            blocks[element_ty.name, sizes] = self.shape, self.numel, self.name
        else:
            self.element_ty = element_ty
            self.shape, self.numel, self.name = found

    @cache
    def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        """What a tensor calls its number of elements and its shape."""
        plain = tl.tensor.__new__(tl.tensor)
        new_tensor(plain, None, tl.block_type(tl.int32, list(sizes)) if sizes else tl.int32)
        return plain.numel, plain.shape

    new_tensor = tl.tensor.__init__

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shape_of(tuple(type.shape.values) if type.is_block() else ())

    interpreter._get_np_dtype = remembered
    tl.block_type.__init__ = block_type
    tl.tensor.__init__ = tensor
    tl.dtype.is_int = lambda self: self.name in integers


def _fit_operands(interpreter: Any) -> None:
    tl, handle = interpreter.tl, interpreter.TensorHandle
    semantic = type(interpreter.interpreter_semantic)
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    constant = semantic.scalar_constant
    constants: dict[tuple[Any, str], Any] = {}
    plain = frozenset(["fp32", *tl.dtype.SINT_TYPES, *tl.dtype.UINT_TYPES])

    def checked(self: Any, lhs: Any, rhs: Any, *rest: Any, **flags: Any) -> Any:
        if type(lhs) is tl.tensor:
            if type(rhs) is tl.tensor:
                # Quotients of 16 bits are float32, and pointers are asked which side they are on.
                fit = lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in plain
            elif fit := _holds(lhs.dtype.name, rhs):
                rhs = self.scalar_constant(rhs, lhs.dtype)
        elif fit := type(rhs) is tl.tensor and _holds(rhs.dtype.name, lhs):
            lhs = self.scalar_constant(lhs, rhs.dtype)
        if fit:
            return self.broadcast_impl_value(lhs, rhs)
        return check(self, lhs, rhs, *rest, **flags)

    def fitted(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = _sizes(lhs), _sizes(rhs)
        if left == right:
            return lhs, rhs
        if left and right:
            return broadcast(self, lhs, rhs)
        return (lhs, spread(rhs, lhs)) if left else (spread(lhs, rhs), rhs)

    def spread(number: Any, block: Any) -> Any:
        data, sizes = number.handle.data, _sizes(block)
        # All places share the number's: nothing writes to the data of a handle.
        view = np.ndarray(sizes, data.dtype, data, 0, (0,) * len(sizes))
        return tl.tensor(handle(view, number.dtype), block.type.with_element_ty(number.dtype))

    def scalar_constant(self: Any, value: Any, dtype: Any) -> Any:
        key = (value, dtype.name)
        if key not in constants:
            constants[key] = constant(self, value, dtype)
        return constants[key]

    semantic.binary_op_type_checking_impl = checked
    semantic.broadcast_impl_value = fitted
    semantic.scalar_constant = scalar_constant


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(value.type.shape.values) if value.type.is_block() else ()


def _holds(dtype: str, number: Any) -> bool:
    """Whether a number takes this type beside a tensor of it, and needs no look at its range."""
    if dtype == "fp32":
        return type(number) in (int, float)
    return dtype in ("int32", "int64") and type(number) is int and 0 <= number < 2**31
