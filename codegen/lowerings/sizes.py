"""Sizes and what is counted with them; picking one of several results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from codegen.function_lowering import FunctionLowering, Size
from codegen.lowerings.arguments import Lowering, arguments, axis_of


def size(f: FunctionLowering, node: fx.Node) -> Size:
    """Return the size of an axis."""
    a = arguments(f, node)
    return a.self.shape[axis_of(a.self, a.dim)]


def calculation(function: Callable[..., Size]) -> Lowering:
    """Lower Python arithmetic on sizes."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Size:
        return f.simplified(function(*(f.argument(a) for a in node.args)))

    return lowering


def item(f: FunctionLowering, node: fx.Node) -> Any:
    """Return one of several results."""
    results, place = (f.argument(a) for a in node.args)
    return results[place]
