"""Every family becomes the same few operators, and computes what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import PretrainedConfig

from passes.canonicalize import Canonicalize
from qcompiler.core.interpreter import ProgramInterpreter
from qcompiler.core.pass_base import PassContext
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program, weight_of
from qcompiler.core.weights import WeightStore
from qcompiler.frontend import capture

BASE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = BASE | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
GPT = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
FALCON = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "alibi": False,
}
OPT = BASE | {"ffn_dim": 96, "word_embed_proj_dim": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# What two layers of each are made of; every one of them attends twice.
LLAMA = {"embedding": 1, "linear": 15, "rms_norm": 5, "rotary": 4}
FAMILIES: dict[str, tuple[PretrainedConfig, dict[str, int]]] = {
    "llama": (transformers.LlamaConfig(**GROUPED), LLAMA),
    "mistral": (transformers.MistralConfig(**GROUPED, sliding_window=8), LLAMA),
    "qwen2": (transformers.Qwen2Config(**GROUPED), LLAMA),
    "qwen3": (transformers.Qwen3Config(**HEADS), LLAMA | {"rms_norm": 9}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig(**HEADS, **EXPERTS),
        LLAMA | {"rms_norm": 9, "linear": 11},
    ),
    "gpt2": (transformers.GPT2Config(**GPT), {"embedding": 2, "linear": 9, "layer_norm": 5}),
    "opt": (transformers.OPTConfig(**OPT), {"embedding": 2, "linear": 13, "layer_norm": 5}),
    "gemma": (transformers.GemmaConfig(**HEADS), LLAMA),
    "gemma2": (transformers.Gemma2Config(**HEADS, sliding_window=8), LLAMA | {"rms_norm": 9}),
    "gemma3": (
        transformers.Gemma3TextConfig(
            **HEADS, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        LLAMA | {"rms_norm": 13},
    ),
    "phi": (
        transformers.PhiConfig(**BASE),
        {"embedding": 1, "linear": 13, "layer_norm": 3, "rotary": 4},
    ),
    "phi3": (transformers.Phi3Config(**GROUPED, pad_token_id=0), LLAMA | {"linear": 9}),
    "gpt_neox": (
        transformers.GPTNeoXConfig(**BASE),
        {"embedding": 1, "linear": 9, "layer_norm": 5, "rotary": 4},
    ),
    "stablelm": (
        transformers.StableLmConfig(**GROUPED),
        {"embedding": 1, "linear": 15, "layer_norm": 5, "rotary": 4},
    ),
    "olmo2": (transformers.Olmo2Config(**GROUPED, pad_token_id=0), LLAMA | {"rms_norm": 9}),
    "smollm3": (
        transformers.SmolLM3Config(**GROUPED, pad_token_id=0, no_rope_layer_interval=2),
        LLAMA | {"rotary": 2},
    ),
    "granite": (
        transformers.GraniteConfig(
            **GROUPED,
            pad_token_id=0,
            embedding_multiplier=2.0,
            residual_multiplier=0.5,
            attention_multiplier=0.2,
            logits_scaling=3.0,
        ),
        LLAMA,
    ),
    "falcon": (
        transformers.FalconConfig(**FALCON),
        {"embedding": 1, "linear": 9, "layer_norm": 3, "rotary": 4},
    ),
}
LAYERS_DIFFER = {"gemma2", "gemma3", "smollm3"}

SPELLED_OUT = {"rsqrt", "pow", "neg", "cat", "mean", "sub", "erf", "permute", "transpose"}
"""What norms, rotary embeddings, activations and attention are spelled with."""

Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]


def tiny(family: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        FAMILIES[family][0], attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
    return model.eval()


def operators(program: Program) -> Counter[str]:
    return Counter(target_name(n) for n in program.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_becomes_canonical(family: str, run_pass: Run, logits: Logits) -> None:
    program = capture(tiny(family))
    before = logits(program)

    run_pass(program, Canonicalize())

    found = operators(program)
    expected = {"attention": 2, "layer_norm": 0, "rms_norm": 0, "rotary": 0}
    expected |= FAMILIES[family][1]
    assert {name: found[name] for name in expected} == expected
    left = {name.split(".")[1] for name in found if name.startswith("aten.")}
    assert left.isdisjoint(SPELLED_OUT)
    torch.testing.assert_close(logits(program), before, atol=1e-5, rtol=1e-5)

    assert [block.index for block in program.blocks] == [0, 1]
    kinds = {block.kind for block in program.blocks}
    assert len(kinds) == (2 if family in LAYERS_DIFFER else 1)


@pytest.fixture
def is_stable(run_pass: Run, golden: Callable[[Program], None]) -> Callable[[str], None]:
    """Return a function that compares a family's canonical program with the golden one, twice."""

    def check(family: str) -> None:
        program = capture(tiny(family))
        run_pass(program, Canonicalize())
        golden(program)
        blocks = program.blocks
        run_pass(program, Canonicalize())
        golden(program)
        assert program.blocks == blocks

    return check


