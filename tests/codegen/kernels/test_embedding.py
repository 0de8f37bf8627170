"""Embedding rows from packed tables, bit for bit."""

import numpy as np
import pytest
import torch
import tvm

from codegen.kernels.embedding import EmbeddingSpec, embedding
from codegen.packing import code_packing, float_packing, pack, pack_float
from qcompiler.core import ops
from qcompiler.core.formats import QuantScheme
from qcompiler.core.qtensor import QuantizedTensor

pytestmark = pytest.mark.tvm


def _look_up(function, arrays, ids, k):
    out = tvm.runtime.tensor(np.full((len(ids), k), np.nan, np.float32))
    function(*(tvm.runtime.tensor(a) for a in (ids.numpy(), *arrays.values())), out)
    return torch.from_numpy(out.numpy())


@pytest.mark.parametrize(
    ("scheme", "n", "k"),
    [
        ("w4a8g32", 300, 576),
        ("w4a8g32z", 70, 100),
        ("w4a8g64", 40, 77),
        ("w8a8", 130, 70),
        ("w8a8g32z", 64, 99),
        ("w8a8g128", 50, 576),
    ],
)
def test_quantised_tables(scheme, n, k, target, compile_kernel):
    form = QuantScheme.parse(scheme).weight
    low, high = form.code_range
    dtype = torch.int8 if form.symmetric else torch.uint8
    shape = (n, form.groups(k))
    table = QuantizedTensor(
        torch.randint(low, high + 1, (n, k), dtype=dtype),
        torch.rand(shape).half(),
        None if form.symmetric else torch.randint(0, high + 1, shape, dtype=torch.uint8),
        form,
    )
    packing = code_packing(n, k, form, lanes=target.lanes, signed=target.signed_bytes)
    zero = None if table.zero_point is None else table.zero_point.numpy()
    arrays = pack(packing, table.codes.numpy(), table.scale.numpy(), zero)
    function = compile_kernel(embedding(EmbeddingSpec(packing=packing), target), target)
    for m in (1, 3, 40):
        ids = torch.randint(0, n, (m,))
        ids[-1] = n - 1
        expected = ops.quantized_embedding(ids, table, scheme=scheme)
        assert torch.equal(_look_up(function, arrays, ids, k), expected)


def test_float_tables(target, compile_kernel):
    n, k = 100, 70
    table = torch.randn(n, k)
    packing = float_packing(n, k, lanes=target.lanes)
    function = compile_kernel(embedding(EmbeddingSpec(packing=packing), target), target)
    for m in (1, 33):
        ids = torch.randint(0, n, (m,))
        actual = _look_up(function, pack_float(packing, table.numpy()), ids, k)
        assert torch.equal(actual, table[ids])
