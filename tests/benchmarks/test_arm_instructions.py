"""Instructions are counted in the loops that do the work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from targets.aarch64_dotprod import AARCH64_DOTPROD
from targets.aarch64_i8mm import AARCH64_I8MM

pytestmark = pytest.mark.tvm

ASSEMBLY = """
kernel:
	mov	x8, xzr
.LBB0_1:
	ldr	q0, [x0]
.LBB0_2:
	sdot	v1.4s, v0.16b, v2.4b[0]
	add	x9, x9, #1
	b.ne	.LBB0_2
	cbnz	x8, .LBB0_1
	tbz	w8, #0, .LBB0_4
.LBB0_4:
	ret
"""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield import_module("arm_instructions")
    del sys.modules["arm_instructions"]


def test_loops_are_found_with_what_is_in_them(counting: ModuleType) -> None:
    inner, outer = sorted(counting.loops(ASSEMBLY), key=lambda loop: len(loop.instructions))
    assert inner.instructions == ("sdot", "add", "b.ne")
    assert outer.instructions == ("ldr", "sdot", "add", "b.ne", "cbnz")
    assert outer.contains(inner)
    assert not inner.contains(outer)


def test_one_row_takes_no_more_than_it_must(counting: ModuleType) -> None:
    """For 16 bytes two SDOT, an AND and a shift; all else is a small part."""
    found = counting.count("w4a8g128", AARCH64_DOTPROD, 1536, many=False)
    assert found.instruction == "sdot"
    assert found.rows == 1
    assert 4 / 16 < found.per_byte < 1.5 * 4 / 16


def test_many_rows_are_mostly_products_of_matrices(counting: ModuleType) -> None:
    found = counting.count("w8a8", AARCH64_I8MM, 576, many=True)
    assert found.instruction == "smmla"
    assert found.dots > 0.5
    assert found.per_byte < 1.25 * 1 / 16
