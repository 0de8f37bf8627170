"""Shapes of what operators return, which passes write into `meta["val"]` of the nodes they add.

An operator of ours has a rule here, because running its meaning on fake tensors takes milliseconds
a node; one of aten's is run on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree

from qcompiler.core import ops
from qcompiler.core.formats import TensorFormat
from qcompiler.core.weights import WeightStore

Tensor = torch.Tensor


def infer(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `target` gives for arguments whose nodes carry their values in `meta["val"]`.

    A target without tensor arguments, such as arange, needs `faking` around the call.
    """
    plain, named = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
    with _mode(plain, named) or nullcontext():
        return RULES.get(target, target)(*plain, **named)


def add_call(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call at the graph's insertion point, with its shape."""
    node = graph.call_function(target, args, kwargs)
    with faking(graph):
        node.meta["val"] = infer(target, *args, **kwargs)
    return node


def add_weight(graph: fx.Graph, weights: WeightStore, name: str) -> fx.Node:
    """Add a node that reads a float or quantised weight, at the graph's insertion point.

    A quantised weight has the shape of the float32 matrix that it stands for.
    """
    node = graph.create_node("get_attr", name)
    with faking(graph):
        node.meta["val"] = torch.empty(weights.shape(name), dtype=torch.float32)
    return node


def faking(graph: fx.Graph) -> AbstractContextManager[Any]:
    """Return the context in which new tensors are fakes like those of the graph's inputs."""
    return _mode([n.meta["val"] for n in graph.nodes if n.op == "placeholder"]) or FakeTensorMode()


def _mode(*values: Any) -> FakeTensorMode | None:
    """Return the mode that the first fake tensor anywhere in `values` belongs to."""
    for leaf in _pytree.tree_leaves(values):
        if isinstance(leaf, FakeTensor):
            return leaf.fake_mode
    return None


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    *,
    scheme: str = "",
    activation: str = "none",
    gated: bool = False,
) -> Tensor:
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    return x.new_empty((*x.shape[:-1], n), dtype=torch.float32)


def _quantized_matmul(codes: Tensor, scales: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _product(codes, *args, **kwargs)


def _quantize(
    x: Tensor, scale: Tensor | None = None, *, form: TensorFormat
) -> tuple[Tensor, Tensor]:
    groups = form.groups(int(x.shape[-1]))
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty((*x.shape[:-1], groups), dtype=torch.float32),
    )


def _range_scale(weight: Tensor, clip: Tensor | None = None, *, form: TensorFormat) -> Tensor:
    n, k = weight.shape
    return weight.new_empty((n, form.groups(int(k))), dtype=torch.float32)


def _norm_quantize(x: Tensor, *args: Any, form: TensorFormat, **kwargs: Any) -> Any:
    return _quantize(x, form=form)


def _embedding(ids: Tensor, weight: Tensor, *, scheme: str = "") -> Tensor:
    return ids.new_empty((*ids.shape, weight.shape[1]), dtype=torch.float32)


def _like_first(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.new_empty(x.shape)


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _rope_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    key_mean: Tensor | None = None,
    *,
    heads: int,
    **kwargs: Any,
) -> Tensor:
    size = qkv.shape[-1] // (heads + 2 * v_cache.shape[1])
    return qkv.new_empty((*qkv.shape[:-1], heads * size))


RULES: Mapping[Callable[..., Any], Callable[..., Any]] = {
    ops.linear: _product,
    ops.quantized_linear: _product,
    ops.quantized_matmul: _quantized_matmul,
    ops.quantize: _quantize,
    ops.fake_quantize: _like_first,
    ops.fake_quantize_weight: _like_first,
    ops.low_rank_update: _like_first,
    ops.range_scale: _range_scale,
    ops.embedding: _embedding,
    ops.quantized_embedding: _embedding,
    ops.rms_norm: _like_first,
    ops.layer_norm: _like_first,
    ops.rms_norm_quantize: _norm_quantize,
    ops.layer_norm_quantize: _norm_quantize,
    ops.rotary: _like_first,
    ops.attention: _attention,
    ops.rope_attention: _rope_attention,
    ops.dense_attention: _attention,
}
"""The shape of what each of `ops.OPS` returns, called in the place of the operator."""
