"""What a pipeline would choose for a model, and what else it could have chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from passes.allocate_bits import AllocateBits
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Allocation, Cost, PlanPoint
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program

TITLES = {
    "bits_per_weight": "bits per weight",
    "bytes": "bytes of weights",
    "decode_ms": "ms per token",
    "prefill_ms": "ms per prompt",
}


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """A plan with its predictions; `notes` say what the allocator did not decide.

    `times` says where milliseconds are from: "timer", "roofline" or "" where there are none;
    `prompt_tokens` is the length of the prompt that they count.
    """

    model: str
    target: str
    allocation: Allocation
    times: str
    prompt_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> PlanPoint:
        return PlanPoint(loss=self.allocation.loss, totals=self.allocation.totals)

    @property
    def unit(self) -> str:
        """What predicted losses are counted in."""
        return "relative" if self.allocation.relative else "nats per token"

    @property
    def over(self) -> str:
        """The budget that the front goes along."""
        return next(iter(self.allocation.budgets))

    @property
    def counts(self) -> Mapping[str, int]:
        """How many operators have each scheme."""
        return dict(Counter(self.allocation.plan.values()).most_common())


def until_allocated(steps: Pipeline, source: str) -> Pipeline:
    """Return the part of a pipeline that ends with `allocate-bits`.

    Raises:
        ConfigError: it has none.
    """
    places = [i for i, step in enumerate(steps.steps) if isinstance(step, AllocateBits)]
    if not places:
        raise ConfigError(
            f"{source} has no 'allocate-bits', which shares bits out; use the pipeline 'balanced', "
            "or put that pass into yours"
        )
    return Pipeline(steps.steps[: places[-1] + 1])


def describe_plan(program: Program, target: str, notes: Mapping[str, list[str]]) -> BitPlan:
    """Return what is known of a program that has been planned."""
    cost = program.facts.get(Cost)
    return BitPlan(
        model=program.info.name,
        target=target,
        allocation=program.facts[Allocation],
        times="" if cost is None else cost.source,
        prompt_tokens=0 if cost is None else cost.prompt_tokens,
        notes=tuple(notes.get(AllocateBits.name, ())),
    )
