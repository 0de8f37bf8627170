"""Every rule of every stage, each broken once."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from passes.insert_fake_quant import InsertFakeQuant
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import VerifyError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.verify import verify
from tests.machine import machine

aten = torch.ops.aten


def quantized(scheme: str) -> QuantizedTensor:
    form = QuantScheme.parse(scheme).weight
    return QuantizedTensor(
        torch.zeros(16, 16, dtype=torch.int8), torch.ones(16, form.groups(16)).half(), None, form
    )


def float_program() -> Program:
    build = ProgramBuilder({"table.weight": torch.zeros(16, 16), "fc.weight": torch.zeros(16, 16)})
    ids = build.input("ids", (1, "s"), torch.int64)
    x = build.call(ops.embedding, ids, build.weight("table.weight"))
    return build.finish(build.call(ops.linear, x, build.weight("fc.weight")))


def planned_program() -> Program:
    program = float_program()
    program.plan["fc"] = QuantScheme.parse("w4a8g8")
    program.stage = Stage.PLANNED
    return program


def quantized_program() -> Program:
    program = planned_program()
    program.weights.put("fc.weight", quantized("w4a8g8"))
    node = call(program, ops.linear)
    node.target = ops.quantized_linear
    node.kwargs = {"scheme": "w4a8g8"}
    program.stage = Stage.QUANTIZED
    return program


def legal_program() -> Program:
    program = quantized_program()
    node = call(program, ops.quantized_linear)
    x, weight = node.args
    form = program.plan["fc"].activation
    graph = program.graph
    with graph.inserting_before(node):
        pair = graph.call_function(ops.quantize, (x,), {"form": form})
        codes = graph.call_function(operator.getitem, (pair, 0))
        scales = graph.call_function(operator.getitem, (pair, 1))
    for new in (pair, codes, scales):
        new.meta["val"] = node.meta["val"]
    node.target, node.args = ops.quantized_matmul, (codes, scales, weight)
    program.stage = Stage.LEGAL
    return program


def fake_quantized_program() -> Program:
    program = planned_program()
    InsertFakeQuant(start="rtn").run(program, PassContext(target=machine("w*")))
    program.stage = Stage.FAKE_QUANTIZED
    return program


MAKERS = {
    Stage.FLOAT: float_program,
    Stage.PLANNED: planned_program,
    Stage.FAKE_QUANTIZED: fake_quantized_program,
    Stage.QUANTIZED: quantized_program,
    Stage.LEGAL: legal_program,
}


def call(program: Program, target: Callable[..., object]) -> fx.Node:
    (node,) = [n for n in program.graph.nodes if n.target is target]
    return node


@pytest.mark.parametrize("stage", Stage)
def test_a_sound_program_passes(stage: Stage) -> None:
    verify(MAKERS[stage]())


def call_method(program: Program) -> None:
    node = call(program, ops.embedding)
    node.op, node.target = "call_method", "sin"


def call_stranger(program: Program) -> None:
    call(program, ops.embedding).target = torch.sin


def forget_shape(program: Program) -> None:
    del call(program, ops.embedding).meta["val"]


def forget_weight(program: Program) -> None:
    program.weights.remove("table.weight")


def plan_stranger(program: Program) -> None:
    program.plan["gone"] = QuantScheme.parse("w8a8")


def leave_float(program: Program) -> None:
    program.plan["table"] = QuantScheme.parse("w8a8")


def keep_float_weight(program: Program) -> None:
    program.weights.put("fc.weight", torch.zeros(16, 16))


def other_format(program: Program) -> None:
    program.weights.put("fc.weight", quantized("w8a8"))


def other_plan(program: Program) -> None:
    program.plan["fc"] = QuantScheme.parse("w4a8g8t")


def computed_weight(program: Program) -> None:
    node = call(program, ops.quantized_linear)
    node.args = (node.args[0], node.args[0])


def unknown_operator(program: Program) -> None:
    node = call(program, ops.embedding)
    with program.graph.inserting_after(node):
        other = program.graph.call_function(aten.erfinv.default, (node,))
    other.meta["val"] = node.meta["val"]


def unsplit(program: Program) -> None:
    node = call(program, ops.quantized_matmul)
    (x, _, weight) = node.args
    node.target, node.args = ops.quantized_linear, (x, weight)


@pytest.mark.parametrize(
    ("stage", "damage", "message"),
    [
        (Stage.FLOAT, call_method, "^embedding is a call_method; only functions may be called$"),
        (Stage.FLOAT, call_stranger, "^embedding calls sin, which is no operator of the compiler$"),
        (Stage.FLOAT, forget_shape, r"^embedding has no shape \(meta\['val'\]\)$"),
        (Stage.FLOAT, forget_weight, "^@table.weight is not in the weight store$"),
        (Stage.PLANNED, forget_weight, "^@table.weight is not in the weight store$"),
        (Stage.PLANNED, plan_stranger, "^the plan for gone names no operator of the graph$"),
        (Stage.QUANTIZED, leave_float, "^embedding is float, but the plan names table$"),
        (
            Stage.QUANTIZED,
            keep_float_weight,
            "^linear reads @fc.weight, which is not quantised$",
        ),
        (
            Stage.QUANTIZED,
            other_format,
            "^linear says w4a8g8, but @fc.weight is int8 per channel$",
        ),
        (Stage.QUANTIZED, other_plan, "^linear says w4a8g8, but the plan says w4a8g8t$"),
        (Stage.QUANTIZED, computed_weight, "^linear multiplies by a computed weight$"),
        (
            Stage.LEGAL,
            unknown_operator,
            "^erfinv_default calls aten.erfinv.default, which legalize should have replaced or ref",
        ),
        (Stage.LEGAL, unsplit, "^linear calls quantized_linear, which legalize should have repl"),
        (Stage.LEGAL, other_plan, "^linear says w4a8g8, but the plan says w4a8g8t$"),
    ],
)
def test_each_broken_rule_is_named(
    stage: Stage, damage: Callable[[Program], None], message: str
) -> None:
    program = MAKERS[stage]()
    damage(program)
    with pytest.raises(VerifyError, match=message):
        verify(program)


def test_caches_must_be_inputs() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 2, 8))
    cache = build.input("k_cache_0", (1, 2, "c", 8))
    position = build.input("position", (1,), torch.int64)
    copy = build.call(aten.neg.default, cache)
    y = build.call(ops.attention, x, x, x, cache, copy, position, scale=1.0)
    with pytest.raises(
        VerifyError, match=r"^attention must change caches that are inputs of the graph$"
    ):
        verify(build.finish(y))
