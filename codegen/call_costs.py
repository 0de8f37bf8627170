"""What each kernel call of a function takes: bytes from main memory, and operations.

Kernels of ours are called for an operator of the graph, whose kind and operations are known. Of
what the generic schedule made, the loops are looked at. Bytes are those of the stored weights and
the caches among a call's arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import tvm
import tvm_ffi
from torch import fx
from tvm import ir, relax, s_tir, tirx

from codegen.generic_schedule import KERNEL
from codegen.weights import MATRIX_ARGUMENT
from qcompiler.core import ops
from qcompiler.core.artifact import FunctionCosts, KernelCost
from qcompiler.core.formats import QuantScheme
from qcompiler.core.kv_format import KvFormat, pair
from qcompiler.core.operator_costs import (
    ATTENTION,
    EMBEDDING,
    POINTWISE,
    PRODUCT,
    b,
    c,
    count,
    e,
    k,
    m,
    n,
    t,
)

KINDS: dict[Any, str] = {
    ops.embedding: "embedding",
    ops.quantized_embedding: "embedding",
    ops.quantize: "quantise",
    ops.rms_norm: "norm",
    ops.layer_norm: "norm",
    ops.rms_norm_quantize: "norm and quantise",
    ops.layer_norm_quantize: "norm and quantise",
    ops.rotary: "rotary",
    ops.attention: "attention",
    ops.rope_attention: "attention",
    ops.dense_attention: "attention",
}
"""Kinds of operators but products, whose kinds have their formats; everything else is "other"."""

PRODUCTS = frozenset({ops.linear, ops.quantized_linear, ops.quantized_matmul})
HEAD, OTHER = "head", "other"


class UnknownCost(Exception):
    """What a function takes cannot be said; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """Which operators of a graph the kernels of a function serve.

    `served` names variables, each of which holds what a call gives; `head` is the product that
    gives logits; `sizes` says what symbolic sizes are of the tokens `t` and the context `c`.
    """

    served: Mapping[str, fx.Node]
    head: fx.Node | None
    sizes: Mapping[str, sympy.Expr]


def function_costs(module: tvm.IRModule, name: str, operators: Operators) -> FunctionCosts:
    """Return what the kernels take that the relax function `name` calls, which are unscheduled yet.

    Raises:
        UnknownCost: it varies by another size than the tokens and the context.
    """
    kernels: dict[KernelCost, int] = {}
    calls = [
        kernels.setdefault(_cost(module[call.kernel], call, operators), len(kernels))
        for call in _calls(module[name])
    ]
    return FunctionCosts(kernels=tuple(kernels), calls=tuple(calls))


@dataclass(frozen=True)
class _Call:
    """A call of a kernel: what holds the result, and which of the tensors it takes are stored."""

    var: relax.Var
    kernel: ir.GlobalVar
    tensors: tuple[relax.TensorType, ...]
    stored: tuple[bool, ...]
    """Weights and caches are."""
    numbers: tuple[tirx.Expr, ...]
    """Sizes that are passed on as arguments."""
    results: tuple[relax.TensorType, ...]


def _calls(function: relax.Function) -> Iterator[_Call]:
    """Yield a function's kernel calls in order."""
    stored: dict[relax.Var, None] = {}
    *_, caches, weights = function.params
    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.tuple_value in (caches, weights):
                stored[binding.var] = None
            if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op):
                continue
            if value.op.name == "relax.reshape" and value.args[0] in stored:
                stored[binding.var] = None
            if value.op.name == "relax.call_tir":
                arguments = value.args[1].fields
                given = [a for a in arguments if isinstance(a.ty, relax.TensorType)]
                result = value.ty_args[0]
                yield _Call(
                    binding.var,
                    value.args[0],
                    tuple(a.ty for a in given),
                    tuple(a in stored for a in given),
                    tuple(a for a in arguments if not isinstance(a.ty, relax.TensorType)),
                    tuple(result.fields) if isinstance(result, relax.TupleType) else (result,),
                )


