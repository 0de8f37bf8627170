"""Programs run in torch: weights by name, caches in place, prefill and decode alike."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.interpreter import ProgramInterpreter, TorchLanguageModel
from qcompiler.core.program import KvCache, ModelInfo, Program

aten = torch.ops.aten
HEADS, KV_HEADS, SIZE, VOCABULARY = 4, 2, 8, 11


def language_model() -> Program:
    generator = torch.Generator().manual_seed(0)
    width, kv = HEADS * SIZE, KV_HEADS * SIZE
    weights = {
        "table.weight": torch.randn(VOCABULARY, width, generator=generator),
        "q.weight": torch.randn(width, width, generator=generator) / 4,
        "k.weight": torch.randn(kv, width, generator=generator) / 4,
        "v.weight": torch.randn(kv, width, generator=generator) / 4,
    }
    build = ProgramBuilder(weights)
    ids = build.input("ids", (1, "s"), torch.int64)
    position = build.input("position", (1,), torch.int64)
    rows = build.input("rows", ("r",), torch.int64)
    caches = [build.input(f"{kind}_cache_0", (1, KV_HEADS, "c", SIZE)) for kind in "kv"]
    x = build.call(ops.embedding, ids, build.weight("table.weight"))
    heads = []
    for name, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        y = build.call(ops.linear, x, build.weight(f"{name}.weight"))
        heads.append(build.call(aten.reshape.default, y, [1, -1, count, SIZE]))
    y = build.call(ops.attention, *heads, *caches, position, scale=SIZE**-0.5)
    y = build.call(aten.reshape.default, y, [1, -1, width])
    y = build.call(aten.index_select.default, build.call(aten.add.Tensor, x, y), 1, rows)
    logits = build.call(ops.linear, y, build.weight("table.weight"))
    info = ModelInfo(
        name="small",
        kind="causal-lm",
        architecture="none",
        kv=(KvCache(heads=KV_HEADS, head_dim=SIZE),),
    )
    return build.finish(logits, info)


def in_plain_torch(program: Program, tokens: list[int]) -> torch.Tensor:
    weight = program.weights.tensor
    x = functional.embedding(torch.tensor([tokens]), weight("table.weight"))
    q, k, v = (
        functional.linear(x, weight(f"{name}.weight")).unflatten(-1, (-1, SIZE)).transpose(1, 2)
        for name in "qkv"
    )
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + y.transpose(1, 2).flatten(-2)
    return functional.linear(x, weight("table.weight"))[0]


def test_logits_are_those_of_plain_torch() -> None:
    program, tokens = language_model(), [3, 1, 4, 1, 5]
    logits = TorchLanguageModel(program).logits(tokens)
    assert logits.shape == (5, VOCABULARY)
    torch.testing.assert_close(logits, in_plain_torch(program, tokens), rtol=1e-5, atol=1e-5)


def test_decoding_one_by_one_gives_what_all_at_once_gives() -> None:
    model, tokens = TorchLanguageModel(language_model()), [3, 1, 4, 1, 5, 9, 2]
    expected = model.logits(tokens)
    caches = model.new_caches(10)
    assert [c.shape for c in caches] == [(1, KV_HEADS, 10, SIZE)] * 2
    row = torch.tensor([0])
    first = model.step(torch.tensor([tokens[:3]]), 0, torch.tensor([2, 0]), caches)
    torch.testing.assert_close(first, expected[[2, 0]], rtol=1e-5, atol=1e-5)
    for place in range(3, 7):
        step = model.step(torch.tensor([tokens[place : place + 1]]), place, row, caches)
        torch.testing.assert_close(step, expected[place : place + 1], rtol=1e-5, atol=1e-5)
    assert caches[0][:, :, 7:].count_nonzero() == 0


def test_a_written_weight_is_used_unless_the_old_one_was_kept() -> None:
    build = ProgramBuilder({"fc.weight": torch.eye(4)})
    x = build.input("x", (2, 4))
    program = build.finish(build.call(ops.linear, x, build.weight("fc.weight")))
    ones = torch.ones(2, 4)
    keeping = ProgramInterpreter(program, keep_weights=True)
    reading = ProgramInterpreter(program)
    assert torch.equal(keeping.run(ones), ones)
    program.weights.put("fc.weight", 2 * torch.eye(4))
    assert torch.equal(keeping.run(ones), ones)
    assert torch.equal(reading.run(ones), 2 * ones)
