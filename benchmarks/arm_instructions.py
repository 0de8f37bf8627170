"""Count the instructions of the product kernels for 64-bit Arm, from the assembly that is emitted.

    python benchmarks/arm_instructions.py [--scheme w4a8g32 ...] [--inputs 1536] [--json]

There is no time without the machine, but what its two pipes for vectors must do can be counted. For
one row and for a full block of many rows, the loop over the inputs of a group is found, with what
is done once for each group; what is done once for a tile of outputs is left out. "per byte" are
instructions for each byte of the packed weight; of many rows, divided by the rows of the block.
"dots" is the share of SDOT or SMMLA among them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tvm
from rich.console import Console
from rich.table import Table

from codegen.kernels.quantized_matmul import QuantizedMatmul, many_rows, one_row
from codegen.kernels.quantized_rows import block_shape
from codegen.packing import code_packing
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.target import Target
from targets import TARGETS

SCHEMES = ("w4a8g32", "w4a8g64", "w4a8g128", "w8a8")
OUTPUTS = 1536
PRODUCTS = {"sdot": 16, "smmla": 32}
"""Products of bytes that an instruction adds up."""

LABEL = re.compile(r"^(\.L\w+):")
BRANCH = re.compile(r"^\s+(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:[^.]*,\s*)?(\.L\w+)")
INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9.]*)\b")


@dataclass(frozen=True)
class Loop:
    """Instructions from a label to the last branch back to it."""

    first: int
    last: int
    instructions: tuple[str, ...]

    def contains(self, other: Loop) -> bool:
        """Tell whether another loop is inside."""
        return self != other and self.first <= other.first and other.last <= self.last


@dataclass(frozen=True)
class Count:
    """What a kernel's loop takes for each byte of the weight."""

    target: str
    scheme: str
    rows: int
    instruction: str
    instructions: int
    loads: int
    per_byte: float
    dots: float


def loops(assembly: str) -> list[Loop]:
    """Find the loops of a function."""
    lines = assembly.splitlines()
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        if label := LABEL.match(line):
            labels[label[1]] = number
        elif (branch := BRANCH.match(line)) and branch[1] in labels:
            ends[labels[branch[1]]] = number
    found = []
    for first, last in ends.items():
        names = (INSTRUCTION.match(line) for line in lines[first : last + 1])
        found.append(Loop(first, last, tuple(name[1] for name in names if name)))
    return found


def assembly_of(function: tvm.tirx.PrimFunc, target: Target) -> str:
    """Compile a kernel to text."""
    named = function.with_attr("global_symbol", "kernel")
    module = tvm.compile(named, target=tvm.target.Target(dict(target.tvm)))
    return str(module.mod.inspect_source("s"))


def count(scheme: str, target: Target, inputs: int, *, many: bool) -> Count:
    """Count the instructions of a product's kernel, for one row or for a block of many."""
    parsed = QuantScheme.parse(scheme)
    packing = code_packing(
        OUTPUTS, inputs, parsed.weight, lanes=target.lanes, signed=target.signed_bytes
    )
    assert parsed.activation is not None
    per_token = not isinstance(parsed.activation.granularity, PerGroup)
    spec = QuantizedMatmul(packing=packing, per_token=per_token)
    rows, vectors = block_shape(spec, target) if many else (1, packing.vectors)
    name = target.dot if many else "sdot"
    found = loops(assembly_of((many_rows if many else one_row)(spec, target), target))
    innermost = [loop for loop in found if not any(loop.contains(other) for other in found)]
    # Of blocks of several sizes, the full one has most products in a turn, and little else.
    inner = max(
        innermost,
        key=lambda loop: (loop.instructions.count(name), -len(loop.instructions)),
    )
    dots = inner.instructions.count(name)
    weights = dots * PRODUCTS[name] / rows
    turns = packing.group * vectors * packing.lanes / weights
    total, loads = len(inner.instructions), _loads(inner)
    if packing.groups > 1 and turns > 1:
        group = min(
            (loop for loop in found if loop.contains(inner)),
            key=lambda loop: loop.last - loop.first,
        )
        total = round(len(group.instructions) + (turns - 1) * total)
        loads = round(_loads(group) + (turns - 1) * loads)
        weights, dots = weights * turns, round(dots * turns)
    return Count(
        target=target.name,
        scheme=scheme,
        rows=rows,
        instruction=name,
        instructions=total,
        loads=loads,
        per_byte=total / (weights * packing.bits / 8) / rows,
        dots=dots / total,
    )


def _loads(loop: Loop) -> int:
    return sum(name.startswith("ld") for name in loop.instructions)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheme", action="append", help="may be repeated")
    parser.add_argument("--inputs", type=int, default=1536)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    machines = [target for target in TARGETS if target.arch == "aarch64"]
    counts = [
        count(scheme, target, options.inputs, many=many)
        for target in reversed(machines)
        for many in (False, True)
        for scheme in options.scheme or SCHEMES
    ]
    if options.json:
        print(json.dumps([asdict(each) for each in counts]))
        return
    table = Table("target", "scheme", "rows", "by", "loop", "loads", "per byte", "dots")
    for each in counts:
        table.add_row(
            *(each.target, each.scheme, str(each.rows), each.instruction.upper()),
            *(str(each.instructions), str(each.loads)),
            *(f"{each.per_byte:.2f}", f"{each.dots:.0%}"),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
