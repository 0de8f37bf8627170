"""Capture a causal language model as one graph for prefill and decode."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import PretrainedConfig, PreTrainedModel

from qcompiler.core import ops
from qcompiler.core.errors import CaptureError
from qcompiler.core.program import KvCache
from qcompiler.frontend.export import export
from qcompiler.frontend.kv_attention import (
    IMPLEMENTATION,
    ForwardMode,
    KvCaches,
    attending_to,
)
from qcompiler.frontend.lift import Lifted, lift
from qcompiler.frontend.skeleton import export_mode, tied_parameters, without_weights

LONGEST = 1 << 24
"""Upper bound of the dynamic sizes; any number no text reaches will do."""

CALLS_SDPA = frozenset({"falcon"})
"""Families that pay no heed to the attention function they are told to use."""


class _Step(nn.Module):
    """ids [1, s], position [1], rows [r], caches of every layer → logits [1, r, vocab]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.keeps_rows = "logits_to_keep" in accepted
        self.takes_positions = "position_ids" in accepted

    def forward(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        rows: torch.Tensor,
        pairs: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        caches = KvCaches(pairs, position)
        extra: dict[str, Any] = {}
        if self.takes_positions:
            extra["position_ids"] = (torch.arange(ids.shape[1]) + position).unsqueeze(0)
        if self.keeps_rows:
            extra["logits_to_keep"] = rows
        with attending_to(caches), ForwardMode(caches):
            out = self.model(input_ids=ids, past_key_values=caches, use_cache=True, **extra)
        missing = sorted(set(range(len(pairs))) - set(caches.attended))
        if missing:
            raise CaptureError(
                f"layers {missing} of this '{self.model.config.model_type}' model attend in a way "
                "of their own, which cannot be captured"
            )
        logits: torch.Tensor = out.logits
        return logits if self.keeps_rows else logits[:, rows]


def capture_causal_lm(model: PreTrainedModel) -> tuple[Lifted, tuple[KvCache, ...]]:
    """Export a causal LM, whose weights may be without memory, with KV caches as inputs.

    Returns the graph and the caches it takes; the weights keep the names that `model` gives them.

    Raises:
        CaptureError: the model cannot be exported.
    """
    config = model.config
    kv = kv_caches(config)
    mode = export_mode()
    twin = without_weights(model, mode)
    twin.config._attn_implementation = "sdpa" if config.model_type in CALLS_SDPA else IMPLEMENTATION
    if getattr(config, "num_experts", None):
        twin.config._experts_implementation = "batched_mm"
    with mode:
        arguments = _example(kv)
    sequence = Dim("sequence", min=1, max=LONGEST)
    context = Dim("context", min=2, max=LONGEST)
    rows = Dim("rows", min=1, max=LONGEST)
    shapes = {
        "ids": {1: sequence},
        "position": None,
        "rows": {0: rows},
        "pairs": [({2: context}, {2: context})] * len(kv),
    }
    exported = export(_Step(twin), arguments, shapes, what=f"this '{config.model_type}' model")
    names = ["ids", "position", "rows"]
    names += [f"{kind}_cache_{i}" for i in range(len(kv)) for kind in "kv"]
    lifted = lift(
        exported,
        rename=lambda name: name.removeprefix("model."),
        inputs=names,
        tied=tied_parameters(model),
    )
    _check_attention(lifted, exported, len(kv))
    return lifted, kv


def kv_caches(config: PretrainedConfig) -> tuple[KvCache, ...]:
    """Read off a configuration what every layer's cache holds."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "falcon":
        # The newer architecture repeats keys for every query head before it caches them.
        if config.new_decoder_architecture or not config.multi_query:
            heads = config.num_attention_heads
        else:
            heads = 1
    layers: int = config.num_hidden_layers
    return (KvCache(heads=heads, head_dim=size),) * layers


def _example(kv: tuple[KvCache, ...]) -> tuple[Any, ...]:
    # Sizes that differ, so that none is taken for another.
    s, c, r = 13, 31, 5
    shapes = [(1, layer.heads, c, layer.head_dim) for layer in kv]
    ids = torch.zeros(1, s, dtype=torch.int64)
    position = torch.zeros(1, dtype=torch.int64)
    rows = torch.zeros(r, dtype=torch.int64)
    return ids, position, rows, [(torch.zeros(shape), torch.zeros(shape)) for shape in shapes]


def _check_attention(lifted: Lifted, exported: ExportedProgram, layers: int) -> None:
    """Make sure that nothing of a model's attention was lost on the way."""
    found = sum(node.target is ops.attention for node in lifted.graph.nodes)
    if found != layers:
        raise CaptureError(f"{layers} layers were expected to attend, but {found} do")
    if len(exported.graph_signature.user_inputs) != 3 + 2 * layers:
        raise CaptureError("the model's caches did not become inputs of its graph")
