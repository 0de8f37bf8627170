"""GGUF files of every architecture, written as llama.cpp's converter writes them, read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.frontend.gguf_config import MODEL_TYPES
from qcompiler.frontend.gguf_model import open_gguf

Build = Callable[[str], PreTrainedModel]
Difference = Callable[[Program, PreTrainedModel], float]

FILES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gpt2": "gpt2",
    "granite": "granite",
    "llama": "llama",
    "llama-biased": "llama",
    "llama-linear": "llama",
    "llama-rope": "llama",
    "llama-tied": "llama",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3-yarn": "qwen3",
    "qwen3_moe": "qwen3moe",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "stablelm-parallel": "stablelm",
}
"""Tiny models, with the GGUF architecture of each."""

UNSAID = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "smollm3": {"no_rope_layers": [1, 1]},
    "stablelm-parallel": {"qk_layernorm": False},
}
"""What GGUF has no words for: settings that every file of an architecture shares."""


def metadata(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    """Say what llama.cpp's converter says of a model."""
    c = model.config
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    inner = c.n_inner or 4 * c.hidden_size if architecture == "gpt2" else c.intermediate_size
    said = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": inner,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": getattr(c, "num_key_value_heads", c.num_attention_heads),
    }
    rope = getattr(c, "rope_parameters", None) or {}
    if architecture != "gpt2":
        plain = rope.get("full_attention", rope)
        said["rope.freq_base"] = float(plain["rope_theta"])
        said["rope.dimension_count"] = int(size * plain.get("partial_rotary_factor", 1.0))
    if rope.get("rope_type") in ("linear", "yarn"):
        said["rope.scaling.type"] = rope["rope_type"]
        said["rope.scaling.factor"] = float(rope["factor"])
    if rope.get("rope_type") == "yarn":
        said["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    for theirs in ("layer_norm_epsilon", "layer_norm_eps"):
        if hasattr(c, theirs):
            said["attention.layer_norm_epsilon"] = float(getattr(c, theirs))
    if hasattr(c, "rms_norm_eps"):
        said["attention.layer_norm_rms_epsilon"] = float(c.rms_norm_eps)
    if "head_dim" in c.to_dict():
        said["attention.key_length"] = said["attention.value_length"] = size
    if architecture in ("gemma2", "gemma3", "phi3"):
        said["attention.sliding_window"] = c.sliding_window
    if architecture == "gemma2":
        said["attn_logit_softcapping"] = float(c.attn_logit_softcapping)
        said["final_logit_softcapping"] = float(c.final_logit_softcapping)
    if architecture == "granite":
        said["embedding_scale"] = c.embedding_multiplier
        said["residual_scale"] = c.residual_multiplier
        said["attention.scale"] = c.attention_multiplier
        said["logit_scale"] = c.logits_scaling
    if architecture == "qwen3moe":
        said["expert_count"] = c.num_experts
        said["expert_used_count"] = c.num_experts_per_tok
        said["expert_feed_forward_length"] = c.moe_intermediate_size
    return said


def tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """Rename and change a model's weights as llama.cpp's converter does."""
    c = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    made: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if name.endswith("experts.gate_up_proj"):
            block = re.search(r"\d+", name).group()
            gate, up = np.split(value, 2, axis=1)
            made[f"blk.{block}.ffn_gate_exps.weight"] = np.ascontiguousarray(gate)
            made[f"blk.{block}.ffn_up_exps.weight"] = np.ascontiguousarray(up)
            continue
        stem, _, suffix = name.rpartition(".")
        if name.endswith("experts.down_proj"):
            stem, suffix = name, "weight"
        found = names.get_name(stem)
        assert found, name
        leaf = found.rpartition(".")[2]
        if architecture in ("llama", "granite", "smollm3") and leaf in ("attn_q", "attn_k"):
            heads = c.num_attention_heads if leaf == "attn_q" else c.num_key_value_heads
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if architecture.startswith("gemma") and leaf.endswith("norm"):
            value = value + 1
        if architecture == "gpt2" and re.search("c_attn.w|c_proj.w|c_fc.w", name):
            value = value.T
        made[f"{found}.{suffix}"] = np.ascontiguousarray(value)
    rope = getattr(c, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"].numpy()
        whole = 1 / rope["rope_theta"] ** (np.arange(0, 16, 2) / 16)
        made["rope_freqs.weight"] = (whole / frequencies).astype(np.float32)
    return made


def write(
    path: Path,
    architecture: str,
    said: dict[str, Any],
    held: dict[str, np.ndarray],
    kinds: dict[str, Kind] | None = None,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 7)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 9)
    for key, value in said.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        (writer.add_array if isinstance(value, list) else add[type(value)])(
            f"{architecture}.{key}", value
        )
    for name, value in held.items():
        kind = (kinds or {}).get(name, Kind.F32)
        if kind is Kind.F32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def converted(tmp_path: Path, tiny_model: Build) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """Convert a tiny model to GGUF."""

    def convert(family: str) -> tuple[Path, PreTrainedModel]:
        model, architecture = tiny_model(family), FILES[family]
        if family in UNSAID:
            for key, value in UNSAID[family].items():
                setattr(model.config, key, value)
            state = model.state_dict()
            model = type(model)(model.config).eval()
            model.load_state_dict(state, strict=False)
        path = tmp_path / "tiny.gguf"
        write(path, architecture, metadata(model, architecture), tensors(model, architecture))
        return path, model

    return convert


def test_every_architecture_is_tested() -> None:
    assert set(FILES.values()) == set(MODEL_TYPES)


@pytest.mark.parametrize("family_file", FILES)
def test_a_file_computes_what_the_model_did(
    family_file: str, converted: Callable[[str], tuple[Path, PreTrainedModel]]
) -> None:
    path, model = converted(family_file)
    opened = open_gguf(path)
    read = {name: opened.weights.read(name) for name in opened.weights.names()}
    filled = filled_in(opened.model, read)
    ids = torch.randint(0, 256, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(filled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def filled_in(skeleton: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Build a skeleton's model with these weights, and the skeleton's buffers."""
    model = type(skeleton)(skeleton.config)
    model.load_state_dict(weights, strict=False)
    missing = set(model.state_dict()) - set(weights)
    assert missing <= {"lm_head.weight"}, "every weight is in the file, or tied"
    for name, buffer in skeleton.named_buffers():
        model.get_buffer(name).copy_(buffer)
    return model.eval()


def test_a_file_becomes_a_program(
    converted: Callable[[str], tuple[Path, PreTrainedModel]], difference: Difference
) -> None:
    path, model = converted("llama-rope")
    program = capture(path)
    assert (program.info.name, program.info.source) == ("tiny", "GGUF F32")
    assert program.info.end_tokens == (7, 9)
    assert difference(program, model) <= 1e-5


@pytest.mark.parametrize("family_file", ["gemma2", "gemma3", "gpt2", "llama", "qwen2", "qwen3_moe"])
def test_weights_are_those_transformers_reads(
    family_file: str, converted: Callable[[str], tuple[Path, PreTrainedModel]]
) -> None:
    pytest.importorskip("accelerate")
    path, model = converted(family_file)
    checkpoint = open_gguf(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=model.config, local_files_only=True
    )
    for name in checkpoint.weights.names():
        torch.testing.assert_close(
            checkpoint.weights.read(name), theirs.state_dict()[name], atol=1e-6, rtol=0
        )


def test_quantized_tensors_are_read_as_they_round(
    tmp_path: Path, tiny_model: Build, difference: Difference
) -> None:
    model = tiny_model("llama-tied")
    held = tensors(model, "llama")
    kinds = {name: Kind.Q8_0 for name, value in held.items() if value.ndim == 2}
    write(tmp_path / "q.gguf", "llama", metadata(model, "llama"), held, kinds)
    program = capture(tmp_path / "q.gguf")
    assert program.info.source == "GGUF Q8_0"
    rounded = {name: program.weights.tensor(name) for name in program.weights}
    stored = model.model.layers[0].self_attn.q_proj.weight.detach()
    error = (rounded["model.layers.0.self_attn.q_proj.weight"] - stored).abs().max()
    assert 0 < error < 0.01
    model.load_state_dict(rounded, strict=False)
    assert difference(program, model) <= 1e-5


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "mamba", {}, {})
    with pytest.raises(CaptureError, match=r"holds a 'mamba' model.*supported: gemma, gemma2"):
        capture(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_count": 8}, "sets 'expert_count' to 8, which is not supported for 'llama'"),
        ({"attention.sliding_window": 64}, "sets 'attention.sliding_window' to 64"),
        ({"rope.scaling.attn_factor": 1.5}, r"sets 'rope\.scaling\.attn_factor' to 1\.5"),
        ({"attention.head_count": [4, 2]}, "gives every layer its own 'attention.head_count'"),
        ({"block_count": None}, "does not say its 'block_count'"),
        ({"rope.scaling.type": "longrope"}, "in the way 'longrope'"),
        ({"block_count": 3}, "says that it has 3 layers, but holds no tensor of the last"),
        ({"block_count": "many"}, "describes a model that makes no sense"),
        (
            {"attention.head_count": 64, "attention.head_count_kv": 64},
            r"'blk\.0\.attn_q\.weight' .* does not go with its metadata",
        ),
        ({"attention.head_count": 0}, "describes a model that makes no sense"),
        ({"embedding_length": 96}, r"its embeddings are 96 wide, but .* \[256, 64\]"),
        ({"block_count": 1}, "holds 9 tensors that 'llama' models have no place for"),
        ({"feed_forward_length": 96}, r"shape \[128, 64\], but .* asks for \[96, 64\]"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    tmp_path: Path, tiny_model: Build, change: dict[str, Any], message: str
) -> None:
    model = tiny_model("llama")
    said = {k: v for k, v in (metadata(model, "llama") | change).items() if v is not None}
    write(tmp_path / "x.gguf", "llama", said, tensors(model, "llama"))
    with pytest.raises(CaptureError, match=message):
        capture(tmp_path / "x.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model("llama")
    held = tensors(model, "llama")
    del held["blk.0.ffn_up.weight"]
    write(tmp_path / "x.gguf", "llama", metadata(model, "llama"), held)
    with pytest.raises(CaptureError, match=r"lacks 1 of the 22 .* 'model\.layers\.0\.mlp\.up_proj"):
        capture(tmp_path / "x.gguf")


def test_a_file_without_an_embedding_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", {}, {"other": np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(CaptureError, match=r"holds no 'token_embd\.weight', so it is no language"):
        capture(tmp_path / "x.gguf")


def test_a_part_of_a_file_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CaptureError, match="is one of 3 parts of a model; put them together"):
        capture(tmp_path / "x-00001-of-00003.gguf")


def test_a_rotary_embedding_that_depends_on_length_is_refused(
    tmp_path: Path, tiny_model: Build
) -> None:
    model = tiny_model("phi3")
    held = tensors(model, "phi3") | {"rope_factors_long.weight": np.ones(8, dtype=np.float32)}
    write(tmp_path / "x.gguf", "phi3", metadata(model, "phi3"), held)
    with pytest.raises(CaptureError, match="'longrope', whose frequencies change"):
        capture(tmp_path / "x.gguf")


def test_rotary_factors_that_do_not_fit_are_refused(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model("llama")
    held = tensors(model, "llama") | {"rope_freqs.weight": np.ones(5, dtype=np.float32)}
    write(tmp_path / "x.gguf", "llama", metadata(model, "llama"), held)
    with pytest.raises(CaptureError, match="the 5 rotary factors"):
        capture(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("architecture", "layers", "scalar"),
    [("gemma2", 26, 256), ("gemma2", 46, 144), ("gemma3", 34, 256), ("gemma3", 62, 144)],
)
def test_the_largest_gemma_scales_queries_in_its_own_way(
    tmp_path: Path, architecture: str, layers: int, scalar: int
) -> None:
    said = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": 4608,
        "feed_forward_length": 64,
        "attention.head_count": 32,
        "attention.key_length": 256,
        "attention.sliding_window": 8,
    }
    table = np.zeros((3, 4608), dtype=np.float32)
    held = {"token_embd.weight": table, f"blk.{layers - 1}.attn_norm.weight": table[0]}
    write(tmp_path / "x.gguf", architecture, said, held)
    assert open_gguf(tmp_path / "x.gguf").model.config.query_pre_attn_scalar == scalar
