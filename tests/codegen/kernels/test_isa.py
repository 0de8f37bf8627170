"""Byte products of each instruction set, and rounding, against plain integers."""

import dataclasses

import numpy as np
import pytest
import tvm

from codegen.kernels.builder import argument, kernel, load, reinterpret, splat, store
from codegen.kernels.isa import byte_dots, round_to_int32
from qcompiler.core.errors import UnsupportedError
from targets import PROCESSORS

pytestmark = [
    pytest.mark.tvm,
    pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name, indirect=True),
]


@pytest.mark.parametrize("bits", [4, 8])
def test_byte_dots_never_saturate(bits, target, compile_kernel):
    lanes, steps = target.lanes, 8
    with kernel("dots") as built:
        weights = argument("weights", (steps, 4 * lanes), "uint8")
        activations = argument("activations", (steps, 4 * lanes), "int8")
        out = argument("out", (2, lanes), "int32")
        dots = byte_dots(target, bits, 2)
        dots[0], dots[1] = splat(5, lanes, "int32"), splat(-7, lanes, "int32")
        for step in range(steps):
            weight, activation = (
                reinterpret(load(b, step, 0, lanes=4 * lanes), "int32", lanes)
                for b in (weights, activations)
            )
            dots.add(0, dots.weight(weight), dots.activation(activation))
            if step % 2:
                dots.add(1, dots.weight(weight), dots.activation(activation))
        dots.flush()
        store(out, dots[0], 0, 0)
        store(out, dots[1], 1, 0)
    function = compile_kernel(built.get(), target)
    rng = np.random.default_rng()
    signed = bits == 8 and target.signed_bytes
    low, high = (-128, 127) if signed else (0, (1 << bits) - 1)
    w = rng.integers(low, high + 1, (steps, 4 * lanes)).astype(np.int8 if signed else np.uint8)
    a = rng.integers(-128, 128, (steps, 4 * lanes)).astype(np.int8)
    w[:, :4], a[:, :4] = low, -128
    w[:, 4:8], a[:, 4:8] = high, -128
    w[:, 8:16], a[:, 8:16] = high, 127
    result = tvm.runtime.tensor(np.zeros((2, lanes), np.int32))
    function(tvm.runtime.tensor(w.view(np.uint8)), tvm.runtime.tensor(a), result)
    products = (w.astype(np.int32) * a).reshape(steps, lanes, 4).sum(-1)
    np.testing.assert_array_equal(result.numpy()[0], products.sum(0) + 5)
    np.testing.assert_array_equal(result.numpy()[1], products[1::2].sum(0) - 7)


def test_rounding_is_to_nearest_even(target, compile_kernel):
    with kernel("round") as built:
        x = argument("x", (target.lanes,), "float32")
        out = argument("out", (target.lanes,), "int32")
        store(out, round_to_int32(load(x, 0, lanes=target.lanes)), 0)
    values = np.resize(
        np.array([0.5, 1.5, -0.5, -2.5, 2.4999, -126.7, 1e6], np.float32), target.lanes
    )
    result = tvm.runtime.tensor(np.zeros(target.lanes, np.int32))
    compile_kernel(built.get(), target)(tvm.runtime.tensor(values), result)
    np.testing.assert_array_equal(result.numpy(), np.rint(values))


def test_an_unknown_byte_product_is_refused(target):
    other = dataclasses.replace(target, dot="vpdpbusds")
    with pytest.raises(UnsupportedError, match="unknown byte product 'vpdpbusds'; did you mean"):
        byte_dots(other, 8, 1)
