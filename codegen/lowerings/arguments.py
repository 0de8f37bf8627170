"""What lowerings ask of a node: its arguments, the type it is computed in, its place among axes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import fx
from tvm import te, tirx, topi

from codegen.function_lowering import FunctionLowering, Size, Value, dtype_of
from codegen.kernels.row import Rows

Lowering = Callable[[FunctionLowering, fx.Node], Any]


def arguments(f: FunctionLowering, node: fx.Node) -> SimpleNamespace:
    """Return the arguments of an aten call under the names of its schema, defaults included."""
    bound = {}
    for place, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if place < len(node.args):
            given = node.args[place]
        else:
            given = node.kwargs.get(parameter.name, parameter.default_value)
        bound[parameter.name] = f.argument(given)
    return SimpleNamespace(**bound)


def options(node: fx.Node) -> dict[str, Any]:
    """Return a node's keyword arguments; FX types them too loosely to be of use."""
    return dict(node.kwargs)


def axis_of(value: Value, axis: int) -> int:
    """Count an axis from the front."""
    return axis % len(value.shape)


def is_one(size: Size) -> bool:
    """Tell whether a size is known to be one."""
    return isinstance(size, int) and size == 1


def rows_of(size: Size) -> Rows:
    """Tell whether a kernel is for one row, which is known, or for many."""
    return "one" if is_one(size) else "many"


def cast(f: FunctionLowering, value: Value, dtype: str) -> Value:
    """Convert a value's numbers, as torch does."""
    if value.dtype == dtype:
        return value
    return f.compute(topi.cast, value, dtype=dtype)


def cast_to_node(f: FunctionLowering, value: Value, node: fx.Node) -> Value:
    """Convert a value to the type that a node gives."""
    return cast(f, value, dtype_of(node))


def operand(f: FunctionLowering, argument: Any, dtype: str) -> Any:
    """Return a tensor, cast to `dtype`, or the constant that a number or a size is."""
    if isinstance(argument, Value):
        return cast(f, argument, dtype)
    if isinstance(argument, int | float):
        return tirx.const(argument, dtype)
    return argument.astype(dtype)


def tensor(f: FunctionLowering, argument: Any, dtype: str) -> Value:
    """Return a tensor, cast to `dtype`; a number becomes a tensor of one element."""
    number = operand(f, argument, dtype)
    if isinstance(number, Value):
        return number

    def scalar() -> te.Tensor:
        return te.compute((), lambda: number, name="number")

    return f.compute(scalar)


def elementwise(name: str, expression: Callable[[Any], Any]) -> Callable[[te.Tensor], te.Tensor]:
    """Apply an expression to every element; `name` is the kernel's."""

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: expression(x(*i)), name=name)

    compute.__name__ = name
    return compute
