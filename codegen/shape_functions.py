"""The functions that compute sizes from other sizes, made the same in every run."""

from __future__ import annotations

from collections.abc import Iterator

import tvm
from tvm import ir, tirx

OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value")


def order_shape_functions(module: ir.IRModule, _: tvm.transform.PassContext) -> ir.IRModule:
    """Sort the stores of shape functions by the place they write to.

    `VMShapeLower` lists them in the order of a table keyed by addresses, which differ from process
    to process. Each store reads sizes that are there before the function begins and none that it
    computes, so that any order will do.
    """
    for name, function in list(module.functions_items()):
        if isinstance(function, tirx.PrimFunc) and function.attrs.get("tirx.is_host_func"):
            module[name] = function.with_body(_sorted(function.body))
    return module


def _sorted(body: tirx.Stmt) -> tirx.Stmt:
    if not isinstance(body, tirx.SeqStmt):
        return body
    stores = {int(store.indices[0]): store for store in body}
    read = {place for store in body for place in _read(store.value)}
    assert len(stores) == len(body), "a shape function computes a size twice"
    assert not read & stores.keys(), "a shape function reads what it computes"
    return tirx.SeqStmt([stores[place] for place in sorted(stores)])


def _read(expression: tirx.Expr) -> Iterator[int]:
    """Yield the places that an expression loads."""
    if isinstance(expression, ir.TensorLoad):
        yield int(expression.indices[0])
        return
    children = [getattr(expression, name) for name in OPERANDS if hasattr(expression, name)]
    for child in [*children, *getattr(expression, "args", ())]:
        if isinstance(child, tirx.Expr):
            yield from _read(child)


OrderShapeFunctions = tvm.transform.module_pass(
    order_shape_functions, opt_level=0, name="OrderShapeFunctions"
)
