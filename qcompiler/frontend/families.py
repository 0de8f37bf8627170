"""The model families that can be captured, and why the others that people ask for cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qcompiler.core.errors import CaptureError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CAUSAL_LMS = (
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
)
"""Decoders that become one graph for prefill and decode, by `model_type`."""

ENCODERS = ("bert",)
"""Models from token ids and a mask to hidden states, by `model_type`."""

ALIBI = (
    "its attention adds a bias that grows with distance (ALiBi), which the attention kernels lack"
)
OBSTACLES = {
    "bloom": ALIBI,
    "mpt": ALIBI,
    "gptj": "its attention cannot be told apart from the rest of the model in transformers",
}
"""What is in the way of families that are asked for, by `model_type`."""

FIXED_ROPE = ("default", "linear", "llama3", "proportional", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the text."""


LM_HEADS = ("ForCausalLM", "LMHeadModel")
"""How class names of language models end."""


def check_architecture(kind: str, classes: Sequence[str] | None = None) -> None:
    """Refuse a `model_type` that cannot be captured, or a model with another head than an LM's.

    Raises:
        CaptureError: naming the architecture, the reason and what is supported.
    """
    if kind in OBSTACLES:
        raise CaptureError(f"'{kind}' models cannot be captured: {OBSTACLES[kind]}")
    if kind not in CAUSAL_LMS and kind not in ENCODERS:
        raise CaptureError(
            f"'{kind}' is not an architecture that can be captured; supported language models: "
            f"{', '.join(CAUSAL_LMS)}; encoders: {', '.join(ENCODERS)}; for another, build the "
            "module yourself and pass it with example inputs"
        )
    if kind in CAUSAL_LMS and classes and not any(c.endswith(LM_HEADS) for c in classes):
        raise CaptureError(
            f"a {classes[0]} is no causal language model; of '{kind}', only those can be captured"
        )


def check_config(config: PretrainedConfig) -> None:
    """Refuse a configuration of a supported architecture that asks for what is not supported.

    Raises:
        CaptureError: naming what it asks for.
    """
    kind = config.model_type
    check_architecture(kind)
    if getattr(config, "alibi", False):
        raise CaptureError(f"this '{kind}' model cannot be captured: {ALIBI}")
    for rope in sorted(rope_kinds(config)):
        if rope not in FIXED_ROPE:
            raise CaptureError(
                f"the rotary embedding of this '{kind}' model is of the kind '{rope}', whose "
                "frequencies change with the length of the text; supported kinds: "
                f"{', '.join(FIXED_ROPE)}"
            )


def rope_kinds(config: PretrainedConfig) -> set[str]:
    """Return the kinds of rotary embedding a model uses, one or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    groups = [parameters, *parameters.values()]
    return {str(g["rope_type"]) for g in groups if isinstance(g, dict) and g.get("rope_type")}
