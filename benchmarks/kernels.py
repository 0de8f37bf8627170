"""Time the matrix-product kernels against the limits of this machine, in one run.

    python benchmarks/kernels.py [--seconds 1] [--rows 512] [--scheme w4a8g32 ...] [--json]

One row is compared with reading as many bytes in order from memory that no cache holds; many rows
with byte products of what the nearest cache holds. Kernel and limit take turns; the best time of
each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

import targets
from codegen.kernels import limits
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.quantized_matmul import QuantizedMatmul, many_rows, one_row
from codegen.packing import code_packing, pack
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.target import Target

# SmolLM2-135M: attention input, gate and up, attention output, down, head.
SHAPES = ((960, 576, False), (3072, 576, True), (576, 576, False), (576, 1536, False))
HEAD = (49152, 576, False)
SCHEMES = ("w4a8g32", "w8a8g32", "w8a8")
STREAMED_BYTES = 400 << 20  # more than caches hold

Call = Callable[[], None]


def build(function: tvm.tirx.PrimFunc, target: Target) -> Any:
    """Compile one kernel."""
    module = tvm.compile(function, target=tvm.target.Target(dict(target.tvm)))
    return module[str(function.attrs["global_symbol"])]


def take_turns(calls: Sequence[Sequence[Call]], seconds: float) -> list[float]:
    """Return the best time of each series of calls; a call of each is made in turn."""
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for turn in zip(*calls, strict=True):
            for place, call in enumerate(turn):
                start = time.perf_counter()
                call()
                best[place] = min(best[place], time.perf_counter() - start)
    return best


def reading(target: Target, size: int, threads: int, copies: int) -> tuple[list[Call], int]:
    """Return calls that read memory in order, each its own, and how many of `size` bytes it is."""
    numbers = limits.stream_numbers(target)
    rounds = size // (threads * numbers * 4)
    function = build(limits.streaming(target), target)
    sums = tvm.runtime.tensor(np.zeros((threads, target.lanes), np.int32))

    def call() -> Call:
        memory = tvm.runtime.tensor(np.ones((threads, rounds, numbers), np.int32))
        return lambda: function(memory, sums)

    return [call() for _ in range(copies)], threads * rounds * numbers * 4


def multiplying(target: Target, bits: int, threads: int) -> tuple[Call, int]:
    """Return a call that multiplies bytes of the nearest cache, and its operations."""
    function = build(limits.multiplying(target, bits), target)
    given = tvm.runtime.tensor(np.ones(limits.byte_count(target), np.uint8))
    sums = tvm.runtime.tensor(np.zeros((threads, limits.sum_count(target)), np.int32))
    return lambda: function(given, sums), threads * limits.byte_operations(target)


class Product:
    """One product of random numbers."""

    def __init__(self, scheme: str, shape: tuple[int, int, bool], target: Target) -> None:
        n, k, gated = shape
        parsed = QuantScheme.parse(scheme)
        form = parsed.weight
        packing = code_packing(
            n, k, form, lanes=target.lanes, gated=gated, signed=target.signed_bytes
        )
        assert parsed.activation is not None, scheme
        self.spec = QuantizedMatmul(
            packing=packing,
            per_token=not isinstance(parsed.activation.granularity, PerGroup),
            epilogue=Epilogue(activation="silu" if gated else "none"),
        )
        rng = np.random.default_rng(0)
        dtype = np.int8 if form.symmetric else np.uint8
        low, high = form.code_range
        codes = rng.integers(low, high + 1, (n, k)).astype(dtype)
        scale = rng.random((n, packing.groups)).astype(np.float16)
        zero = None if form.symmetric else np.zeros((n, packing.groups), np.uint8)
        self.arrays = list(pack(packing, codes, scale, zero).values())
        self.weight_bytes = sum(a.nbytes for a in self.arrays)

    def activations(self, m: int) -> list[np.ndarray]:
        """Arguments before the weight."""
        packing = self.spec.packing
        codes = np.random.default_rng(1).integers(-127, 128, (m, packing.padded_k))
        scales = packing.groups if self.spec.scale_per_group else 1
        return [
            codes.astype(np.int8),
            np.ones((m, scales), np.float32),
            np.ones((m, packing.groups), np.int32),
        ]

    def calls(self, function: Any, m: int, copies: int) -> list[Call]:
        """Calls of a kernel, each with a copy of the weight of its own."""
        packing = self.spec.packing
        given = [tvm.runtime.tensor(a) for a in self.activations(m)]
        out = tvm.runtime.tensor(np.zeros((m, packing.outputs), np.float32))

        def call(weight: list[tvm.runtime.Tensor]) -> Call:
            return lambda: function(*given, *weight, out)

        return [call([tvm.runtime.tensor(a) for a in self.arrays]) for _ in range(copies)]


def measure_one_row(
    product: Product, target: Target, threads: int, seconds: float
) -> dict[str, float]:
    """Compare with reading the weight's bytes."""
    copies = STREAMED_BYTES // product.weight_bytes + 1
    calls = product.calls(build(one_row(product.spec, target), target), 1, copies)
    reads, size = reading(target, product.weight_bytes, threads, copies)
    kernel_s, limit_s = take_turns([calls, reads], seconds)
    speed, limit = product.weight_bytes / kernel_s, size / limit_s
    return {"seconds": kernel_s, "bytes_per_s": speed, "limit_bytes_per_s": limit}


def measure_many_rows(
    product: Product, target: Target, threads: int, seconds: float, m: int
) -> dict[str, float]:
    """Compare with multiplying alone."""
    packing = product.spec.packing
    calls = product.calls(build(many_rows(product.spec, target), target), m, 1)
    peak, operations = multiplying(target, packing.bits, threads)
    kernel_s, limit_s = take_turns([calls, [peak]], seconds)
    speed = 2 * m * packing.n * packing.k / kernel_s
    return {"seconds": kernel_s, "ops_per_s": speed, "limit_ops_per_s": operations / limit_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", nargs="+", default=SCHEMES)
    parser.add_argument("--target", default=targets.NATIVE)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    target = targets.find(options.target)
    # TVM reads it at the first parallel loop, and takes half of the processors without it.
    threads = int(os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1)))
    results = []
    for scheme in options.scheme:
        for shape in (*SHAPES, HEAD):
            product = Product(scheme, shape, target)
            row = {"scheme": scheme, "n": shape[0], "k": shape[1], "gated": shape[2]}
            one = measure_one_row(product, target, threads, options.seconds)
            results.append({**row, "rows": 1, **one})
            if shape != HEAD:  # only the last row of a prompt meets the head
                many = measure_many_rows(product, target, threads, options.seconds, options.rows)
                results.append({**row, "rows": options.rows, **many})
    if options.json:
        print(json.dumps({"target": target.name, "threads": threads, "kernels": results}))
        return
    table = Table("scheme", "n", "k", "rows", "µs", "speed", "limit", "of it", title=target.name)
    for r in results:
        name, unit = ("bytes_per_s", "GB/s") if r["rows"] == 1 else ("ops_per_s", "Gop/s")
        speed, limit = r[name] / 1e9, r[f"limit_{name}"] / 1e9
        table.add_row(
            r["scheme"],
            f"{r['n']}{' gated' if r['gated'] else ''}",
            str(r["k"]),
            str(r["rows"]),
            f"{r['seconds'] * 1e6:.1f}",
            f"{speed:.1f} {unit}",
            f"{limit:.1f}",
            f"{speed / limit:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
