"""Quantised products against the reference arithmetic."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from codegen.kernels.epilogue import Epilogue
from codegen.kernels.quantized_matmul import QuantizedMatmul, many_rows, one_row
from codegen.packing import code_packing, pack
from qcompiler.core import ops, reference
from qcompiler.core.formats import PerToken, QuantScheme
from qcompiler.core.qtensor import QuantizedTensor
from targets import PROCESSORS, cpu_features

pytestmark = [
    pytest.mark.tvm,
    pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name, indirect=True),
]

FEW = (1, 2, 7, 16)
MANY = (17, 24, 37)
"""Rows that some target multiplies in each of two ways."""


def _weight(n, k, form):
    low, high = form.code_range
    groups = form.groups(k)
    dtype = torch.int8 if form.symmetric else torch.uint8
    zero = None if form.symmetric else torch.randint(0, high + 1, (n, groups), dtype=torch.uint8)
    codes = torch.randint(low, high + 1, (n, k), dtype=dtype)
    return QuantizedTensor(codes, (torch.rand(n, groups) * 0.02 + 0.001).half(), zero, form)


def _tensors(*arrays):
    return [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays]


class _Product:
    """One product: its specification, its packed weight, and how to call a kernel of it."""

    def __init__(self, scheme, n, k, target, *, gated=False, widen=False, **epilogue):
        self.scheme, self.gated, self.k = QuantScheme.parse(scheme), gated, k
        self.weight = _weight(n, k, self.scheme.weight)
        packing = code_packing(
            n,
            k,
            self.scheme.weight,
            lanes=target.lanes,
            gated=gated,
            signed=target.signed_bytes,
            widen=widen,
        )
        per_token = isinstance(self.scheme.activation.granularity, PerToken)
        self.spec = QuantizedMatmul(
            packing=packing, per_token=per_token, epilogue=Epilogue(**epilogue)
        )

    def inputs(self, codes, scales):
        """Arguments of a kernel up to the weight."""
        packing = self.spec.packing
        padded = np.pad(codes.numpy(), ((0, 0), (0, packing.padded_k - self.k)))
        size = self.scheme.weight.group_size(self.k)
        whole = np.pad(
            codes.numpy().astype(np.int32), ((0, 0), (0, packing.groups * size - self.k))
        )
        sums = whole.reshape(len(codes), packing.groups, size).sum(-1, dtype=np.int32)
        weight = self.weight
        zero = None if weight.zero_point is None else weight.zero_point.numpy()
        arrays = pack(packing, weight.codes.numpy(), weight.scale.numpy(), zero)
        return _tensors(padded, scales.numpy(), sums, *arrays.values())

    def run(self, function, codes, scales):
        """Call a kernel; return the expected and the actual result."""
        m, packing, epilogue = len(codes), self.spec.packing, self.spec.epilogue
        bias = torch.randn(packing.n) if epilogue.bias else None
        residual = torch.randn(m, packing.outputs) if epilogue.residual else None
        extra = _tensors(*(t.numpy() for t in (bias, residual) if t is not None))
        (out,) = _tensors(np.full((m, packing.outputs), np.nan, np.float32))
        function(*self.inputs(codes, scales), *extra, out)
        expected = ops.quantized_matmul(
            codes,
            scales,
            self.weight,
            bias,
            residual,
            scheme=str(self.scheme),
            activation=epilogue.activation,
            gated=self.gated,
        )
        return expected, torch.from_numpy(out.numpy())

    def check(self, function, m):
        x = torch.randn(m, self.k) * torch.rand(m, 1)
        codes = reference.quantize_activation(x, self.scheme.activation)
        expected, actual = self.run(function, *codes)
        assert reference.sqnr(expected, actual) > 110


@pytest.mark.parametrize(
    ("scheme", "n", "k"),
    [
        ("w4a8g32", 96, 576),
        ("w4a8g32", 200, 70),  # padded outputs, a short last group, odd inputs
        ("w4a8g128", 64, 576),
        ("w4a8g32z", 72, 100),
        ("w4a8g64t", 40, 200),
        ("w4a8", 33, 300),
        ("w3a8g32", 32, 64),
        ("w8a8", 100, 330),
        ("w8a8z", 50, 77),
        ("w8a8g32", 130, 96),
        ("w8a8g128z", 64, 200),
        ("w8a8g512", 16, 1040),  # sums too large for the biased conversion
    ],
)
def test_products(scheme, n, k, target, compile_kernel):
    product = _Product(scheme, n, k, target)
    product.check(compile_kernel(one_row(product.spec, target), target), 1)
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (*FEW, *MANY):
        product.check(function, m)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "gelu_tanh", "relu", "tanh"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_epilogues_of_one_row(activation, gated, target, compile_kernel):
    product = _Product(
        "w4a8g32", 74, 64, target, gated=gated, bias=True, residual=True, activation=activation
    )
    product.check(compile_kernel(one_row(product.spec, target), target), 1)


@pytest.mark.parametrize(("activation", "gated"), [("gelu", False), ("silu", True)])
def test_epilogues_of_many_rows(activation, gated, target, compile_kernel):
    product = _Product(
        "w4a8g32", 74, 64, target, gated=gated, bias=True, residual=True, activation=activation
    )
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (1, 10, 30):
        product.check(function, m)


@pytest.mark.parametrize("extra", ["bias", "residual"])
def test_epilogue_with_one_addend(extra, target, compile_kernel):
    product = _Product("w8a8", 48, 64, target, **{extra: True})
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (9, 29):
        product.check(function, m)


@pytest.mark.parametrize("scheme", ["w4a8g32", "w4a8g32z", "w8a8g32", "w8a8g32z", "w8a8", "w8a8z"])
def test_integer_sums_are_exact_at_the_extremes(scheme, target, compile_kernel):
    """Scales of one make results integers below 2²⁴: nothing may saturate, nothing may round."""
    n, k, m = 48, 200, 20
    product = _Product(scheme, n, k, target)
    low, high = product.scheme.weight.code_range
    ends = torch.tensor([low, high], dtype=product.weight.codes.dtype)
    product.weight.codes.copy_(ends[torch.randint(0, 2, (n, k))])
    product.weight.codes[0], product.weight.codes[1] = low, high
    product.weight.scale.fill_(1.0)
    codes = (torch.randint(0, 2, (m, k)) * 254 - 127).to(torch.int8)
    codes[0], codes[1] = 127, -127
    groups = 1 if product.spec.per_token else product.spec.packing.groups
    for build, counts in ((one_row, (1,)), (many_rows, (7, m))):
        function = compile_kernel(build(product.spec, target), target)
        for rows in (codes[:count] for count in counts):
            expected, actual = product.run(function, rows, torch.ones(len(rows), groups))
            assert torch.equal(expected, actual)


def test_zero_activations_give_zero(target, compile_kernel):
    product = _Product("w4a8g32z", 32, 64, target)
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (9, 19):
        codes = torch.zeros(m, 64, dtype=torch.int8)
        _, actual = product.run(function, codes, torch.zeros(m, 2))
        assert not actual.any()


def test_few_tiles_share_rows_among_threads(target, compile_kernel):
    """With one tile of outputs the rows are divided, and every one is computed."""
    product = _Product("w4a8g32", target.lanes, 64, target)
    assert product.spec.packing.tiles == 1
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (2, 13, 200):
        product.check(function, m)


def test_more_rows_than_a_panel_holds(target, compile_kernel):
    product = _Product("w4a8g64", 64, 2048, target)
    product.check(compile_kernel(many_rows(product.spec, target), target), 700)


@pytest.mark.parametrize("scheme", ["w4a8g32", "w8a8"])
def test_weights_that_are_asked_for_beforehand(scheme, target, compile_kernel):
    """Long rows: each tile asks for the next, and the last one for what is not there."""
    product = _Product(scheme, 136, 1048, target)
    product.check(compile_kernel(many_rows(product.spec, target), target), 45)


def test_widened_codes(target, compile_kernel):
    product = _Product("w6a8g32", 32, 64, target, widen=True)
    assert product.spec.packing.bits == 8
    function = compile_kernel(many_rows(product.spec, target), target)
    for m in (5, 25):
        product.check(function, m)


def test_results_repeat(target, compile_kernel):
    product = _Product("w4a8g32", 96, 128, target)
    function = compile_kernel(many_rows(product.spec, target), target)
    x = torch.randn(20, 128)
    codes = reference.quantize_activation(x, product.scheme.activation)
    _, first = product.run(function, *codes)
    for _ in range(5):
        assert torch.equal(product.run(function, *codes)[1], first)


def test_within_a_relax_function(target):
    """The kernel's shapes match a call with a symbolic number of rows."""
    if not target.features <= cpu_features():
        pytest.skip("TVM's virtual machine runs in this process")
    product = _Product("w4a8g32", 64, 96, target, residual=True)
    codes = reference.quantize_activation(torch.randn(5, 96), product.scheme.activation)
    given = product.inputs(*codes)
    residual = torch.randn(5, 64)
    builder = relax.BlockBuilder()
    m = tvm.tirx.Var("m", "int64")
    types = [
        relax.TensorType((m, *a.shape[1:]) if i < 3 else a.shape, str(a.dtype))
        for i, a in enumerate(given)
    ]
    types.append(relax.TensorType((m, 64), "float32"))
    inputs = [relax.Var(f"a{i}", t) for i, t in enumerate(types)]
    with builder.function("main", inputs):
        kernel = builder.add_func(many_rows(product.spec, target), "product")
        out = relax.TensorType((m, 64), "float32")
        builder.emit_func_output(builder.emit(relax.call_tir(kernel, inputs, out)))
    built = relax.build(builder.get(), tvm.target.Target(dict(target.tvm)))
    machine = relax.VirtualMachine(built, tvm.cpu())
    actual = machine["main"](*given, *_tensors(residual.numpy()))
    expected = residual + reference.quantized_matmul(*codes, product.weight)
    assert reference.sqnr(expected, torch.from_numpy(actual.numpy())) > 110
