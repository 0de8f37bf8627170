"""Which schemes a target serves, what is nearest to one that it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.support import check_supported, has_kernels, widened
from targets import TARGETS

TARGET = replace(TARGETS[0], name="here", schemes=("w4a8*", "w8a8*"))
SYMMETRIC = replace(TARGETS[0], name="here", schemes=("w4a8g32", "w8a8"))


def parse(text: str) -> QuantScheme:
    return QuantScheme.parse(text)


def test_a_target_serves_what_its_patterns_match() -> None:
    assert has_kernels(parse("w4a8g64zt"), TARGET)
    assert has_kernels(parse("w8a8"), TARGET)
    assert not has_kernels(parse("w3a8"), TARGET)
    assert not has_kernels(parse("w4g32"), TARGET)
    # Rows that are only looked up need no activations.
    assert has_kernels(parse("w4g32"), TARGET, storage_only=True)
    assert has_kernels(parse("w4g32"), SYMMETRIC, storage_only=True)
    assert not has_kernels(parse("w4g64"), SYMMETRIC, storage_only=True)


@pytest.mark.parametrize(
    ("scheme", "wide"),
    [("w2a8g8", "w4a8g8"), ("w3z", "w4z"), ("w4a8", "w4a8"), ("w5", "w8"), ("w8a8", "w8a8")],
)
def test_codes_fit_in_the_next_size(scheme: str, wide: str) -> None:
    assert str(widened(parse(scheme))) == wide


@pytest.mark.parametrize(
    ("scheme", "near"),
    [("w4g64", "w4a8g64"), ("w3g64", "w4a8g64"), ("w6", "w8a8"), ("w8", "w8a8")],
)
def test_the_nearest_is_named(scheme: str, near: str) -> None:
    with pytest.raises(
        UnsupportedError,
        match=f"^here has no kernels for {scheme}, wanted for 'fc'; the nearest there is: {near}$",
    ):
        check_supported(parse(scheme), TARGET, "'fc'")


def test_without_a_near_one_all_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"wanted for 'fc'; there are: w4a8g32, w8a8$"):
        check_supported(parse("w4a8g64"), SYMMETRIC, "'fc'")
    with pytest.raises(UnsupportedError, match=r"the nearest there is: w4a8g32$"):
        check_supported(parse("w4a8g32z"), SYMMETRIC, "'fc'")


def test_what_fits_after_widening_is_left_to_legalize() -> None:
    check_supported(parse("w3a8g32"), TARGET, "'fc'")
