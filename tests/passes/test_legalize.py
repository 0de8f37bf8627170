"""The last step: activations quantised where they are used, and everything checked for a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from passes.fuse_norm import FuseNorm
from passes.legalize import Legalize
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.legal import LEGAL_ATEN, has_lowering
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target

aten = torch.ops.aten
Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]

W4 = SetBits(rules=(Rule(scheme="w4a8g32"),))


def count(program: Program, *targets: Callable[..., object]) -> list[int]:
    return [sum(n.target is target for n in program.graph.nodes) for target in targets]


def test_activations_are_quantised_once_for_all_who_want_them_alike(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="k")
    run_pass(program, W4, QuantizeRtn())
    before = logits(program)
    run_pass(program, Legalize())
    assert program.stage is Stage.LEGAL
    golden(program)
    assert torch.equal(logits(program), before)


def test_a_float_program_becomes_legal_as_it_is(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    before = logits(program)
    run_pass(program, Legalize())
    assert program.stage is Stage.LEGAL
    assert torch.equal(logits(program), before)


@pytest.mark.parametrize(
    ("values", "quantized"),
    [
        ("w4a8g32", 4),  # one for q, k and v; o; gate and up; down; the head floats
        ("w4a8g32t", 5),  # per token, but sums over other groups of the values' weight
        ("w8a8", 5),
        ("w8a8g32z", 4),  # another weight, but activations as before
    ],
)
def test_codes_are_shared_only_among_equal_groups(
    values: str, quantized: int, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    rules = (
        Rule(scheme="w4a8g32"),
        Rule(pattern="*.v_proj", scheme=values),
        Rule(kind="head", scheme="float"),
    )
    run_pass(program, SetBits(rules=rules), QuantizeRtn())
    before = logits(program)
    run_pass(program, Legalize())
    assert count(program, ops.quantize, ops.quantized_linear) == [quantized, 0]
    assert torch.equal(logits(program), before)


def test_activations_that_are_quantised_already_stay(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    run_pass(program, W4, QuantizeRtn(), FuseNorm())
    before = logits(program)
    run_pass(program, Legalize())
    assert count(program, ops.rms_norm_quantize, ops.quantize) == [3, 2]
    assert torch.equal(logits(program), before)


@pytest.mark.parametrize(
    ("scheme", "wide"),
    [("w2a8g8", "w4a8g8"), ("w3a8g32z", "w4a8g32z"), ("w5a8", "w8a8"), ("w7a8g32t", "w8a8g32t")],
)
def test_codes_may_be_stored_wider(
    scheme: str, wide: str, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama(tied=False)
    run_pass(program, SetBits(rules=(Rule(scheme=scheme),)), QuantizeRtn())
    before = logits(program)
    context = run_pass(program, Legalize(widen=True))
    assert {str(s) for s in program.plan.values()} == {wide}
    weight = program.weights.get("lm_head.weight")
    assert isinstance(weight, QuantizedTensor)
    assert int(weight.codes.max()) < 1 << int(scheme[1])
    assert torch.equal(logits(program), before)
    assert f"lm_head: {scheme} stored as {wide}" in context.notes["legalize"]
    assert len(context.notes["legalize"]) == 9


def test_a_tied_weight_is_widened_once(tiny_llama: Make, run_pass: Run, logits: Logits) -> None:
    program = tiny_llama(tied=True)
    run_pass(program, SetBits(rules=(Rule(kind="head", scheme="w3a8"),)), QuantizeRtn())
    before = logits(program)
    run_pass(program, Legalize(widen=True))
    assert {k: str(v) for k, v in program.plan.items()} == {"model.embed_tokens": "w4a8"}
    assert torch.equal(logits(program), before)


def test_narrow_codes_are_not_widened_unasked(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    run_pass(program, SetBits(rules=(Rule(scheme="w3a8g32"),)), QuantizeRtn())
    with pytest.raises(
        UnsupportedError,
        match=r"^test-machine has no kernels for w3a8g32, wanted for 'model\.embed_tokens'; use "
        r"w4a8g32, or give legalize the option widen = true to store the same codes in 4 bits$",
    ):
        run_pass(program, Legalize())


def test_schemes_without_kernels_are_refused_before_work_that_takes_long(
    tiny_llama: Make, run_pass: Run
) -> None:
    program = tiny_llama()
    context = run_pass(program, SetBits(rules=(Rule(scheme="w3a8g32"),)))
    with pytest.raises(UnsupportedError, match="no kernels for w3a8g32"):
        Legalize().check_program(program, context)
    Legalize(widen=True).check_program(program, context)


def test_another_target_may_lack_kernels(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    context = run_pass(program, W4, QuantizeRtn())
    other: Target = replace(context.target, name="other", schemes=("w8a8*",))
    with pytest.raises(
        UnsupportedError,
        match=r"^other has no kernels for w4a8g32, wanted for 'model\.embed_tokens'; the nearest "
        r"there is: w8a8g32$",
    ):
        run_pass(program, Legalize(), target=other)


def test_weights_without_activations_are_refused(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(tied=False)
    liberal: Target = replace(run_pass(program).target, schemes=("w4*",))
    rules = (Rule(kind="linear", scheme="w4g32"),)
    run_pass(program, SetBits(rules=rules), QuantizeRtn(), target=liberal)
    with pytest.raises(
        UnsupportedError,
        match=r"no kernels for w4g32, wanted for 'model\.layers\.0\.self_attn\.q_proj'; the "
        r"nearest there is: w4a8g32$",
    ):
        run_pass(program, Legalize())


def strange(meta: dict[str, object]) -> Program:
    build = ProgramBuilder({})
    y = build.call(aten.erfinv.default, build.input("x", (1, "s", 8)))
    y.meta.update(meta)
    return build.finish(y)


@pytest.mark.parametrize(
    ("meta", "origin"),
    [
        ({}, r"\(erfinv_default\)"),
        (
            {
                "nn_module_stack": {"a": ("", "Model"), "b": ("model.layers.3.mlp", "Mlp")},
                "stack_trace": 'File "/a/b.py", line 1, in f\n  g()\nFile "/a/mlp.py", line 77\n',
            },
            r"\(erfinv_default, from module model\.layers\.3\.mlp, mlp\.py line 77\)",
        ),
    ],
)
def test_an_operator_without_kernel_is_named(
    meta: dict[str, object], origin: str, run_pass: Run
) -> None:
    with pytest.raises(
        UnsupportedError,
        match=rf"^operator aten\.erfinv\.default {origin} has no kernel yet; write that part of ",
    ):
        run_pass(strange(meta), Legalize())


def test_what_is_legal() -> None:
    assert all(isinstance(target, torch._ops.OpOverload) for target in LEGAL_ATEN)
    assert has_lowering(aten.add.Tensor)
    assert has_lowering(ops.quantized_matmul)
    assert has_lowering(ops.quantized_linear)  # of float activations, which GPUs have kernels for
    assert not has_lowering(ops.fake_quantize)
    assert not has_lowering(aten.add_.Tensor)
    assert not has_lowering(torch.add)
