"""Centred keys change nothing but how well they fit into few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import fx

from passes.canonicalize import Canonicalize
from passes.center_keys import CenterKeys
from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.quantize_kv import KvRule, QuantizeKv
from passes.segments import SegmentWeights, segments
from qcompiler.core import ops
from qcompiler.core.errors import ConfigError
from qcompiler.core.instruments import CheckShapes
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr
from qcompiler.frontend import capture
from tests.families import tiny_model
from tests.passes.conftest import TARGET
from tests.passes.fake_programs import samples

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
Make = Callable[..., Program]


def run(program: Program, *steps: Pass) -> PassContext:
    context = PassContext(target=TARGET, calibration=samples())
    Pipeline(steps, start=program.stage).run(program, context, [CheckShapes()])
    return context


def logits(program: Program) -> torch.Tensor:
    return TorchLanguageModel(program).logits(TOKENS)


def biased(make: Make, size: float) -> Program:
    """Return a model whose keys have features that are large for every token."""
    program = make(layers=2)
    table = program.weights.tensor("model.embed_tokens.weight").clone()
    table[:, 3] = 8.0
    program.weights.put("model.embed_tokens.weight", table)
    for layer in range(2):
        # The slow half of each head: what turns fast has no mean.
        name = f"model.layers.{layer}.self_attn.k_proj.weight"
        weight = program.weights.tensor(name).clone()
        weight[7::8, 3] += size
        program.weights.put(name, weight)
    return program


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_what_the_model_computes_stays(family: str) -> None:
    program = capture(tiny_model(family))
    run(program, Canonicalize())
    before = logits(program)
    info, caches = program.info, {n: n.meta["val"] for n in program.placeholders()}
    context = run(program, QuantizeKv(), CenterKeys())
    assert "center-keys" not in context.notes
    # As it would be with exact caches: what codes lose would hide what centring does.
    program.info = info
    for cache, val in caches.items():
        cache.meta["val"] = val
    for node in program.graph.nodes:
        if node.target is ops.attention:
            assert node.args[1].target is torch.ops.aten.sub.Tensor
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "kv"}
    assert sqnr(before, logits(program)) > 80


def test_keys_with_a_mean_lose_less(tiny_llama: Make) -> None:
    expected = biased(tiny_llama, 20.0)
    run(expected, Canonicalize())
    found = {}
    for centre in (False, True):
        program = biased(tiny_llama, 20.0)
        steps = (Canonicalize(), QuantizeKv(), *([CenterKeys()] if centre else []))
        run(program, *steps)
        found[centre] = sqnr(logits(expected), logits(program))
    assert found[True] > found[False] + 1


def test_means_are_those_of_the_samples(tiny_llama: Make) -> None:
    program = tiny_llama(layers=1)
    run(program, Canonicalize(), QuantizeKv())
    (attention,) = [n for n in program.graph.nodes if n.target is ops.attention]
    seen: list[torch.Tensor] = []

    def look(node: fx.Node, env: Mapping[str, Any]) -> None:
        if node is attention:
            seen.append(env[node.args[1].name])

    for sample in samples().samples[:3]:
        values = segments(program)[0].order.inputs(sample)
        for part in segments(program):
            values = part.run(values, SegmentWeights(program), replace=look)
    run(program, CenterKeys(samples=3))
    expected = torch.cat(seen, 1)[0].mean(0)
    assert torch.allclose(program.weights.tensor("attention.key_mean"), expected, atol=1e-6)


def test_fusing_takes_the_mean_along(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    run(program, Canonicalize(), QuantizeKv(format="kv8r"), CenterKeys())
    before = logits(program)
    run(program, FuseQkv(), FuseRope())
    fused = [n for n in program.graph.nodes if n.target is ops.rope_attention]
    assert [len(node.args) for node in fused] == [7, 7]
    assert not any(n.target is torch.ops.aten.sub.Tensor for n in program.graph.nodes)
    # The fused product sums in another order, so that a code may differ here and there.
    assert sqnr(before, logits(program)) > 30


def test_layers_that_would_notice_stay(tiny_llama: Make) -> None:
    capped = capture(tiny_model("gemma2"))
    context = run(capped, Canonicalize(), QuantizeKv(), CenterKeys())
    assert context.notes["center-keys"] == ["2 of 2 layers stay"]
    floats = tiny_llama(layers=2)
    rules = (KvRule(layers=(0,), format="float"),)
    context = run(floats, Canonicalize(), QuantizeKv(rules=rules), CenterKeys())
    assert context.notes["center-keys"] == ["1 of 2 layers stay"]
    context = run(tiny_llama(), Canonicalize(), CenterKeys())
    assert context.notes["center-keys"] == ["no cache has codes; put it after 'quantize-kv'"]


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples = 0 shows nothing"):
        CenterKeys(samples=0)
