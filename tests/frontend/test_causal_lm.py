"""Every family's graph computes what Hugging Face's eager model computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from qcompiler.core import ops
from qcompiler.core.errors import CaptureError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import Program, value
from qcompiler.core.verify import verify
from qcompiler.frontend import capture

Build = Callable[[str], PreTrainedModel]
Difference = Callable[[Program, PreTrainedModel], float]


def test_a_family_computes_what_eager_does(
    family: str, tiny_model: Build, difference: Difference
) -> None:
    model = tiny_model(family)
    program = capture(model)
    verify(program)
    assert not idle_nodes(program)
    assert difference(program, model) <= 1e-5


def idle_nodes(program: Program) -> list[str]:
    """Name the nodes that compute nothing."""
    words = ("_assert", "alias", "clone", "contiguous", "detach", "dropout", "lift_fresh", "view.")
    found = []
    for node in program.graph.nodes:
        if any(word in str(node.target) for word in words) and node.op == "call_function":
            found.append(node.name)
        if node.target is torch.ops.aten.to.dtype and node.args[1] == value(node.args[0]).dtype:
            found.append(node.name)
    return found


def test_only_the_wanted_rows_are_computed(tiny_model: Build) -> None:
    model = tiny_model("gpt2")
    lm = TorchLanguageModel(capture(model))
    ids = torch.arange(20).reshape(1, 20)
    rows = torch.tensor([3, 17, 4])
    with torch.no_grad():
        expected = model(ids).logits[0, rows]
    found = lm.step(ids, 0, rows, lm.new_caches(20))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_inputs_come_in_order_with_dynamic_sizes(tiny_model: Build) -> None:
    program = capture(tiny_model("llama"))
    inputs = program.placeholders()
    caches = ["k_cache_0", "v_cache_0", "k_cache_1", "v_cache_1"]
    assert [str(n.target) for n in inputs] == ["ids", "position", "rows", *caches]
    sizes = [[d if isinstance(d, int) else "?" for d in value(n).shape] for n in inputs]
    assert sizes == [[1, "?"], [1], ["?"], *[[1, 2, "?", 16]] * 4]
    open_sizes = {str(value(inputs[i]).shape[d]) for i, d in ((0, 1), (2, 0), (3, 2))}
    assert len(open_sizes) == 3, "sequence, rows and context must not depend on one another"
    logits = next(n for n in program.graph.nodes if n.op == "output").args[0]
    assert value(logits).shape[2] == 256
    assert str(value(logits).shape[1]) == str(value(inputs[2]).shape[0])


def test_attention_takes_tokens_before_heads_and_the_caches(tiny_model: Build) -> None:
    program = capture(tiny_model("gemma2"))
    found = [n for n in program.graph.nodes if n.target is ops.attention]
    assert [[str(a) for a in n.args[3:]] for n in found] == [
        ["k_cache_0", "v_cache_0", "position"],
        ["k_cache_1", "v_cache_1", "position"],
    ]
    assert [n.kwargs["window"] for n in found] == [8, 0]
    assert {n.kwargs["softcap"] for n in found} == {50.0}
    assert [value(n.args[0]).shape[2:] for n in found] == [(4, 16)] * 2


def test_tied_embeddings_are_one_weight(tiny_model: Build) -> None:
    program = capture(tiny_model("llama-tied"))
    assert program.weights.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    tables = [n for n in program.graph.nodes if n.target == "model.embed_tokens.weight"]
    assert len(tables) == 1
    assert len(tables[0].users) == 2


def test_frequencies_computed_by_the_module_are_real(tiny_model: Build) -> None:
    model = tiny_model("llama-rope")
    stored = capture(model).weights.tensor("model.rotary_emb.inv_freq")
    torch.testing.assert_close(stored, dict(model.named_buffers())["model.rotary_emb.inv_freq"])
    assert stored.max() > 0


def test_the_captured_model_is_left_as_it_was(tiny_model: Build) -> None:
    model = tiny_model("mistral").train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    capture(model)
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_model_in_half_precision_is_captured_in_float32(
    tiny_model: Build, difference: Difference
) -> None:
    model = tiny_model("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    program = capture(model)
    assert {value(n).dtype for n in program.graph.nodes if n.op == "get_attr"} == {torch.float32}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)
    assert difference(program, model) <= 1e-5


def test_a_module_changed_after_it_was_built_is_captured_as_it_is(
    tiny_model: Build, difference: Difference
) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.act_fn = nn.GELU()
    assert difference(capture(model), model) <= 1e-5


def refashioned(module: nn.Module, **more: object) -> None:
    """Have a module's forward pass called with arguments of one's own."""
    plain = type(module)

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return plain.forward(self, *args, **{**kwargs, **more})

    module.__class__ = type(plain.__name__, (plain,), {"forward": forward})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"attention_mask": torch.zeros(1, 1, 1, 1)}, "makes an attention mask of its own"),
        ({"s_aux": torch.zeros(4)}, "asks its attention for 's_aux'"),
    ],
)
def test_attention_with_more_to_it_is_refused(
    tiny_model: Build, argument: dict[str, object], message: str
) -> None:
    model = tiny_model("llama")
    refashioned(model.model.layers[1].self_attn, **argument)
    with pytest.raises(CaptureError, match=f"^LlamaAttention {message}, which cannot be captured$"):
        capture(model)


def test_a_layer_that_attends_twice_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.layer_idx = 0
    with pytest.raises(CaptureError, match="layer 0 attends more than once"):
        capture(model)


def test_a_configuration_that_belies_the_model_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    model.config.num_key_value_heads = 4
    with pytest.raises(CaptureError, match="layer 0 makes 2 heads of 16 keys or values"):
        capture(model)


def test_a_layer_that_does_not_attend_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    model.model.layers[1].forward = lambda x, **kw: x
    with pytest.raises(CaptureError, match=r"layers \[1\] of this 'llama' model attend"):
        capture(model)


def test_captures_in_threads_do_not_mix(tiny_model: Build, difference: Difference) -> None:
    models = [tiny_model("llama"), tiny_model("opt")]
    with ThreadPoolExecutor(1) as pool:
        # One thread fails half-way, then serves another model.
        broken = tiny_model("llama")
        broken.model.layers[1].forward = lambda x, **kw: x
        assert pool.submit(capture, broken).exception() is not None
        for model, program in zip(models, pool.map(capture, models), strict=True):
            assert difference(program, model) <= 1e-5


def test_a_model_without_a_head_is_refused() -> None:
    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=8)
    model = transformers.LlamaModel(config)
    with pytest.raises(CaptureError, match="LlamaModel has no language model's head"):
        capture(model)
