"""A copy of a program without its matrices, to try out what it would become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from passes.fuse_epilogue import FuseEpilogue
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_norm import FuseNorm
from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.input_scales import scale_entry, static_products
from passes.legalize import Legalize
from passes.planned import planned_weights, put_codes
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program, operator_name
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target
from qcompiler.core.weights import WeightStore

FUSE: tuple[Pass, ...] = (FuseQkv(), FuseGateUp(), FuseEpilogue(), FuseRope(), FuseNorm())


def hollow_copy(program: Program) -> Program:
    """Return a copy that can be changed, whose matrices have shapes and no values.

    Other weights, such as those of norms, are the program's own. Nothing is read.
    """
    store = WeightStore([_Hollow(program.weights)])
    for alias, entry in program.weights.aliases.items():
        store.alias(alias, entry)
    return program.copy(weights=store, facts={})


def quantize_hollow(program: Program) -> None:
    """Give every planned weight of a hollow program its format: codes without values.

    Scales that are static and not known yet are made up.
    """
    for operator, _ in static_products(program):
        if scale_entry(operator) not in program.weights:
            program.weights.put(scale_entry(operator), torch.ones(1))
    planned = planned_weights(program)
    codes = {}
    for entry, weight in planned.items():
        n, k = program.weights.shape(entry)
        codes[entry] = QuantizedTensor.hollow(n, k, weight.scheme.weight)
    put_codes(program, planned, codes)


def compiled_form(program: Program, plan: Mapping[str, QuantScheme], target: Target) -> Program:
    """Return what would be compiled for a plan: a LEGAL program whose matrices have no values.

    The plan is by operators as facts name them.
    """
    copy = hollow_copy(program)
    names = {
        operator_name(str(node.target)): operator_name(copy.weights.resolve(str(node.target)))
        for node in copy.graph.nodes
        if node.op == "get_attr"
    }
    for name, operator in names.items():
        if operator in plan:
            copy.plan[name] = plan[operator]
    quantize_hollow(copy)
    copy.stage = Stage.QUANTIZED
    Pipeline((*FUSE, Legalize(widen=True)), start=Stage.QUANTIZED).run(
        copy, PassContext(target=target)
    )
    return copy


@dataclass(frozen=True)
class _Hollow:
    """The entries of another store, matrices of floats without their values."""

    store: WeightStore

    def names(self) -> Iterable[str]:
        return iter(self.store)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.store.dtype(name)

    def read(self, name: str) -> torch.Tensor:
        shape, dtype = self.store.shape(name), self.store.dtype(name)
        if len(shape) == 2 and dtype.is_floating_point:
            return torch.empty(shape, dtype=dtype, device="meta")
        return self.store.tensor(name)
