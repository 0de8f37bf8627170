"""Caches in few bits: graph, model facts, and logits near those of float caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.canonicalize import Canonicalize
from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.quantize_kv import KvRule, QuantizeKv
from passes.segments import segments
from qcompiler.core import ops
from qcompiler.core.errors import ConfigError, UnsupportedError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr
from tests.passes.conftest import TARGET

Make = Callable[..., Program]


def run(program: Program, *steps: Pass) -> Program:
    Pipeline((Canonicalize(), *steps)).run(program, PassContext(target=TARGET))
    return program


FUSE: tuple[Pass, ...] = (FuseQkv(), FuseRope())
ORDERS: dict[str, tuple[Pass, ...]] = {
    "plain": (QuantizeKv(),),
    "before fusing": (QuantizeKv(), *FUSE),
    "after fusing": (*FUSE, QuantizeKv()),
}


@pytest.mark.parametrize("order", ORDERS)
def test_logits_stay_near_with_8_bits(order: str, tiny_llama: Make) -> None:
    tokens = list(range(24))
    expected = TorchLanguageModel(run(tiny_llama())).logits(tokens)
    program = run(tiny_llama(), *ORDERS[order])
    assert sqnr(expected, TorchLanguageModel(program).logits(tokens)) > 30
    assert [kv.format for kv in program.info.kv] == ["kv8"] * len(program.info.kv)
    attention = ops.attention if order == "plain" else ops.rope_attention
    found = [node for node in program.graph.nodes if node.target is attention]
    assert {node.kwargs["kv"] for node in found} == {"kv8"}


def test_decoding_reads_what_the_prompt_stored(tiny_llama: Make) -> None:
    model = TorchLanguageModel(run(tiny_llama(), QuantizeKv()))
    tokens = list(range(10))
    whole, caches = model.logits(tokens), model.new_caches(10)
    assert {cache.dtype for cache in caches} == {torch.uint8}
    for place, token in enumerate(tokens):
        logits = model.step(torch.tensor([[token]]), place, torch.tensor([0]), caches)
    assert sqnr(whole[-1], logits[0]) > 60


def test_rules_decide_for_layers(tiny_llama: Make) -> None:
    rules = (KvRule(layers=(0, -1), format="float"), KvRule(layers=(-1,), format="kv8r"))
    program = run(tiny_llama(layers=3), QuantizeKv(rules=rules))
    assert [kv.format for kv in program.info.kv] == ["", "kv8", "kv8r"]


@pytest.mark.parametrize("kv", ["kv8", "kv8r/kv8g16"])
def test_calibration_sees_what_is_deployed(kv: str, tiny_llama: Make) -> None:
    program = run(tiny_llama(), QuantizeKv(format=kv))
    tokens = torch.arange(20)
    expected = TorchLanguageModel(program).logits(tokens.tolist())
    parts = segments(program)
    values = parts[0].order.inputs((tokens,))
    with torch.no_grad():
        for part in parts:
            values = part.run(values, program.weights.tensor)
    (out,) = program.graph.output_node().all_input_nodes
    assert sqnr(expected, values[out.name][0]) > 60


def test_mistakes(tiny_llama: Make) -> None:
    with pytest.raises(ConfigError, match="'kv5' is no format of a cache"):
        QuantizeKv(format="kv5")
    with pytest.raises(ConfigError, match="there is no layer 7; the model has 2"):
        run(tiny_llama(layers=2), QuantizeKv(rules=(KvRule(layers=(7,), format="kv8"),)))
    with pytest.raises(ConfigError, match="layer 0 have a format"):
        run(tiny_llama(), QuantizeKv(), QuantizeKv())
    with pytest.raises(UnsupportedError, match="use kv8"):
        run(tiny_llama(), QuantizeKv(format="kv4"))
    with pytest.raises(ConfigError, match="names no layers"):
        KvRule(layers=(), format="kv8")
