"""Packing: what is packed comes back, and lies where the documentation says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.packing import (
    ALIGNMENT,
    Packing,
    choose_vectors,
    code_packing,
    float_packing,
    pack,
    pack_float,
    unpack,
    unpack_float,
)
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerChannel, PerGroup, TensorFormat

FORMATS = st.builds(
    TensorFormat,
    bits=st.sampled_from([2, 3, 4, 8]),
    granularity=st.sampled_from([PerChannel(), PerGroup(8), PerGroup(32), PerGroup(128)]),
    symmetric=st.booleans(),
)


@st.composite
def _codes(draw):
    """A format, a layout for it, and random codes, scales and zero points."""
    form = draw(FORMATS)
    gated = draw(st.booleans())
    n = draw(st.integers(1, 80)) * (2 if gated else 1)
    k = draw(st.integers(1, 300))
    lanes, signed = draw(st.sampled_from([(4, True), (8, False), (16, False)]))
    threads = draw(st.integers(1, 4))
    packing = code_packing(n, k, form, lanes=lanes, threads=threads, gated=gated, signed=signed)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    low, high = form.code_range
    codes = rng.integers(low, high + 1, (n, k)).astype(np.int8 if form.symmetric else np.uint8)
    scale = rng.random((n, packing.groups)).astype(np.float16)
    zero = None
    if not form.symmetric:
        zero = rng.integers(0, high + 1, (n, packing.groups)).astype(np.uint8)
    return packing, codes, scale, zero


def _place(packing, row):
    """The tile, vector and lane of a weight's row."""
    parts = 2 if packing.gated else 1
    part, output = divmod(row, packing.outputs)
    tile, within = divmod(output, packing.outputs_per_tile)
    vector, lane = divmod(within, packing.lanes)
    return tile, vector * parts + part, lane


@given(_codes())
def test_codes_come_back(case):
    packing, codes, scale, zero = case
    back = unpack(packing, pack(packing, codes, scale, zero))
    for before, after in zip((codes, scale, zero), back, strict=True):
        if before is None:
            assert after is None
        else:
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


@given(_codes(), st.data())
def test_codes_lie_where_they_should(case, data):
    packing, codes, scale, zero = case
    row = data.draw(st.integers(0, packing.n - 1))
    k = data.draw(st.integers(0, packing.k - 1))
    tile, vector, lane = _place(packing, row)
    arrays = pack(packing, codes, scale, zero)
    if packing.bits == 4:
        step, within = divmod(k, 8)
        steps = packing.padded_k // 8
    else:
        step, within = divmod(k, 4)
        steps = packing.padded_k // 4
    unit = ((tile * steps + step) * packing.vectors + vector) * packing.lanes + lane
    byte = int(arrays["codes"][unit * 4 + within % 4])
    if packing.bits == 4:
        byte = byte >> 4 if within >= 4 else byte & 15
    elif packing.signed:
        byte = (byte + 128) % 256 - 128
    assert byte - packing.offset == codes[row, k]

    group = k // packing.group
    unit = ((tile * packing.groups + group) * packing.vectors + vector) * packing.lanes + lane
    assert arrays["scales"][unit] == scale[row, group]
    if zero is not None:
        assert arrays["zero_points"][unit] == zero[row, group]


@given(_codes())
def test_arrays_have_the_announced_size_and_whole_cache_lines(case):
    packing, codes, scale, zero = case
    arrays = pack(packing, codes, scale, zero)
    sizes = [packing.code_bytes, packing.scale_count, packing.zero_point_count]
    assert [a.size for a in arrays.values()] == sizes[: len(arrays)]
    assert all(a.nbytes % ALIGNMENT == 0 and a.ndim == 1 for a in arrays.values())
    assert np.count_nonzero(arrays["scales"]) == np.count_nonzero(scale)  # padding is zero


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([8, 16]), st.booleans())
def test_float_weights_come_back(n, k, lanes, gated):
    n = 2 * n if gated else n
    packing = float_packing(n, k, lanes=lanes, gated=gated)
    weight = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    arrays = pack_float(packing, weight)
    np.testing.assert_array_equal(unpack_float(packing, arrays), weight)
    assert arrays["weights"].nbytes == packing.code_bytes
    assert packing.code_bytes % ALIGNMENT == 0

    row, column = n - 1, k - 1
    tile, vector, lane = _place(packing, row)
    place = ((tile * k + column) * packing.vectors + vector) * lanes + lane
    assert arrays["weights"][place] == weight[row, column]


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_widths_without_a_packing_are_refused_unless_widened(bits):
    form = TensorFormat(bits=bits, granularity=PerGroup(32))
    with pytest.raises(UnsupportedError, match=f"weights of {bits} bits .* allow widening"):
        code_packing(64, 64, form, lanes=16)
    packing = code_packing(64, 64, form, lanes=16, widen=True)
    assert packing.bits == 8
    codes = np.full((64, 64), form.code_range[0], np.int8)
    scale = np.ones((64, 2), np.float16)
    np.testing.assert_array_equal(unpack(packing, pack(packing, codes, scale))[0], codes)


@pytest.mark.parametrize(
    ("outputs", "lanes", "vectors"),
    [(576, 16, 2), (960, 16, 2), (1536, 16, 4), (49152, 16, 4), (16, 16, 1), (960, 8, 4)],
)
def test_tiles_divide_among_two_threads(outputs, lanes, vectors):
    assert choose_vectors(outputs, lanes=lanes, threads=2) == vectors


def test_a_gated_tile_always_has_both_halves():
    assert choose_vectors(8, lanes=16, threads=2, gated=True) > 1
    with pytest.raises(AssertionError):
        Packing(n=32, k=8, bits=4, group=8, gated=True, lanes=16, vectors=1)


def test_a_short_last_group():
    form = TensorFormat(bits=4, granularity=PerGroup(128))
    assert code_packing(64, 576, form, lanes=16).groups == 5
