"""Rows of caches keep what they can, in the bytes they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core.errors import ConfigError
from qcompiler.core.kv_format import KvFormat, pair, row_of
from qcompiler.core.kv_rows import read_rows, rotate_heads, store_rows, stored, turned
from qcompiler.core.reference import sqnr

FORMATS = ("kv8", "kv8g32", "kv4", "kv4g16r", "kv4g32")


@pytest.mark.parametrize(("text", "least"), list(zip(FORMATS, (38, 40, 14, 18, 16), strict=True)))
def test_rows_come_back(text: str, least: float) -> None:
    form = KvFormat.parse(text)
    x = torch.randn(3, 5, 64)
    rows = store_rows(x, form)
    assert rows.dtype == torch.uint8
    assert rows.shape == (3, 5, form.row_bytes(64)) == (3, 5, row_of(text, 64)[0])
    assert sqnr(x, read_rows(rows, form, 64)) > least


@given(st.sampled_from(FORMATS), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_no_number_is_further_off_than_half_a_step(text: str, seed: int, size: float) -> None:
    form = KvFormat.parse(text)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * size
    groups = x.reshape(4, form.groups(64), -1)
    wide = (
        groups.abs().amax(-1) / 127 if form.bits == 8 else (groups.amax(-1) - groups.amin(-1)) / 15
    )
    off = (read_rows(store_rows(x, form), form, 64) - x).reshape(groups.shape).abs().amax(-1)
    # Scales are rounded to float16, and so is the least number.
    slack = groups.abs().amax(-1) * 2.0**-9 + 1e-6
    assert bool((off <= 0.5 * wide + slack).all())


def test_zeros_and_numbers_beyond_float16() -> None:
    for text in FORMATS:
        form = KvFormat.parse(text)
        assert not read_rows(store_rows(torch.zeros(2, 64), form), form, 64).any()
        large = torch.full((1, 64), 1e7)
        assert read_rows(store_rows(large, form), form, 64).isfinite().all()


def test_rotation_spreads_what_stands_out() -> None:
    x = torch.randn(50, 64)
    x[:, 3] *= 40
    form = KvFormat.parse("kv4")
    plain = read_rows(store_rows(x, form), form, 64)
    turned_back = rotate_heads(read_rows(store_rows(rotate_heads(x), form), form, 64))
    others = [f for f in range(64) if f != 3]
    assert sqnr(x[:, others], turned_back[:, others]) > sqnr(x[:, others], plain[:, others]) + 3


def test_only_keys_with_an_r_are_turned() -> None:
    x = torch.randn(2, 64)
    assert torch.equal(turned(x, "kv4g16r"), rotate_heads(x))
    assert turned(x, "kv4") is x
    assert turned(x, "") is x
    assert stored(x, "") is x


def test_formats_are_read_and_refused() -> None:
    assert str(KvFormat.parse("kv4g16r")) == "kv4g16r"
    assert pair("kv8/kv4g32") == ("kv8", "kv4g32")
    for text in ("kv3", "kv8g12", "kv8g24", "kv4g8", "k8", "", "kv8/kv8"):
        with pytest.raises(ConfigError, match="is no format of a cache"):
            KvFormat.parse(text)