def test_canonical_llama(is_stable: Callable[[str], None]) -> None:
    is_stable("llama")


def test_canonical_gpt2(is_stable: Callable[[str], None]) -> None:
    is_stable("gpt2")


def test_canonical_gemma2(is_stable: Callable[[str], None]) -> None:
    is_stable("gemma2")


def test_an_encoder_becomes_canonical(run_pass: Run) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**BASE)
    program = capture(transformers.BertModel(config, add_pooling_layer=False).eval())
    ids = torch.randint(0, 64, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [2], [5]])
    before = ProgramInterpreter(program).run(ids, mask.long())

    run_pass(program, Canonicalize())

    found = operators(program)
    assert (found["dense_attention"], found["layer_norm"], found["linear"]) == (2, 5, 12)
    assert found["aten.permute.default"] == 0
    after = ProgramInterpreter(program).run(ids, mask.long())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert len({block.kind for block in program.blocks}) == 1
    assert len(program.blocks) == 2


def test_angles_are_computed_once_a_table(run_pass: Run) -> None:
    program = capture(tiny("gemma3"))
    run_pass(program, Canonicalize())
    found = operators(program)
    assert (found["aten.cos.default"], found["aten.sin.default"]) == (2, 2)
    widths = {n.meta["val"].shape[-1] for n in program.graph.nodes if "cos" in str(n.target)}
    assert widths == {8}, "each angle once, though the model has it twice"


def test_tied_weights_stay_one_entry(run_pass: Run) -> None:
    program = capture(tiny("gemma"))
    run_pass(program, Canonicalize())
    head = [node for _, node in program.linears()][-1]
    table = next(n for n in program.graph.nodes if target_name(n) == "embedding")
    assert weight_of(head) == weight_of(table) == "model.embed_tokens.weight"


def test_transposed_weights_are_read_one_at_a_time(
    run_pass: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("gpt2")
    program = capture(model)
    with monkeypatch.context() as patch:
        patch.setattr(WeightStore, "get", lambda *_: pytest.fail("a weight was read"))
        run_pass(program, Canonicalize())
    name = "transformer.h.0.attn.c_attn.weight"
    assert program.weights.shape(name) == (192, 64)
    stored = dict(model.named_parameters())[name]
    torch.testing.assert_close(program.weights.tensor(name), stored.detach().t())


def test_the_embedding_scale_is_written_in_the_graph(run_pass: Run) -> None:
    program = capture(tiny("gemma3"))
    run_pass(program, Canonicalize())
    scales = [n.args[1] for n in program.graph.nodes if target_name(n) == "aten.mul.Tensor"]
    assert 8.0 in scales


def test_the_scale_of_queries_moves_into_attention(run_pass: Run) -> None:
    program = capture(tiny("opt"))
    run_pass(program, Canonicalize())
    found = [n for n in program.graph.nodes if target_name(n) == "attention"]
    assert [n.kwargs["scale"] for n in found] == [0.25, 0.25]
    assert "aten.mul.Tensor" not in operators(program)


def test_the_last_norm_sees_the_wanted_rows_alone(run_pass: Run) -> None:
    program = capture(tiny("llama"))
    run_pass(program, Canonicalize())
    norm = [n for n in program.graph.nodes if target_name(n) == "rms_norm"][-1]
    assert target_name(norm.args[0]) == "aten.index.Tensor"
