"""What is said to become one product is what the fusing passes make one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from passes.canonicalize import Canonicalize
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQkv
from passes.fused_products import fused_products
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from tests.families import FAMILIES, tiny_model

Run = Callable[..., PassContext]


def test_a_llama_has_two_a_layer(tiny_llama: Callable[..., Program]) -> None:
    qkv, gate_up = fused_products(tiny_llama())
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    assert qkv.operators == tuple(f"{attention}.{name}_proj" for name in "qkv")
    assert not qkv.gated
    assert gate_up.operators == (f"{mlp}.gate_proj", f"{mlp}.up_proj")
    assert gate_up.gated


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi", "qwen2"])
def test_what_is_fused_is_what_was_said(family: str, run_pass: Run) -> None:
    if family not in FAMILIES:
        pytest.skip(f"no tiny model of {family}")
    program = capture(tiny_model(family))
    run_pass(program, Canonicalize())
    groups = [p for p in fused_products(program) if len(p.operators) > 1]
    before = {name for name, _ in program.linears()}
    run_pass(program, FuseQkv(), FuseGateUp())
    after = {name for name, _ in program.linears()}
    assert before - after == {name for group in groups for name in group.operators}
    assert len(after - before) == len(groups)
