"""Open a Hugging Face folder: configuration, weights in safetensors, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.checkpoint import Checkpoint
from qcompiler.frontend.families import ENCODERS, check_architecture, check_config
from qcompiler.frontend.hf_weights import HuggingFaceWeights
from qcompiler.frontend.safetensors_source import SafetensorsSource
from qcompiler.frontend.skeleton import build_skeleton
from qcompiler.frontend.text import read_json, text_of_folder


def open_folder(folder: Path) -> Checkpoint:
    """Open a folder without reading a weight; nothing is looked for on any network.

    Raises:
        CaptureError: the folder is not a model's, or its model is not supported.
    """
    config = _config(folder)
    source = SafetensorsSource.from_folder(folder)
    model = skeleton(config)
    return Checkpoint(
        name=folder.resolve().name,
        place=str(folder),
        model=model,
        weights=HuggingFaceWeights(source, model),
        source=source.describe(),
        text=text_of_folder(folder),
    )


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model of a configuration without weights, in float32.

    Raises:
        CaptureError: the configuration contradicts itself.
    """
    encoder = config.model_type in ENCODERS
    build = AutoModel if encoder else AutoModelForCausalLM
    attention = "sdpa" if encoder else "eager"

    def make() -> PreTrainedModel:
        model: PreTrainedModel = build.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
        return model

    try:
        return build_skeleton(make)
    except Exception as error:
        raise CaptureError(
            f"no '{config.model_type}' model can be built from this configuration: "
            f"{' '.join(str(error).split())}"
        ) from error


def _config(folder: Path) -> PretrainedConfig:
    if (folder / "adapter_config.json").is_file():
        raise CaptureError(
            f"{folder} holds an adapter, not a model; merge it into its base model with "
            "merge_and_unload, and save that"
        )
    if not (folder / "config.json").is_file():
        raise CaptureError(f"{folder} is not a model's folder: it has no config.json")
    content = read_json(folder / "config.json")
    if "model_type" not in content:
        raise CaptureError(f"{folder / 'config.json'} does not say its model_type")
    check_architecture(str(content["model_type"]), content.get("architectures"))
    if quantization := content.get("quantization_config"):
        method = quantization.get("quant_method", "an unknown method")
        raise CaptureError(
            f"the weights in {folder} are quantised already ({method}); "
            "start from the floating-point model"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CaptureError(f"{folder / 'config.json'} cannot be understood: {reason}") from error
    check_config(config)
    return config
