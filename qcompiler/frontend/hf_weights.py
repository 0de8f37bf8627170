"""Tensors of a checkpoint under the names that transformers' modules have for them.

A checkpoint may be older than the module: it may lack or have the prefix of the base model, say
gamma for weight, or hold every expert by itself where the module has one tensor for all. The tables
of such changes are transformers' own; here they are applied to one tensor at a time, when it is
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from qcompiler.core.errors import CaptureError
from qcompiler.core.weights import WeightSource


@dataclass(slots=True)
class _Recipe:
    """How one or more of a module's tensors are made: (pattern, stored name) of each part."""

    first: str
    converter: WeightConverter | None
    parts: list[tuple[str, str]] = field(default_factory=list)


class HuggingFaceWeights:
    """A source that gives a checkpoint's tensors the names of a module's."""

    def __init__(self, source: WeightSource, model: PreTrainedModel) -> None:
        self._source = source
        self._model = model
        self._recipes: dict[str, _Recipe] = {}
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
        known = {name: True for name in model.state_dict(keep_vars=True)}
        # The experts of a layer are stacked in the order of their numbers.
        for stored in sorted(source.names(), key=dot_natural_key):
            prefix = model.base_model_prefix
            name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
            if name not in known and stored in known:
                name, pattern = stored, None
            if pattern is None:
                self._recipes[name] = _Recipe(name, None, [("", stored)])
                continue
            converter = by_pattern[pattern]
            recipe = self._recipes.get(name) or _Recipe(name, converter)
            recipe.parts.append((pattern, stored))
            first, *others = converter.target_patterns
            for target in (first, *others):
                self._recipes[name.replace(first, target)] = recipe

    def names(self) -> Iterable[str]:
        return self._recipes

    def shape(self, name: str) -> tuple[int, ...]:
        recipe = self._recipes[name]
        if recipe.converter is None:
            return self._source.shape(recipe.parts[0][1])
        return tuple(self._convert(name, self._blank).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(self._recipes[name].parts[0][1])

    def read(self, name: str) -> torch.Tensor:
        recipe = self._recipes[name]
        if recipe.converter is None:
            return self._source.read(recipe.parts[0][1])
        return self._convert(name, self._source.read)

    def _blank(self, stored: str) -> torch.Tensor:
        return torch.empty(
            self._source.shape(stored), dtype=self._source.dtype(stored), device="meta"
        )

    def _convert(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        recipe = self._recipes[name]
        converter = deepcopy(recipe.converter)
        assert converter is not None
        for pattern, stored in recipe.parts:
            # A callable is read when its turn comes; the type names only one of the two it takes.
            later: Any = partial(read, stored)
            converter.add_tensor(recipe.first, stored, pattern, later)
        try:
            made = converter.convert(recipe.first, model=self._model, config=self._model.config)
            result: Any = made[name]
        except (RuntimeError, ValueError, KeyError) as error:
            raise CaptureError(
                f"'{name}' cannot be made of {len(recipe.parts)} stored tensors, such as "
                f"'{recipe.parts[0][1]}': {' '.join(str(error).split())}"
            ) from error
        tensor: torch.Tensor = result[0] if isinstance(result, list) else result
        return tensor
