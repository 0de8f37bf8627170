"""Vector functions against torch, extremes included."""

import pytest
import torch
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as build

from codegen.kernels import vector_math
from qcompiler.core import ops
from qcompiler.core.errors import UsageError
from qcompiler.core.reference import sqnr

SIZE = 2048
pytestmark = pytest.mark.tvm


def _map(function, lanes):
    """A PrimFunc that applies `function` to each vector of x."""
    with IRBuilder() as builder, build.prim_func(s_tir=True):
        build.func_name("main")
        x = build.arg("x", build.buffer((SIZE,), "float32"))
        y = build.arg("y", build.buffer((SIZE,), "float32"))
        with build.serial(SIZE // lanes) as i:
            index = [build.ramp(i * lanes, 1, lanes)]
            build.buffer_store(y, function(build.bind(x[index[0]]), lanes), index)
    return builder.get()


def _run(kernel, x):
    y = tvm.runtime.tensor(torch.zeros(SIZE).numpy())
    kernel(tvm.runtime.tensor(x.numpy()), y)
    return torch.from_numpy(y.numpy())


@pytest.mark.parametrize("name", sorted(vector_math.ACTIVATIONS))
def test_activation(name, target, compile_kernel):
    kernel = compile_kernel(
        _map(lambda x, lanes: vector_math.activation(name, x, lanes), target.lanes), target
    )
    for limit in (1e-3, 1.0, 6.0, 50.0, 1e4):
        x = (torch.rand(SIZE) * 2 - 1) * limit
        x[0], x[1], x[2] = limit, -limit, 0.0
        y = _run(kernel, x)
        assert sqnr(ops.ACTIVATIONS[name](x.double()), y) > 130
        assert y.isfinite().all()
        assert y[2] == 0


def test_activations_are_those_of_the_operators():
    assert set(vector_math.ACTIVATIONS) == set(ops.ACTIVATIONS)


def test_unknown_activation():
    with pytest.raises(UsageError, match="unknown activation 'gelutanh'; did you mean 'gelu_tanh'"):
        vector_math.activation("gelutanh", None, 16)


def test_exp(target, compile_kernel):
    kernel = compile_kernel(_map(vector_math.exp, target.lanes), target)
    x = torch.linspace(-87, 88.7, SIZE)
    expected = torch.exp(x.double())
    assert ((_run(kernel, x) - expected).abs() / expected).max() < 2 * 2**-23
    x = torch.tensor([0.0, -0.0, 1e4, -1e4, 89.0, -110.0, float("-inf"), float("inf")])
    assert torch.equal(_run(kernel, x.repeat(SIZE // 8))[:8], torch.exp(x))


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(vector_math.exp_bounded, -87.328125, 88.375), (vector_math.exp_nonpositive, -64.0, 0.0)],
)
def test_clamped_exp(function, low, high, target, compile_kernel):
    kernel = compile_kernel(_map(function, target.lanes), target)
    x = torch.linspace(low, high, SIZE)
    x[0] = -1e30
    expected = torch.exp(x.double().clamp(min=low))
    assert ((_run(kernel, x) - expected).abs() / expected).max() < 2 * 2**-23


def test_horizontal(target, compile_kernel):
    x = torch.randn(SIZE)
    rows = x.reshape(-1, target.lanes)
    for function, expected in (
        (vector_math.horizontal_sum, rows.sum(1)),
        (vector_math.horizontal_max, rows.amax(1)),
    ):
        kernel = compile_kernel(
            _map(lambda v, lanes, f=function: build.broadcast(f(v, lanes), lanes), target.lanes),
            target,
        )
        y = _run(kernel, x).reshape(rows.shape)
        assert torch.equal(y[:, 0], y[:, -1])
        assert sqnr(expected, y[:, 0]) > 130


def test_horizontal_sum_of_integers(target, compile_kernel):
    def count(v, lanes):
        whole = vector_math.horizontal_sum_int32(v.astype(f"int32x{lanes}"), lanes)
        return build.broadcast(whole.astype("float32"), lanes)

    x = torch.randint(-1000, 1000, (SIZE,)).float()
    y = _run(compile_kernel(_map(count, target.lanes), target), x)
    assert torch.equal(y[:: target.lanes], x.reshape(-1, target.lanes).sum(1))
