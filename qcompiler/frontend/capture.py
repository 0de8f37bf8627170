"""Turn any model into a program: the one entrance of the frontend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError, UsageError
from qcompiler.core.program import KvCache, ModelInfo, Program
from qcompiler.core.weights import TensorSource, WeightSource
from qcompiler.frontend.causal_lm import capture_causal_lm
from qcompiler.frontend.checkpoint import Checkpoint, weight_store
from qcompiler.frontend.families import CAUSAL_LMS, ENCODERS, check_config
from qcompiler.frontend.gguf_model import open_gguf
from qcompiler.frontend.hf_folder import open_folder
from qcompiler.frontend.module import Inputs, capture_encoder, capture_exported, capture_module
from qcompiler.frontend.text import TextInfo, end_tokens_of
from qcompiler.packaged import check_found, packaged_file

MEMORY = "memory"
"""What a report says of weights that were in memory already."""

_NO_CACHES: tuple[KvCache, ...] = ()


def capture(
    model: str | Path | nn.Module | ExportedProgram,
    *,
    example_inputs: Inputs | None = None,
    dynamic_shapes: Any = None,
    context: int | None = None,
) -> Program:
    """Capture a model as a float program.

    model: a Hugging Face folder, a GGUF file or a folder that holds one, the name of a packaged
    model, a module, or an exported program. Language models become one graph for prefill and decode
    with KV caches as inputs; encoders take ids and a mask; other modules need example inputs, and
    dynamic shapes as `torch.export.export` takes them if any size is to stay open. context: the
    longest context of a language model, if less than its own limit is enough.

    Raises:
        CaptureError: the model cannot be found, read or captured; the text says why.
        UsageError: `context` is more than the model was made for, or the model has none.
    """
    if isinstance(model, str | Path):
        if example_inputs is not None or dynamic_shapes is not None:
            raise CaptureError(
                "example inputs and dynamic shapes go with a module, not with a file"
            )
        return _capture_checkpoint(open_model(model), context)
    if isinstance(model, ExportedProgram):
        if example_inputs is not None or dynamic_shapes is not None:
            raise CaptureError("an exported program already has its inputs and their shapes")
        _check_no_context("an exported program", context)
        return _capture_exported(model)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a {type(model).__name__} is no model; pass a path, the name of a packaged model, a "
            "torch module or an exported program"
        )
    if example_inputs is None:
        return _capture_checkpoint(_in_memory(model), context)
    _check_no_context("a module with example inputs", context)
    lifted = capture_module(model, example_inputs, dynamic_shapes)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    name = type(model).__name__
    return Program(
        graph=lifted.graph,
        weights=weight_store(lifted, TensorSource(state), model, name),
        info=ModelInfo(name=name, kind="module", architecture=name, source=MEMORY),
    )


def open_model(model: str | Path) -> Checkpoint:
    """Find a model by path or by the name of a packaged one, and open it without reading weights.

    Raises:
        CaptureError: there is no such thing, or it cannot be read.
    """
    check_found(model)
    path = Path(model).expanduser()
    if not path.exists():
        return replace(open_gguf(packaged_file(str(model))), name=str(model))
    if path.is_file():
        if path.suffix == ".safetensors":
            raise CaptureError(f"{path} holds weights alone; pass its folder, with its config.json")
        return open_gguf(path)
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return open_folder(path)
    if len(files) > 1:
        raise CaptureError(
            f"{path} holds {len(files)} GGUF files ({files[0].name}, {files[1].name}, …); pass one"
        )
    return open_gguf(files[0])


def _in_memory(module: nn.Module) -> Checkpoint:
    if not isinstance(module, PreTrainedModel):
        raise CaptureError(
            f"{type(module).__name__} needs example inputs to be captured; pass example_inputs"
        )
    check_config(module.config)
    if module.config.model_type in CAUSAL_LMS and _head(module) is None:
        raise CaptureError(
            f"{type(module).__name__} has no language model's head; pass the ForCausalLM model, or "
            "example inputs to capture it as a plain module"
        )
    if module.config.model_type in ENCODERS and module.base_model is not module:
        raise CaptureError(
            f"{type(module).__name__} has a head of its own; pass its base model, or example "
            "inputs to capture it as a plain module"
        )
    source: WeightSource = TensorSource(
        {**dict(module.named_parameters()), **dict(module.named_buffers())}
    )
    name = type(module).__name__
    ends = TextInfo(end_tokens=end_tokens_of(module))
    return Checkpoint(name=name, place=name, model=module, weights=source, source=MEMORY, text=ends)


def _head(module: PreTrainedModel) -> object:
    return module.get_output_embeddings()  # type: ignore[no-untyped-call]


def _check_no_context(what: str, context: int | None) -> None:
    if context is not None:
        raise UsageError(f"{what} has no context to set; that goes with language models")


def _max_context(checkpoint: Checkpoint, context: int | None) -> int:
    limit: int = checkpoint.model.config.max_position_embeddings
    if context is None:
        return limit
    if checkpoint.model.config.model_type in ENCODERS:
        _check_no_context(f"{checkpoint.name}, an encoder,", context)
    if context > limit:
        raise UsageError(
            f"a context of {context} tokens is more than {checkpoint.name} was made for; "
            f"its limit is {limit}"
        )
    return context


def _capture_checkpoint(checkpoint: Checkpoint, context: int | None) -> Program:
    model, config, text = checkpoint.model, checkpoint.model.config, checkpoint.text
    max_context = _max_context(checkpoint, context)
    if config.model_type in ENCODERS:
        lifted, kv = capture_encoder(model), _NO_CACHES
    else:
        lifted, kv = capture_causal_lm(model)
    return Program(
        graph=lifted.graph,
        weights=weight_store(lifted, checkpoint.weights, model, checkpoint.place),
        info=ModelInfo(
            name=checkpoint.name,
            kind="causal-lm" if kv else "module",
            architecture=config.model_type,
            vocab_size=config.vocab_size,
            max_context=max_context,
            kv=kv,
            end_tokens=text.end_tokens,
            begin_token=text.begin_token,
            tokenizer_json=text.tokenizer_json,
            chat_template=text.chat_template,
            source=checkpoint.source,
        ),
    )


def _capture_exported(exported: ExportedProgram) -> Program:
    lifted = capture_exported(exported)
    name = "ExportedProgram"
    state = {**exported.state_dict, **exported.tensor_constants}
    return Program(
        graph=lifted.graph,
        weights=weight_store(lifted, TensorSource(state), nn.Module(), name),
        info=ModelInfo(name=name, kind="module", architecture=name, source=MEMORY),
    )
