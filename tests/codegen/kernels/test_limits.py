"""What measures limits does the work that it claims to do, on any number of threads."""

import numpy as np
import pytest
import tvm

from codegen.kernels import limits
from codegen.limits import limit_functions
from targets import PROCESSORS

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize("threads", [1, 3])
def test_all_of_the_memory_is_read(threads, target, compile_kernel):
    function = compile_kernel(limits.streaming(target), target)
    rng = np.random.default_rng()
    numbers = rng.integers(-9, 9, (threads, 5, limits.stream_numbers(target))).astype(np.int32)
    out = tvm.runtime.tensor(np.zeros((threads, target.lanes), np.int32))
    function(tvm.runtime.tensor(numbers), out)
    expected = numbers.reshape(threads, -1, target.lanes).sum(1)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name, indirect=True)
@pytest.mark.parametrize("bits", [4, 8])
def test_as_many_bytes_are_multiplied_as_are_counted(bits, target, compile_kernel):
    function = compile_kernel(limits.multiplying(target, bits), target)
    out = tvm.runtime.tensor(np.zeros((2, limits.sum_count(target)), np.int32))
    function(tvm.runtime.tensor(np.ones(limits.byte_count(target), np.uint8)), out)
    # Sums begin with the number of their register; products of ones count themselves.
    began = np.repeat(np.arange(limits.sum_count(target) // target.lanes), target.lanes)
    products = out.numpy() - began
    np.testing.assert_array_equal(2 * products.sum(1), [limits.byte_operations(target)] * 2)


def test_as_many_floats_are_multiplied_as_are_counted(target, compile_kernel):
    function = compile_kernel(limits.accumulating(target), target)
    out = tvm.runtime.tensor(np.zeros((2, limits.sum_count(target)), np.float32))
    function(tvm.runtime.tensor(np.ones(limits.float_count(target), np.float32)), out)
    began = np.repeat(np.arange(limits.sum_count(target) // target.lanes), target.lanes)
    products = out.numpy() - began
    np.testing.assert_array_equal(2 * products.sum(1), [limits.float_operations(target)] * 2)


def test_functions_have_the_symbols_that_are_told(target):
    functions, facts = limit_functions(target)
    assert set(facts) == {"stream", "int8", "float32"}
    symbols = {str(function.attrs["global_symbol"]) for function in functions.values()}
    assert symbols == {each.symbol for each in facts.values()}
