"""What the compiler itself adds to a report."""

from __future__ import annotations

import pytest
import torch

from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import ModelInfo, Program
from qcompiler.report.content import encode, parse
from qcompiler.report.facts import calibration_facts, describe, operator_facts
from targets import TARGETS

LM = ModelInfo(name="lm", kind="causal-lm", architecture="built", vocab_size=100, max_context=8)
MODULE = ModelInfo(name="module", kind="module", architecture="built")


@pytest.fixture
def program() -> Program:
    build = ProgramBuilder({"table.weight": torch.randn(7, 64), "fc.weight": torch.randn(3, 64)})
    build.weights.alias("head.weight", "table.weight")
    x = build.call(
        ops.embedding, build.input("ids", (1, "s"), torch.int64), build.weight("table.weight")
    )
    tied = build.call(ops.linear, x, build.weight("head.weight"))
    own = build.call(ops.linear, x, build.weight("fc.weight"))
    return build.finish(build.call(torch.ops.aten.cat.default, [tied, own], -1))


def test_operators_are_described_as_they_are_stored(program: Program) -> None:
    context = PassContext(target=TARGETS[0])
    rules = (Rule(scheme="w4a8g32"), Rule(pattern="fc", scheme="float"))
    Pipeline((SetBits(rules=rules), QuantizeRtn())).run(program, context)
    assert operator_facts(program) == {
        "table": {"shape": [7, 64], "scheme": "w4a8g32", "bits_per_weight": 4.5},
        "fc": {"shape": [3, 64], "scheme": None, "bits_per_weight": 32.0},
    }


def test_calibration_says_how_much_of_the_vocabulary_it_covers() -> None:
    samples = tuple((torch.tensor(ids),) for ids in ([1, 2, 3], [3, 3, 4, 99]))
    calibration = Calibration(samples=samples, source="a list", generated=True)
    assert calibration_facts(calibration, LM) == {
        "source": "a list",
        "generated": True,
        "samples": 2,
        "digest": calibration.digest,
        "tokens": 7,
        "distinct_tokens": 5,
        "vocabulary": 100,
    }
    assert "tokens" not in calibration_facts(calibration, MODULE)


def test_clocks_are_left_out(program: Program) -> None:
    """What depends on the clock is no part of the content, which is the same each time."""
    context = PassContext(target=TARGETS[0])
    context.record("measure-cost", "bytes", {"fc": {"w4a8g32": 108}})
    context.record_seconds("measure-cost", "decode", {"fc": {"w4a8g32": 1e-6}})
    context.note("measure-cost", "fc is small")
    written = encode(describe(program, context, [{"name": "measure-cost"}]))
    assert b"decode" not in written
    report = parse(describe(program, context, []), {"records": context.seconds})
    (costs,) = report.costs()
    assert costs.bytes == {"fc": {"w4a8g32": 108}}
    assert costs.decode == {"fc": {"w4a8g32": 1e-6}}
    assert report.notes == {"measure-cost": ["fc is small"]}
    assert report.calibration is None
