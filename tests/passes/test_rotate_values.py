"""Turned values change nothing but how well they fit into few bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.canonicalize import Canonicalize
from passes.rotate_values import RotateValues
from qcompiler.core import kv_rows
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr
from qcompiler.frontend import capture
from tests.families import tiny_model

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
Make = Callable[..., Program]
Run = Callable[..., PassContext]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_what_the_model_computes_stays(family: str, run_pass: Run) -> None:
    program = capture(tiny_model(family))
    run_pass(program, Canonicalize())
    before = TorchLanguageModel(program).logits(TOKENS)
    context = run_pass(program, RotateValues())
    assert sqnr(before, TorchLanguageModel(program).logits(TOKENS)) > 90
    assert context.notes.get("rotate-values", []) == [] or family == "gpt2"


def test_a_feature_that_stands_out_does_so_no_more(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(layers=2)
    name = "model.layers.0.self_attn.v_proj.weight"
    weight = program.weights.tensor(name).clone()
    weight[3] *= 40
    program.weights.put(name, weight)
    x = torch.randn(64, weight.shape[1])
    heads = (x @ weight.T).reshape(64, -1, 16)
    run_pass(program, RotateValues())
    turned = (x @ program.weights.tensor(name).T).reshape(64, -1, 16)
    assert sqnr(kv_rows.rotate_heads(heads), turned) > 90
    spread = [float(v[:, 0].abs().amax(-1).mean()) for v in (heads, turned)]
    assert spread[1] < 0.5 * spread[0]


def test_values_that_something_else_reads_stay(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(layers=2)
    # A second reader of the weight, as where layers share theirs.
    store = program.weights
    store.alias("model.layers.1.self_attn.v_proj.weight", "model.layers.0.self_attn.v_proj.weight")
    before = TorchLanguageModel(program).logits(TOKENS)
    context = run_pass(program, RotateValues())
    assert "2 of 2 layers stay" in context.notes["rotate-values"][0]
    assert torch.equal(TorchLanguageModel(program).logits(TOKENS), before)
