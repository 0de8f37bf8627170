"""Kernels that do one thing only, as fast as the machine can: what others are held against."""

from __future__ import annotations

from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Expr,
    Registers,
    argument,
    fma,
    kernel,
    load,
    parallel,
    reinterpret,
    serial,
    size,
    splat,
    store,
)
from codegen.kernels.isa import ByteDots, Smmla, fastest_dots
from qcompiler.core.target import Target

_STREAMS = 16
_RUN = 8  # products of bytes between two flushes
_SHIFTS = 4  # no product twice in a row
_ROUNDS = 128  # of all shifts, some ten microseconds
_VECTORS = 2


def stream_numbers(target: Target) -> int:
    """Return how many int32 numbers a round of `streaming` reads."""
    return _STREAMS * target.lanes


def streaming(target: Target) -> PrimFunc:
    """x [threads, rounds, stream_numbers] → out [threads, lanes], int32: read memory in order."""
    threads, rounds = size("threads"), size("rounds")
    with kernel("streaming") as built:
        x = argument("x", (threads, rounds, stream_numbers(target)), "int32")
        out = argument("out", (threads, target.lanes), "int32")
        with parallel(threads) as thread:
            sums = Registers(_STREAMS, target.lanes, "int32")
            for i in range(_STREAMS):
                sums[i] = splat(0, target.lanes, "int32")
            with serial(rounds) as step:
                for i in range(_STREAMS):
                    sums[i] += load(x, thread, step, i * target.lanes, lanes=target.lanes)
            store(out, sum((sums[i] for i in range(1, _STREAMS)), sums[0]), thread, 0)
    return built.get()


def byte_count(target: Target) -> int:
    """Return how many bytes `multiplying` takes."""
    return (_RUN + _SHIFTS) * (_rows(target) + _VECTORS) * 4 * target.lanes


def sum_count(target: Target) -> int:
    """Return how many sums each thread of `multiplying` and `accumulating` makes."""
    return _rows(target) * _VECTORS * target.lanes


def byte_operations(target: Target) -> int:
    """Return the operations of each thread of `multiplying`."""
    products = (Smmla if target.dot == "smmla" else ByteDots).products
    return 2 * products * sum_count(target) * _RUN * _SHIFTS * _ROUNDS


def multiplying(target: Target, bits: int) -> PrimFunc:
    """x [byte_count] uint8 → out [threads, sum_count] int32: multiply bytes of the nearest cache.

    bits: those of the codes that stand for weights.
    """
    lanes, rows, width = target.lanes, _rows(target), 4 * target.lanes
    threads = size("threads")
    with kernel("multiplying") as built:
        x = argument("x", (byte_count(target),), "uint8")
        out = argument("out", (threads, sum_count(target)), "int32")
        with parallel(threads) as thread:
            dots = fastest_dots(target, bits, rows * _VECTORS)
            for i in range(rows * _VECTORS):
                dots[i] = splat(i, lanes, "int32")
            with serial(_ROUNDS), serial(_SHIFTS) as shift:

                def operand(step: int, place: int) -> Expr:
                    start = ((shift + step) * (rows + _VECTORS) + place) * width
                    return reinterpret(load(x, start, lanes=width), "int32", lanes)

                for step in range(_RUN):
                    weights = [dots.weight(operand(step, v)) for v in range(_VECTORS)]
                    for r in range(rows):
                        activation = dots.activation(operand(step, _VECTORS + r))
                        for v in range(_VECTORS):
                            dots.add(r * _VECTORS + v, weights[v], activation)
                dots.flush()
            for i in range(rows * _VECTORS):
                store(out, dots[i], thread, i * lanes)
    return built.get()


def float_count(target: Target) -> int:
    """Return how many floats `accumulating` takes."""
    return (_RUN + 1) * target.lanes


def float_operations(target: Target) -> int:
    """Return the operations of each thread of `accumulating`."""
    return 2 * sum_count(target) * _RUN * _SHIFTS * _ROUNDS


def accumulating(target: Target) -> PrimFunc:
    """x [float_count] → out [threads, sum_count], float32: multiply and add in registers."""
    lanes, count = target.lanes, _rows(target) * _VECTORS
    threads = size("threads")
    with kernel("accumulating") as built:
        x = argument("x", (float_count(target),), "float32")
        out = argument("out", (threads, sum_count(target)), "float32")
        with parallel(threads) as thread:
            sums = Registers(count, lanes)
            for i in range(count):
                sums[i] = splat(i, lanes)
            with serial(_SHIFTS * _ROUNDS):
                for step in range(_RUN):
                    a, b = (load(x, (step + i) * lanes, lanes=lanes) for i in range(2))
                    for i in range(count):
                        sums[i] = fma(a, b, sums[i])
            for i in range(count):
                store(out, sums[i], thread, i * lanes)
    return built.get()


def _rows(target: Target) -> int:
    return target.vector_registers * 3 // 8
