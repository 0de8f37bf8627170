"""The weights of a program as its compiled functions take them: an ordered list of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from tvm import relax

from codegen.packing import Packing, pack, pack_float, packing_for
from qcompiler.core import ops
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.target import Target

MATRIX_ARGUMENT: dict[Any, int] = {
    ops.linear: 1,
    ops.quantized_linear: 1,
    ops.embedding: 1,
    ops.quantized_embedding: 1,
    ops.quantized_matmul: 2,
}
"""Operators that read a packed matrix, and which of their arguments it is."""


@dataclass(frozen=True)
class WeightArray:
    """One array of the artifact; `make` reads and packs it when it is written."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class PackedWeights:
    """Every array that a program's functions read, in the order they take them.

    A matrix that several operators read (a tied embedding and head) is packed once. Nothing is read
    until `arrays` is called.
    """

    def __init__(self, program: Program, target: Target, *, widen: bool = False) -> None:
        self._program = program
        self._target = target
        self._widen = widen
        self.entries: list[WeightArray] = []
        self.packings: dict[str, Packing] = {}
        self._places: dict[tuple[str, str], list[int]] = {}
        self._makers: list[Callable[[], dict[str, np.ndarray]]] = []
        for node in program.graph.nodes:
            if node.op in ("call_function", "output"):
                self._visit(node)

    def packed(self, name: str) -> list[int]:
        """Return the places of a matrix's arrays: codes, scales, zero points, or float weights."""
        return self._places[name, "packed"]

    def raw(self, name: str) -> list[int]:
        """Return the place of a weight that is stored as it is."""
        return self._places[name, "raw"]

    def types(self) -> list[relax.TensorType]:
        """Return the arrays' types, in order."""
        return [relax.TensorType(entry.shape, entry.dtype) for entry in self.entries]

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Read and pack one weight after the other; yield its arrays with their names, in order."""
        for make in self._makers:
            yield from make().items()

    def _visit(self, node: fx.Node) -> None:
        place = MATRIX_ARGUMENT.get(node.target)
        matrix = node.args[place] if place is not None else None
        if isinstance(matrix, fx.Node) and matrix.op == "get_attr":
            self._add_matrix(str(matrix.target), gated=bool(node.kwargs.get("gated", False)))
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source is not matrix:
                self._add_raw(str(source.target))

    def _add_matrix(self, name: str, *, gated: bool) -> None:
        if (name, "packed") in self._places:
            assert self.packings[name].gated == gated, f"{name} is packed in two ways"
            return
        n, k = self._program.weights.shape(name)
        stored = self._program.weights.format(name)
        packing = packing_for(self._target, n, k, stored, gated=gated, widen=self._widen)
        if stored is None:
            parts = [("weights", "float32", packing.code_bytes // 4)]
        else:
            parts = [
                ("codes", "uint8", packing.code_bytes),
                ("scales", "float16", packing.scale_count),
            ]
            if not packing.symmetric:
                parts.append(("zero_points", "uint8", packing.zero_point_count))
        self.packings[name] = packing
        self._places[name, "packed"] = list(
            range(len(self.entries), len(self.entries) + len(parts))
        )
        self.entries += [
            WeightArray(f"{name}/{part}", dtype, (size,)) for part, dtype, size in parts
        ]
        self._makers.append(lambda: self._pack(name, packing))

    def _add_raw(self, name: str) -> None:
        if (name, "raw") in self._places:
            return
        weights = self._program.weights
        self._places[name, "raw"] = [len(self.entries)]
        dtype = str(weights.dtype(name)).removeprefix("torch.")
        self.entries.append(WeightArray(name, dtype, tuple(weights.shape(name))))
        self._makers.append(lambda: {name: weights.tensor(name).contiguous().numpy()})

    def _pack(self, name: str, packing: Packing) -> dict[str, np.ndarray]:
        weight = self._program.weights.get(name)
        if isinstance(weight, QuantizedTensor):
            zero = None if weight.zero_point is None else weight.zero_point.numpy()
            arrays = pack(packing, weight.codes.numpy(), weight.scale.numpy(), zero)
        else:
            arrays = pack_float(packing, weight.numpy())
        return {f"{name}/{part}": array for part, array in arrays.items()}
