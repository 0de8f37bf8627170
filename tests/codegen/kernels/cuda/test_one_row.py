"""Products of one row against the reference arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codegen.kernels.cuda.one_row import FloatProduct, float_row, integer_row
from codegen.kernels.epilogue import Epilogue
from codegen.packing import float_packing, pack_float
from qcompiler.core import ops, reference

pytestmark = pytest.mark.tvm


SCHEMES = [
    ("w4a8g32", 96, 576),
    ("w4a8g32", 200, 70),
    ("w4a8g32z", 72, 100),
    ("w4a8", 33, 300),
    ("w8a8z", 50, 77),
    ("w8a8g128z", 64, 200),
    ("w4g32", 96, 576),
    ("w4g128z", 70, 333),
    ("w8", 64, 130),
    ("w8g32", 40, 96),
]


@pytest.mark.parametrize(("scheme", "n", "k"), SCHEMES)
def test_products(scheme, n, k, target, run_kernel, product_of):
    product = product_of(scheme, n, k)
    build = float_row if product.scheme.activation is None else integer_row
    function = run_kernel(build(product.spec, target))
    for _ in range(2):
        expected, actual = product.run(function, 1)
        assert reference.sqnr(expected, actual) > 110


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "gelu_tanh", "relu", "tanh"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_epilogues(activation, gated, target, run_kernel, product_of):
    product = product_of(
        "w4a8g32", 74, 64, gated=gated, bias=True, residual=True, activation=activation
    )
    expected, actual = product.run(run_kernel(integer_row(product.spec, target)), 1)
    assert reference.sqnr(expected, actual) > 110


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_float_weights(gated, target, run_kernel):
    n, k = 74, 99
    packing = float_packing(n, k, lanes=target.lanes, gated=gated, most_vectors=1)
    weight, x = torch.randn(n, k), torch.randn(1, k)
    (packed,) = pack_float(packing, weight.numpy()).values()
    out = torch.full((1, packing.outputs), np.nan)
    spec = FloatProduct(packing=packing, epilogue=Epilogue(activation="silu"))
    run_kernel(float_row(spec, target))(x, torch.from_numpy(packed), out)
    expected = ops.linear(x, weight, activation="silu", gated=gated)
    assert reference.sqnr(expected, out) > 110
