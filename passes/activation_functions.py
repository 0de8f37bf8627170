"""Recognise an activation function that a product can apply to its own result."""

from __future__ import annotations

import torch
from torch import fx

from passes.rewrite import calls, is_tensor

aten = torch.ops.aten


def activation_of(node: fx.Node) -> tuple[str, fx.Node] | None:
    """Return the name in `ops.ACTIVATIONS` of the function that `node` applies, and to what."""
    if not (calls(node, *_NAMES) and is_tensor(node.args[0])):
        return None
    name = _NAMES[node.target]  # type: ignore[index]
    if name == "gelu":
        approximate = node.kwargs.get("approximate", [*node.args, "none"][1])
        name = "gelu_tanh" if approximate == "tanh" else "gelu"
    return name, node.args[0]


_NAMES = {
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.relu.default: "relu",
    aten.tanh.default: "tanh",
}
