"""Rotary embedding against the operator."""

import pytest
import torch
import tvm

from codegen.kernels.rotary import RotarySpec, rotary
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(
    ("heads", "head_size", "rotated"),
    [(3, 64, 64), (2, 80, 32), (1, 80, 20), (2, 8, 2), (4, 96, 72), (3, 4, 4), (2, 27, 10)],
)
def test_rotary(heads, head_size, rotated, interleaved, target, compile_kernel):
    spec = RotarySpec(heads=heads, head_size=head_size, rotated=rotated, interleaved=interleaved)
    function = compile_kernel(rotary(spec, target), target)
    for b, s in ((1, 1), (2, 5)):
        x = torch.randn(b, s, heads, head_size)
        angles = torch.randn(b, s, rotated // 2)
        y = tvm.runtime.tensor(torch.zeros_like(x).numpy())
        given = (tvm.runtime.tensor(t.numpy()) for t in (x, angles.cos(), angles.sin()))
        function(*given, y)
        expected = ops.rotary(x, angles.cos(), angles.sin(), interleaved=interleaved)
        assert sqnr(expected, torch.from_numpy(y.numpy())) > 130


def test_unsupported():
    with pytest.raises(UnsupportedError, match="7 of 64 features cannot turn in pairs"):
        RotarySpec(heads=1, head_size=64, rotated=7)
