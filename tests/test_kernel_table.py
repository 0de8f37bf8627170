"""Times against limits: which of two limits counts, and what is left of a call."""

from __future__ import annotations

import pytest

from qcompiler.core.artifact import FunctionCosts, KernelCost
from qcompiler.kernel_table import Limits, function_time

READS = KernelCost(
    kernel="a", kind="product", arithmetic="int8", bytes=((100.0, 0, 0),), operations=((1.0, 1, 0),)
)
WORKS = KernelCost(
    kernel="b", kind="norm", arithmetic="float32", bytes=(), operations=((10.0, 1, 0),)
)
LIMITS = Limits(bytes=50.0, int8=1000.0, float32=5.0)


def test_the_longer_of_two_times_is_the_limit_and_calls_of_a_kind_are_one_row() -> None:
    found = function_time(
        "decode",
        FunctionCosts(kernels=(READS, WORKS), calls=(0, 1, 0)),
        LIMITS,
        tokens=1,
        context=9,
        seconds=13.0,
        kernels=[3.0, 4.0, 5.0],
    )
    product, norm = found.kinds
    assert (product.kind, product.calls, product.seconds) == ("product", 2, 8.0)
    assert product.limit_seconds == 4.0  # 2 · 100 bytes at 50 a second
    assert product.limit_share == 0.5
    assert norm.limit_seconds == 2.0  # 10 operations at 5 a second
    assert found.outside_seconds == 1.0
    assert found.total.seconds == 13.0
    assert found.total.limit_share == pytest.approx(6 / 13)
    assert found.total.calls == 3
