"""Build a small program by hand: for tests, and to try a pass or a kernel on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from qcompiler.core import shapes
from qcompiler.core.program import ModelInfo, Program
from qcompiler.core.weights import TensorSource, WeightStore


class ProgramBuilder:
    """A graph that grows one node at a time, each with its shape, over weights held in memory.

    >>> from qcompiler.core import ops
    >>> from qcompiler.core.printer import print_program
    >>> build = ProgramBuilder({"fc.weight": torch.ones(3, 4)})
    >>> x = build.input("x", (1, "s", 4))
    >>> program = build.finish(build.call(ops.linear, x, build.weight("fc.weight")))
    >>> print(print_program(program), end="")
    module float
    input %x: f32[1, s0, 4]
    %0 = linear(%x, @fc.weight): f32[1, s0, 3]
    return %0
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.graph = fx.Graph()
        self.weights = WeightStore([TensorSource(weights)])
        self._mode = FakeTensorMode(shape_env=ShapeEnv())
        self._examples: dict[str, int] = {}

    def input(
        self, name: str, shape: tuple[int | str, ...], dtype: torch.dtype = torch.float32
    ) -> fx.Node:
        """Add an input; a size written as a letter may be any number, the same for each letter."""
        node = self.graph.placeholder(name)
        sizes = [self._example(size) if isinstance(size, str) else size for size in shape]
        dynamic = [DimDynamic.DUCK if isinstance(n, str) else DimDynamic.STATIC for n in shape]
        node.meta["val"] = self._mode.from_tensor(
            torch.empty(sizes, dtype=dtype),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic),
        )
        return node

    def _example(self, letter: str) -> int:
        """Return a size to trace with: sizes that are equal would be taken for the same."""
        return self._examples.setdefault(letter, 101 + 2 * len(self._examples))

    def weight(self, name: str) -> fx.Node:
        """Read a stored weight."""
        return shapes.add_weight(self.graph, self.weights, name)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Call an operator."""
        return shapes.add_call(self.graph, target, *args, **kwargs)

    def finish(self, output: fx.Node, info: ModelInfo | None = None) -> Program:
        """Return the program that computes `output`: a plain module unless `info` says else."""
        self.graph.output(output)
        described = info or ModelInfo(name="built", kind="module", architecture="built by hand")
        return Program(graph=self.graph, weights=self.weights, info=described)
