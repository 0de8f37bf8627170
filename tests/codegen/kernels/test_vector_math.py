"""Vector functions against torch, extremes included."""

import pytest
import torch
import tvm

from codegen.kernels import vector_math
from codegen.kernels.builder import argument, broadcast, cast, kernel, load, serial, store
from qcompiler.core import ops
from qcompiler.core.errors import UsageError
from qcompiler.core.reference import sqnr

SIZE = 2048
pytestmark = pytest.mark.tvm


def _map(function, lanes):
    """A function that applies another one to each vector of x."""
    with kernel("map") as built:
        x = argument("x", (SIZE,), "float32")
        y = argument("y", (SIZE,), "float32")
        with serial(SIZE // lanes) as i:
            store(y, function(load(x, i * lanes, lanes=lanes), lanes), i * lanes)
    return built.get()


def _run(function, x):
    y = tvm.runtime.tensor(torch.zeros(SIZE).numpy())
    function(tvm.runtime.tensor(x.numpy()), y)
    return torch.from_numpy(y.numpy())


@pytest.mark.parametrize("name", sorted(vector_math.ACTIVATIONS))
def test_activation(name, target, compile_kernel):
    function = compile_kernel(
        _map(lambda x, lanes: vector_math.activation(name, x, lanes), target.lanes), target
    )
    for limit in (1e-3, 1.0, 6.0, 50.0, 1e4):
        x = (torch.rand(SIZE) * 2 - 1) * limit
        x[0], x[1], x[2] = limit, -limit, 0.0
        y = _run(function, x)
        assert sqnr(ops.ACTIVATIONS[name](x.double()), y) > 130
        assert y.isfinite().all()
        assert y[2] == 0


def test_activations_are_those_of_the_operators():
    assert set(vector_math.ACTIVATIONS) == set(ops.ACTIVATIONS)


def test_unknown_activation():
    with pytest.raises(UsageError, match="unknown activation 'gelutanh'; did you mean 'gelu_tanh'"):
        vector_math.activation("gelutanh", None, 16)


def test_exp(target, compile_kernel):
    function = compile_kernel(_map(vector_math.exp, target.lanes), target)
    x = torch.linspace(-87, 88.7, SIZE)
    expected = torch.exp(x.double())
    assert ((_run(function, x) - expected).abs() / expected).max() < 2 * 2**-23
    x = torch.tensor([0.0, -0.0, 1e4, -1e4, 89.0, -110.0, float("-inf"), float("inf")])
    assert torch.equal(_run(function, x.repeat(SIZE // 8))[:8], torch.exp(x))


@pytest.mark.parametrize(
    ("function", "expected", "low", "high"),
    [
        (vector_math.exp_bounded, torch.exp, -87.328125, 88.375),
        (vector_math.exp_nonpositive, torch.exp, -64.0, 0.0),
        (vector_math.exp2_nonpositive, torch.exp2, -92.0, 0.0),
    ],
)
def test_clamped_exp(function, expected, low, high, target, compile_kernel):
    function = compile_kernel(_map(function, target.lanes), target)
    x = torch.linspace(low, high, SIZE)
    x[0], x[1] = -1e30, float("-inf")
    exact = expected(x.double().clamp(min=low))
    assert ((_run(function, x) - exact).abs() / exact).max() < 2 * 2**-23


@pytest.mark.parametrize("name", sorted(vector_math.ACTIVATIONS))
def test_not_a_number_stays_one(name, target, compile_kernel):
    function = compile_kernel(
        _map(lambda x, lanes: vector_math.activation(name, x, lanes), target.lanes), target
    )
    assert _run(function, torch.full((SIZE,), float("nan"))).isnan().all()


def test_horizontal(target, compile_kernel):
    x = torch.randn(SIZE)
    rows = x.reshape(-1, target.lanes)
    for function, expected in (
        (vector_math.horizontal_sum, rows.sum(1)),
        (vector_math.horizontal_max, rows.amax(1)),
    ):
        function = compile_kernel(
            _map(lambda v, lanes, f=function: broadcast(f(v, lanes), lanes), target.lanes),
            target,
        )
        y = _run(function, x).reshape(rows.shape)
        assert torch.equal(y[:, 0], y[:, -1])
        assert sqnr(expected, y[:, 0]) > 130


def test_horizontal_sum_of_integers(target, compile_kernel):
    def count(v, lanes):
        whole = vector_math.horizontal_sum_int32(cast(v, "int32"), lanes)
        return broadcast(cast(whole, "float32"), lanes)

    x = torch.randint(-1000, 1000, (SIZE,)).float()
    y = _run(compile_kernel(_map(count, target.lanes), target), x)
    assert torch.equal(y[:: target.lanes], x.reshape(-1, target.lanes).sum(1))
