"""Capture any module or exported program as it is, and encoders with dynamic batch and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.export import export
from qcompiler.frontend.lift import Lifted, lift
from qcompiler.frontend.skeleton import evaluating, export_mode, tied_parameters, without_weights

Inputs = torch.Tensor | Sequence[Any] | Mapping[str, Any]


def capture_module(module: nn.Module, inputs: Inputs, dynamic_shapes: Any = None) -> Lifted:
    """Export a module as it computes when it does not train.

    inputs: a tensor, positional arguments, or keyword arguments; dynamic_shapes: as for
    `torch.export.export`, everything fixed without it.

    Raises:
        CaptureError: naming the operator or line that cannot be exported.
    """
    arguments, keywords = _arguments(inputs)
    what = type(module).__name__
    with evaluating(module):
        exported = export(module, arguments, dynamic_shapes, keywords=keywords, what=what)
    return lift(exported, tied=tied_parameters(module))


def capture_exported(exported: ExportedProgram) -> Lifted:
    """Take over a program that was exported elsewhere.

    Raises:
        CaptureError: it changes its state or its inputs.
    """
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in exported.state_dict.items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return lift(exported, tied=tied)


class _Encoder(nn.Module):
    """ids, mask [b, s] → last hidden state [b, s, k]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Said outright, masks and positions are a few nodes; left to the model, they are dozens.
        out = self.model(
            input_ids=ids,
            attention_mask=mask.to(torch.bool).unsqueeze(1).unsqueeze(1),
            position_ids=torch.arange(ids.shape[1]).unsqueeze(0),
            token_type_ids=torch.zeros_like(ids),
        )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden


def capture_encoder(model: PreTrainedModel) -> Lifted:
    """Export an encoder: ids [b, s] and mask [b, s], one where a token counts, to hidden states.

    Raises:
        CaptureError: the model cannot be exported.
    """
    mode = export_mode()
    twin = without_weights(model, mode)
    with mode:
        ids = torch.zeros(3, 13, dtype=torch.int64)
        mask = torch.ones(3, 13, dtype=torch.int64)
    longest = model.config.max_position_embeddings
    sizes = {0: Dim("batch", min=1), 1: Dim("sequence", min=1, max=longest)}
    exported = export(
        _Encoder(twin),
        (ids, mask),
        {"ids": sizes, "mask": sizes},
        what=f"this '{model.config.model_type}' model",
    )
    return lift(
        exported,
        rename=lambda name: name.removeprefix("model."),
        inputs=["ids", "mask"],
        tied=tied_parameters(model),
    )


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), None
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, str | bytes):
        raise CaptureError("example inputs are tensors: one, a tuple of them, or a dict by name")
    return tuple(inputs), None
