"""Cutting rows into vectors."""

import pytest

from codegen.kernels.row import pieces


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 24, 100, 576])
def test_pieces_cover_a_row_once(length, lanes):
    cut = pieces(length, lanes)
    covered = [start + i for start, _, count in cut for i in range(count)]
    assert covered == list(range(length))
    assert all(width in (8, lanes) and 0 < count <= width for _, width, count in cut)
    assert all(count == width for _, width, count in cut[:-1])
