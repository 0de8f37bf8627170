"""What kernel calls take, of models whose sizes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from codegen.build import _fuse, compile_module
from codegen.call_costs import function_costs
from codegen.lower import Lowered, lower
from qcompiler.core.artifact import FunctionCosts, KernelCost
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from targets import find
from tests.families import tiny_model

pytestmark = pytest.mark.tvm


def lowered(legal: Callable[..., Program], family: str, scheme: str) -> Lowered:
    return lower(legal(capture(tiny_model(family)), find("native"), scheme), find("native"))


def costs_of(made: Lowered, name: str) -> FunctionCosts:
    return function_costs(_fuse(made.module), name, made.operators[name])


def of_kind(costs: FunctionCosts, kind: str) -> list[KernelCost]:
    return [costs.kernels[place] for place in costs.calls if costs.kernels[place].kind == kind]


@pytest.fixture
def llama(legal: Callable[..., Program]) -> Lowered:
    return lowered(legal, "llama", "w4a8g32")


def test_a_token_reads_every_stored_byte_but_those_of_other_tokens_embeddings(
    llama: Lowered,
) -> None:
    costs = costs_of(llama, "decode")
    # Of 64 features each: 2 layers with 2 heads of 16 for keys, of float32.
    (per_token,) = {each.evaluate(1, 8)[0] / 8 for each in of_kind(costs, "attention")}
    assert per_token == 2 * 2 * 16 * 4
    stored = sum(
        size.evaluate(1, 0)[0]
        for kind in ("product w4a8", "head", "norm and quantise")
        for size in of_kind(costs, kind)
    )
    arrays = dict(llama.weights.arrays())
    frequencies = sum(a.nbytes for name, a in arrays.items() if "inv_freq" in name)
    assert stored == sum(a.nbytes for a in arrays.values()) - _table_alone(llama) - frequencies
    # Codes of 64 features, and two scales.
    assert of_kind(costs, "embedding")[0].evaluate(1, 8)[0] == 64 // 2 + 2 * 2


def _table_alone(made: Lowered) -> int:
    """Return the bytes of the table of embeddings, where it is not the head's matrix."""
    names = [e.name for e in made.weights.entries if e.name.startswith("model.embed_tokens")]
    arrays = dict(made.weights.arrays())
    return sum(arrays[name].nbytes for name in names)


def test_a_prompt_takes_the_operations_of_each_of_its_tokens(llama: Lowered) -> None:
    prefill, decode = costs_of(llama, "prefill"), costs_of(llama, "decode")
    for kind in ("product w4a8", "norm and quantise", "quantise"):
        one = of_kind(decode, kind)[0].evaluate(1, 8)[1]
        assert of_kind(prefill, kind)[0].evaluate(7, 8)[1] == 7 * one
    # The head sees one row; a token sees itself and those before.
    assert of_kind(prefill, "head")[0].evaluate(7, 7) == of_kind(decode, "head")[0].evaluate(1, 7)
    seen = sum(of_kind(decode, "attention")[0].evaluate(1, c)[1] for c in range(1, 8))
    assert of_kind(prefill, "attention")[0].evaluate(7, 7)[1] == seen


def test_windows_are_known(legal: Callable[..., Program]) -> None:
    made = lowered(legal, "mistral", "float")
    attention = of_kind(costs_of(made, "decode"), "attention")[0]
    assert attention.window > 0
    assert attention.evaluate(1, attention.window) == attention.evaluate(1, attention.window + 99)


def test_calls_are_those_of_the_step(legal: Callable[..., Program], compiled: Any) -> None:
    made = lowered(legal, "llama", "w8a8")
    built = compile_module(made.module, find("native"), operators=made.operators)
    assert built.steps["decode"].stamps == len(built.costs["decode"].calls) + 1
    assert built.notes == ()
    assert built.limits


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gemma2", "phi"])
def test_every_family_is_counted(family: str, legal: Callable[..., Program]) -> None:
    made = lowered(legal, family, "float")
    for name in ("prefill", "decode"):
        costs = costs_of(made, name)
        kinds = {kernel.kind for kernel in costs.kernels}
        assert {"product float32", "attention", "head"} <= kinds
        assert all(min(kernel.evaluate(3, 9)) >= 0 for kernel in costs.kernels)
