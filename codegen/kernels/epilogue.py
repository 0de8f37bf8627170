"""What follows a matrix product while its results are still in registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from codegen.kernels.builder import Buffer, Expr, argument, load_first, store_first, when
from codegen.kernels.vector_math import activation
from codegen.packing import Packing


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """A product's bias, then its activation, then the residual added to it.

    When the packing is gated, the activation of the first half is multiplied by the second half.
    """

    bias: bool = False
    residual: bool = False
    activation: str = "none"


@dataclass(frozen=True, slots=True)
class Output:
    """The buffers an epilogue reads and writes, and how it does so."""

    packing: Packing
    epilogue: Epilogue
    bias: Buffer | None
    residual: Buffer | None
    out: Buffer

    @classmethod
    def arguments(cls, packing: Packing, epilogue: Epilogue, rows: Expr) -> Output:
        """Add the last arguments: bias [n], residual [rows, outputs], out [rows, outputs]."""
        bias = argument("bias", (packing.n,), "float32") if epilogue.bias else None
        shape = (rows, packing.outputs)
        residual = argument("residual", shape, "float32") if epilogue.residual else None
        return cls(packing, epilogue, bias, residual, argument("out", shape, "float32"))

    def finish(self, row: Expr, tile: Expr, first: Expr | int, values: list[Expr]) -> None:
        """Complete one row of consecutive vectors of a tile and store it.

        values: sums of the tile's vectors `first`, `first` + 1, …, which may be read several times.
        """
        packing = self.packing
        valid = packing.outputs - (packing.tiles - 1) * packing.outputs_per_tile

        def whole() -> None:
            self._finish(row, tile, first, values, packing.outputs_per_tile)

        def cut() -> None:
            # How many lanes are left is known for each place in the tile, not for a variable one.
            for start in range(0, packing.vectors, len(values)):
                at_start = partial(self._finish, row, tile, start, values, valid)
                if not isinstance(first, int):
                    when(first == start, at_start)
                elif first == start:
                    at_start()

        if valid == packing.outputs_per_tile:
            whole()
        elif packing.tiles == 1:
            cut()
        else:
            when(tile < packing.tiles - 1, whole, cut)

    def _finish(
        self, row: Expr, tile: Expr, first: Expr | int, values: list[Expr], valid: int
    ) -> None:
        """Complete part of a tile that has `valid` outputs; if not all, `first` is an int."""
        packing, lanes = self.packing, self.packing.lanes
        parts = 2 if packing.gated else 1
        for index in range(0, len(values), parts):
            start = (first + index) // parts * lanes
            column = tile * packing.outputs_per_tile + start
            count = lanes
            if valid < packing.outputs_per_tile:
                count = min(max(valid - start, 0), lanes)
            if count == 0:
                continue
            terms = [
                self._plus_bias(values[index + part], column + part * packing.outputs, count)
                for part in range(parts)
            ]
            y = activation(self.epilogue.activation, terms[0], lanes)
            if packing.gated:
                y = y * terms[1]
            if self.residual is not None:
                y = load_first(self.residual, row, column, count=count, lanes=lanes) + y
            store_first(self.out, y, row, column, count=count)

    def _plus_bias(self, value: Expr, column: Expr, count: int) -> Expr:
        if self.bias is None:
            return value
        return value + load_first(self.bias, column, count=count, lanes=self.packing.lanes)