def _cost(function: tirx.PrimFunc, call: _Call, operators: Operators) -> KernelCost:
    sizes, node = operators.sizes, None
    if KERNEL in (function.attrs or {}):
        node = operators.served[str(call.var.name)]
    read: sympy.Expr = sympy.Integer(0)
    for tensor, stored in zip(call.tensors, call.stored, strict=True):
        read += _bytes(tensor, sizes) if stored else 0
    if node is None:
        taken = _generic(function, call, sizes)
    elif node.target in PRODUCTS:
        weight = node.args[MATRIX_ARGUMENT[node.target]].meta["val"].shape  # type: ignore[union-attr]
        val = node.meta["val"]
        rows = count(val, sizes) / int(val.shape[-1])
        taken = read, PRODUCT.ops.subs({n: int(weight[0]), k: int(weight[1]), t: rows})
    else:
        taken = _of_node(node, read, sizes)
    return KernelCost(
        kernel=str(call.kernel.name_hint),
        kind=_kind(node, operators.head),
        arithmetic="int8"
        if node is not None and node.target is ops.quantized_matmul
        else "float32",
        bytes=_polynomial(taken[0]),
        operations=_polynomial(taken[1]),
        byte_share=_byte_share(node),
        window=0 if node is None else int(node.kwargs.get("window", 0)),  # type: ignore[arg-type]
    )


def _byte_share(node: fx.Node | None) -> float:
    """Return how much of attention's work is products of codes: its scores, or nothing."""
    keys, _ = pair(str(node.kwargs.get("kv", ""))) if node is not None else ("", "")
    return 0.5 if keys and KvFormat.parse(keys).meets_codes else 0.0


def _kind(node: fx.Node | None, head: fx.Node | None) -> str:
    if node is None:
        return OTHER
    if node is head:
        return HEAD
    if node.target is ops.linear:
        return "product float32"
    if node.target in (ops.quantized_linear, ops.quantized_matmul):
        scheme = QuantScheme.parse(str(node.kwargs["scheme"]))
        taken = "" if scheme.activation is None else f"a{scheme.activation.bits}"
        return f"product w{scheme.weight.bits}{taken}"
    return KINDS.get(node.target, OTHER)


def _of_node(
    node: fx.Node, read: sympy.Expr, sizes: Mapping[str, sympy.Expr]
) -> tuple[sympy.Expr, sympy.Expr]:
    """Return bytes and operations of an operator that is no product; `read`: those it can read."""
    val = node.meta["val"]
    numbers = count(val[0] if isinstance(val, tuple | list) else val, sizes)
    if node.target in (ops.embedding, ops.quantized_embedding):
        rows = node.args[1].meta["val"].shape[0]  # type: ignore[union-attr]
        tokens = numbers / int(val.shape[-1])
        return (
            EMBEDDING.bytes.subs({b: read, n: int(rows), t: tokens}),
            EMBEDDING.ops.subs(m, numbers),
        )
    if node.target in (ops.attention, ops.rope_attention):
        # What is read for each token of the context is what `read` grows by with one. Weights that
        # are only asked for are what the next product reads.
        given = ATTENTION.bytes.subs(e, sympy.diff(read, c))
        tokens = count(val, sizes) / _row(node)
        return given, ATTENTION.ops.subs({m: numbers, t: tokens}, simultaneous=True)
    if node.target is ops.dense_attention:
        # Every token sees every other one: [b, s, h, d].
        return read, 4 * numbers * count(val[0, :, 0, 0], sizes)
    return read, POINTWISE.ops.subs(m, numbers)


def _row(node: fx.Node) -> int:
    """Return how many numbers attention gives for a token, as [1, s, h, d] or [1, s, n]."""
    total = 1
    for size in node.meta["val"].shape[2:]:
        total *= int(size)
    return total


