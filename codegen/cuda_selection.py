"""Which kernel serves a product on a GPU; the rules are those of `codegen.selection` in kind."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx import PrimFunc

from codegen.kernels.cuda.float_rows import float_rows
from codegen.kernels.cuda.many_rows import half_rows, integer_rows
from codegen.kernels.cuda.one_row import FloatProduct, float_row, integer_row
from codegen.kernels.quantized_matmul import QuantizedMatmul
from codegen.selection import Choice, Product, Rule
from qcompiler.core.formats import PerGroup
from qcompiler.core.target import Target


def row_of_codes(product: Product, target: Target) -> Choice | str:
    """Take one row of int8 activations through packed codes, as the codes stream by."""
    if product.rows != "one":
        return "it takes one row"
    return _codes(product, target, integer_row, "dp4a")


def rows_of_codes(product: Product, target: Target) -> Choice | str:
    """Take many rows of int8 activations through the int8 tensor cores."""
    return _codes(product, target, integer_rows, "int8 tensor cores")


def row_of_floats(product: Product, target: Target) -> Choice | str:
    """Take one row of floats through packed codes, or through float32 weights."""
    if product.rows != "one":
        return "it takes one row"
    return _floats(product, target, float_row, "float32 arithmetic")


def rows_of_floats_by_codes(product: Product, target: Target) -> Choice | str:
    """Take many rows of floats, as float16, and codes through the float16 tensor cores."""
    if product.packing.bits == 32:
        return "the weight is float"
    return _floats(product, target, half_rows, "float16 tensor cores")


def rows_of_floats(product: Product, target: Target) -> Choice | str:
    """Take many rows of floats through float32 weights."""
    if product.packing.bits != 32:
        return "the weight is quantised"
    return _floats(product, target, float_rows, "float32 arithmetic")


PRODUCT_RULES: tuple[Rule, ...] = (
    row_of_codes,
    rows_of_codes,
    row_of_floats,
    rows_of_floats_by_codes,
    rows_of_floats,
)


def _codes(
    product: Product,
    target: Target,
    build: Callable[[QuantizedMatmul, Target], PrimFunc],
    how: str,
) -> Choice | str:
    scheme = product.scheme
    if scheme is None:
        return "the weight is float"
    if scheme.activation is None:
        return f"the activations of {scheme} stay float"
    spec = QuantizedMatmul(
        packing=product.packing,
        per_token=not isinstance(scheme.activation.granularity, PerGroup),
        epilogue=product.epilogue,
    )
    return Choice(
        kernel=f"quantized_matmul_w{product.packing.bits}_{product.rows}",
        reason=f"{scheme}, {how}",
        spec=spec,
        build=lambda: build(spec, target),
    )


def _floats(
    product: Product,
    target: Target,
    build: Callable[[FloatProduct, Target], PrimFunc],
    how: str,
) -> Choice | str:
    scheme = product.scheme
    if scheme is not None and scheme.activation is not None:
        return f"the activations of {scheme} are codes"
    spec = FloatProduct(packing=product.packing, epilogue=product.epilogue)
    kind = "float" if scheme is None else f"weight_only_w{product.packing.bits}"
    return Choice(
        kernel=f"{kind}_matmul_{product.rows}",
        reason=f"{'float32 weight' if scheme is None else scheme}, {how}",
        spec=spec,
        build=lambda: build(spec, target),
    )
