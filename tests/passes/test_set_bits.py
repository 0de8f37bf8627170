"""Planning by name: which rule decides, what is refused before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import ConfigError, UnsupportedError
from qcompiler.core.options import build_pass, spec
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten
Make = Callable[..., Program]
Run = Callable[..., PassContext]

LAYER = "model.layers.0"


def plan(program: Program) -> dict[str, str]:
    return {name: str(scheme) for name, scheme in program.plan.items()}


def set_bits(*rules: Rule) -> SetBits:
    return SetBits(rules=rules)


def test_one_rule_plans_everything(
    tiny_llama: Make, run_pass: Run, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama()
    run_pass(program, set_bits(Rule(scheme="w4a8g32")))
    assert program.stage is Stage.PLANNED
    assert set(plan(program).values()) == {"w4a8g32"}
    golden(program)


def test_planning_changes_no_result(
    tiny_llama: Make, run_pass: Run, logits: Callable[[Program], torch.Tensor]
) -> None:
    program = tiny_llama()
    before = logits(program)
    run_pass(program, set_bits(Rule(scheme="w4a8g32")))
    assert torch.equal(logits(program), before)


def test_the_last_rule_that_matches_decides(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(layers=2, tied=False)
    run_pass(
        program,
        set_bits(
            Rule(scheme="w4a8g32"),
            Rule(pattern="*.mlp.*", scheme="w8a8"),
            Rule(pattern="model.layers.1.mlp.down_proj", scheme="w4a8g8z"),
            Rule(pattern="model.layers.[0]*.v_proj", scheme="float"),
        ),
    )
    planned = plan(program)
    assert planned["model.layers.0.self_attn.q_proj"] == "w4a8g32"
    assert planned["model.layers.0.mlp.down_proj"] == "w8a8"
    assert planned["model.layers.1.mlp.down_proj"] == "w4a8g8z"
    assert planned["model.layers.1.self_attn.v_proj"] == "w4a8g32"
    assert "model.layers.0.self_attn.v_proj" not in planned


def test_rules_may_ask_for_a_kind(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(tied=False)
    run_pass(
        program,
        set_bits(
            Rule(kind="linear", scheme="w4a8g32"),
            Rule(kind="embedding", scheme="w8"),
            Rule(kind="head", scheme="w8a8"),
        ),
    )
    planned = plan(program)
    assert planned.pop("model.embed_tokens") == "w8"
    assert planned.pop("lm_head") == "w8a8"
    assert set(planned.values()) == {"w4a8g32"}
    assert len(planned) == 7


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_tied_table_goes_by_both_names(name: str, tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(tied=True)
    run_pass(program, set_bits(Rule(pattern=name, scheme="w8a8")))
    assert plan(program) == {"model.embed_tokens": "w8a8"}


def test_without_a_rule_operators_stay_float_or_as_planned(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    first = set_bits(Rule(pattern="*.mlp.*", scheme="w4a8g32"))
    run_pass(program, first, set_bits(Rule(pattern="*.up_proj", scheme="w8a8")))
    assert plan(program) == {
        f"{LAYER}.mlp.gate_proj": "w4a8g32",
        f"{LAYER}.mlp.up_proj": "w8a8",
        f"{LAYER}.mlp.down_proj": "w4a8g32",
    }
    run_pass(program, set_bits(Rule(scheme="float")))
    assert plan(program) == {}


def test_weights_that_are_read_as_numbers_stay_float(run_pass: Run) -> None:
    build = ProgramBuilder({"fc.weight": torch.eye(8)})
    x = build.input("x", (1, "s", 8))
    weight = build.weight("fc.weight")
    y = build.call(ops.linear, x, weight)
    program = build.finish(
        build.call(aten.add.Tensor, y, build.call(aten.sum.dim_IntList, weight, [0]))
    )
    context = run_pass(program, set_bits(Rule(scheme="w8a8")))
    assert plan(program) == {}
    assert context.notes == {
        "set-bits": ["fc: stays float, its weight is also read by aten.sum.dim_IntList"]
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Rule(pattern="model.layer.*.mlp.up", scheme="w8a8"),
            r"^pass 'set-bits': the pattern 'model.layer.\*.mlp.up' matches no operator; names "
            r"near it: model.layers.0.mlp.up_proj",
        ),
        (
            Rule(pattern="model.layers.0.mlp.*", kind="embedding", scheme="w8a8"),
            r"what the pattern 'model.layers.0.mlp.\*' matches is no embedding; leave kind out",
        ),
        (
            Rule(pattern="*.q_proj", scheme="w4a8g128"),
            r"^the group of w4a8g128 does not fit 'model.layers.0.self_attn.q_proj', which has 64 "
            r"input features; sizes that fit: 8, 16, 32, 64; or leave it float with \{pattern = 'm",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    rule: Rule, message: str, tiny_llama: Make, run_pass: Run
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_pass(tiny_llama(), set_bits(rule))
    assert "\n" not in str(caught.value)


def test_inputs_that_no_group_fits(run_pass: Run) -> None:
    build = ProgramBuilder({"fc.weight": torch.zeros(16, 20)})
    x = build.input("x", (1, "s", 20))
    program = build.finish(build.call(ops.linear, x, build.weight("fc.weight")))
    with pytest.raises(
        ConfigError,
        match=r"^'fc' has 20 input features, and only multiples of 8 can be quantised; narrow the "
        r"patterns, or leave it float with \{pattern = 'fc', scheme = 'float'\}$",
    ):
        run_pass(program, set_bits(Rule(scheme="w8a8")))
    run_pass(program, set_bits(Rule(scheme="w8a8"), Rule(pattern="fc", scheme="float")))


def test_a_model_without_operators(run_pass: Run) -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 20))
    program = build.finish(build.call(aten.neg.default, x))
    run_pass(program, set_bits(Rule(scheme="w8a8")))
    program.stage = Stage.FLOAT
    with pytest.raises(
        ConfigError, match=r"names near it: none, for it has no weights to quantise$"
    ):
        run_pass(program, set_bits(Rule(pattern="fc", scheme="w8a8")))


def test_the_target_must_have_kernels(tiny_llama: Make, run_pass: Run) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"^test-machine has no kernels for w4g32, wanted for 'model.embed_tokens'; the "
        r"nearest there is: w4a8g32$",
    ):
        run_pass(tiny_llama(), set_bits(Rule(scheme="w4g32")))
    # Narrow codes can be stored in wider ones, which legalize decides.
    run_pass(tiny_llama(), set_bits(Rule(scheme="w3a8g32")))


def test_a_table_alone_needs_no_activations(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(tied=False)
    run_pass(program, set_bits(Rule(kind="embedding", scheme="w8g32")))
    with pytest.raises(UnsupportedError, match="no kernels for w8g32, wanted for 'lm_head'"):
        run_pass(program, set_bits(Rule(kind="head", scheme="w8g32")))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "^pass 'set-bits': there are no rules; give at least one"),
        ([{"pattern": "*"}], r"^pass 'set-bits': the option 'scheme' of rules\[0\] is missing$"),
        ([{"scheme": "int4"}], r"^pass 'set-bits': rules\[0\]: 'int4' is not a scheme; write"),
        ([{"scheme": "w4a8g12"}], r"rules\[0\]: group size 12 is not supported; choose"),
        ([{"scheme": "w8a8", "pattern": ""}], r"rules\[0\]: an empty pattern matches nothing"),
        (
            [{"scheme": "w8a8"}, {"scheme": "w8a8", "kind": "conv"}],
            r"unknown rules\[1\]\.kind 'conv'; known: any, embedding, head, linear$",
        ),
        ({"*": "w8a8"}, r"'rules' must be a list \[…\], not a table$"),
    ],
)
def test_mistakes_in_rules_are_found_when_they_are_read(rules: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pass("set-bits", {"rules": rules}, {"set-bits": SetBits})


def test_rules_come_back_from_their_spec() -> None:
    step = set_bits(Rule(scheme="w4a8g32"), Rule(pattern="a.*", kind="linear", scheme="float"))
    said = spec(step)
    assert said == {
        "name": "set-bits",
        "rules": [
            {"scheme": "w4a8g32"},
            {"pattern": "a.*", "kind": "linear", "scheme": "float"},
        ],
    }
    assert build_pass("set-bits", {"rules": said["rules"]}, {"set-bits": SetBits}) == step


def test_only_language_models_have_heads(run_pass: Run, tiny_llama: Make) -> None:
    program = tiny_llama(tied=False)
    program.info = replace(program.info, kind="module")
    run_pass(program, set_bits(Rule(kind="head", scheme="w8a8")))
    assert plan(program) == {}


def test_a_product_inside_the_model_is_no_head_whatever_its_size(
    run_pass: Run, tiny_llama: Make
) -> None:
    program = tiny_llama()
    program.info = replace(program.info, vocab_size=96)  # as many as gate_proj gives
    run_pass(program, set_bits(Rule(kind="head", scheme="w8a8")))
    assert plan(program) == {}
