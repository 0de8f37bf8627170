"""Quantise activations: int8 codes, their scales, and the sums of the codes.

The arithmetic is `qcompiler.core.reference.quantize_activation`, bit for bit. The sums of the codes
over each group of the weight they will meet fold in the weight's offset: codes are stored unsigned,
so that a product is Σ (q + offset) · a − offset · Σ a.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    broadcast,
    cast,
    ceil_div,
    constant,
    kernel,
    load,
    low_bits,
    maximum,
    minimum,
    reinterpret,
    select,
    serial,
    size,
    splat,
    store,
)
from codegen.kernels.isa import round_to_int32
from codegen.kernels.row import Read, Rows, Total, keep, over_rows, reader, sweep
from codegen.kernels.vector_math import horizontal_max_int32, horizontal_sum_int32
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerGroup, PerTensor, PerToken, TensorFormat
from qcompiler.core.target import Target

CODE_PADDING = 8
"""Rows of codes are padded with zeros to a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """Rows of `k` features, and the features of the weight they meet that share a scale.

    `weight_group` is k where the weight has one scale per output feature.
    """

    k: int
    form: TensorFormat
    weight_group: int

    def __post_init__(self) -> None:
        granularity = self.form.granularity
        if self.form.bits != 8 or not self.form.symmetric:
            raise UnsupportedError("activations are quantised to 8 symmetric bits only; write a8")
        if not isinstance(granularity, (PerToken, PerGroup, PerTensor)):
            raise UnsupportedError(
                f"activations cannot have one scale {granularity}; "
                "choose one per token, per group or per tensor"
            )
        if self.scale_groups > 1 and self.scale_group != self.weight_group:
            raise UnsupportedError(
                f"activations in groups of {self.scale_group} cannot meet a weight in groups of "
                f"{self.weight_group}; give both the same group, or the activations one scale "
                "per token"
            )

    @property
    def padded_k(self) -> int:
        """Length of a row of codes."""
        return ceil_div(self.k, CODE_PADDING) * CODE_PADDING

    @property
    def scale_group(self) -> int:
        """Features that share an activation scale."""
        return self.form.group_size(self.k)

    @property
    def scale_groups(self) -> int:
        """Scales of a row."""
        return self.form.groups(self.k)

    @property
    def sum_groups(self) -> int:
        """Sums of codes of a row."""
        return ceil_div(self.k, self.weight_group)


@dataclass(frozen=True)
class QuantizedRows:
    """The outputs: codes [m, padded k] int8, scales [m, groups] float32, sums [m, groups] int32.

    `static` is the scale [1] float32 that a static format is given.
    """

    codes: Buffer
    scales: Buffer
    sums: Buffer
    static: Buffer | None = None

    @classmethod
    def declare(cls, rows: Expr, spec: QuantizeSpec) -> QuantizedRows:
        """Add the buffers to the function's arguments, a scale that is given before the others."""
        given = argument("scale", (1,), "float32") if spec.form.is_static else None
        return cls(
            argument("codes", (rows, spec.padded_k), "int8"),
            argument("scales", (rows, spec.scale_groups), "float32"),
            argument("sums", (rows, spec.sum_groups), "int32"),
            given,
        )


def quantize(spec: QuantizeSpec, target: Target, rows: Rows) -> PrimFunc:
    """x [m, k] float32 → codes [m, kp] int8, scales [m, ga] float32, sums [m, gw] int32.

    A static format takes its scale [1] float32 after x. kp is k rounded up to a multiple of 8, the
    padding zero; ga and gw are the groups of the activation's scales and of the weight's. m is 1
    for one row.
    """
    with kernel("quantize") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        out = QuantizedRows.declare(m, spec)

        def visit(row: Expr) -> None:
            quantize_row(reader(x, row), spec, out, row, target.lanes)

        over_rows(m, spec.k, visit)
    return built.get()


