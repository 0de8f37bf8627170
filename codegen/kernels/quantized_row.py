"""One row of activations: the weight streams by once, and reading it is what takes the time."""

from __future__ import annotations

from codegen.kernels.blocking import over_groups, over_runs
from codegen.kernels.builder import (
    Expr,
    Registers,
    bind,
    broadcast,
    cast,
    fma,
    load,
    parallel,
    prefetch,
    splat,
)
from codegen.kernels.isa import ByteDots, byte_dots
from codegen.kernels.quantized_operands import Operands, QuantizedMatmul, split_halves
from qcompiler.core.target import Target

# The hardware's own prefetching stops at each page's end and starts anew on the next; asking two
# pages ahead takes a 4-bit product from 75 % to 94 % of the memory's bandwidth (Emerald Rapids).
_PREFETCH_BYTES = 8192


def emit_one_row(spec: QuantizedMatmul, target: Target, operands: Operands) -> None:
    """Multiply the first row by the weight, in parallel over tiles."""
    with parallel(spec.packing.tiles) as tile:
        _emit_tile(spec, target, operands, tile)


def _emit_tile(spec: QuantizedMatmul, target: Target, operands: Operands, tile: Expr) -> None:
    packing, lanes, vectors = spec.packing, spec.packing.lanes, spec.packing.vectors
    totals = Registers(vectors, lanes)
    for v in range(vectors):
        totals[v] = splat(0.0, lanes)

    def add_group(group: Expr, first: Expr, inputs: int) -> None:
        dots = byte_dots(target, packing.bits, vectors)
        code_sum = bind(load(operands.sums, 0, group))
        for v in range(vectors):
            dots[v] = broadcast(code_sum * -packing.offset, lanes)
        start = bind((tile * packing.padded_k + first) * (vectors * lanes * packing.bits // 8))

        def add_run(run: Expr, steps: int) -> None:
            for step in range(steps):
                _add_eight_inputs(operands, dots, start, first, run + step)
            dots.flush()

        # A step takes eight inputs: two products.
        over_runs(inputs // 8, dots.longest_run // 2, add_run)
        for v in range(vectors):
            place = ((tile * packing.groups + group) * vectors + v) * lanes
            total = cast(dots[v], "float32")
            if not packing.symmetric:
                minus_sum = broadcast(cast(code_sum * -1, "float32"), lanes)
                total = fma(operands.zero_point(place), minus_sum, total)
            if spec.scale_per_group:
                total = total * broadcast(load(operands.scales, 0, group), lanes)
            totals[v] = fma(total, operands.weight_scale(place), totals[v])

    over_groups(packing, add_group)
    sums = [totals[v] for v in range(vectors)]
    if not spec.scale_per_group:
        sums = [total * broadcast(load(operands.scales, 0, 0), lanes) for total in sums]
    operands.output.finish(0, tile, 0, [bind(total) for total in sums])


def _add_eight_inputs(
    operands: Operands, dots: ByteDots, start: Expr, first: Expr, step: Expr
) -> None:
    """Add the products of inputs `first` + 8 · `step` and the seven after it.

    start: the place of the weights of input `first` of the tile, in bytes.
    """
    packing = operands.packing
    low, high = (dots.activation(operands.four_codes(0, first + (step * 8 + k))) for k in (0, 4))
    width = 4 * packing.lanes
    step_bytes = packing.vectors * packing.lanes * packing.bits
    for v in range(packing.vectors):
        place = start + (step * step_bytes + v * width)
        prefetch(operands.weights, place + _PREFETCH_BYTES)
        if packing.bits == 4:
            packed = bind(operands.weight_bytes(place))
            first_four, last_four = split_halves(packed)
        else:
            later = place + packing.vectors * width
            prefetch(operands.weights, later + _PREFETCH_BYTES)
            first_four, last_four = operands.weight_bytes(place), operands.weight_bytes(later)
        dots.add(v, dots.weight(first_four), low)
        dots.add(v, dots.weight(last_four), high)
