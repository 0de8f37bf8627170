"""Products of many rows against the reference arithmetic."""

from __future__ import annotations

import pytest
import torch

from codegen.kernels.cuda.many_rows import half_rows, integer_rows
from qcompiler.core import reference

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize(
    ("scheme", "n", "k"),
    [
        ("w4a8g32", 96, 288),
        ("w4a8g32", 200, 70),  # outputs and inputs that fill no tile, a short last group
        ("w4a8g128", 64, 320),
        ("w4a8g256", 32, 520),
        ("w4a8g32z", 72, 100),
        ("w4a8g24t", 40, 104),
        ("w4a8", 33, 300),
        ("w8a8z", 50, 77),
        ("w8a8g128z", 130, 200),
    ],
)
def test_products_of_codes(scheme, n, k, target, run_kernel, product_of):
    product = product_of(scheme, n, k)
    function = run_kernel(integer_rows(product.spec, target))
    for m in (5, 70):
        expected, actual = product.run(function, m)
        assert reference.sqnr(expected, actual) > 110


@pytest.mark.parametrize(
    ("scheme", "n", "k"),
    [
        ("w4g32", 96, 288),
        ("w4g128z", 70, 333),
        ("w8", 64, 130),
        ("w8z", 40, 90),
    ],
)
def test_products_of_floats_round_them_to_float16(scheme, n, k, target, run_kernel, product_of):
    product = product_of(scheme, n, k)
    function = run_kernel(half_rows(product.spec, target))
    for m in (3, 70):
        expected, actual = product.run(function, m)
        # Rounding to eleven bits leaves a relative error of 2^-12 at most: 72 dB and more.
        assert reference.sqnr(expected, actual) > 65


@pytest.mark.parametrize(("activation", "gated"), [("gelu", False), ("silu", True)])
@pytest.mark.parametrize("n", [74, 128])
def test_epilogues(activation, gated, n, target, run_kernel, product_of):
    product = product_of(
        "w4a8g32", n, 64, gated=gated, bias=True, residual=True, activation=activation
    )
    function = run_kernel(integer_rows(product.spec, target))
    for m in (2, 40):
        expected, actual = product.run(function, m)
        assert reference.sqnr(expected, actual) > 110


@pytest.mark.parametrize("scheme", ["w4a8g32", "w8a8g32z"])
def test_integer_sums_are_exact_at_the_extremes(scheme, target, run_kernel, product_of):
    product = product_of(scheme, 48, 200)
    low, high = product.scheme.weight.code_range
    ends = torch.tensor([low, high], dtype=product.weight.codes.dtype)
    product.weight.codes.copy_(ends[torch.randint(0, 2, (48, 200))])
    product.weight.scale.fill_(1.0)
    codes = (torch.randint(0, 2, (20, 200)) * 254 - 127).to(torch.int8)
    groups = 1 if product.spec.per_token else product.packing.groups
    scales = torch.ones(20, groups)
    out = torch.full((20, 48), float("nan"))
    function = run_kernel(integer_rows(product.spec, target))
    function(*product.quantized_inputs(codes, scales), *product.arrays(), out)
    assert torch.equal(reference.quantized_matmul(codes, scales, product.weight), out)
