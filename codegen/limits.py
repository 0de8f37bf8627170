"""The functions that an artifact carries so that its machine's limits can be measured."""

from __future__ import annotations

from tvm import ir, tirx

from codegen.kernels import limits
from qcompiler.core.artifact import LimitFacts
from qcompiler.core.target import Target

_FEWEST_BITS = 4  # of a weight's codes: some machines multiply those twice as fast


def limit_functions(
    target: Target,
) -> tuple[dict[ir.GlobalVar, tirx.PrimFunc], dict[str, LimitFacts]]:
    """Return functions to be added to a module, and how each is called, by what it measures."""
    sums = limits.sum_count(target)
    made = {
        "stream": (
            limits.streaming(target),
            LimitFacts(
                symbol="limit_stream",
                dtype="int32",
                numbers=limits.stream_numbers(target),
                sums=target.lanes,
                sums_dtype="int32",
            ),
        ),
        "int8": (
            limits.multiplying(target, _FEWEST_BITS),
            LimitFacts(
                symbol="limit_int8",
                dtype="uint8",
                numbers=limits.byte_count(target),
                sums=sums,
                sums_dtype="int32",
                operations=limits.byte_operations(target),
            ),
        ),
        "float32": (
            limits.accumulating(target),
            LimitFacts(
                symbol="limit_float32",
                dtype="float32",
                numbers=limits.float_count(target),
                sums=sums,
                sums_dtype="float32",
                operations=limits.float_operations(target),
            ),
        ),
    }
    functions = {
        ir.GlobalVar(facts.symbol): function.with_attr("global_symbol", facts.symbol)
        for function, facts in made.values()
    }
    return functions, {name: facts for name, (_, facts) in made.items()}
