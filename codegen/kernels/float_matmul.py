"""Products of float activations and packed float weights.

Arguments: x [m, k]; weights as `codegen.packing` lays them out; bias [n], residual [m, outputs] if
asked for; out [m, outputs]; all float32. Products are summed in order of k by fused multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm.tirx import PrimFunc

from codegen.kernels.blocking import (
    over_row_blocks,
    over_runs,
    over_tiles_and_panels,
    panel_rows,
)
from codegen.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    argument,
    bind,
    broadcast,
    fma,
    kernel,
    load,
    parallel,
    prefetch,
    scratch,
    serial,
    size,
    splat,
    store,
    when,
)
from codegen.kernels.epilogue import Epilogue, Output
from codegen.packing import Packing
from qcompiler.core.target import Target

_ROWS_PER_BLOCK = 6
_STEPS_PER_RUN = 4
_PREFETCH = 2048  # numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatMatmul:
    """A product of float activations and a float weight, with what follows it."""

    packing: Packing
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        assert self.packing.bits == 32, self.packing


@dataclass(frozen=True, slots=True)
class _Operands:
    packing: Packing
    x: Buffer
    weights: Buffer
    output: Output

    @classmethod
    def arguments(cls, spec: FloatMatmul, rows: Expr) -> _Operands:
        packing = spec.packing
        return cls(
            packing,
            argument("x", (rows, packing.k), "float32"),
            argument("weights", (packing.code_bytes // 4,), "float32"),
            Output.arguments(packing, spec.epilogue, rows),
        )


def one_row(spec: FloatMatmul, target: Target) -> PrimFunc:
    """Build the product for m = 1."""
    with kernel("float_matmul_one_row") as built:
        _emit_one_row(_Operands.arguments(spec, 1))
    return built.get()


def many_rows(spec: FloatMatmul, target: Target) -> PrimFunc:
    """Build the product for any number m of rows; a single one is as fast as in `one_row`."""
    with kernel("float_matmul_many_rows") as built:
        rows = size("m")
        operands = _Operands.arguments(spec, rows)
        when(
            rows == 1,
            lambda: _emit_one_row(operands),
            lambda: _emit_many_rows(operands, target, rows),
        )
    return built.get()


def _emit_one_row(operands: _Operands) -> None:
    packing = operands.packing
    with parallel(packing.tiles) as tile:
        _emit_block(operands, tile, 0, 0, rows=1, vectors=packing.vectors, ahead=_PREFETCH)


def _emit_many_rows(operands: _Operands, target: Target, rows: Expr) -> None:
    packing, block = operands.packing, _ROWS_PER_BLOCK
    # A block's sums, its weights and an activation stay in registers.
    vectors = min(packing.vectors, target.vector_registers // 8)

    def emit_panel(tile: Expr, first: Expr, count: Expr) -> None:
        def emit_rows(row: Expr, size: int) -> None:
            with serial(packing.vectors // vectors) as part:
                _emit_block(operands, tile, part * vectors, row, rows=size, vectors=vectors)

        over_row_blocks(first, count, (block, block // 2, 1), emit_rows)

    panel = panel_rows(target, 4 * packing.k, block)
    over_tiles_and_panels(packing, rows, panel=panel, block=block, emit=emit_panel)


def _emit_block(
    operands: _Operands,
    tile: Expr,
    first_vector: Expr,
    row: Expr,
    *,
    rows: int,
    vectors: int,
    ahead: int = 0,
) -> None:
    """Multiply a block of rows by some vectors of a tile, reading `ahead` numbers in advance."""
    packing, lanes = operands.packing, operands.packing.lanes
    totals = Registers(rows * vectors, lanes)
    for cell in range(rows * vectors):
        totals[cell] = splat(0.0, lanes)

    def add_run(run: Expr, steps: int) -> None:
        for step in range(steps):
            k = run + step
            weights = []
            for v in range(vectors):
                place = ((tile * packing.k + k) * packing.vectors + (first_vector + v)) * lanes
                if ahead:
                    prefetch(operands.weights, place + ahead)
                weights.append(bind(load(operands.weights, place, lanes=lanes)))
            for r in range(rows):
                x = bind(broadcast(load(operands.x, row + r, k), lanes))
                for v in range(vectors):
                    cell = r * vectors + v
                    totals[cell] = fma(weights[v], x, totals[cell])

    over_runs(packing.k, _STEPS_PER_RUN, add_run)
    # Rows are finished in a loop: long epilogues are there once.
    results = scratch(rows * vectors * lanes, "float32")
    for cell in range(rows * vectors):
        store(results, totals[cell], cell * lanes)
    with serial(rows) as r:
        places = [(r * vectors + v) * lanes for v in range(vectors)]
        values = [bind(load(results, place, lanes=lanes)) for place in places]
        operands.output.finish(row + r, tile, first_vector, values)
