"""Transposition in registers."""

import pytest
import torch
import tvm

from codegen.kernels.builder import argument, kernel, load, store
from codegen.kernels.transpose import transpose

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("n", [8, 16])
def test_transpose(n, target, compile_kernel):
    with kernel("transpose") as built:
        x = argument("x", (n, n), "float32")
        y = argument("y", (n, n), "float32")
        for i, column in enumerate(transpose([load(x, i, 0, lanes=n) for i in range(n)])):
            store(y, column, i, 0)
    square = torch.randn(n, n)
    out = tvm.runtime.tensor(torch.zeros(n, n).numpy())
    compile_kernel(built.get(), target)(tvm.runtime.tensor(square.numpy()), out)
    assert torch.equal(torch.from_numpy(out.numpy()), square.T)
