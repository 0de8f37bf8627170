"""Float products against the operator in double precision."""

import numpy as np
import pytest
import torch
import tvm

from codegen.kernels.epilogue import Epilogue
from codegen.kernels.float_matmul import FloatMatmul, many_rows, one_row
from codegen.packing import float_packing, pack_float
from qcompiler.core import ops
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm


def _check(function, spec, m):
    packing, epilogue = spec.packing, spec.epilogue
    x, weight = torch.randn(m, packing.k), torch.randn(packing.n, packing.k)
    bias = torch.randn(packing.n) if epilogue.bias else None
    residual = torch.randn(m, packing.outputs) if epilogue.residual else None
    arrays = [x.numpy(), *pack_float(packing, weight.numpy()).values()]
    arrays += [t.numpy() for t in (bias, residual) if t is not None]
    out = tvm.runtime.tensor(np.full((m, packing.outputs), np.nan, np.float32))
    function(*(tvm.runtime.tensor(a) for a in arrays), out)
    x, weight, bias, residual = (
        None if t is None else t.double() for t in (x, weight, bias, residual)
    )
    expected = ops.linear(
        x, weight, bias, residual, activation=epilogue.activation, gated=packing.gated
    )
    assert sqnr(expected, torch.from_numpy(out.numpy())) > 110


@pytest.mark.parametrize(
    ("n", "k", "gated", "epilogue"),
    [
        (96, 576, False, Epilogue()),
        (100, 33, False, Epilogue(bias=True, activation="gelu")),
        (74, 50, True, Epilogue(bias=True, residual=True, activation="silu")),
        (3, 1, False, Epilogue(residual=True)),
        (64, 1500, False, Epilogue()),
    ],
    ids=["plain", "bias-gelu", "gated", "tiny", "long"],
)
def test_products(n, k, gated, epilogue, target, compile_kernel):
    packing = float_packing(n, k, lanes=target.lanes, gated=gated)
    spec = FloatMatmul(packing=packing, epilogue=epilogue)
    _check(compile_kernel(one_row(spec, target), target), spec, 1)
    function = compile_kernel(many_rows(spec, target), target)
    for m in (1, 2, 6, 11, 130):
        _check(function, spec, m)
