"""Formats and schemes: ranges, groups, storage, spelling, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core.errors import ConfigError
from qcompiler.core.formats import (
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantScheme,
    TensorFormat,
)

SCHEMES = st.builds(
    lambda w, a, group, z: f"w{w}{a}{group}{z}",
    st.integers(2, 8),
    st.sampled_from(["", "a8"]),
    st.sampled_from(["", "g8", "g32", "g64", "g128"]),
    st.sampled_from(["", "z"]),
) | st.sampled_from(["w4a8g32t", "w3a8g64zt", "w8a8s", "w4a8g32s", "w4a8g32zs"])


@given(SCHEMES)
def test_a_scheme_comes_back_from_its_text(text: str) -> None:
    assert str(QuantScheme.parse(text)) == text
    assert QuantScheme.parse(str(QuantScheme.parse(text))) == QuantScheme.parse(text)


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("w8a8", "int8 per channel", "int8 per token"),
        ("w4a8g32", "int4 per 32", "int8 per 32"),
        ("w4a8g32t", "int4 per 32", "int8 per token"),
        ("w3g64z", "uint3 per 64", "None"),
        ("w8a8s", "int8 per channel", "int8 per tensor"),
        ("w4a8g32zs", "uint4 per 32", "int8 per tensor"),
    ],
)
def test_what_a_scheme_means(text: str, weight: str, activation: str) -> None:
    scheme = QuantScheme.parse(text)
    assert str(scheme.weight) == weight
    assert str(scheme.activation) == activation


@given(SCHEMES)
def test_only_s_is_static(text: str) -> None:
    scheme = QuantScheme.parse(text)
    assert scheme.is_static == text.endswith("s")
    assert not scheme.weight.is_static


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "int4",
            r"^'int4' is not a scheme; write w<bits>\[a<bits>\]\[g<group>\]\[z\]\[t\|s\], for",
        ),
        ("w4a8g32x", "^'w4a8g32x' is not a scheme"),
        ("w9", "^9 bits are not supported; choose 2 to 8$"),
        ("w1a8", "^1 bits are not supported; choose 2 to 8$"),
        ("w4a4", "^'w4a4': activations have 8 bits or stay float; write a8 or leave it out$"),
        ("w4a8g12", "^group size 12 is not supported; choose a multiple of 8, for instance 32,"),
        ("w4a8g0", "^group size 0 is not supported"),
        ("w4g32t", "^'w4g32t': 't' needs both a group and activation bits, as in w4a8g64t$"),
        ("w4a8t", "'t' needs both a group and activation bits"),
        ("w4g32s", "^'w4g32s': 's' needs activation bits, as in w8a8s$"),
        ("w4a8g32ts", "^'w4a8g32ts': 't' is one activation scale per token and 's' one for the "),
        ("w4a8g32st", "leave one of them out$"),
        ("w4a8g32ss", "is not a scheme"),
    ],
)
def test_what_is_no_scheme(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantScheme.parse(text)


@pytest.mark.parametrize("bits", range(2, 9))
def test_code_ranges_hold_as_many_codes_as_the_bits_can_say(bits: int) -> None:
    for symmetric in (True, False):
        form = TensorFormat(bits=bits, granularity=PerChannel(), symmetric=symmetric)
        low, high = form.code_range
        assert high - low + 1 == 2**bits
        assert low == (-(2 ** (bits - 1)) if symmetric else 0)


@given(st.integers(1, 3000), st.sampled_from([8, 32, 64, 128]))
def test_groups_cover_all_inputs(k: int, size: int) -> None:
    form = TensorFormat(bits=4, granularity=PerGroup(size))
    span, count = form.group_size(k), form.groups(k)
    assert span == min(size, k)
    assert (count - 1) * span < k <= count * span


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerToken()])
def test_without_groups_one_scale_serves_a_row(
    granularity: PerTensor | PerChannel | PerToken,
) -> None:
    form = TensorFormat(bits=8, granularity=granularity)
    assert (form.group_size(576), form.groups(576)) == (576, 1)


def test_storage() -> None:
    def bits(text: str, k: int) -> float:
        return QuantScheme.parse(text).weight.bits_per_weight(k)

    assert bits("w4a8g32", 576) == 4.5
    assert bits("w4a8g128", 576) == pytest.approx(4 + 16 * 5 / 576)
    assert bits("w8a8", 1024) == 8 + 16 / 1024
    assert bits("w4g64z", 512) == 4 + 24 / 64
