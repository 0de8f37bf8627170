"""Tensors made from nothing: numbers in order, and one number everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx
from tvm import te, tirx

from codegen.function_lowering import FunctionLowering, Size, Value, dtype_of
from codegen.lowerings.arguments import Lowering, arguments
from qcompiler.core.errors import UnsupportedError


def arange(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower evenly spaced numbers."""
    a = arguments(f, node)
    start, end, step = getattr(a, "start", 0), a.end, getattr(a, "step", 1)
    dtype = dtype_of(node)
    fractions = any(isinstance(number, float) for number in (start, end, step))
    (known,) = node.meta["val"].shape
    if isinstance(known, int):
        length: Size = known
    elif not fractions:
        length = f.simplified(-f.quotient(start - end, step))
    else:
        raise UnsupportedError(
            f"operator {node.target} ({node.name}) makes as many numbers as a size that varies in "
            "steps of a fraction, which has no kernel; count in whole numbers and multiply"
        )

    # Sizes go in as arguments, because the expression is made over copies of the symbols.
    def arange(length: Size, start: Size) -> te.Tensor:
        def number(i: tirx.PrimExpr) -> tirx.PrimExpr:
            return (start + i * step).astype(dtype)

        def fraction(i: tirx.PrimExpr) -> tirx.PrimExpr:
            first, distance = (tirx.const(float(n), dtype) for n in (start, step))
            return first + i.astype(dtype) * distance

        return te.compute((length,), fraction if fractions else number, name="arange")

    return f.compute(arange, length, start)


def full(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower one number everywhere, in a shape that is given or that of another tensor."""
    a = arguments(f, node)
    shape = a.self.shape if hasattr(a, "self") else a.size
    return _filled(f, node, shape, a.fill_value)


def full_of(number: int) -> Lowering:
    """Lower zeros, ones and their like."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a = arguments(f, node)
        return _filled(f, node, a.size if hasattr(a, "size") else a.self.shape, number)

    return lowering


def _filled(f: FunctionLowering, node: fx.Node, shape: Sequence[Size], number: float) -> Value:
    dtype = dtype_of(node)

    def full(*shape: Size) -> te.Tensor:
        return te.compute(shape, lambda *_: tirx.const(number, dtype), name="full")

    return f.compute(full, *shape)
