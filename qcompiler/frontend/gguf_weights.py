"""Tensors of a GGUF file under Hugging Face names, with llama.cpp's changes undone.

llama.cpp's converter renames every tensor, interleaves the rows of query and key weights for its
rotary embedding in some architectures, stores Gemma's norms with 1 added, transposes GPT-2's
weights and splits Qwen's experts in gate and up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from torch import nn
from transformers import PretrainedConfig

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.gguf_file import GgufFile

INTERLEAVED = frozenset({"granite", "llama", "smollm3"})
"""Architectures whose query and key rows llama.cpp reorders."""

FREQUENCY_FACTORS = "rope_freqs.weight"

Convert = Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Recipe:
    sources: tuple[str, ...]
    convert: Convert


class GgufWeights:
    """A source of a model's weights by their Hugging Face names."""

    def __init__(self, file: GgufFile, config: PretrainedConfig, wanted: Iterable[str]) -> None:
        """Find the tensors of the parameters `wanted`.

        Raises:
            CaptureError: the file holds tensors the model has no place for.
        """
        self._file = file
        self._recipes: dict[str, _Recipe] = {}
        held = frozenset(file.names())
        names = get_tensor_name_map(_architecture(file), config.num_hidden_layers)
        for name in wanted:
            recipe = _recipe(name, names.get_name, file.architecture, config)
            if recipe is not None and held.issuperset(recipe.sources):
                self._recipes[name] = recipe
        used = {source for recipe in self._recipes.values() for source in recipe.sources}
        if unused := sorted(held - used - {FREQUENCY_FACTORS}):
            raise CaptureError(
                f"{file.path} holds {len(unused)} tensors that '{config.model_type}' models have "
                f"no place for, the first of them '{unused[0]}'; this variant is not supported"
            )

    def names(self) -> Iterable[str]:
        return self._recipes

    def shape(self, name: str) -> tuple[int, ...]:
        recipe = self._recipes[name]
        blanks = [torch.empty(self._file.shape(s), device="meta") for s in recipe.sources]
        return tuple(self._convert(recipe, blanks).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._file.dtype(self._recipes[name].sources[0])

    def read(self, name: str) -> torch.Tensor:
        recipe = self._recipes[name]
        return self._convert(recipe, [self._file.read(source) for source in recipe.sources])

    def _convert(self, recipe: _Recipe, tensors: list[torch.Tensor]) -> torch.Tensor:
        try:
            return recipe.convert(tensors)
        except RuntimeError as error:
            raise CaptureError(
                f"'{recipe.sources[0]}' in {self._file.path} has a shape that does not go with its "
                f"metadata ({list(tensors[0].shape)}); download the file again"
            ) from error


def correct_frequencies(model: nn.Module, file: GgufFile) -> None:
    """Divide a model's rotary frequencies by the factors the file gives, as Llama 3's do.

    Raises:
        CaptureError: there is not one factor for every frequency.
    """
    if FREQUENCY_FACTORS not in file.names():
        return
    factors = file.read(FREQUENCY_FACTORS)
    buffers = [b for name, b in model.named_buffers() if name.endswith("inv_freq")]
    if not buffers or any(b.shape != factors.shape for b in buffers):
        raise CaptureError(
            f"the {factors.numel()} rotary factors in {file.path} do not fit its architecture"
        )
    for buffer in buffers:
        buffer.div_(factors)


def _architecture(file: GgufFile) -> MODEL_ARCH:
    return next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)


def _recipe(
    name: str, gguf_name: Callable[[str], str | None], architecture: str, config: PretrainedConfig
) -> _Recipe | None:
    if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", name):
        block, part = match.groups()
        if part == "down":
            return _Recipe((f"blk.{block}.ffn_down_exps.weight",), _same)
        parts = (f"blk.{block}.ffn_gate_exps.weight", f"blk.{block}.ffn_up_exps.weight")
        return _Recipe(parts, lambda tensors: torch.cat(tensors, 1))
    stem, _, suffix = name.rpartition(".")
    found = gguf_name(stem)
    if found is None:
        return None
    return _Recipe((f"{found}.{suffix}",), _conversion(found, suffix, architecture, config))


def _conversion(found: str, suffix: str, architecture: str, config: PretrainedConfig) -> Convert:
    """Return what undoes the converter's change of one tensor, named as GGUF names it."""
    leaf = found.rpartition(".")[2]
    if architecture in INTERLEAVED and leaf in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if leaf == "attn_q" else config.num_key_value_heads
        return lambda tensors: _deinterleave(tensors[0], heads)
    if architecture.startswith("gemma") and leaf.endswith("norm"):
        return lambda tensors: tensors[0] - 1
    transposed = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    if architecture == "gpt2" and suffix == "weight" and leaf in transposed:
        return lambda tensors: tensors[0].T.contiguous()
    return _same


def _same(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0]


def _deinterleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the first halves of every head's rows before the second, as they were.

    >>> _deinterleave(torch.tensor([0, 2, 1, 3]), 1)
    tensor([0, 1, 2, 3])
    """
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
