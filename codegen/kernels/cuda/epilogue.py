"""What follows a product, for one number at a time: bias, activation, gate and residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import Buffer, Expr, argument, load
from codegen.kernels.cuda.threads import call, keep
from codegen.kernels.epilogue import Epilogue
from codegen.packing import Packing

_ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "none": lambda x: x,
    "silu": lambda x: x / (1.0 + tirx.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1.0 + call("float32", "erff", x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: (
        0.5
        * x
        * (1.0 + call("float32", "tanhf", math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
    "relu": lambda x: tirx.max(x, tirx.const(0.0, "float32")),
    "tanh": lambda x: call("float32", "tanhf", x),
}


@dataclass(frozen=True, slots=True)
class Output:
    """The buffers an epilogue reads and writes."""

    packing: Packing
    epilogue: Epilogue
    bias: Buffer | None
    residual: Buffer | None
    out: Buffer

    @classmethod
    def arguments(cls, packing: Packing, epilogue: Epilogue, rows: Expr) -> Output:
        """Add the last arguments: bias [n], residual [rows, outputs], out [rows, outputs]."""
        shape = (rows, packing.outputs)
        return cls(
            packing,
            epilogue,
            argument("bias", (packing.n,), "float32") if epilogue.bias else None,
            argument("residual", shape, "float32") if epilogue.residual else None,
            argument("out", shape, "float32"),
        )

    def finished(self, sums: list[Expr], row: Expr, output: Expr) -> Expr:
        """Return the result of one output; `sums`: its own and, when gated, what it scales."""
        terms = [
            keep(sum_ if self.bias is None else sum_ + load(self.bias, output + part * self.half))
            for part, sum_ in enumerate(sums)
        ]
        y = _ACTIVATIONS[self.epilogue.activation](terms[0])
        if self.packing.gated:
            y = y * terms[1]
        if self.residual is not None:
            y = load(self.residual, row, output) + y
        return keep(y)

    @property
    def half(self) -> int:
        """Rows of the weight before those of the gate's other half."""
        return self.packing.outputs