def quantize_row(read: Read, spec: QuantizeSpec, out: QuantizedRows, row: Expr, lanes: int) -> None:
    """Quantise one row that `read` yields; it may be read twice."""
    if spec.scale_groups == 1:
        _quantize_token(read, spec, out, row, lanes)
    else:
        whole, rest = divmod(spec.k, spec.scale_group)
        with serial(whole) as group:
            _quantize_group(read, group, spec.scale_group, spec, out, row, lanes)
        if rest:
            _quantize_group(read, whole, rest, spec, out, row, lanes)
    for place in range(spec.k, spec.padded_k):
        store(out.codes, constant(0, "int8"), row, place)


def _quantize_group(
    read: Read,
    group: Expr,
    length: int,
    spec: QuantizeSpec,
    out: QuantizedRows,
    row: Expr,
    lanes: int,
) -> None:
    """One group that has its own scale and its own sum."""
    start = group * spec.scale_group
    again = keep(lambda at, width, count: read(start + at, width, count), length, lanes)
    inverse = _scale(again, length, out, row, group, lanes)
    total = _codes(again, inverse, start, length, out, row, lanes)
    store(out.sums, total, row, group)


def _quantize_token(
    read: Read, spec: QuantizeSpec, out: QuantizedRows, row: Expr, lanes: int
) -> None:
    """One scale for the row; sums for each group of the weight."""
    if out.static is None:
        again = keep(read, spec.k, lanes)
        inverse = _scale(again, spec.k, out, row, 0, lanes)
    else:
        again = read  # just once: its size is no matter
        inverse = _given_scale(out.static, out, row)
    if spec.sum_groups == 1:
        store(out.sums, _codes(again, inverse, 0, spec.k, out, row, lanes), row, 0)
        return
    whole, rest = divmod(spec.k, spec.weight_group)

    def part(group: Expr, length: int) -> None:
        start = group * spec.weight_group
        shifted: Read = lambda at, width, count: read(start + at, width, count)  # noqa: E731
        store(out.sums, _codes(shifted, inverse, start, length, out, row, lanes), row, group)

    with serial(whole) as group:
        part(group, spec.weight_group)
    if rest:
        part(whole, rest)


def _scale(read: Read, length: int, out: QuantizedRows, row: Expr, group: Expr, lanes: int) -> Expr:
    """Find the largest size, store its scale, return 1 / scale (0 for a group of zeros)."""
    # Sizes of floats compare as the integers that their bits are, which is quicker.
    largest = Total(length, lanes, "int32", 0)

    def see(at: Expr, width: int, count: int) -> None:
        size_bits = bind(low_bits(reinterpret(read(at, width, count), "int32", width), 0x7FFFFFFF))
        largest.update(width, lambda old: maximum(bind(old), size_bits))

    sweep(length, lanes, see)
    bits = largest.reduce(horizontal_max_int32, maximum)
    top, zero = constant(127.0, "float32"), constant(0.0, "float32")
    value = bind(reinterpret(bits, "float32"))
    store(out.scales, value / top, row, group)
    # Not 127 / size: the reference divides a number by a tensor, which rounds twice like this.
    return bind(select(value > zero, constant(1.0, "float32") / value * top, zero))


def _given_scale(scale: Buffer, out: QuantizedRows, row: Expr) -> Expr:
    """Store the scale of a static format as the row's, return 1 / scale."""
    value = bind(load(scale, 0))
    store(out.scales, value, row, 0)
    return bind(constant(1.0, "float32") / value)


def _codes(
    read: Read, inverse: Expr, start: Expr, length: int, out: QuantizedRows, row: Expr, lanes: int
) -> Expr:
    """Store the codes of `length` features from `start` on; return their sum."""
    total = Total(length, lanes, "int32", 0)

    def see(at: Expr, width: int, count: int) -> None:
        steps = bind(read(at, width, count) * broadcast(inverse, width))
        if out.static is not None:  # else the largest one gives 127
            steps = bind(minimum(steps, splat(127.0, width)))
            steps = bind(maximum(steps, splat(-127.0, width)))
        code = bind(round_to_int32(steps))
        total.update(width, lambda old: old + code)
        narrow = bind(cast(code, "int8"))
        # A last vector of fewer numbers ends in the padding, whose codes come out as zeros.
        store(out.codes, narrow, row, start + at)

    sweep(length, lanes, see)
    return total.reduce(horizontal_sum_int32, lambda a, b: a + b)
