"""Tiny models of every family of causal language models, with random weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel

BASE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = BASE | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}

FAMILIES: dict[str, PretrainedConfig] = {
    "falcon": transformers.FalconConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=False
    ),
    "falcon-grouped": transformers.FalconConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=False,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "gemma": transformers.GemmaConfig(**HEADS),
    "gemma2": transformers.Gemma2Config(**HEADS, sliding_window=8),
    "gemma3": transformers.Gemma3TextConfig(**HEADS, sliding_window=8),
    "gemma3-global": transformers.Gemma3TextConfig(
        **HEADS, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=128
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**BASE),
    "granite": transformers.GraniteConfig(
        **GROUPED,
        pad_token_id=0,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=3.0,
    ),
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-biased": transformers.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "llama-linear": transformers.LlamaConfig(**GROUPED, rope_parameters=LINEAR_ROPE),
    "llama-rope": transformers.LlamaConfig(**GROUPED, rope_parameters=LLAMA3_ROPE),
    "llama-tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=8),
    "olmo2": transformers.Olmo2Config(**GROUPED, pad_token_id=0),
    "opt": transformers.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=64,
    ),
    "opt-350m-like": transformers.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
    ),
    "phi": transformers.PhiConfig(**BASE, qk_layernorm=True),
    "phi3": transformers.Phi3Config(**GROUPED, pad_token_id=0, sliding_window=8),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen2-window": transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**HEADS),
    "qwen3-yarn": transformers.Qwen3Config(**HEADS, rope_parameters=YARN_ROPE),
    "qwen3_moe": transformers.Qwen3MoeConfig(**HEADS, **EXPERTS),
    "smollm3": transformers.SmolLM3Config(**GROUPED, pad_token_id=0, no_rope_layer_interval=2),
    "stablelm": transformers.StableLmConfig(**GROUPED),
    "stablelm-parallel": transformers.StableLmConfig(
        **GROUPED, use_parallel_residual=True, use_qkv_bias=True, qk_layernorm=True
    ),
}


def tiny_model(family: str) -> PreTrainedModel:
    """Build a model of a family, computing in float32 with eager attention."""
    return random_weights(
        transformers.AutoModelForCausalLM.from_config(
            copy.deepcopy(FAMILIES[family]), attn_implementation="eager", dtype=torch.float32
        )
    )


def random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Give every parameter values that matter, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.15 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def save_tiny_llama(folder: Path) -> Path:
    """Write a Hugging Face folder of a tiny Llama that reads bytes; return it."""
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made
