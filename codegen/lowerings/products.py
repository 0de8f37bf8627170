"""Products with stored matrices, and rows of stored tables."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm import relax

from codegen.function_lowering import FunctionLowering, Value
from codegen.kernels import embedding as tables
from codegen.kernels.epilogue import Epilogue
from codegen.lowerings.arguments import rows_of
from codegen.selection import Product, select
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import operator_name


def linear(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a product of floats."""
    x, weight, bias, residual = _operands(node, 4)
    return _product(f, node, weight, [f.rows(f.argument(x))], bias, residual, None)


def quantized_linear(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a product of floats and codes."""
    x, weight, bias, residual = _operands(node, 4)
    scheme = QuantScheme.parse(str(node.kwargs["scheme"]))
    return _product(f, node, weight, [f.rows(f.argument(x))], bias, residual, scheme)


def quantized_matmul(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a product of codes."""
    codes, scales, weight, bias, residual = _operands(node, 5)
    # What quantised the activations also summed their codes, which only kernels care for.
    sums = f.values[codes.args[0]][2]
    inputs = [f.rows(v) for v in (f.argument(codes), f.argument(scales), sums)]
    return _product(
        f, node, weight, inputs, bias, residual, QuantScheme.parse(str(node.kwargs["scheme"]))
    )


def _operands(node: fx.Node, count: int) -> list[Any]:
    """Return `count` arguments of a product, the last two being bias and residual, or None."""
    given = list(node.args) + [None] * (count - len(node.args))
    for place, name in ((-2, "bias"), (-1, "residual")):
        given[place] = node.kwargs.get(name, given[place])
    return given


def _product(
    f: FunctionLowering,
    node: fx.Node,
    weight: fx.Node,
    inputs: list[relax.Var],
    bias: fx.Node | None,
    residual: fx.Node | None,
    scheme: QuantScheme | None,
) -> Value:
    name = str(weight.target)
    packing = f.weights.packings[name]
    epilogue = Epilogue(
        bias=bias is not None,
        residual=residual is not None,
        activation=str(node.kwargs.get("activation", "none")),
    )
    x: Value = f.argument(node.args[0])
    m = f.row_count(x)
    product = Product(packing=packing, epilogue=epilogue, rows=rows_of(m), scheme=scheme)
    choice = select(product, f.target, f.kernel_set.products)
    inputs = inputs + f.packed_weight(name)
    if bias is not None:
        inputs.append(f.shaped(f.argument(bias)))
    if residual is not None:
        inputs.append(f.rows(f.argument(residual)))
    (out,) = f.kernel(
        (choice.kernel, choice.spec),
        choice.build,
        choice.kernel,
        inputs,
        [((m, packing.outputs), "float32")],
    )
    f.kernels[operator_name(name)] = (choice.kernel, choice.reason)
    return Value(out, (*x.shape[:-1], packing.outputs))


def embedding(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the choice of rows of a table, float or quantised."""
    ids, weight = node.args
    name = str(weight.target)  # type: ignore[union-attr]
    packing = f.weights.packings[name]
    index: Value = f.argument(ids)
    m = f.product(index.shape)
    spec = tables.EmbeddingSpec(packing=packing)
    (out,) = f.kernel(
        ("embedding", spec),
        lambda: f.kernel_set.embedding(spec, f.target),
        "embedding",
        [f.reshaped(index, (m,)), *f.packed_weight(name)],
        [((m, packing.k), "float32")],
    )
    # A table may be the head's matrix too, whose kernel goes by the matrix's name.
    scheme = str(node.kwargs.get("scheme", "float32"))
    f.kernels[node.name] = ("embedding", f"{scheme} table {operator_name(name)}")
    return Value(out, (*index.shape, packing.k))
