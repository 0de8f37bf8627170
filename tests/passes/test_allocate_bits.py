"""Plans keep budgets, groups and pins; what cannot be is said before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from passes.allocate_bits import AllocateBits
from passes.bit_choices import Budget
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQkv
from passes.fused_products import fused_products
from passes.measure_cost import MeasureCost
from passes.measure_sensitivity import MeasureSensitivity
from passes.quantizable import quantizable
from passes.quantize_rtn import QuantizeRtn
from passes.rules import Rule
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Allocation, Sensitivity
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from tests.passes.conftest import HIDDEN, TARGET

CHOICES = ("w4a8g64", "w4a8g32", "w8a8g32")
LAYER = "model.layers.0"
HEAD = (Rule(kind="embedding", scheme="w8a8g32"), Rule(kind="head", scheme="w8a8g32"))
ALLOCATORS = ("milp", "greedy", "uniform", "closed-form")


@pytest.fixture
def measured(tiny_llama: Callable[..., Program]) -> Program:
    """A program of two layers; what is later, and in `down_proj`, is more sensitive."""
    program = tiny_llama(layers=2)
    loss = {}
    for place, weight in enumerate(quantizable(program).values(), start=1):
        size = place**2 * (9 if "down" in weight.operator else 1) * weight.shape[0]
        loss[weight.operator] = {
            text: size * 4.0 ** -scheme.weight.bits_per_weight(weight.shape[1])
            for text, scheme in weight.schemes(CHOICES).items()
        }
    program.facts[Sensitivity] = Sensitivity(metric="made up", loss=loss)
    return program


def allocate(program: Program, *, time: str = "none", **options: Any) -> Allocation:
    context = PassContext(target=TARGET)
    step = {"budget": Budget(bits_per_weight=5.0), "choices": CHOICES, "pins": HEAD}
    MeasureCost(choices=CHOICES, time=time).run(program, context)  # type: ignore[arg-type]
    AllocateBits(**{**step, **options}).run(program, context)
    program.stage = Stage.PLANNED
    found: Allocation = program.facts[Allocation]
    return found


def bits_per_weight(program: Program) -> float:
    """Count what is planned, the pinned head aside."""
    bits = weights = 0.0
    for name, weight in quantizable(program).items():
        if "embed" in name:
            continue
        n, k = weight.shape
        bits += n * k * program.plan[weight.operator].weight.bits_per_weight(k)
        weights += n * k
    return bits / weights


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_plan_keeps_its_budget(measured: Program, allocator: str) -> None:
    found = allocate(measured, allocator=allocator)
    assert found.totals["bits_per_weight"] == pytest.approx(bits_per_weight(measured))
    assert found.totals["bits_per_weight"] <= 5.0
    assert found.budgets == {"bits_per_weight": 5.0}


def test_more_sensitive_operators_get_more_bits(measured: Program) -> None:
    allocate(measured, budget=Budget(bits_per_weight=6.0))
    down = [str(measured.plan[f"model.layers.{i}.mlp.down_proj"]) for i in (0, 1)]
    assert down[1] == "w8a8g32"
    assert str(measured.plan[f"{LAYER}.self_attn.q_proj"]) != "w8a8g32"


def test_products_that_become_one_share_a_scheme_and_are_joined(
    measured: Program, run_pass: Callable[..., PassContext]
) -> None:
    groups = fused_products(measured)
    found = allocate(measured, budget=Budget(bits_per_weight=6.0))
    assert len(groups) == 4
    for group in groups:
        assert len({found.plan[name] for name in group.operators}) == 1
    context = run_pass(measured, QuantizeRtn(), FuseQkv(), FuseGateUp())
    assert not [text for text in context.notes["fuse-qkv"] if "kept apart" in text]
    assert not [text for text in context.notes["fuse-gate-up"] if "kept apart" in text]


def test_pins_hold_for_all_names_of_a_tied_weight_and_for_what_it_is_joined_with(
    measured: Program,
) -> None:
    pins = (*HEAD, Rule(pattern="*.1.*.k_proj", scheme="w8a8g32"))
    found = allocate(measured, pins=pins)
    assert found.plan["model.embed_tokens"] == "w8a8g32"
    assert measured.plan["model.embed_tokens"] == QuantScheme.parse("w8a8g32")
    for letter in "qkv":
        assert found.plan[f"model.layers.1.self_attn.{letter}_proj"] == "w8a8g32"
    # They are not counted in the bits that were shared out.
    loose = allocate(measured, pins=pins, budget=Budget(bits_per_weight=4.28))
    assert loose.totals["bits_per_weight"] <= 4.28


def test_float_is_a_choice(measured: Program) -> None:
    found = allocate(measured, choices=(*CHOICES, "float"), budget=Budget(bits_per_weight=31.0))
    assert "float" in found.plan.values()
    assert {n for n, s in found.plan.items() if s == "float"}.isdisjoint(measured.plan)


def test_budgets_of_bytes_count_the_whole_model(measured: Program) -> None:
    free = allocate(measured, budget=Budget(bits_per_weight=8.5))
    limit = free.totals["bytes"] * 0.7
    found = allocate(measured, budget=Budget(bytes=limit))
    assert found.totals["bytes"] <= limit
    norms = 4 * (5 * HIDDEN + 8)
    weights = sum(
        w.shape[0] * w.shape[1] * measured.plan[w.operator].weight.bits_per_weight(w.shape[1]) / 8
        for w in quantizable(measured).values()
    )
    assert found.totals["bytes"] == pytest.approx(norms + weights)


def test_the_front_is_shown_beside_what_simpler_ways_find(measured: Program) -> None:
    found = allocate(measured)
    assert len(found.front) > 5
    labels = {point.label for point in found.others}
    assert {"uniform w4a8g64", "uniform w8a8g32", "greedy", "closed form"} <= labels
    best = {p.totals["bits_per_weight"]: p.loss for p in found.front}
    uniform = {p.label: p for p in found.others if p.label.startswith("uniform")}
    assert min(best.values()) <= uniform["uniform w8a8g32"].loss * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": Budget(bits_per_weight=3.0)}, r"the least is 4\.\d\d bits per weight"),
        ({"budget": Budget(bytes=10.0)}, r"the least is 0\.\d\d MB"),
        ({"budget": Budget(decode_ms=1.0)}, "nothing is known of the decode_ms"),
        (
            {
                "pins": (
                    Rule(pattern="*.0.*.q_proj", scheme="w4a8g32"),
                    Rule(pattern="*.0.*.k_proj", scheme="w8a8g32"),
                )
            },
            "pins contradict each other: .*q_proj' to w4a8g32, .*k_proj' to w8a8g32",
        ),
        ({"pins": (Rule(pattern="*.fc1", scheme="float"),)}, r"'\*\.fc1' matches no operator"),
    ],
)
def test_what_cannot_be_is_said(measured: Program, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allocate(measured, **options)


def test_an_operator_that_was_not_measured_is_named(measured: Program) -> None:
    loss = dict(measured.facts[Sensitivity].loss)
    del loss[f"{LAYER}.mlp.up_proj"]
    measured.facts[Sensitivity] = Sensitivity(metric="made up", loss=loss)
    with pytest.raises(ConfigError, match=f"'{LAYER}.mlp.up_proj' has not been measured"):
        allocate(measured)


SENSITIVITY = MeasureSensitivity(choices=CHOICES)
BYTES = MeasureCost(choices=CHOICES, time="none")
BITS = Budget(bits_per_weight=5.0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((AllocateBits(budget=BITS),), "step 1 'allocate-bits' needs Sensitivity"),
        (
            (SENSITIVITY, AllocateBits(budget=BITS, choices=("w3a8g32",))),
            r"unknown choice 'w3a8g32'; .*\(the choices of 'measure-sensitivity'\)",
        ),
        (
            (SENSITIVITY, AllocateBits(budget=Budget(bytes=1e6))),
            "a budget of bytes needs 'measure-cost' before it",
        ),
        (
            (SENSITIVITY, BYTES, AllocateBits(budget=Budget(decode_ms=5))),
            "a budget of decode_ms needs times",
        ),
        (
            (
                SENSITIVITY,
                MeasureCost(choices=("w4a8g64",)),
                AllocateBits(budget=Budget(decode_ms=5)),
            ),
            "'measure-cost' does not time w4a8g32",
        ),
    ],
)
def test_pipelines_that_cannot_work_cannot_be_built(steps: tuple[Pass, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline(steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a budget is empty"),
        ({"bytes": -1.0}, "bytes = -1 is no budget"),
        ({"bits_per_weight": float("nan")}, "bits_per_weight = nan is no budget"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ()}, "no choices"),
        ({"choices": ("w4a8", "w4a8")}, "given twice"),
        ({"choices": ("int4",)}, "'int4' is not a scheme"),
        ({"front": -1}, "front = -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AllocateBits(budget=BITS, **options)


def test_what_is_read_is_recorded_for_the_report(measured: Program) -> None:
    context = PassContext(target=TARGET)
    AllocateBits(budget=BITS, choices=CHOICES, pins=HEAD).run(measured, context)
    record = context.records["allocate-bits"]
    assert record["chosen"]["bits_per_weight"] <= 5.0
    assert record["objective"] >= record["bound"]
    assert record["front"][0].keys() == {"loss", "bits_per_weight"}
    assert record["others"]["uniform w8a8g32"][0]["bits_per_weight"] == pytest.approx(8.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": Budget(bits_per_weight=2.0)}, "cannot be met: the least is"),
        ({"budget": Budget(bytes=10.0)}, "cannot be met: the least is"),
        (
            {
                "pins": (
                    Rule(pattern="*.q_proj", scheme="w8a8g32"),
                    Rule(pattern="*.k_proj", scheme="w4a8g64"),
                )
            },
            "pins contradict each other",
        ),
        ({"pins": (Rule(pattern="*.nothing", scheme="w8a8g32"),)}, "matches no operator"),
        ({"pins": (Rule(pattern="*.q_proj", scheme="w8a8g256"),)}, "does not fit"),
    ],
)
def test_what_cannot_be_is_said_before_losses_are_measured(
    options: dict[str, Any], message: str, tiny_llama: Callable[..., Program]
) -> None:
    steps = (
        MeasureCost(choices=CHOICES, time="none"),
        MeasureSensitivity(choices=CHOICES),  # would say that it lacks samples
        AllocateBits(**{"budget": Budget(bits_per_weight=5.0), "choices": CHOICES, **options}),
    )
    with pytest.raises(ConfigError, match=message):
        Pipeline(steps).run(tiny_llama(), PassContext(target=TARGET))
