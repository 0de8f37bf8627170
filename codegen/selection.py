"""Which kernel serves a product: an ordered list of rules, each answering or saying why not."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen.kernels import float_matmul as float_kernels
from codegen.kernels import quantized_matmul as integer_kernels
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.row import Rows
from codegen.packing import Packing
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.target import Target


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product that wants a kernel; `scheme` is None where the weight is float."""

    packing: Packing
    epilogue: Epilogue
    rows: Rows
    scheme: QuantScheme | None

    def __str__(self) -> str:
        what = "float32" if self.scheme is None else str(self.scheme)
        return f"a {what} product of {self.rows} row{'' if self.rows == 'one' else 's'}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A kernel, why it was taken, and how it is built; equal specs are equal kernels."""

    kernel: str
    reason: str
    spec: Hashable
    build: Callable[[], PrimFunc]


Rule = Callable[[Product, Target], Choice | str]
"""Answers with a kernel, or declines with the reason."""


def integer_row(product: Product, target: Target) -> Choice | str:
    """Take one row of int8 activations through packed codes, as the codes stream by."""
    if product.rows != "one":
        return "it takes one row"
    return _integer(product, target, integer_kernels.one_row)


def integer_rows(product: Product, target: Target) -> Choice | str:
    """Take many rows of int8 activations through packed codes, in blocks of rows."""
    return _integer(product, target, integer_kernels.many_rows)


def float_row(product: Product, target: Target) -> Choice | str:
    """Take one row of floats through packed float32 weights."""
    if product.rows != "one":
        return "it takes one row"
    return _float(product, target, float_kernels.one_row)


def float_rows(product: Product, target: Target) -> Choice | str:
    """Take many rows of floats through packed float32 weights, in blocks of rows."""
    return _float(product, target, float_kernels.many_rows)


PRODUCT_RULES: tuple[Rule, ...] = (integer_row, integer_rows, float_row, float_rows)


def select(product: Product, target: Target, rules: tuple[Rule, ...] = PRODUCT_RULES) -> Choice:
    """Return what the first rule that does not decline answers.

    Raises:
        UnsupportedError: all of them decline; the text has the reasons.
    """
    declined = []
    for rule in rules:
        answer = rule(product, target)
        if isinstance(answer, Choice):
            return answer
        declined.append(f"{rule.__name__}: {answer}")
    raise UnsupportedError(f"no kernel for {product} on {target.name}; {'; '.join(declined)}")


def _integer(
    product: Product,
    target: Target,
    build: Callable[[integer_kernels.QuantizedMatmul, Target], PrimFunc],
) -> Choice | str:
    packing, scheme = product.packing, product.scheme
    if scheme is None:
        return "the weight is float"
    if scheme.activation is None:
        return f"the activations of {scheme} stay float; add a8 to the scheme"
    spec = integer_kernels.QuantizedMatmul(
        packing=packing,
        per_token=not isinstance(scheme.activation.granularity, PerGroup),
        epilogue=product.epilogue,
    )
    return Choice(
        kernel=f"quantized_matmul_w{packing.bits}_{product.rows}",
        reason=f"{scheme}, {target.dot}, {packing.vectors} vectors a tile",
        spec=spec,
        build=lambda: build(spec, target),
    )


def _float(
    product: Product,
    target: Target,
    build: Callable[[float_kernels.FloatMatmul, Target], PrimFunc],
) -> Choice | str:
    if product.scheme is not None:
        return "the weight is quantised"
    spec = float_kernels.FloatMatmul(packing=product.packing, epilogue=product.epilogue)
    return Choice(
        kernel=f"float_matmul_{product.rows}",
        reason=f"float32 weight, {product.packing.vectors} vectors a tile",
        spec=spec,
        build=lambda: build(spec, target),
    )
