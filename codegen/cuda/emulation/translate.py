"""CUDA C as TVM emits it, made into C++ that the emulation's headers complete."""

from __future__ import annotations

import re

_ASM = re.compile(r'asm(?:\s+volatile)?\s*\(\s*"([^"]*)"\s*:([^:;]*):([^:;]*)\);')
_OPERAND = re.compile(r'"[=+]?[a-z]"\s*\(((?:[^()]|\([^()]*\))*)\)')
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\) \{'
)


def to_cpp(source: str) -> str:
    """Return C++ with a function `<kernel>_emulated(grid, block, arguments)` for every kernel."""
    kernels = [_launcher(name, parameters) for name, parameters in _KERNEL.findall(source)]
    # Shared memory becomes `static`, which C++ wants behind `alignas`; the attribute may follow.
    code = re.sub(r"alignas\((\d+)\)", r"__attribute__((aligned(\1)))", source)
    return "\n".join(["#include <cuda.h>", _ASM.sub(_instruction, code), *kernels])


def _instruction(match: re.Match[str]) -> str:
    """Put a function in the place of one PTX instruction, its operands in the order of the text."""
    text, *given = match.groups()
    operands = [found for part in given for found in _OPERAND.findall(part)]
    opcode, _, rest = text.strip().rstrip(";").partition(" ")
    order = [int(number) for number in re.findall(r"%(\d+)", rest)]
    arguments = ", ".join(operands[place] for place in order)
    return f"ptx_{re.sub(r'[^a-z0-9]+', '_', opcode)}({arguments});"


def _launcher(name: str, parameters: str) -> str:
    types = [" ".join(p.replace("__restrict__", "").split()[:-1]) for p in _split(parameters)]
    values = ", ".join(f"*({kind}*)given[{i}]" for i, kind in enumerate(types))
    return (
        f"static void {name}_call(void** given) {{ {name}({values}); }}\n"
        f'extern "C" const char* {name}_emulated(const unsigned* grid, const unsigned* block, '
        f"void** given) {{ return emulation::run({name}_call, grid, block, given); }}"
    )


def _split(parameters: str) -> list[str]:
    return [part.strip() for part in parameters.split(",") if part.strip()]
