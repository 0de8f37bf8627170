"""Which kernel a product gets, and what is said when there is none."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from codegen.kernels.epilogue import Epilogue
from codegen.packing import code_packing, float_packing
from codegen.selection import PRODUCT_RULES, Product, select
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import QuantScheme
from targets import TARGETS

pytestmark = pytest.mark.tvm
TARGET = TARGETS[0]


def product(scheme: str | None, rows: str) -> Product:
    parsed = None if scheme is None else QuantScheme.parse(scheme)
    packing = (
        float_packing(64, 64, lanes=16)
        if parsed is None
        else code_packing(64, 64, parsed.weight, lanes=16)
    )
    return Product(packing=packing, epilogue=Epilogue(), rows=rows, scheme=parsed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheme", "rows", "kernel"),
    [
        ("w4a8g32", "one", "quantized_matmul_w4_one"),
        ("w4a8g32", "many", "quantized_matmul_w4_many"),
        ("w8a8", "one", "quantized_matmul_w8_one"),
        ("w2a8g32", "many", "quantized_matmul_w4_many"),
        (None, "one", "float_matmul_one"),
        (None, "many", "float_matmul_many"),
    ],
)
def test_choice(scheme: str | None, rows: str, kernel: str) -> None:
    choice = select(product(scheme, rows), TARGET)
    assert choice.kernel == kernel
    assert (scheme or "float32") in choice.reason


def test_equal_products_have_equal_specs() -> None:
    first, second = (select(product("w4a8g32", "one"), TARGET) for _ in range(2))
    assert first.spec == second.spec
    assert first.spec != select(product("w4a8g64", "one"), TARGET).spec


def test_no_kernel_is_said_with_every_reason() -> None:
    with pytest.raises(UnsupportedError) as caught:
        select(product("w4g32", "one"), TARGET)
    text = str(caught.value)
    assert "no kernel for a w4g32 product of one row" in text
    assert "add a8 to the scheme" in text
    assert all(rule.__name__ in text for rule in PRODUCT_RULES)
