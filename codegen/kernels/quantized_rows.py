"""Many rows of activations: each weight serves a block of rows, and multiplying takes the time."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels.blocking import (
    over_groups,
    over_row_blocks,
    over_runs,
    over_tiles_and_panels,
    panel_rows,
)
from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    broadcast,
    cast,
    fma,
    load,
    low_bits,
    quotient,
    reinterpret,
    scratch,
    serial,
    splat,
    store,
    when,
)
from codegen.kernels.isa import ByteDots, PairSums, byte_dots
from codegen.kernels.quantized_columns import INPUTS_PER_RUN, Columns, Coming, prepare_columns
from codegen.kernels.quantized_operands import (
    Operands,
    QuantizedMatmul,
    fours_at_once,
    multiplies_by_lane,
)
from qcompiler.core.target import Target

# An integer i, |i| < 2²², added to the bits of the float 1.5 · 2²³ makes the bits of 1.5 · 2²³ + i.
# Sums that start there need no conversion: (1.5 · 2²³ + i) · s - 1.5 · 2²³ · s is one fused
# multiply-add, and it is i · s rounded once, provided that 1.5 · 2²³ · s is exact. For that, the
# two lowest bits of the activation scale s are cleared, which changes it by less than 2⁻²¹ of it.
_BIAS = 1.5 * 2**23
_BIAS_BITS = 0x4B400000
_LARGEST_BIASED = 1 << 22
_LARGEST_ACTIVATION = 127

_VECTORS_PER_BLOCK = 2
_SMALL_BLOCKS = (3, 1)  # rows, for what full blocks leave over


@dataclass(frozen=True, slots=True)
class _RowFactors:
    """What differs between rows and groups only, for a block of rows: flat buffers [row][group].

    initial: where the integer sums start. minus_sums: -Σ codes, for zero points. scales and
    minus_biases: the activation scale s and -1.5 · 2²³ · s, if sums are biased.
    """

    initial: Buffer
    minus_sums: Buffer | None
    scales: Buffer | None
    minus_biases: Buffer | None


def emit_many_rows(spec: QuantizedMatmul, target: Target, operands: Operands, rows: Expr) -> None:
    """Multiply all rows by the weight, in parallel over tiles and panels of rows."""
    packing = spec.packing
    block, vectors = block_shape(spec, target)
    sizes = [block, *(size for size in _SMALL_BLOCKS if size < block)]
    panel = panel_rows(target, packing.padded_k, block)

    def emit_panel(tile: Expr, first: Expr, count: Expr) -> None:
        with serial(packing.vectors // vectors) as part:
            columns = prepare_columns(
                operands, tile, part * vectors, vectors, paired=target.dot == "smmla"
            )
            after = Coming.after(operands, tile, part * vectors, vectors)

            def emit_block(row: Expr, size: int) -> None:
                coming = after.from_block(quotient(row - first, size))
                _Block(spec, target, operands, columns, coming, row, size, rows).emit()

            over_row_blocks(first, count, sizes, emit_block)

    over_tiles_and_panels(packing, rows, panel=panel, block=block, emit=emit_panel)


def block_shape(spec: QuantizedMatmul, target: Target) -> tuple[int, int]:
    """Choose the rows and vectors of a block whose sums stay in registers, with what they are made
    of and, if there are several groups, with the float totals that they are added to.
    """
    packing, registers = spec.packing, target.vector_registers
    vectors = min(_VECTORS_PER_BLOCK, packing.vectors)
    if target.dot == "smmla":
        # Wide and low: to make pairs of rows is paid once for all vectors.
        return (4, 4) if packing.vectors == 4 else (8, vectors)
    if multiplies_by_lane(packing):
        # A register for each row of activations too.
        return 8, vectors
    if packing.groups == 1:
        return registers * 3 // 4 // _VECTORS_PER_BLOCK, vectors
    others = 4 if packing.symmetric else 8
    return (registers - others) // 2 // _VECTORS_PER_BLOCK, vectors


def _is_biased(spec: QuantizedMatmul) -> bool:
    """Tell whether sums of a group are small enough to be biased, and it saves anything.

    What multiplies by a lane scales a converted sum as quickly.
    """
    # An asymmetric sum goes without its zero points for a while.
    largest_sum = spec.packing.group * spec.packing.largest_code * _LARGEST_ACTIVATION
    pays = spec.scale_per_group and not multiplies_by_lane(spec.packing)
    return pays and largest_sum < _LARGEST_BIASED


@dataclass(frozen=True, slots=True)
class _Block:
    """The product of `size` rows, from `row`, and some columns."""

    spec: QuantizedMatmul
    target: Target
    operands: Operands
    columns: Columns
    coming: Coming
    row: Expr
    size: int
    all_rows: Expr

    def emit(self) -> None:
        columns, lanes = self.columns, self.spec.packing.lanes
        cells = self.size * columns.vectors
        factors = self._prepare_rows()
        totals = scratch(cells * lanes, "float32")
        with serial(cells) as cell:
            store(totals, splat(0.0, lanes), cell * lanes)

        def add_group(group: Expr, first: Expr, inputs: int) -> None:
            multiply = self._pair_sums if self.columns.paired else self._dots
            dots = multiply(factors, group, first, inputs)
            # Always taken. Without a branch LLVM mixes the two parts, each of which needs all
            # registers.
            when(self.all_rows > 0, lambda: self._add_to_totals(factors, group, dots, totals))

        over_groups(self.spec.packing, add_group)
        with serial(self.size) as r:
            values = []
            for v in range(columns.vectors):
                total = load(totals, (r * columns.vectors + v) * lanes, lanes=lanes)
                if not self.spec.scale_per_group:
                    total = total * broadcast(load(self.operands.scales, self.row + r, 0), lanes)
                values.append(bind(total))
            self.operands.output.finish(self.row + r, columns.tile, columns.first, values)

    def _prepare_rows(self) -> _RowFactors:
        packing, biased = self.spec.packing, _is_biased(self.spec)
        count = self.size * packing.groups
        factors = _RowFactors(
            scratch(count, "int32"),
            None if packing.symmetric else scratch(count, "float32"),
            scratch(count, "float32") if biased else None,
            scratch(count, "float32") if biased else None,
        )

        def prepare(place: Expr, lanes: int) -> None:
            # Rows follow each other: the groups of all of the block's rows are one run of numbers.
            sums = bind(load(self.operands.sums, self.row, place, lanes=lanes))
            bias = splat(_BIAS_BITS if biased else 0, lanes, "int32")
            store(factors.initial, sums * splat(-packing.offset, lanes, "int32") + bias, place)
            if factors.minus_sums is not None:
                store(factors.minus_sums, cast(sums * splat(-1, lanes, "int32"), "float32"), place)
            if biased:
                scales = load(self.operands.scales, self.row, place, lanes=lanes)
                bits = low_bits(reinterpret(scales, "int32", lanes), -4)
                scale = bind(reinterpret(bits, "float32", lanes))
                store(factors.scales, scale, place)
                store(factors.minus_biases, scale * splat(-_BIAS, lanes), place)

        lanes = packing.lanes if count >= packing.lanes else 1
        with serial(count // lanes) as index:
            prepare(index * lanes, lanes)
        if count % lanes:
            prepare(count - lanes, lanes)  # some of them for the second time
        return factors

    def _dots(self, factors: _RowFactors, group: Expr, first: Expr, inputs: int) -> ByteDots:
        """Sum the products of a group of inputs, from input `first`."""
        packing, columns = self.spec.packing, self.columns
        lanes, vectors = packing.lanes, columns.vectors
        dots = byte_dots(self.target, packing.bits, self.size * vectors)
        for r in range(self.size):
            initial = bind(broadcast(load(factors.initial, group + r * packing.groups), lanes))
            for v in range(vectors):
                dots[r * vectors + v] = initial
        start = bind(columns.start + first * (columns.stride * lanes))

        def add_four(step: Expr, fours: list[Expr]) -> None:
            weights = []
            for v in range(vectors):
                place = start + (step * (4 * columns.stride) + 4 * v) * lanes
                codes = load(columns.weights, place, lanes=4 * lanes)
                weights.append(dots.weight(reinterpret(codes, "int32", lanes)))
            for r, four in enumerate(fours):
                activation = dots.activation(four)
                for v in range(vectors):
                    dots.add(r * vectors + v, weights[v], activation)

        together = fours_at_once(packing)

        def add_run(run: Expr, steps: int) -> None:
            self.coming.ask(first + run * 4)
            for step in range(0, steps, together):
                count = min(together, steps - step)
                k = first + (run + step) * 4
                fours = [self.operands.fours(self.row + r, k, count) for r in range(self.size)]
                for i in range(count):
                    add_four(run + step + i, [row[i] for row in fours])
            dots.flush()

        over_runs(inputs // 4, dots.longest_run, add_run)
        return dots

    def _pair_sums(self, factors: _RowFactors, group: Expr, first: Expr, inputs: int) -> PairSums:
        """Sum the products of a group of inputs, from input `first`, two rows at a time."""
        columns, lanes = self.columns, self.spec.packing.lanes
        groups, vectors = self.spec.packing.groups, columns.vectors
        starts = [bind(load(factors.initial, group + r * groups)) for r in range(self.size)]
        sums = PairSums(starts, vectors)
        start = bind(columns.start + first * (columns.stride * lanes))

        def add_eight(step: Expr, activations: list[Expr]) -> None:
            for v in range(vectors):
                for half in range(2):
                    place = start + ((step * 2 + half) * columns.stride + v) * (4 * lanes)
                    weight = bind(load(columns.weights, place, lanes=4 * lanes))
                    sums.add(v, half, reinterpret(weight, "int8", 4 * lanes), activations)

        def add_run(run: Expr, steps: int) -> None:
            self.coming.ask(first + run * 8)
            for step in range(0, steps, 2):
                count = min(2, steps - step)
                k = first + (run + step) * 8
                rows = [self.operands.eights(self.row + r, k, count) for r in range(self.size)]
                for i, activations in enumerate(PairSums.activations(rows, count)):
                    add_eight(run + step + i, activations)

        over_runs(inputs // 8, INPUTS_PER_RUN // 8, add_run)
        return sums

    def _add_to_totals(
        self, factors: _RowFactors, group: Expr, dots: ByteDots | PairSums, totals: Buffer
    ) -> None:
        """Scale the sums of a group and add them to the float totals."""
        packing, columns, biased = self.spec.packing, self.columns, _is_biased(self.spec)
        lanes, vectors = packing.lanes, columns.vectors
        places = [(group * vectors + v) * lanes for v in range(vectors)]
        weight_scales = [bind(load(columns.scales, place, lanes=lanes)) for place in places]
        for r in range(self.size):
            index = group + r * packing.groups
            for v in range(vectors):
                cell = r * vectors + v
                sums = dots[cell]
                total = reinterpret(sums, "float32", lanes) if biased else cast(sums, "float32")
                if columns.zero_points is not None:
                    zero = load(columns.zero_points, places[v], lanes=lanes)
                    total = fma(zero, broadcast(load(factors.minus_sums, index), lanes), total)
                if biased:
                    scale = broadcast(load(factors.scales, index), lanes)
                    minus_bias = broadcast(load(factors.minus_biases, index), lanes)
                    total = fma(total, scale, minus_bias)
                elif self.spec.scale_per_group:
                    scale = load(self.operands.scales, self.row + r, group)
                    total = total * broadcast(scale, lanes)
                before = load(totals, cell * lanes, lanes=lanes)
                store(totals, fma(total, weight_scales[v], before), cell * lanes)
