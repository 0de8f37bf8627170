"""Keep keys and values in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.errors import ConfigError
from qcompiler.core.kv_format import FLOAT, KvFormat, check_pair, pair, row_of
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class KvRule:
    """Layers by number, from the end where it is negative, and the format of their caches."""

    layers: tuple[int, ...]
    format: str

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("a rule names no layers; give some, such as layers = [0, -1]")
        if self.format != FLOAT:
            check_pair(self.format)


@dataclass(frozen=True, kw_only=True)
class QuantizeKv(Pass):
    """Store keys and values in caches of the given `format`, and read them from there.

    "kv8" has a scale for each head of each token; "kv4g16r" 4-bit codes, a scale and a least for
    each 16 features, and keys that are rotated; "kv8/kv4g32" keys of 8 bits and values of 4.
    `rules` give layers another format, or "float"; the
    last that names a layer decides. A model without caches stays as it is.
    """

    name: ClassVar[str] = "quantize-kv"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    format: str = "kv8"
    rules: tuple[KvRule, ...] = ()

    def __post_init__(self) -> None:
        if self.format != FLOAT:
            check_pair(self.format)

    def run(self, program: Program, context: PassContext) -> None:
        formats = self._formats(len(program.info.kv))
        caches = {node.target: node for node in program.placeholders()}
        kv = []
        for layer, (spec, text) in enumerate(zip(program.info.kv, formats, strict=True)):
            if spec.format:
                raise ConfigError(f"pass '{self.name}': the caches of layer {layer} have a format")
            if text == FLOAT:
                kv.append(spec)
                continue
            kv.append(replace(spec, format=text))
            both = [caches[f"{kind}_cache_{layer}"] for kind in "kv"]
            for cache, form in zip(both, pair(text), strict=True):
                KvFormat.parse(form).check(spec.head_dim)
                _retype(cache, *row_of(form, spec.head_dim))
            for user in list(both[0].users):
                if user.target in (ops.attention, ops.rope_attention):
                    user.kwargs = {**user.kwargs, "kv": text}
        program.info = replace(program.info, kv=tuple(kv))
        if not kv:
            context.note(self.name, "the model has no caches")

    def _formats(self, layers: int) -> list[str]:
        """Return the format of each layer's caches."""
        found = [self.format] * layers
        for rule in self.rules if layers else ():
            for layer in rule.layers:
                if not -layers <= layer < layers:
                    raise ConfigError(
                        f"pass '{self.name}': there is no layer {layer}; the model has {layers}, "
                        f"from 0 to {layers - 1}"
                    )
                found[layer] = rule.format
        return found


def _retype(cache: fx.Node, numbers: int, dtype: str) -> None:
    """Give an input of the graph rows of another length and type."""
    val = cache.meta["val"]
    cache.meta["val"] = val.new_empty((*val.shape[:3], numbers), dtype=getattr(torch, dtype))
