"""Architectures: what is supported, what is not, and why."""

from __future__ import annotations

import pytest
import transformers
from transformers import AutoConfig

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.families import (
    CAUSAL_LMS,
    FIXED_ROPE,
    OBSTACLES,
    check_architecture,
    check_config,
    rope_kinds,
)
from tests.families import FAMILIES


def test_every_supported_family_is_tested() -> None:
    assert {config.model_type for config in FAMILIES.values()} == set(CAUSAL_LMS)


def test_families_are_listed_in_order() -> None:
    assert list(CAUSAL_LMS) == sorted(CAUSAL_LMS)
    assert not set(CAUSAL_LMS) & set(OBSTACLES)


@pytest.mark.parametrize("kind", sorted(OBSTACLES))
def test_what_is_in_the_way_is_named(kind: str) -> None:
    with pytest.raises(CaptureError, match=f"'{kind}' models cannot be captured: its attention"):
        check_architecture(kind)


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(CaptureError, match=r"'t5' is not .*: falcon, gemma, .*encoders: bert"):
        check_architecture("t5")


@pytest.mark.parametrize(
    ("classes", "fits"),
    [
        (None, True),
        ([], True),
        (["GPT2LMHeadModel"], True),
        (["GPT2ForCausalLM"], True),
        (["GPT2ForSequenceClassification"], False),
    ],
)
def test_only_language_models_of_a_family(classes: list[str] | None, fits: bool) -> None:
    if fits:
        check_architecture("gpt2", classes)
        return
    with pytest.raises(CaptureError, match="a GPT2ForSequenceClassification is no causal"):
        check_architecture("gpt2", classes)


def test_rope_of_one_kind_or_one_for_each_kind_of_layer() -> None:
    assert rope_kinds(transformers.LlamaConfig()) == {"default"}
    assert rope_kinds(transformers.Gemma3TextConfig()) == {"default"}
    assert rope_kinds(transformers.GPT2Config()) == set()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_change_with_length_are_refused(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
        rope["original_max_position_embeddings"] = 1024
    config = AutoConfig.for_model("llama", rope_parameters=rope)
    with pytest.raises(CaptureError, match=f"of the kind '{kind}'.*{', '.join(FIXED_ROPE)}"):
        check_config(config)
