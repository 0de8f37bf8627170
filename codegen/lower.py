"""Turn a legal program into a relax module: the only place that sees both FX and relax."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import sympy
import tvm
from torch import fx
from tvm import ir, relax

from codegen.aten import ATEN
from codegen.call_costs import Operators
from codegen.function_lowering import FunctionLowering, Phase, is_cache
from codegen.operators import OPERATORS
from codegen.weights import PackedWeights
from qcompiler.core.operator_costs import c, t
from qcompiler.core.program import Program
from qcompiler.core.target import Target

LOWERINGS = ATEN | OPERATORS

MODULE_PHASES = {"forward": Phase()}

LANGUAGE_MODEL_PHASES = {
    "prefill": Phase(),
    # One token at a time: its only row is the wanted one.
    "decode": Phase(fixed=(("ids", 1, 1), ("rows", 0, 1)), dropped=frozenset({"rows"})),
}


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A module ready to be built, the weights its functions take, and which kernel serves what.

    `functions` gives, per entry function, the names of its tensor inputs before caches and weights
    and the symbolic sizes it fixes; `kernels` the kernel chosen for each operator, and why;
    `operators`, of language models, what the kernels of each entry function are called for.
    """

    module: tvm.IRModule
    weights: PackedWeights
    functions: dict[str, tuple[tuple[str, ...], dict[str, int]]]
    kernels: dict[str, tuple[str, str]]
    operators: dict[str, Operators]


def lower(program: Program, target: Target) -> Lowered:
    """Lower every phase of `program`; equal kernels are shared between layers and phases."""
    weights = PackedWeights(program, target)
    phases = LANGUAGE_MODEL_PHASES if program.info.kind == "causal-lm" else MODULE_PHASES
    builder = relax.BlockBuilder()
    shared: dict[Hashable, ir.GlobalVar] = {}
    kernels: dict[str, tuple[str, str]] = {}
    functions = {}
    operators = {}
    for name, phase in phases.items():
        lowering = FunctionLowering(builder, program, target, weights, shared, LOWERINGS)
        try:
            lowering.lower(name, phase)
        except BaseException:
            # A builder that is left in the middle of a block complains about it on stderr.
            builder._end_block()
            raise
        kernels |= {f"{operator} ({name})": kernel for operator, kernel in lowering.kernels.items()}
        functions[name] = (_inputs(program.placeholders(), phase), lowering.fixed_sizes(phase))
        if program.info.kind == "causal-lm":
            operators[name] = Operators(
                served=lowering.served, head=_head(program), sizes=_counted_sizes(program, phase)
            )
    return Lowered(
        module=builder.finalize(),
        weights=weights,
        functions=functions,
        kernels=kernels,
        operators=operators,
    )


def _head(program: Program) -> fx.Node | None:
    """Return the product that gives a language model's logits."""
    products = [node for _, node in program.linears()]
    # Logits may come from something else than a product.
    found = products[-1] if products else None
    fits = found is not None and found.meta["val"].shape[-1] == program.info.vocab_size
    return found if fits else None


def _counted_sizes(program: Program, phase: Phase) -> dict[str, sympy.Expr]:
    """Return the symbolic sizes of a language model as tokens and context; one row is wanted."""
    shapes = {str(node.target): node.meta["val"].shape for node in program.placeholders()}
    sizes = {str(shapes["ids"][1]): t, str(shapes["rows"][0]): sympy.Integer(1)}
    sizes |= {str(shape[2]): c for name, shape in shapes.items() if is_cache(name)}
    fixed = {str(shapes[name][dim]): sympy.Integer(size) for name, dim, size in phase.fixed}
    return sizes | fixed


def _inputs(placeholders: list[fx.Node], phase: Phase) -> tuple[str, ...]:
    names = [str(node.target) for node in placeholders]
    return tuple(n for n in names if n not in phase.dropped and not is_cache(n))
