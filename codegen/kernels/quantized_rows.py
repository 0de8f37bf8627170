"""Many rows of activations: each weight serves a block of rows, and multiplying takes the time."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    prefetch,
    quotient,
    reinterpret,
    scratch,
    serial,
    smaller,
    splat,
    store,
    when,
)
from codegen.kernels.isa import ByteDots, byte_dots
from codegen.kernels.quantized_operands import Operands, QuantizedMatmul, split_halves
from codegen.packing import Packing
from qcompiler.core.artifact import LINE_BYTES
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
_INPUTS_PER_RUN = 32
# Shorter rows of weights come from a cache soon enough, and asking beforehand only disturbs.
_LONG_ROW = 1024
_SMALL_BLOCKS = (3, 1)  # rows, for what full blocks leave over


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some vectors of a tile, ready to be multiplied by block after block of rows.

    weights: 8-bit codes; those of input k and vector v at start + (k / 4 · stride + v) · 4 · lanes.
    scales, zero_points: float32, [group][vector][lane].
    """

    tile: Expr
    first: Expr
    vectors: int
    weights: Buffer
    start: Expr
    stride: int
    scales: Buffer
    zero_points: Buffer | None


@dataclass(frozen=True, slots=True)
class _Coming:
    """The packed vectors that are multiplied after those at hand, from byte `start`.

    They are asked for while others are multiplied: to wait for main memory would take up to a sixth
    of the time.
    """

    operands: Operands
    vectors: int
    start: Expr
    turn: Expr = 0

    @classmethod
    def after(cls, operands: Operands, tile: Expr, first: Expr, vectors: int) -> _Coming:
        """Those after vector `first` of a tile and its neighbours, perhaps in the next tile."""
        packing = operands.packing
        whole = bind(quotient(first + vectors, packing.vectors))
        place = (tile + whole) * (cls._steps(packing) * packing.vectors)
        vector = first + vectors - whole * packing.vectors
        return cls(operands, vectors, bind((place + vector) * (4 * packing.lanes)))

    @staticmethod
    def _steps(packing: Packing) -> int:
        """Vectors of bytes that the weights of one vector of outputs are."""
        return packing.padded_k * packing.bits // 32

    def from_block(self, number: Expr) -> _Coming:
        """Go on where the blocks before have stopped."""
        runs = self.operands.packing.padded_k // _INPUTS_PER_RUN
        return replace(self, turn=bind(number * runs))

    def ask(self, first_input: Expr) -> None:
        """Ask for some more, in the run from an input of the block."""
        packing = self.operands.packing
        if packing.padded_k < _LONG_ROW:
            return
        width = 4 * packing.lanes
        turn = self.turn + quotient(first_input, _INPUTS_PER_RUN)
        step = bind(smaller(turn, self._steps(packing) - 1))
        for line in range(0, self.vectors * width, LINE_BYTES):
            place = self.start + (step * (packing.vectors * width) + line)
            prefetch(self.operands.weights, place)


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
    vectors = min(_VECTORS_PER_BLOCK, packing.vectors)
    block = _rows_per_block(spec, target)
    sizes = [block, *(size for size in _SMALL_BLOCKS if size < block)]
    panel = panel_rows(target, packing.padded_k, block)

    def emit_panel(tile: Expr, first: Expr, count: Expr) -> None:
        with serial(packing.vectors // vectors) as part:
            columns = _prepare_columns(operands, tile, part * vectors, vectors)
            after = _Coming.after(operands, tile, part * vectors, vectors)

            def emit_block(row: Expr, size: int) -> None:
                coming = after.from_block(quotient(row - first, size))
                _Block(spec, target, operands, columns, coming, row, size, rows).emit()

            over_row_blocks(first, count, sizes, emit_block)

    over_tiles_and_panels(packing, rows, panel=panel, block=block, emit=emit_panel)


def _rows_per_block(spec: QuantizedMatmul, target: Target) -> int:
    """Choose a block whose sums stay in registers, with what they are made of and, if there are
    several groups, with the float totals that they are added to.
    """
    registers = target.vector_registers
    if spec.packing.groups == 1:
        return registers * 3 // 4 // _VECTORS_PER_BLOCK
    others = 4 if spec.packing.symmetric else 8
    return (registers - others) // 2 // _VECTORS_PER_BLOCK


def _is_biased(spec: QuantizedMatmul) -> bool:
    """Tell whether sums of a group are small enough to be biased, and it saves anything."""
    packing = spec.packing
    # An asymmetric sum goes without its zero points for a while.
    largest_code = packing.offset or (1 << packing.bits) - 1
    largest_sum = packing.group * largest_code * _LARGEST_ACTIVATION
    return spec.scale_per_group and largest_sum < _LARGEST_BIASED


def _prepare_columns(operands: Operands, tile: Expr, first: Expr, vectors: int) -> _Columns:
    """Widen what is narrow, once for all blocks of rows."""
    packing, lanes = operands.packing, operands.packing.lanes
    width = 4 * lanes
    weights, stride = operands.weights, packing.vectors
    start = bind((tile * (packing.padded_k * packing.vectors) + first * 4) * lanes)
    if packing.bits == 4:
        weights, start, stride = scratch(packing.padded_k * vectors * lanes, "uint8"), 0, vectors
        steps = packing.padded_k // 8
        with serial(steps) as step:
            for v in range(vectors):
                place = ((tile * steps + step) * packing.vectors + first + v) * width
                packed = bind(operands.weight_bytes(place))
                for half, codes in enumerate(split_halves(packed)):
                    place = ((step * 2 + half) * vectors + v) * width
                    store(weights, reinterpret(codes, "uint8", width), place)
    scales = scratch(packing.groups * vectors * lanes, "float32")
    zero_points = None
    if not packing.symmetric:
        zero_points = scratch(packing.groups * vectors * lanes, "float32")
    with serial(packing.groups) as group:
        for v in range(vectors):
            place = ((tile * packing.groups + group) * packing.vectors + first + v) * lanes
            to = (group * vectors + v) * lanes
            store(scales, operands.weight_scale(place), to)
            if zero_points is not None:
                store(zero_points, operands.zero_point(place), to)
    return _Columns(tile, first, vectors, weights, start, stride, scales, zero_points)


@dataclass(frozen=True, slots=True)
class _Block:
    """The product of `size` rows, from `row`, and some columns."""

    spec: QuantizedMatmul
    target: Target
    operands: Operands
    columns: _Columns
    coming: _Coming
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
            dots = self._dots(factors, group, first, inputs)
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

        def add_run(run: Expr, steps: int) -> None:
            self.coming.ask(first + run * 4)
            for step in range(steps):
                k = (run + step) * 4
                weights = []
                for v in range(vectors):
                    place = start + (k * columns.stride + 4 * v) * lanes
                    codes = load(columns.weights, place, lanes=4 * lanes)
                    weights.append(dots.weight(reinterpret(codes, "int32", lanes)))
                for r in range(self.size):
                    codes = self.operands.four_codes(self.row + r, first + k)
                    activation = dots.activation(codes)
                    for v in range(vectors):
                        dots.add(r * vectors + v, weights[v], activation)
            dots.flush()

        over_runs(inputs // 4, dots.longest_run, add_run)
        return dots

    def _add_to_totals(
        self, factors: _RowFactors, group: Expr, dots: ByteDots, totals: Buffer
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
