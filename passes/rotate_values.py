"""Turn values by an orthogonal matrix that is folded into the products around attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from passes.rewrite import calls, is_weight
from qcompiler.core import ops
from qcompiler.core.kv_rows import rotate_heads
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class RotateValues(Pass):
    """Multiply values by a Hadamard matrix, and what reads attention's output by it again.

    What the model computes stays the same, and costs no more, because both are done to weights
    beforehand (QuaRot, arXiv 2404.00456; SpinQuant's R2, 2405.16406). Values then have no features
    that stand out, and lose less in caches of 4 bits. Layers whose values or output are read by
    anything else stay as they are.
    """

    name: ClassVar[str] = "rotate-values"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    keeps: ClassVar[frozenset[type[Any]] | None] = frozenset()

    def run(self, program: Program, context: PassContext) -> None:
        layers = [node for node in program.graph.nodes if node.target is ops.attention]
        turned = sum(_rotate(program, node) for node in layers)
        if turned < len(layers):
            context.note(self.name, f"{len(layers) - turned} of {len(layers)} layers stay")


def _rotate(program: Program, attention: fx.Node) -> bool:
    """Turn the values of one layer, if nothing but two products would notice."""
    before = _made_by(attention.args[2])
    after = _read_by(attention)
    if before is None or after is None:
        return False
    store = program.weights
    names = [store.resolve(str(node.args[1].target)) for node in (before, after)]  # type: ignore[union-attr]
    readers = [
        user
        for node in program.graph.nodes
        if node.op == "get_attr" and store.resolve(str(node.target)) in names
        for user in node.users
    ]
    if len(readers) != 2:
        return False
    size = int(attention.args[2].meta["val"].shape[-1])  # type: ignore[union-attr]
    value, output = (store.tensor(name) for name in names)
    store.put(names[0], _turn(value.T, size).T.contiguous())
    store.put(names[1], _turn(output, size))
    if len(before.args) > 2 and is_weight(before.args[2]):
        bias = store.resolve(str(before.args[2].target))
        store.put(bias, _turn(store.tensor(bias), size))
    return True


def _turn(x: torch.Tensor, size: int) -> torch.Tensor:
    """Turn each `size` consecutive entries of the last dimension."""
    return rotate_heads(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape).contiguous()


def _made_by(values: Any) -> fx.Node | None:
    """Return the product that gives values and nothing else: linear, then a view of its heads."""
    view = values if calls(values, aten.reshape.default) and len(values.users) == 1 else None
    product = view.args[0] if view is not None else None
    if not calls(product, ops.linear) or not _is_plain(product) or len(product.users) != 1:
        return None
    return product


def _read_by(attention: fx.Node) -> fx.Node | None:
    """Return the product that alone reads what attention gives, as one row for each token."""
    (view,) = attention.users if len(attention.users) == 1 else (None,)
    if not calls(view, aten.reshape.default) or len(view.users) != 1:
        return None
    (product,) = view.users
    reads = calls(product, ops.linear) and product.args[0] is view and is_weight(product.args[1])
    return product if reads else None


def _is_plain(product: fx.Node) -> bool:
    """Whether a product has a stored weight and at most a bias after it."""
    options = {k: v for k, v in product.kwargs.items() if k != "bias"}
    bare = len(product.args) < 4 and not options
    biased = len(product.args) < 3 or product.args[2] is None or is_weight(product.args[2])
    return is_weight(product.args[1]) and bare and biased and "bias" not in product.kwargs
