"""A model as it lies on disk, and the weights of a captured graph picked out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError
from qcompiler.core.weights import TensorSource, WeightSource, WeightStore
from qcompiler.frontend.lift import Lifted
from qcompiler.frontend.text import TextInfo


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A Hugging Face model without weights, and a source of them by the names the model uses.

    place: the file or folder, for messages; source: how the weights are stored, for reports.
    """

    name: str
    place: str
    model: PreTrainedModel
    weights: WeightSource
    source: str
    text: TextInfo = field(default_factory=TextInfo)


class _Picked:
    """Some tensors of a source, under names of their own."""

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        self._source = source
        self._names = names

    def names(self) -> Iterable[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._names[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(self._names[name])

    def read(self, name: str) -> torch.Tensor:
        return self._source.read(self._names[name])


def weight_store(
    lifted: Lifted, source: WeightSource, module: nn.Module, place: str
) -> WeightStore:
    """Pick the weights a graph names: stored ones, then buffers the module computed, constants.

    Raises:
        CaptureError: `place` lacks a weight, or has it in another shape.
    """
    held = frozenset(source.names())
    buffers = dict(module.named_buffers(remove_duplicate=False))
    shapes = {n.target: n.meta["val"].shape for n in lifted.graph.nodes if n.op == "get_attr"}
    picked: dict[str, str] = {}
    computed = dict(lifted.constants)
    missing = []
    for name, all_names in lifted.weights.items():
        stored = next((n for n in all_names if n in held), None)
        if stored is not None:
            picked[name] = stored
            _check_shape(place, stored, source.shape(stored), tuple(shapes[name]))
        elif name in buffers:
            computed[name] = buffers[name]
        else:
            missing.append(name)
    if missing:
        raise CaptureError(
            f"{place} lacks {len(missing)} of the {len(lifted.weights)} tensors that "
            f"{type(module).__name__} needs, the first of them '{missing[0]}'; download it again, "
            "or convert it again with all its weights"
        )
    store = WeightStore([_Picked(source, picked), TensorSource(computed)])
    for name, all_names in lifted.weights.items():
        for alias in all_names[1:]:
            store.alias(alias, name)
    return store


def _check_shape(place: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CaptureError(
            f"'{name}' in {place} has the shape {list(found)}, but the model's configuration asks "
            f"for {list(expected)}; the two do not belong together"
        )
