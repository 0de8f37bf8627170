"""Time products on this machine: tiny programs of nothing else, lowered like any other."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import tvm
from tvm import relax

from codegen.build import compile_module
from codegen.lower import lower
from codegen.packing import packing_for
from codegen.timing import best_times, cache_key, kept, stand_ins
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program, operator_name
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target

MOST_BYTES = 512 << 20
"""Weights that a product is timed over at most: more than any cache holds."""

SCALE = "input_scale"
"""The scale of what products of static schemes read."""

_PER_CALL = 16  # products a call runs through, lest the call itself be timed


@dataclass(frozen=True)
class MachineKernelTimer:
    """Times kernels of `target` on this machine; what was timed is kept in the user's cache.

    `prepare` is called before every function: it sets up the threads as the runtime does.
    """

    target: Target
    prepare: Callable[[], object]

    def linear_seconds(
        self,
        n: int,
        k: int,
        scheme: QuantScheme | None,
        tokens: int,
        *,
        gated: bool = False,
        stream_bytes: int = 0,
    ) -> float:
        """Return the seconds of a product, the best of several; see `KernelTimer`."""
        spread = min(stream_bytes, MOST_BYTES) if tokens == 1 else 0
        product = {"n": n, "k": k, "scheme": str(scheme), "tokens": tokens, "gated": gated}
        key = cache_key(self.target, product | {"stream_bytes": spread})
        program = partial(product_program, n, k, scheme, tokens, gated=gated)
        (seconds,) = kept("kernels", key, lambda: [self._measure(program(), tokens, spread)])
        return seconds

    def _measure(self, program: Program, tokens: int, spread: int) -> float:
        lowered = lower(program, self.target)
        machine = relax.VirtualMachine(
            compile_module(lowered.module, self.target).executable, tvm.cpu()
        )
        rng = np.random.default_rng(0)
        shapes = [(tokens, int(node.meta["val"].shape[1])) for node in program.placeholders()]
        inputs = [tvm.runtime.tensor(rng.standard_normal(s, np.float32)) for s in shapes]
        entries = lowered.weights.entries
        size = sum(np.dtype(entry.dtype).itemsize * entry.shape[0] for entry in entries)
        calls = [
            partial(
                machine["forward"],
                *inputs,
                [tvm.runtime.tensor(array) for _, array in stand_ins(entries, seed)],
            )
            for seed in range(max(1, -(-spread // size)))
        ]
        return sum(best_times(calls, self.prepare)) / (len(calls) * _PER_CALL)


def product_program(
    n: int, k: int, scheme: QuantScheme | None, tokens: int, *, gated: bool
) -> Program:
    """Return a LEGAL program of `_PER_CALL` products of one x, each added to what was before.

    One token is one row, as in decoding; a prompt has any number of them. The weights have shapes
    and formats, and no values.
    """
    names = [f"w{i}.weight" for i in range(_PER_CALL)]
    build = ProgramBuilder({name: torch.empty(n, k, device="meta") for name in names})
    if scheme is not None:
        codes = QuantizedTensor.hollow(n, k, scheme.weight)
        for name in names:
            build.weights.put(name, codes)
        if scheme.is_static:
            build.weights.put(SCALE, torch.ones(1))
    rows: int | str = 1 if tokens == 1 else "s"
    x = build.input("x", (rows, k))
    y = build.input("start", (rows, n // 2 if gated else n))
    options: dict[str, object] = {"activation": "silu", "gated": True} if gated else {}
    operands = [x]
    if scheme is not None and scheme.activation is not None:
        scale = [build.weight(SCALE)] if scheme.is_static else []
        quantized = build.call(ops.quantize, x, *scale, form=scheme.activation)
        operands = [build.call(operator.getitem, quantized, part) for part in (0, 1)]
        options["scheme"] = str(scheme)
    target = ops.linear if len(operands) == 1 else ops.quantized_matmul
    for name in names:
        y = build.call(target, *operands, build.weight(name), None, y, **options)
    program = build.finish(y)
    program.stage = Stage.LEGAL
    if scheme is not None:
        program.plan = {operator_name(name): scheme for name in names}
    return program


def packed_bytes(
    target: Target, n: int, k: int, scheme: QuantScheme | None, *, gated: bool = False
) -> int:
    """Return the bytes that a weight [n, k] takes in an artifact for `target`."""
    stored = None if scheme is None else scheme.weight
    packing = packing_for(target, n, k, stored, gated=gated, widen=True)
    if stored is None:
        return packing.code_bytes
    zeros = 0 if packing.symmetric else packing.zero_point_count
    return packing.code_bytes + 2 * packing.scale_count + zeros
