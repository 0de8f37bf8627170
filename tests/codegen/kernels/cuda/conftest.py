"""Kernels for GPUs, run without one: the CUDA C that TVM emits, compiled for the host.

A process loads one CUDA driver. So that an emulated one and nvcc can be tested in one process, both
kinds of test use the emulated driver; nvcc's output is never loaded by it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm

from codegen.cuda.compiler import compiling_by
from codegen.cuda.emulation.device import compile_for_host, use_emulated_device
from codegen.kernels.cuda.one_row import FloatProduct
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.quantized_operands import QuantizedMatmul
from codegen.packing import code_packing, pack
from qcompiler.core import ops, reference
from qcompiler.core.formats import PerToken, QuantScheme
from qcompiler.core.qtensor import QuantizedTensor
from targets.cuda import CUDA_SM80


@pytest.fixture(scope="session")
def target():
    return CUDA_SM80


@pytest.fixture(scope="session", autouse=True)
def device():
    """The emulated GPU."""
    use_emulated_device()
    return tvm.cuda(0)


@pytest.fixture(scope="session")
def run_kernel(device) -> Callable[..., None]:
    """Return a function that compiles a PrimFunc for the emulated GPU; what it returns is called
    with torch tensors, which go to the device and back.
    """

    def build(function: tvm.tirx.PrimFunc, target=CUDA_SM80):
        machine = tvm.target.Target(dict(target.tvm), host="llvm")
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with machine, compiling_by(compile_for_host):
            compiled = tvm.compile(module, target=machine)

        def call(*tensors: torch.Tensor) -> None:
            given = [tvm.runtime.tensor(np.ascontiguousarray(t.numpy()), device) for t in tensors]
            compiled["main"](*given)
            for tensor, result in zip(tensors, given, strict=True):
                tensor.copy_(torch.from_numpy(result.numpy()))

        return call

    return build


def _weight(n, k, form):
    low, high = form.code_range
    groups = form.groups(k)
    dtype = torch.int8 if form.symmetric else torch.uint8
    zero = None if form.symmetric else torch.randint(0, high + 1, (n, groups), dtype=torch.uint8)
    codes = torch.randint(low, high + 1, (n, k), dtype=dtype)
    return QuantizedTensor(codes, (torch.rand(n, groups) * 0.02 + 0.001).half(), zero, form)


class Product:
    """A product on the device: its specification, a random weight, and the result expected."""

    def __init__(self, scheme, n, k, target, *, gated=False, **epilogue):
        self.scheme, self.n, self.k, self.gated = QuantScheme.parse(scheme), n, k, gated
        self.weight = _weight(n, k, self.scheme.weight)
        self.packing = code_packing(
            n, k, self.scheme.weight, lanes=target.lanes, gated=gated, most_vectors=1
        )
        self.epilogue = Epilogue(**epilogue)
        activation = self.scheme.activation
        if activation is None:
            self.spec = FloatProduct(packing=self.packing, epilogue=self.epilogue)
        else:
            self.spec = QuantizedMatmul(
                packing=self.packing,
                per_token=isinstance(activation.granularity, PerToken),
                epilogue=self.epilogue,
            )

    def arrays(self):
        w = self.weight
        zero = None if w.zero_point is None else w.zero_point.numpy()
        packed = pack(self.packing, w.codes.numpy(), w.scale.numpy(), zero)
        return [torch.from_numpy(a) for a in packed.values()]

    def inputs(self, x):
        if self.scheme.activation is None:
            return [x]
        return self.quantized_inputs(*reference.quantize_activation(x, self.scheme.activation))

    def quantized_inputs(self, codes, scales):
        padded = torch.nn.functional.pad(codes, (0, self.packing.padded_k - self.k))
        size = self.scheme.weight.group_size(self.k)
        whole = torch.nn.functional.pad(codes.int(), (0, self.packing.groups * size - self.k))
        sums = whole.reshape(len(codes), self.packing.groups, size).sum(-1, dtype=torch.int32)
        return [padded, scales, sums]

    def run(self, function, m):
        x = torch.randn(m, self.k) * (torch.rand(m, 1) + 0.1)
        packing, epilogue = self.packing, self.epilogue
        bias = torch.randn(packing.n) if epilogue.bias else None
        residual = torch.randn(m, packing.outputs) if epilogue.residual else None
        out = torch.full((m, packing.outputs), float("nan"))
        extra = [t for t in (bias, residual) if t is not None]
        function(*self.inputs(x), *self.arrays(), *extra, out)
        expected = ops.quantized_linear(
            x,
            self.weight,
            bias,
            residual,
            scheme=str(self.scheme),
            activation=epilogue.activation,
            gated=self.gated,
        )
        return expected, out


@pytest.fixture
def product_of(target) -> Callable[..., Product]:
    """Return a function that makes a product of a scheme, outputs, inputs and an epilogue."""
    return lambda scheme, n, k, **options: Product(scheme, n, k, target, **options)
