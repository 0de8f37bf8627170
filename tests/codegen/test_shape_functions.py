"""Shape functions: sorted, and refused where an order would matter."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

import tvm
from tvm import ir, tirx

from codegen.shape_functions import OrderShapeFunctions


def shape_function(*stores: tuple[int, int]) -> ir.IRModule:
    """Return a module with a function that stores, for each pair, twice the second place's size."""
    heap = tirx.decl_buffer((8,), "int64", name="heap")
    body = tirx.SeqStmt(
        [
            tirx.BufferStore(
                heap, tirx.BufferLoad(heap, [source]) * tirx.const(2, "int64"), [place]
            )
            for place, source in stores
        ]
    )
    function = tirx.PrimFunc([heap], body)
    return ir.IRModule({"shape_func": function.with_attr("tirx.is_host_func", True)})


def places(module: ir.IRModule) -> list[int]:
    return [int(store.indices[0]) for store in module["shape_func"].body]


def test_stores_are_sorted_by_place() -> None:
    module = OrderShapeFunctions(shape_function((7, 0), (3, 1), (5, 0)))
    assert places(module) == [3, 5, 7]


def test_every_order_gives_the_same_function() -> None:
    one = OrderShapeFunctions(shape_function((7, 0), (3, 1)))
    two = OrderShapeFunctions(shape_function((3, 1), (7, 0)))
    assert one["shape_func"].body.script() == two["shape_func"].body.script()


def test_a_store_that_reads_another_is_refused() -> None:
    with pytest.raises((AssertionError, tvm.error.InternalError), match="reads what it computes"):
        OrderShapeFunctions(shape_function((3, 0), (4, 3)))
