"""Turn a program that was trained under fake quantisers into one of integer codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from passes.fake_graph import FakeWeight, fake_weights
from passes.input_scales import scale_entry
from passes.planned import planned_weights, put_codes
from passes.rewrite import remove_unused
from qcompiler.core import ops
from qcompiler.core.errors import QCompilerError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.fake_quant import quantize_weight
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class FreezeFakeQuant(Pass):
    """Replace fake quantisers by the codes that they round to: the same values to the bit."""

    name: ClassVar[str] = "freeze-fake-quant"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANTIZED})
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[frozenset[type[Any]]] = frozenset({FakeQuantization})

    def run(self, program: Program, context: PassContext) -> None:
        found = fake_weights(program)
        codes: dict[str, QuantizedTensor] = {}
        spent: set[str] = set()
        for done, weight in enumerate(found, start=1):
            if weight.entry not in codes:
                codes[weight.entry] = codes_of(program, weight)
            spent |= {name for name in weight.sources if name != weight.name}
            _read_directly(program, weight)
            context.progress.advance(done, len(found))
        _unround_inputs(program)
        remove_unused(program.graph)
        for name in spent:
            program.weights.remove(name)
        put_codes(program, planned_weights(program), codes)


def codes_of(program: Program, weight: FakeWeight) -> QuantizedTensor:
    """Return the codes that a weight is rounded to.

    Raises:
        QCompilerError: training has left it with entries that are infinite or not a number.
    """
    latent, scale, *zero = [weight.argument(i, program.weights.tensor) for i in range(3)]
    assert latent is not None
    assert scale is not None
    for tensor in (latent, scale):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise QCompilerError(
                f"'{weight.name}' has entries that are infinite or not a number after training; "
                "train with a lower learning rate"
            )
    return quantize_weight(latent, scale, zero[0], weight.form)


def _read_directly(program: Program, weight: FakeWeight) -> None:
    """Have what reads a rounded weight read the stored one, which will have codes."""
    graph = program.graph
    with graph.inserting_before(weight.node):
        stored = graph.create_node("get_attr", weight.name)
    stored.meta["val"] = weight.node.meta["val"]
    weight.node.replace_all_uses_with(stored)


def _unround_inputs(program: Program) -> None:
    """Have products read what is rounded before it is: they quantise it themselves."""
    for node in program.graph.nodes:
        if node.target is not ops.fake_quantize:
            continue
        source, *scale = node.args
        for user in list(node.users):
            weight = weight_of(user)
            if scale and weight is not None:
                _share_scale(program, scale[0], scale_entry(operator_name(weight)))
        node.replace_all_uses_with(source)


def _share_scale(program: Program, learned: fx.Node, name: str) -> None:
    """Give a product the static scale that was learned under another one's name."""
    program.weights.put(name, program.weights.tensor(str(learned.target)))
