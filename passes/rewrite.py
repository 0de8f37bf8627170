"""Rewrite a graph by small rules until none of them applies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import sympy
import torch
from torch import fx

from qcompiler.core import ops, shapes

aten = torch.ops.aten

Rule = Callable[[fx.Node], fx.Node | None]
"""Look at one node; return the node whose value takes its place, or None to decline.

What a rule adds goes before the node it looks at; what it leaves without users is removed.
"""

CHANGES_CACHES = frozenset({ops.attention, ops.rope_attention})


def rewrite(graph: fx.Graph, rules: Sequence[Rule], *, sweeps: int = 50) -> None:
    """Apply `rules`, the first that answers at each node, in graph order, until none answers.

    Equal subexpressions are merged and unused nodes removed after every sweep.

    Raises:
        RuntimeError: the rules undo one another, or one changed a shape; a defect in a rule.
    """
    for _ in range(sweeps):
        changed = _sweep(graph, rules)
        share_subexpressions(graph)
        remove_unused(graph)
        if not changed:
            return
    raise RuntimeError(f"rules still apply after {sweeps} sweeps over the graph")


def _sweep(graph: fx.Graph, rules: Sequence[Rule]) -> bool:
    changed = False
    for node in graph.nodes:
        if node.op != "call_function" or not node.users:
            continue
        for rule in rules:
            new = rule(node)
            if new is None:
                continue
            if not same_type(node, new):
                raise RuntimeError(f"{rule.__name__} turned {describe(node)} into {describe(new)}")
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            changed = True
            break
    return changed


def share_subexpressions(graph: fx.Graph) -> None:
    """Compute what is the same only once: equal calls of pure functions, reads of one weight."""
    seen: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            key: Any = node.target
        elif node.op == "call_function" and is_pure(node):
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)


def remove_unused(graph: fx.Graph) -> None:
    """Remove what nothing uses, checks of shapes and dtypes included."""
    for node in reversed(graph.nodes):
        if node.op not in ("call_function", "get_attr") or node.users:
            continue
        if node.target not in CHANGES_CACHES:
            graph.erase_node(node)


def is_pure(node: fx.Node) -> bool:
    """Tell whether a node gives the same result each time and does nothing else."""
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.target not in CHANGES_CACHES


def _frozen(argument: Any) -> Any:
    """Make a hashable key of an argument, in which 1 and 1.0 differ."""
    if isinstance(argument, fx.Node):
        return argument
    if isinstance(argument, tuple | list):
        return tuple(_frozen(a) for a in argument)
    if isinstance(argument, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(argument.items()))
    return repr(argument)


def emit(
    before: fx.Node, target: Callable[..., Any], *args: Any, val: Any = None, **kwargs: Any
) -> fx.Node:
    """Add a call before a node, with what it gives: `val`, or what is worked out."""
    graph = before.graph
    with graph.inserting_before(before):
        if val is None:
            return shapes.add_call(graph, target, *args, **kwargs)
        node = graph.call_function(target, args, kwargs)
    node.meta["val"] = val
    return node


def emit_like(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call before a node whose result is like that node's, in shape and dtype."""
    return emit(node, target, *args, val=node.meta["val"], **kwargs)


def emit_again(
    before: fx.Node, call: fx.Node, *args: Any, val: Any = None, **changed: Any
) -> fx.Node:
    """Repeat a call before a node, on other operands and with some of its options changed."""
    assert callable(call.target)
    return emit(before, call.target, *args, val=val, **{**call.kwargs, **changed})


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return a call's positional arguments; what each is, its operator says."""
    return node.args


def calls(node: Any, *targets: Callable[..., Any]) -> TypeGuard[fx.Node]:
    """Tell whether a value is a call of one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_weight(node: Any) -> TypeGuard[fx.Node]:
    """Tell whether a value is read from the weight store."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def is_number(argument: Any) -> TypeGuard[int | float]:
    """Tell whether an argument is a number written in the graph."""
    return isinstance(argument, int | float) and not isinstance(argument, bool)


def is_tensor(node: Any) -> TypeGuard[fx.Node]:
    """Tell whether a value is a node that gives one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def shape(node: fx.Node) -> tuple[Any, ...]:
    """Return a value's sizes: ints, and sympy expressions where they are dynamic."""
    return tuple(size(dim) for dim in node.meta["val"].shape)


def size(dim: int | torch.SymInt) -> int | sympy.Expr:
    """Return a size as something that compares by what it says, without a guard."""
    if isinstance(dim, int):
        return dim
    expression = dim.node.expr
    return int(expression) if expression.is_number else expression


def dtype(node: fx.Node) -> torch.dtype:
    """Return the dtype of a value."""
    found: torch.dtype = node.meta["val"].dtype
    return found


def same_type(a: fx.Node, b: fx.Node) -> bool:
    """Tell whether two values agree in shape and dtype, or are both not tensors."""
    if not (is_tensor(a) and is_tensor(b)):
        return is_tensor(a) == is_tensor(b)
    return dtype(a) == dtype(b) and shape(a) == shape(b)


def both_orders(node: fx.Node) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the two operands of a commutative operator, as they are and swapped."""
    a, b = node.args[:2]
    return (a, b), (b, a)


def describe(node: fx.Node) -> str:
    """Say what a node calls and gives, for a message."""
    result = f"{dtype(node)}{list(shape(node))}" if is_tensor(node) else "?"
    return f"{node.name} = {getattr(node.target, '__name__', node.target)}(…): {result}"
