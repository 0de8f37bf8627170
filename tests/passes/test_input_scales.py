"""Static scales follow their products through fusions, down to what the kernels are given."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import fx

from passes.fuse_gate_up import FuseGateUp
from passes.fuse_norm import FuseNorm
from passes.fuse_qkv import FuseQkv
from passes.hollow import compiled_form
from passes.input_scales import check_scales, scale_bits, scale_entry, static_products
from passes.legalize import Legalize
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from tests.machine import machine

Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]

LAYER = "model.layers.0"


def planned(
    make: Make, run_pass: Run, scheme: str = "w8a8s", other: dict[str, float] | None = None
) -> Program:
    """Return a planned program with a scale for every product, of which some differ."""
    program = make(biases="q")
    run_pass(program, SetBits(rules=(Rule(scheme=scheme),)))
    for operator, _ in static_products(program):
        scale = (other or {}).get(operator, 0.03)
        program.weights.put(scale_entry(operator), torch.tensor([scale]))
    return program


def quantize(program: Program, run_pass: Run, *steps: Pass) -> PassContext:
    """Round weights without a pipeline that asks where the scales come from."""
    context = PassContext(target=machine("w4a8*", "w8a8*"))
    QuantizeRtn().run(program, context)
    assert QuantizeRtn.yields is not None
    program.stage = QuantizeRtn.yields
    return run_pass(program, *steps)


def calls(program: Program, target: object) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target is target]


@pytest.mark.parametrize("scheme", ["w8a8s", "w4a8g32s", "w4a8g32zs"])
@pytest.mark.parametrize(
    "order",
    [
        (FuseQkv(), FuseGateUp(), FuseNorm()),
        (FuseNorm(), FuseGateUp(), FuseQkv()),
        (FuseQkv(), FuseNorm(), FuseGateUp()),
        (FuseNorm(),),
        (FuseQkv(), FuseGateUp()),
        (),
    ],
    ids=lambda order: "-".join(step.name for step in order) or "none",
)
def test_no_order_of_fusions_changes_anything(
    scheme: str, order: tuple[Pass, ...], tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = planned(tiny_llama, run_pass, scheme)
    quantize(program, run_pass)
    before = logits(program)
    run_pass(program, *order)
    assert torch.equal(logits(program), before)
    run_pass(program, Legalize())
    assert torch.equal(logits(program), before)
    assert not calls(program, ops.quantized_linear)


def test_static_scales_are_read_once_for_all_who_share_them(
    tiny_llama: Make, run_pass: Run, golden: Callable[[Program], None]
) -> None:
    program = planned(tiny_llama, run_pass)
    quantize(program, run_pass, FuseQkv(), FuseNorm(), Legalize())
    golden(program)


def test_a_joined_product_keeps_one_scale(tiny_llama: Make, run_pass: Run) -> None:
    program = planned(tiny_llama, run_pass)
    run_pass(program, FuseQkv(), FuseGateUp())
    names = {name for name in program.weights if name.endswith(".input_scale")}
    assert names == {
        f"{LAYER}.self_attn.qkv_proj.input_scale",
        f"{LAYER}.self_attn.o_proj.input_scale",
        f"{LAYER}.mlp.gate_up_proj.input_scale",
        f"{LAYER}.mlp.down_proj.input_scale",
        "model.embed_tokens.input_scale",
    }
    check_scales(program)


@pytest.mark.parametrize("late", [False, True])
def test_scales_that_differ_keep_products_apart(
    late: bool, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    key = f"{LAYER}.self_attn.k_proj"
    # The next number there is: bits are compared, not values that are near.
    other = float(torch.nextafter(torch.tensor(0.03), torch.tensor(1.0)))
    program = planned(tiny_llama, run_pass, other={key: other})
    if late:
        quantize(program, run_pass)
    context = run_pass(program, FuseQkv())
    (note,) = context.notes["fuse-qkv"]
    assert note.endswith("k_proj, model.layers.0.self_attn.v_proj: kept apart, "
                         "the static scales of what they read differ")  # fmt: skip
    if not late:
        quantize(program, run_pass)
    before = logits(program)
    context = run_pass(program, FuseNorm())
    assert "its users quantise it in different ways" in context.notes["fuse-norm"][0]
    run_pass(program, Legalize())
    # One for q and v, one for k, one for o, one for down; the other two are in norms.
    assert len(calls(program, ops.quantize)) == 4
    assert torch.equal(logits(program), before)


def test_products_of_norms_have_them_quantise(tiny_llama: Make, run_pass: Run) -> None:
    program = planned(tiny_llama, run_pass, other={f"{LAYER}.mlp.down_proj": 0.5})
    quantize(program, run_pass, FuseNorm(), Legalize())
    assert len(calls(program, ops.rms_norm_quantize)) == 3
    scales = [node.args[1] for node in calls(program, ops.quantize)]
    assert [getattr(scale, "target", None) for scale in scales] == [
        f"{LAYER}.self_attn.o_proj.input_scale",
        f"{LAYER}.mlp.down_proj.input_scale",
    ]


def test_a_missing_scale_is_named(tiny_llama: Make, run_pass: Run) -> None:
    program = planned(tiny_llama, run_pass)
    program.weights.remove(f"{LAYER}.mlp.up_proj.input_scale")
    message = rf"^'{LAYER}\.mlp\.up_proj' is planned as w8a8s, but the scale of what it reads is "
    with pytest.raises(QCompilerError, match=message):
        check_scales(program)
    with pytest.raises(QCompilerError, match=message):
        quantize(program, run_pass)


@pytest.mark.parametrize("scale", [[0.0], [-1.0], [math.inf], [math.nan], [1e-40], [0.1, 0.1]])
def test_scales_are_positive_numbers(scale: list[float], tiny_llama: Make, run_pass: Run) -> None:
    program = planned(tiny_llama, run_pass)
    program.weights.put(f"{LAYER}.mlp.up_proj.input_scale", torch.tensor(scale))
    with pytest.raises(
        QCompilerError, match=r"^the scale '.*up_proj\.input_scale' is \[.*\], which"
    ):
        check_scales(program)
    with pytest.raises(QCompilerError, match=r"is not one positive, finite number"):
        quantize(program, run_pass)


def test_codes_may_be_stored_wider(tiny_llama: Make, run_pass: Run, logits: Logits) -> None:
    program = planned(tiny_llama, run_pass, "w3a8g32s")
    quantize(program, run_pass)
    before = logits(program)
    run_pass(program, FuseQkv(), Legalize(widen=True))
    assert {str(scheme) for scheme in program.plan.values()} == {"w4a8g32s"}
    assert torch.equal(logits(program), before)


def test_a_program_without_values_needs_no_scales(tiny_llama: Make) -> None:
    program = tiny_llama()
    plan = {
        operator: QuantScheme.parse("w4a8g32s")
        for operator, _ in program.linears()
        if "proj" in operator
    }
    form = compiled_form(program, plan, machine("w4a8*"))
    assert len(calls(form, ops.rms_norm_quantize)) == 2
    assert "model.layers.0.self_attn.q_proj.input_scale" not in program.weights


def test_bits_tell_scales_apart() -> None:
    one = torch.tensor([0.1])
    assert scale_bits(one) == scale_bits(one.clone())
    assert scale_bits(one) != scale_bits(torch.nextafter(one, one + 1))
