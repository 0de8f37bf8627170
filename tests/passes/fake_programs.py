"""Small fake-quantised language models, and samples to train them on."""

from __future__ import annotations

import torch

from passes.insert_fake_quant import InsertFakeQuant, Learn, Start
from passes.insert_fake_quant import Scales as ScaleKind
from passes.observe_activations import ObserveActivations
from passes.quantize_kv import QuantizeKv
from passes.set_bits import Rule, SetBits
from qcompiler.core.calibration import Calibration
from qcompiler.core.formats import QuantScheme
from qcompiler.core.instruments import CheckShapes
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from tests.machine import machine
from tests.passes.conftest import TinyLlama

TARGET = machine("w*")


def samples(count: int = 20, tokens: int = 24) -> Calibration:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(0, 30, (tokens,), generator=generator) for _ in range(count)]
    return Calibration(samples=tuple((row,) for row in made), source="random tokens")


def run(program: Program, *steps: Pass, context: PassContext | None = None) -> PassContext:
    """Run passes on a program that has facts already, with all checks there are."""
    context = context or PassContext(target=TARGET, calibration=samples())
    facts = frozenset(program.facts)
    Pipeline(steps, start=program.stage, facts=facts).run(program, context, [CheckShapes()])
    return context


def fake_llama(
    scheme: str = "w4a8g32",
    *,
    start: Start = "rtn",
    learn: Learn = "scales",
    scales: ScaleKind = "step",
    kv: str = "kv8",
    layers: int = 2,
) -> Program:
    """Return a small Llama with fake quantisers."""
    torch.manual_seed(0)
    program = TinyLlama(layers=layers).program()
    run(
        program,
        SetBits(rules=(Rule(scheme=scheme),)),
        *([ObserveActivations()] if QuantScheme.parse(scheme).is_static else []),
        QuantizeKv(format=kv),
        InsertFakeQuant(start=start, learn=learn, scales=scales),
    )
    return program
