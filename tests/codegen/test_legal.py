"""The operators that legalize lets through are those that have a lowering."""

from __future__ import annotations

from codegen.lower import LOWERINGS
from qcompiler.core import ops
from qcompiler.core.legal import FUSED_AWAY, LEGAL_ATEN, PYTHON_OPS, has_lowering


def test_what_is_legal_has_a_lowering_and_the_other_way_round() -> None:
    legal = LEGAL_ATEN | PYTHON_OPS | (frozenset(ops.OPS) - FUSED_AWAY)
    assert legal == frozenset(LOWERINGS)
    assert all(map(has_lowering, LOWERINGS))
