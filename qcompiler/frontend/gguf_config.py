"""The Hugging Face configuration of a model in a GGUF file.

A GGUF file has no config.json; its metadata say the same in llama.cpp's words. What they leave out
because llama.cpp knows it (the norm of expert weights, the scale of Gemma's queries) is added here.
Whatever would change the arithmetic and is not understood is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.gguf_file import GgufFile

MODEL_TYPES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "granite": "granite",
    "llama": "llama",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
}
"""GGUF architectures that can be read, with the `model_type` of each."""


TABLE = "token_embd.weight"

NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (1.0,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (6,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
}
"""Metadata that change what a model computes, with the values that do not."""


class _Metadata:
    """Metadata of one architecture, whose names begin with it; remembers what was asked for."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.tensors = frozenset(file.names())
        self.asked: set[str] = set()

    def refuse_unasked(self) -> None:
        """Refuse what would change the result if anyone had asked for it."""
        for key, neutral in NEUTRAL.items():
            value = self.file.metadata.get(f"{self.file.architecture}.{key}")
            if key not in self.asked and value is not None and value not in neutral:
                raise CaptureError(
                    f"{self.file.path} sets '{key}' to {value!r:.40}, which is not supported for "
                    f"'{self.file.architecture}' models"
                )

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, one for all layers where there is one for each."""
        self.asked.add(key)
        value = self.file.metadata.get(f"{self.file.architecture}.{key}", default)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise CaptureError(
                f"{self.file.path} gives every layer its own '{key}'; that is not supported"
            )
        return value[0]

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise CaptureError(f"{self.file.path} does not say its '{key}', so it is incomplete")
        return value

    def special(self, key: str) -> int | None:
        value = self.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return None if value is None else int(value)

    @property
    def head_size(self) -> int:
        return int(
            self.get(
                "attention.key_length", self["embedding_length"] // self["attention.head_count"]
            )
        )


def gguf_config(file: GgufFile) -> PretrainedConfig:
    """Make the configuration of a GGUF file's model.

    Raises:
        CaptureError: its architecture or something in its metadata is not supported.
    """
    if file.architecture not in MODEL_TYPES:
        raise CaptureError(
            f"{file.path} holds a '{file.architecture}' model, and GGUF files of that architecture "
            f"cannot be read; supported: {', '.join(MODEL_TYPES)}"
        )
    metadata = _Metadata(file)
    kind = MODEL_TYPES[file.architecture]
    try:
        _check_size(metadata)
        extra = EXTRA.get(file.architecture)
        settings = _common(metadata) | (extra(metadata) if extra is not None else {})
        metadata.refuse_unasked()
        config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
    except CaptureError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CaptureError(
            f"{file.path} describes a model that makes no sense: {reason}"
        ) from error
    return config


def _check_size(m: _Metadata) -> None:
    """Make sure of the sizes that say how much is to be built, before it is."""
    if TABLE not in m.tensors:
        raise CaptureError(f"{m.file.path} holds no '{TABLE}', so it is no language model")
    width, layers = m["embedding_length"], m["block_count"]
    if m.file.shape(TABLE)[1:] != (width,):
        raise CaptureError(
            f"{m.file.path} says that its embeddings are {width} wide, but '{TABLE}' has the shape "
            f"{list(m.file.shape(TABLE))}"
        )
    if not any(name.startswith(f"blk.{layers - 1}.") for name in m.tensors):
        raise CaptureError(
            f"{m.file.path} says that it has {layers} layers, but holds no tensor of the last; "
            "download it again"
        )


def _common(m: _Metadata) -> dict[str, Any]:
    heads = m["attention.head_count"]
    settings = {
        "vocab_size": m.file.shape(TABLE)[0],
        "hidden_size": m["embedding_length"],
        "intermediate_size": m["feed_forward_length"],
        "num_hidden_layers": m["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": m.get("attention.head_count_kv", heads),
        "max_position_embeddings": m["context_length"],
        "rms_norm_eps": m.get("attention.layer_norm_rms_epsilon"),
        "head_dim": m.get("attention.key_length"),
        "attention_bias": "blk.0.attn_q.bias" in m.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in m.tensors,
        "rope_parameters": _rope(m),
        # llama.cpp leaves the head out of the file when it is the embedding table.
        "tie_word_embeddings": "output.weight" not in m.tensors,
    }
    special = {
        "bos_token_id": m.special("bos"),
        "eos_token_id": m.special("eos"),
        "pad_token_id": m.special("padding"),
    }
    # Special tokens that are not said are none; for the rest, the architecture has defaults.
    return {key: value for key, value in settings.items() if value is not None} | special


def _rope(m: _Metadata) -> dict[str, Any] | None:
    if m.file.architecture == "gpt2":
        return None
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": m.get("rope.freq_base", 10000.0)}
    kind = m.get("rope.scaling.type", "none")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": m["rope.scaling.factor"]}
    elif kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": m["rope.scaling.factor"],
            "original_max_position_embeddings": m["rope.scaling.original_context_length"],
        }
    elif kind != "none":
        raise CaptureError(
            f"{m.file.path} scales its rotary embedding in the way '{kind}', which is not supported"
        )
    return rope


def _partial_rotary(m: _Metadata) -> float:
    return float(m.get("rope.dimension_count", m.head_size) / m.head_size)


def _gemma2(m: _Metadata) -> dict[str, Any]:
    return {
        "sliding_window": m["attention.sliding_window"],
        "attn_logit_softcapping": m.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": m.get("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(m, largest=46),
    }


def _gemma3(m: _Metadata) -> dict[str, Any]:
    far = m.get("rope.freq_base", 1000000.0)
    return {
        "sliding_window": m["attention.sliding_window"],
        "query_pre_attn_scalar": _query_scalar(m, largest=62),
        "final_logit_softcapping": m.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": (_rope(m) or {}) | {"rope_theta": far},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def _query_scalar(m: _Metadata, *, largest: int) -> int:
    """Return what Gemma scales queries by; its largest model, told by its depth, differs."""
    if m["block_count"] == largest:
        return int(m["embedding_length"] // m["attention.head_count"])
    return m.head_size


def _gpt2(m: _Metadata) -> dict[str, Any]:
    return {
        "n_inner": m["feed_forward_length"],
        "layer_norm_epsilon": m["attention.layer_norm_epsilon"],
    }


def _granite(m: _Metadata) -> dict[str, Any]:
    return {
        "embedding_multiplier": m.get("embedding_scale", 1.0),
        "residual_multiplier": m.get("residual_scale", 1.0),
        "attention_multiplier": m.get("attention.scale", m.head_size**-0.5),
        "logits_scaling": m.get("logit_scale", 1.0),
    }


def _phi3(m: _Metadata) -> dict[str, Any]:
    if any(name.startswith("rope_factors") for name in m.tensors):
        raise CaptureError(
            f"{m.file.path} scales its rotary embedding in the way 'longrope', whose frequencies "
            "change with the length of the text; that is not supported"
        )
    return {
        "sliding_window": m.get("attention.sliding_window") or None,
        "partial_rotary_factor": _partial_rotary(m),
    }


def _qwen3moe(m: _Metadata) -> dict[str, Any]:
    return {
        "num_experts": m["expert_count"],
        "num_experts_per_tok": m["expert_used_count"],
        "moe_intermediate_size": m["expert_feed_forward_length"],
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def _stablelm(m: _Metadata) -> dict[str, Any]:
    return {
        "layer_norm_eps": m["attention.layer_norm_epsilon"],
        "partial_rotary_factor": _partial_rotary(m),
        "use_qkv_bias": "blk.0.attn_q.bias" in m.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in m.tensors,
    }


EXTRA: dict[str, Callable[[_Metadata], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "granite": _granite,
    "phi3": _phi3,
    "qwen3moe": _qwen3moe,
    "stablelm": _stablelm,
}
