"""Loops of a matrix product: everything is visited, once."""

import numpy as np
import pytest
import tvm

from codegen.kernels.blocking import (
    over_groups,
    over_row_blocks,
    over_runs,
    over_tiles_and_panels,
    panel_rows,
)
from codegen.kernels.builder import argument, kernel, load, size, store
from codegen.packing import Packing

pytestmark = pytest.mark.tvm


def _packing(*, tiles=1, k=8, group=8):
    return Packing(n=8 * tiles, k=k, bits=8, group=group, lanes=8, vectors=1)


def _counts(*shape):
    return tvm.runtime.tensor(np.zeros(shape, np.int32))


@pytest.mark.parametrize("tiles", [1, 2, 3, 40])
def test_every_row_of_every_tile_once(tiles, target, compile_kernel):
    with kernel("count") as built:
        rows = size("m")
        out = argument("out", (tiles, rows), "int32")

        def emit_panel(tile, first, count):
            def emit_rows(row, block):
                for r in range(block):
                    store(out, load(out, tile, row + r) + 1, tile, row + r)

            over_row_blocks(first, count, (4, 3, 1), emit_rows)

        packing = _packing(tiles=tiles)
        over_tiles_and_panels(packing, rows, panel=16, block=4, emit=emit_panel)
    function = compile_kernel(built.get(), target)
    for m in (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 100):
        out = _counts(tiles, m)
        function(out)
        assert (out.numpy() == 1).all()


@pytest.mark.parametrize(("total", "longest"), [(1, 8), (8, 8), (9, 8), (24, 8), (5, 1), (31, 8)])
def test_every_step_of_runs_once(total, longest, target, compile_kernel):
    with kernel("count") as built:
        out = argument("out", (total,), "int32")

        def emit(run, steps):
            assert steps <= longest
            for step in range(steps):
                store(out, load(out, run + step) + 1, run + step)

        over_runs(total, longest, emit)
    out = _counts(total)
    compile_kernel(built.get(), target)(out)
    assert (out.numpy() == 1).all()


@pytest.mark.parametrize(("k", "group"), [(64, 32), (70, 32), (70, 70), (8, 8), (576, 128)])
def test_every_input_in_its_group(k, group, target, compile_kernel):
    packing = _packing(k=k, group=group)
    with kernel("groups") as built:
        out = argument("out", (packing.padded_k,), "int32")

        def emit(index, first, inputs):
            for i in range(inputs):
                store(out, load(out, first + i) + (index + 1).astype("int32"), first + i)

        over_groups(packing, lambda i, f, n: emit(i + tvm.tirx.IntImm("int64", 0), f, n))
    out = _counts(packing.padded_k)
    compile_kernel(built.get(), target)(out)
    expected = np.minimum(np.arange(packing.padded_k) // group, packing.groups - 1) + 1
    np.testing.assert_array_equal(out.numpy(), expected)


def test_panels_fit_the_cache(target):
    assert panel_rows(target, 512, 7) * 512 <= target.l2_bytes
    assert panel_rows(target, 512, 7) % 7 == 0
    assert panel_rows(target, 1 << 30, 7) == 28
