"""Arithmetic, comparisons, logic and functions, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import tirx, topi

from codegen.function_lowering import DTYPES, FunctionLowering, Value, dtype_of
from codegen.lowerings.arguments import (
    Lowering,
    arguments,
    cast,
    cast_to_node,
    elementwise,
    operand,
    tensor,
)

Binary = Callable[[Any, Any], Any]


def arithmetic(function: Binary, *, swapped: bool = False) -> Lowering:
    """Lower a broadcasting operator of two operands, computed in the type that it gives.

    `swapped` is for operators whose second operand comes first.
    """

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a = arguments(f, node)
        dtype = dtype_of(node)
        # Truth values add and multiply as numbers.
        kind = "int8" if dtype == "bool" else dtype
        x, y = (operand(f, o, kind) for o in (a.self, a.other))
        if swapped:
            x, y = y, x
        alpha = getattr(a, "alpha", 1)
        if alpha != 1:
            y = _apply(f, topi.multiply, y, tirx.const(alpha, kind))
        return cast(f, _apply(f, function, x, y), dtype)

    return lowering


def comparison(function: Binary) -> Lowering:
    """Lower an operator that gives truth values but compares in its operands' common type."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a = arguments(f, node)
        common = torch.result_type(*(_example(argument) for argument in node.args[:2]))
        kind = "int8" if common == torch.bool else DTYPES[common]
        return _apply(f, function, *(operand(f, o, kind) for o in (a.self, a.other)))

    return lowering


def _example(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def logic(function: Binary) -> Lowering:
    """Lower an operator on truth values."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a = arguments(f, node)
        return _apply(f, function, *(operand(f, o, "bool") for o in (a.self, a.other)))

    return lowering


def bitwise(of_bits: Binary, of_truths: Binary) -> Lowering:
    """Lower an operator on bits, of which a truth value is one."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        return (logic(of_truths) if dtype_of(node) == "bool" else arithmetic(of_bits))(f, node)

    return lowering


def _apply(f: FunctionLowering, function: Binary, x: Any, y: Any) -> Any:
    """Apply a function to two tensors, or to a tensor and a number in either order."""
    if isinstance(x, Value):
        return f.compute(function, x, y)
    if not isinstance(y, Value):
        return x * y  # the only function that two numbers meet in: alpha times the second operand

    def reversed_operands(tensor: Any) -> Any:
        return function(x, tensor)

    return f.compute(reversed_operands, y)


def unary(function: Callable[[Any], Any]) -> Lowering:
    """Lower a function of each element, computed in the type that it gives."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        return f.compute(function, cast_to_node(f, arguments(f, node).self, node))

    return lowering


def negation(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the logical not."""
    return f.compute(topi.logical_not, cast(f, arguments(f, node).self, "bool"))


def bitwise_not(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the not of bits, of which a truth value is one."""
    if dtype_of(node) == "bool":
        return negation(f, node)
    return f.compute(topi.bitwise_not, arguments(f, node).self)


reciprocal = unary(elementwise("reciprocal", lambda v: 1 / v))

silu = unary(elementwise("silu", lambda v: v / (1 + tirx.exp(-v))))


def gelu(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower gelu, exact or by tanh (arXiv 1606.08415)."""
    a = arguments(f, node)
    if a.approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        return f.compute(
            elementwise(
                "gelu_tanh", lambda v: 0.5 * v * (1 + tirx.tanh(c * (v + 0.044715 * v * v * v)))
            ),
            a.self,
        )
    return f.compute(
        elementwise("gelu", lambda v: 0.5 * v * (1 + tirx.erf(v * math.sqrt(0.5)))), a.self
    )


def power(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a power with a constant exponent; the usual ones are products."""
    a = arguments(f, node)
    x = cast_to_node(f, a.self, node)
    if a.exponent == 2:
        return f.compute(elementwise("square", lambda v: v * v), x)
    if a.exponent == 3:
        return f.compute(elementwise("cube", lambda v: v * v * v), x)
    if a.exponent == 0.5:
        return f.compute(topi.sqrt, x)
    exponent = tirx.const(a.exponent, x.dtype)
    return f.compute(elementwise("power", lambda v: tirx.pow(v, exponent)), x)


def clamp(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower bounds on every element; the upper one counts where they cross."""
    a = arguments(f, node)
    x = cast_to_node(f, a.self, node)
    if getattr(a, "min", None) is not None:
        x = f.compute(topi.maximum, x, tirx.const(a.min, x.dtype))
    if getattr(a, "max", None) is not None:
        x = f.compute(topi.minimum, x, tirx.const(a.max, x.dtype))
    return x


def where(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the choice between two tensors or numbers."""
    a = arguments(f, node)
    dtype = dtype_of(node)
    choices = [tensor(f, o, dtype) for o in (a.self, a.other)]
    return f.compute(topi.where, a.condition, *choices)


def masked_fill(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the replacement of what a mask marks by a number."""
    a = arguments(f, node)
    dtype = dtype_of(node)
    return f.compute(topi.where, a.mask, tensor(f, a.value, dtype), cast(f, a.self, dtype))


def convert(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a cast."""
    return cast_to_node(f, arguments(f, node).self, node)


def same(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a copy: values never change, so none is needed."""
    return arguments(f, node).self
