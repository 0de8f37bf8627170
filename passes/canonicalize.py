"""The pass that turns a captured graph into canonical operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.patterns.activation import ACTIVATION_RULES
from passes.patterns.attention import ATTENTIONS
from passes.patterns.constants import store_transposed, write_ranges, write_scalars
from passes.patterns.linear import LINEARS
from passes.patterns.motion import MOTIONS
from passes.patterns.noops import NOOPS
from passes.patterns.norm import NORMS
from passes.patterns.rotary import ROTARIES
from passes.patterns.views import VIEWS
from passes.rewrite import Rule, rewrite
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

RECOGNIZERS: tuple[Rule, ...] = (
    *NOOPS,
    *VIEWS,
    *LINEARS,
    *NORMS,
    *ACTIVATION_RULES,
    *ROTARIES,
    *ATTENTIONS,
)
"""The rules that recognise something, in the order in which a node is shown to them."""


@dataclass(frozen=True, kw_only=True)
class Canonicalize(Pass):
    """Recognise products, norms, rotary embeddings, activations and attention, however written.

    What is not recognised stays an operator of aten; docs/ir.md lists the forms it comes in.
    """

    name: ClassVar[str] = "canonicalize"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    def run(self, program: Program, context: PassContext) -> None:
        graph, weights = program.graph, program.weights
        write_scalars(graph, weights)
        write_ranges(graph, weights)
        rewrite(graph, RECOGNIZERS)
        # Now that most of what stood between two permutes is one operator, bring them together.
        rewrite(graph, (*RECOGNIZERS, *MOTIONS))
        store_transposed(graph, weights)