def _generic(
    function: tirx.PrimFunc, call: _Call, sizes: Mapping[str, sympy.Expr]
) -> tuple[sympy.Expr, sympy.Expr]:
    """Return bytes and operations of a function that is nothing but blocks."""
    parameters = [p for p in function.params if tirx.buffer.is_buffer_var(p)]
    given = (*call.tensors, *call.results)
    numbers = [p for p in function.params if not tirx.buffer.is_buffer_var(p)]
    if len(numbers) != len(call.numbers):
        raise UnknownCost(f"{call.kernel.name_hint} is called without its sizes")
    known = {
        str(parameter.name): _expression(number, sizes)
        for parameter, number in zip(numbers, call.numbers, strict=True)
    }
    for parameter, kind in zip(parameters, given, strict=True):
        for wanted, found in zip(parameter.ty.shape, kind.shape, strict=True):
            if isinstance(wanted, tirx.Var):
                known[str(wanted.name)] = _expression(found, sizes)
    operations: sympy.Expr = sympy.Integer(0)
    loads: dict[int, sympy.Expr] = {}
    for block in _blocks(function):
        work: sympy.Expr = sympy.Integer(1)
        for axis in block.iter_vars:
            work *= _expression(axis.dom.extent, known)
        reduces = any(axis.iter_type != tirx.IterVar.DataPar for axis in block.iter_vars)
        operations += 2 * work if reduces else POINTWISE.ops.subs(m, work)
        for place in _read_by(block, parameters):
            loads[place] = loads.get(place, sympy.Integer(0)) + work
    read: sympy.Expr = sympy.Integer(0)
    for place, (tensor, stored) in enumerate(zip(call.tensors, call.stored, strict=True)):
        if stored:
            whole, some = _bytes(tensor, sizes), loads.get(place, 0) * _item_bytes(tensor)
            # Of a table, some rows only may be looked up.
            known_both = not (whole - some).free_symbols
            read += sympy.Min(whole, some) if known_both else whole
    return read, operations


def _blocks(function: tirx.PrimFunc) -> list[s_tir.SBlock]:
    found: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(function.body, ((s_tir.SBlock, found.append),))
    return [block for block in found if block.iter_vars]


def _read_by(block: s_tir.SBlock, parameters: list[tirx.Var]) -> set[int]:
    """Return which of the parameters a block reads."""
    found: set[int] = set()

    def see(load: ir.TensorLoad) -> None:
        found.update(i for i, p in enumerate(parameters) if load.source.same_as(p))

    tvm_ffi.structural_walk(block.body, ((ir.TensorLoad, see),))
    return found


def _bytes(kind: relax.TensorType, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr:
    total: sympy.Expr = sympy.Integer(_item_bytes(kind))
    for extent in kind.shape:
        total *= _expression(extent, sizes)
    return total


def _item_bytes(kind: relax.TensorType) -> int:
    return int(ir.PrimType(str(kind.dtype)).dtype.itemsize)


def _expression(size: tirx.Expr, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """Turn a size of TIR into an expression in the tokens and the context."""
    if isinstance(size, int | tirx.IntImm):
        return sympy.Integer(int(size))
    if isinstance(size, tirx.Var) and str(size.name) in sizes:
        return sizes[str(size.name)]
    if isinstance(size, tirx.Add):
        return _expression(size.a, sizes) + _expression(size.b, sizes)
    if isinstance(size, tirx.Sub):
        return _expression(size.a, sizes) - _expression(size.b, sizes)
    if isinstance(size, tirx.Mul):
        return _expression(size.a, sizes) * _expression(size.b, sizes)
    raise UnknownCost(f"a kernel works on {size} numbers")


def _polynomial(expression: sympy.Expr) -> tuple[tuple[float, int, int], ...]:
    """Write an expression in the tokens and the context as `KernelCost` has it."""
    try:
        terms = sympy.Poly(expression, t, c).terms()
    except sympy.PolynomialError:
        raise UnknownCost(f"{expression} is no polynomial") from None
    return tuple((float(factor), i, j) for (i, j), factor in terms if factor)
