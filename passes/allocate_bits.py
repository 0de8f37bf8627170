"""Choose each operator's scheme so that the predicted loss is least within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from passes.allocation import Problem, Solution, check_budgets, front, merge, solve
from passes.allocators import closed_form, greedy, uniform, uniform_plans
from passes.bit_choices import (
    FLOAT,
    Budget,
    bits_of,
    build_problem,
    pin_groups,
    pinned_loss,
)
from passes.fused_products import fused_products
from passes.measure_cost import MeasureCost
from passes.measure_sensitivity import MeasureSensitivity
from passes.quantizable import quantizable
from passes.rules import Operator, Rule, check_group, check_matches, check_target, operators
from qcompiler.core.errors import ConfigError, suggest
from qcompiler.core.facts import Allocation, Cost, PlanPoint, Sensitivity
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

Totals = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AllocateBits(Pass):
    """Plan every product with one of the `choices`, so that the predicted loss is least.

    The losses are those of `measure-sensitivity`, and the plan keeps within the `budget`: of
    `bits_per_weight`, or, after `measure-cost`, of `bytes`, `decode_ms` and `prefill_ms`, or of
    several at once. Products that fusing joins get one scheme. Operators that a rule of `pins`
    matches have its scheme (the last that matches decides) and are not counted in bits per weight.
    Tables that multiply nothing stay float unless they are pinned. `allocator` is "milp", the
    optimal one, or another to compare it with; `front` is how many other budgets are tried, for
    the report.
    """

    name: ClassVar[str] = "allocate-bits"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    yields: ClassVar[Stage] = Stage.PLANNED
    needs: ClassVar[frozenset[type[Any]]] = frozenset({Sensitivity})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Allocation})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    budget: Budget
    choices: tuple[str, ...] = ("w4a8g64", "w4a8g32", "w8a8g32")
    pins: tuple[Rule, ...] = ()
    allocator: Literal["milp", "greedy", "uniform", "closed-form"] = "milp"
    front: int = 16

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigError("there are no choices; give at least one, such as 'w4a8g64'")
        if len(set(self.choices)) < len(self.choices):
            raise ConfigError("a choice is given twice")
        for text in self._schemes:
            QuantScheme.parse(text)
        if self.front < 0:
            raise ConfigError(f"front = {self.front} is no number of plans; use 0 or more")

    @property
    def _schemes(self) -> tuple[str, ...]:
        return tuple(text for text in self.choices if text != FLOAT)

    def check_after(self, earlier: Sequence[Pass]) -> None:
        measured = [step for step in earlier if isinstance(step, MeasureSensitivity)]
        for choice in self.choices:
            if choice != FLOAT and measured and choice not in measured[-1].choices:
                raise ConfigError(
                    f"{suggest('choice', choice, [*measured[-1].choices, FLOAT])} "
                    "(the choices of 'measure-sensitivity')"
                )
        counted = [name for name in self.budget.limits if name != "bits_per_weight"]
        if not counted:
            return
        costs = [step for step in earlier if isinstance(step, MeasureCost)]
        if not costs:
            raise ConfigError(f"a budget of {counted[0]} needs 'measure-cost' before it")
        timed = [name for name in counted if name.endswith("_ms")]
        if timed and costs[-1].time == "none":
            raise ConfigError(
                f"a budget of {timed[0]} needs times; leave measure-cost.time = 'none' out"
            )
        needed = [*self.choices, *(rule.scheme for rule in self.pins)]
        for choice in needed if timed else ():
            if choice not in costs[-1].choices:
                raise ConfigError(
                    f"'measure-cost' does not time {choice}; add it to measure-cost.choices"
                )

    def check_program(self, program: Program, context: PassContext) -> None:
        # Before losses are measured, all that is open is which plan; not what plans there are.
        loss = {
            weight.operator: dict.fromkeys(weight.schemes(self._schemes), 0.0)
            for weight in quantizable(program).values()
        }
        given = self._given(
            program, Sensitivity(metric="none yet", loss=loss), PassContext(target=context.target)
        )
        for operator in given.found:
            if operator.name in given.pins:
                self._scheme(operator, given.pins[operator.name], context)
        known = {n: limit for n, limit in self.budget.limits.items() if n in given.problem.costs}
        if given.problem.items:
            check_budgets(merge(given.problem), known)

    def run(self, program: Program, context: PassContext) -> None:
        sensitivity: Sensitivity = program.facts[Sensitivity]
        given = self._given(program, sensitivity, context)
        problem, found, pins = given.problem, given.found, given.pins
        for name in self.budget.limits:
            if name not in problem.costs:
                raise ConfigError(
                    f"pass '{self.name}': nothing is known of the {name} of a plan; "
                    "put 'measure-cost' before it, without time = 'none'"
                )
        free = [operator for operator in found if operator.name not in pins]
        ways = _Ways(problem, bits_of(free, self.choices, given.weights), given.weights)
        best = ways.solve(self.allocator, self.budget.limits)
        schemes = pins | best.plan
        for operator in found:
            scheme = self._scheme(operator, schemes[operator.name], context)
            if scheme is not None:
                program.plan |= dict.fromkeys(operator.graph_names, scheme)
        always = pinned_loss(pins, sensitivity)
        allocation = Allocation(
            plan=schemes,
            loss=best.loss + always,
            bound=best.bound + always,
            gap=best.gap if math.isfinite(best.bound) else float("nan"),
            totals=best.totals,
            budgets=self.budget.limits,
            prices=best.prices,
            front=tuple(_point(s, always) for s in ways.front(self.budget.limits, self.front)),
            others=tuple(ways.others(self.budget.limits, always) if self.front else ()),
            relative=sensitivity.relative,
        )
        program.facts[Allocation] = allocation
        self._record(allocation, sensitivity, program.facts.get(Cost), context)

    def _given(self, program: Program, sensitivity: Sensitivity, context: PassContext) -> _Given:
        found = list(operators(program))
        for rule in self.pins:
            check_matches(self.name, rule, found)
        groups = fused_products(program)
        pins, added = pin_groups(self._pins(found, context), groups, step=self.name)
        for text in added:
            context.note(self.name, text)
        weights = {operator.name: math.prod(operator.shape) for operator in found}
        problem = build_problem(
            [operator for operator in found if operator.name not in pins],
            self.choices,
            pins,
            groups,
            weights=weights,
            sensitivity=sensitivity,
            cost=program.facts.get(Cost),
        )
        return _Given(problem, found, pins, weights)

    def _pins(self, found: Sequence[Operator], context: PassContext) -> dict[str, str]:
        """Return the scheme of each operator that is not free to choose."""
        pins = {}
        for operator in found:
            name = operator.name
            matching = [rule.scheme for rule in self.pins if rule.matches(operator)]
            if operator.obstacle is not None:
                context.note(self.name, f"{name}: stays float, {operator.obstacle}")
                pins[name] = FLOAT
            elif matching:
                pins[name] = matching[-1]
            elif "linear" not in operator.kinds:
                context.note(self.name, f"{name}: stays float, a table that no rule pins")
                pins[name] = FLOAT
        return pins

    def _scheme(self, operator: Operator, choice: str, context: PassContext) -> QuantScheme | None:
        """Return the scheme that a choice stands for, None for float, if it suits an operator."""
        if choice == FLOAT:
            return None
        scheme = QuantScheme.parse(choice)
        check_group(scheme, operator)
        check_target(scheme, operator, context.target)
        return scheme

    def _record(
        self,
        allocation: Allocation,
        sensitivity: Sensitivity,
        cost: Cost | None,
        context: PassContext,
    ) -> None:
        # What follows from readings of a clock is kept apart from what is the same each time.
        timed = cost is not None and cost.source == "timer"
        record = context.record_seconds if timed else context.record
        unit = "nats per token" if not sensitivity.relative else f"relative ({sensitivity.metric})"
        chosen = PlanPoint(loss=allocation.loss, totals=allocation.totals)
        others: dict[str, list[dict[str, float]]] = {}
        for point in allocation.others:
            others.setdefault(point.label, []).append(_json(point))
        for key, figure in (
            ("unit", unit),
            ("objective", allocation.loss),
            ("bound", allocation.bound),
            ("gap", allocation.gap),
            ("budgets", dict(allocation.budgets)),
            ("prices", dict(allocation.prices)),
            ("front", [_json(point) for point in allocation.front]),
            ("chosen", _json(chosen)),
            ("others", others),
        ):
            plain = None if isinstance(figure, float) and not math.isfinite(figure) else figure
            record(self.name, key, plain)


@dataclass(frozen=True)
class _Given:
    """What there is to decide: the operators, what is settled of them, and the problem left.

    weights: how many numbers each operator's weight has.
    """

    problem: Problem
    found: list[Operator]
    pins: dict[str, str]
    weights: dict[str, int]


class _Ways:
    """The ways there are to solve a problem."""

    def __init__(self, problem: Problem, bits: Any, weights: Mapping[str, int]) -> None:
        self.problem = problem
        self.merged = merge(problem) if problem.items else None
        counts = np.array([weights[name] for name in problem.items], float)
        self._counts = counts
        self._bits = bits / counts[:, None] if len(counts) else bits

    def solve(self, allocator: str, budgets: Totals) -> Solution:
        if self.merged is None:
            return Solution(
                plan={}, loss=0.0, totals=dict(self.problem.fixed), bound=0.0, prices={}
            )
        match allocator:
            case "greedy":
                return greedy(self.problem, budgets)
            case "uniform":
                return uniform(self.problem, budgets)
            case "closed-form":
                return closed_form(self.problem, budgets, bits=self._bits, weights=self._counts)
        return solve(self.merged, budgets)

    def front(self, budgets: Totals, points: int) -> list[Solution]:
        """Return the best plans of other budgets of the first kind, while the others hold."""
        if self.merged is None or points < 2:
            return []
        return front(self.merged, next(iter(budgets)), budgets, points=points)

    def others(self, budgets: Totals, always: float) -> list[PlanPoint]:
        """Return plans to compare with: uniform ones, and what simpler allocators find."""
        if self.merged is None:
            return []
        points = [_point(s, always, f"uniform {c}") for c, s in uniform_plans(self.problem).items()]
        over = next(iter(budgets))
        least = self.merged.least(over)
        most = self.merged.totals(np.argmin(self.merged.loss, axis=1))[over]
        for label, way in (("greedy", "greedy"), ("closed form", "closed-form")):
            for limit in np.linspace(least, max(least, most), 7)[1:-1]:
                try:
                    found = self.solve(way, {over: float(limit)})
                except ConfigError:
                    continue
                points.append(_point(found, always, label))
        return points


def _point(solution: Solution, always: float, label: str = "") -> PlanPoint:
    return PlanPoint(loss=solution.loss + always, totals=solution.totals, label=label)


def _json(point: PlanPoint) -> dict[str, float]:
    return {"loss": point.loss, **point.totals}
