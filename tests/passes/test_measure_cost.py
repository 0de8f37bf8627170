"""What operators cost: bytes as packed, seconds from timers of the tests' own, and estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from passes.measure_cost import MeasureCost
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import ConfigError, UnsupportedError
from qcompiler.core.facts import Cost
from qcompiler.core.formats import QuantScheme
from qcompiler.core.ops import linear
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from qcompiler.core.target import Speeds, Target
from tests.passes.conftest import HIDDEN, INNER, KV, TARGET, VOCABULARY, Q

LAYER = "model.layers.0"
CHOICES = ("w4a8g32", "w8a8g32")


class Timers:
    """A machine on which a weight of 8 bits takes a nanosecond a number, and of 4 bits half."""

    def __init__(self) -> None:
        self.timed: list[tuple[int, int, str, int, bool]] = []
        self.streams: set[tuple[str, int]] = set()
        self.models: list[Program] = []

    def linear_seconds(
        self,
        n: int,
        k: int,
        scheme: QuantScheme | None,
        tokens: int,
        *,
        gated: bool = False,
        stream_bytes: int = 0,
    ) -> float:
        self.timed.append((n, k, str(scheme), tokens, gated))
        self.streams.add((str(scheme), stream_bytes))
        return 1e-9 * n * k * tokens * (32 if scheme is None else scheme.weight.bits) / 8

    def model_seconds(
        self, programs: Sequence[Program], prompt_tokens: int
    ) -> list[tuple[float, float]]:
        """The first takes a second, or a second a token; each other half a second more."""
        self.models = list(programs)
        return [(1 + i / 2, (1 + i / 2) * prompt_tokens) for i in range(len(programs))]


@pytest.fixture
def program(tiny_llama: Callable[..., Program]) -> Program:
    return tiny_llama()


def cost_of(program: Program, step: MeasureCost, **given: object) -> tuple[Cost, PassContext]:
    context = PassContext(target=TARGET, **given)  # type: ignore[arg-type]
    step.run(program, context)
    return program.facts[Cost], context


def test_bytes_are_those_of_codes_and_scales(program: Program) -> None:
    cost, context = cost_of(program, MeasureCost(choices=CHOICES, time="none"))
    down = cost.choices[f"{LAYER}.mlp.down_proj"]
    assert set(down) == {"w4a8g32", "w8a8g32", "float"}
    assert down["w4a8g32"].bytes == HIDDEN * INNER * 4.5 / 8
    assert down["w8a8g32"].bits == HIDDEN * INNER * 8.5
    assert down["float"].bytes == HIDDEN * INNER * 4
    assert down["w4a8g32"].decode_s is None
    assert cost.weights[f"{LAYER}.mlp.down_proj"] == HIDDEN * INNER
    # A tied table counts once; norms and angles are the rest.
    assert cost.choices["model.embed_tokens"]["w8a8g32"].bits == VOCABULARY * HIDDEN * 8.5
    assert "lm_head" not in cost.choices
    assert cost.rest.bytes == 4 * (3 * HIDDEN + 8)
    assert context.records["measure-cost"]["method"] == "bytes only"


def test_what_is_packed_together_shares_its_padding(program: Program) -> None:
    asked = []

    def packed(n: int, k: int, scheme: QuantScheme | None, *, gated: bool = False) -> int:
        asked.append((n, k, gated))
        return 1000

    cost, _ = cost_of(program, MeasureCost(choices=CHOICES, time="none"), packed_bytes=packed)
    assert (Q + 2 * KV, HIDDEN, False) in asked
    assert (2 * INNER, HIDDEN, True) in asked
    assert cost.choices[f"{LAYER}.self_attn.q_proj"]["w4a8g32"].bytes == 500
    assert cost.choices[f"{LAYER}.mlp.up_proj"]["w4a8g32"].bytes == 500


def test_times_are_of_fused_products_shared_by_outputs(program: Program) -> None:
    timers = Timers()
    cost, context = cost_of(
        program,
        MeasureCost(choices=CHOICES, prompt_tokens=16),
        kernel_timer=timers,
        model_timer=timers,
    )
    assert cost.source == "timer"
    assert (Q + 2 * KV, HIDDEN, "w4a8g32", 1, False) in timers.timed
    assert (2 * INNER, HIDDEN, "w8a8g32", 16, True) in timers.timed
    # Of a prompt, only the last token meets the head.
    assert {t[3] for t in timers.timed if t[0] == VOCABULARY} == {1}
    # No float kernel is timed unless float is a choice.
    assert {t[2] for t in timers.timed} == set(CHOICES)
    k_proj = cost.choices[f"{LAYER}.self_attn.k_proj"]["w4a8g32"]
    assert k_proj.decode_s == pytest.approx(KV * HIDDEN * 0.5e-9)
    assert k_proj.prefill_s == pytest.approx(16 * KV * HIDDEN * 0.5e-9)
    # What the kernels do not explain is the rest; models of one choice take what they took.
    for choice, decode in zip(CHOICES, (1.0, 1.5), strict=True):
        ours = sum(by[choice].decode_s or 0 for by in cost.choices.values())
        assert cost.rest.decode_s == pytest.approx(decode - ours)
        ours = sum(by[choice].prefill_s or 0 for by in cost.choices.values())
        assert cost.rest.prefill_s == pytest.approx(16 * decode - ours)
    assert context.seconds["measure-cost"]["decode"][f"{LAYER}.mlp.up_proj"]["w4a8g32"] > 0
    # What is read between two readings of a weight is the whole model in that scheme.
    total = sum(by["w8a8g32"].bytes for by in cost.choices.values())
    assert ("w8a8g32", total) in timers.streams


def test_there_is_some_rest_where_kernels_take_longer_by_themselves(program: Program) -> None:
    class Slow(Timers):
        def linear_seconds(self, *given: Any, **options: Any) -> float:
            return 1e6 * super().linear_seconds(*given, **options)

    timers = Slow()
    step = MeasureCost(choices=CHOICES, prompt_tokens=16)
    cost, _ = cost_of(program, step, kernel_timer=timers, model_timer=timers)
    assert cost.rest.decode_s == pytest.approx(0.02)
    ours = sum(by["w8a8g32"].decode_s or 0 for by in cost.choices.values())
    assert ours == pytest.approx(1.48)


def test_the_model_that_is_timed_is_what_would_be_compiled(program: Program) -> None:
    timers = Timers()
    step = MeasureCost(choices=CHOICES, prompt_tokens=16)
    before = len(program.graph.nodes)
    cost_of(program, step, kernel_timer=timers, model_timer=timers)
    model, other = timers.models
    assert {str(n.kwargs["scheme"]) for _, n in other.linears()} == {"w8a8g32"}
    assert model.stage is Stage.LEGAL
    names = {name.rpartition(".")[2] for name, _ in model.linears()}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens"}
    assert {str(n.kwargs["scheme"]) for _, n in model.linears()} == {"w4a8g32"}
    # The program itself is as it was.
    assert program.stage is Stage.FLOAT
    assert not program.plan
    assert len(program.graph.nodes) == before
    assert isinstance(program.weights.get(f"{LAYER}.mlp.up_proj.weight"), torch.Tensor)


def test_choices_that_do_not_fit_a_weight_are_left_out(program: Program) -> None:
    cost, _ = cost_of(program, MeasureCost(choices=("w4a8g32", "w4a8g128"), time="none"))
    assert set(cost.choices[f"{LAYER}.mlp.up_proj"]) == {"w4a8g32", "float"}


def test_estimates_grow_with_bytes_for_one_token_and_with_operations_for_a_prompt(
    program: Program,
) -> None:
    target = Target(
        **{f: getattr(TARGET, f) for f in TARGET.__dataclass_fields__ if f != "speeds"},
        speeds=Speeds(bytes=1e9, int8_ops=1e12, float_ops=1e11),
    )
    context = PassContext(target=target)
    MeasureCost(choices=CHOICES, time="roofline", prompt_tokens=64).run(program, context)
    cost = program.facts[Cost]
    up = cost.choices[f"{LAYER}.mlp.up_proj"]
    assert up["w8a8g32"].decode_s == pytest.approx(INNER * HIDDEN * 8.5 / 8 / 1e9)
    assert up["w8a8g32"].prefill_s == up["w8a8g32"].decode_s  # memory still takes longer
    assert cost.rest.prefill_s is not None
    assert cost.rest.decode_s is not None
    assert min(cost.rest.prefill_s, cost.rest.decode_s) > 0
    assert context.records["measure-cost"]["method"] == "roofline"


def test_what_cannot_be_timed_is_said(program: Program) -> None:
    with pytest.raises(UnsupportedError, match="cannot run code for test-machine"):
        MeasureCost(time="timer").run(program, PassContext(target=TARGET))
    with pytest.raises(UnsupportedError, match="says nothing of a machine's speed"):
        MeasureCost(time="roofline").run(program, PassContext(target=TARGET))


def test_other_modules_have_bytes_alone() -> None:
    build = ProgramBuilder({"fc.weight": torch.ones(16, 64)})
    module = build.finish(
        build.call(linear, build.input("x", ("t", 64)), build.weight("fc.weight"))
    )
    cost, _ = cost_of(module, MeasureCost(choices=CHOICES))
    assert cost.choices["fc"]["w4a8g32"].bytes == 16 * 64 * 4.5 / 8
    with pytest.raises(UnsupportedError, match="built is no language model"):
        cost_of(module, MeasureCost(choices=CHOICES, time="timer"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ()}, "no choices"),
        ({"choices": ("int4",)}, "'int4' is not a scheme"),
        ({"prompt_tokens": 1}, "prompt_tokens = 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MeasureCost(**options)  # type: ignore[arg-type]


def test_a_choice_without_kernels_is_refused_before_any_work(program: Program) -> None:
    with pytest.raises(UnsupportedError, match="no kernels for w4g32"):
        MeasureCost(choices=("w4g32",)).run(program, PassContext(target=TARGET))
