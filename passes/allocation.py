"""Choose one of several costs for each of many items so that the sum of losses is least.

A multiple-choice knapsack with several budgets, solved as a mixed-integer program by HiGHS
(Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018) through scipy. Shape
letters: `i` items, `c` choices, `g` groups of items that share a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from passes.silence import silence
from qcompiler.core.errors import ConfigError, suggest

Array = np.ndarray[Any, np.dtype[np.float64]]
Picks = np.ndarray[Any, np.dtype[np.int64]]

GAP = 1e-5
"""The search ends when the plan found is proven to be within this share of the best one."""

SECONDS = 8.0
"""… or after so long; the gap that is left is reported."""

_EXACT = 1e-9  # share of a budget that rounding of sums may pass it by


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Items and what they may be.

    loss: [i, c]; infinite where an item cannot have a choice. costs: [i, c] by budget name, in the
    budget's unit, to which `fixed` is added once. The items of a group get the same choice, and
    `pins` are choices that are given.
    """

    items: tuple[str, ...]
    choices: tuple[str, ...]
    loss: Array
    costs: Mapping[str, Array]
    fixed: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A plan, its loss and totals; how far from the best it may be; what relief would bring.

    bound: no plan within the budgets has a smaller loss. prices: by how much the loss falls when a
    budget grows by one unit (dual values of the relaxation to fractions of choices).
    """

    plan: dict[str, str]
    loss: float
    totals: dict[str, float]
    bound: float
    prices: dict[str, float]

    @property
    def gap(self) -> float:
        """The share of the loss by which the best plan may be better."""
        return max(0.0, self.loss - self.bound) / max(abs(self.loss), 1e-300)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A problem in which every group is one item, and pinned items have but one choice.

    members: the items of each group, by index; loss [g, c], infinite where it is not possible;
    costs [g, c] by budget name.
    """

    problem: Problem
    members: tuple[tuple[int, ...], ...]
    loss: Array
    costs: dict[str, Array]

    @property
    def possible(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which choices each group may have, [g, c]."""
        return np.isfinite(self.loss)

    def least(self, name: str) -> float:
        """Return the least that a total can be, other budgets aside."""
        cost = np.where(self.possible, self.costs[name], np.inf)
        return float(cost.min(axis=1).sum()) + self.problem.fixed.get(name, 0.0)

    def totals(self, picks: Picks) -> dict[str, float]:
        """Return what a choice for each group costs in all, by budget name."""
        rows = np.arange(len(picks))
        fixed = self.problem.fixed
        return {n: float(c[rows, picks].sum()) + fixed.get(n, 0.0) for n, c in self.costs.items()}

    def loss_of(self, picks: Picks) -> float:
        return float(self.loss[np.arange(len(picks)), picks].sum())

    def fits(self, picks: Picks, budgets: Mapping[str, float]) -> bool:
        """Tell whether a choice for each group stays within all budgets."""
        totals = self.totals(picks)
        return all(totals[n] <= b + _EXACT * abs(b) for n, b in budgets.items())

    def plan(self, picks: Picks) -> dict[str, str]:
        """Name the choice of every item, in the order of the items."""
        choice = {
            item: self.problem.choices[pick]
            for members, pick in zip(self.members, picks, strict=True)
            for item in members
        }
        return {name: choice[index] for index, name in enumerate(self.problem.items)}

    def picks(self, plan: Mapping[str, str]) -> Picks:
        """Return the choice of every group by index; the inverse of `plan`."""
        first = [self.problem.items[members[0]] for members in self.members]
        return np.array([self.problem.choices.index(plan[name]) for name in first], np.int64)


def merge(problem: Problem) -> Merged:
    """Join the items of every group, and those of groups that overlap; apply pins.

    Raises:
        ConfigError: a pin names nothing there is, or pins and groups contradict one another.
    """
    index = {name: i for i, name in enumerate(problem.items)}
    for name, choice in problem.pins.items():
        if name not in index:
            raise ConfigError(suggest("operator", name, index))
        if choice not in problem.choices:
            raise ConfigError(suggest("choice", choice, problem.choices))
    graph = nx.Graph()
    graph.add_nodes_from(range(len(problem.items)))
    for group in problem.groups:
        nx.add_path(graph, [index[name] for name in group])
    members = tuple(sorted(tuple(sorted(part)) for part in nx.connected_components(graph)))
    loss = np.stack([problem.loss[list(part)].sum(axis=0) for part in members])
    for row, part in enumerate(members):
        names = [problem.items[i] for i in part]
        pinned = {name: problem.pins[name] for name in names if name in problem.pins}
        if len(set(pinned.values())) > 1:
            said = ", ".join(f"'{name}' to {choice}" for name, choice in pinned.items())
            raise ConfigError(
                f"pins contradict each other: {said}; these become one product and share a scheme"
            )
        if pinned:
            (choice,) = set(pinned.values())
            loss[row, [i for i, c in enumerate(problem.choices) if c != choice]] = np.inf
        if not np.isfinite(loss[row]).any():
            raise ConfigError(f"none of the choices is possible for {_either(names)}")
    costs = {
        name: np.stack([cost[list(part)].sum(axis=0) for part in members])
        for name, cost in problem.costs.items()
    }
    return Merged(problem=problem, members=members, loss=loss, costs=costs)


def solve(
    problem: Problem | Merged,
    budgets: Mapping[str, float],
    *,
    gap: float = GAP,
    seconds: float = SECONDS,
) -> Solution:
    """Return the plan of least loss whose totals stay within the budgets.

    Raises:
        ConfigError: there is none; the text says the least that is possible.
    """
    merged = problem if isinstance(problem, Merged) else merge(problem)
    check_budgets(merged, budgets)
    if not budgets:
        picks = np.argmin(merged.loss, axis=1)
        return _solution(merged, picks, merged.loss_of(picks), {})
    program = _Program(merged, budgets)
    relaxed = program.relax()
    if relaxed is None:
        raise ConfigError(_contradiction(merged, budgets))
    # Two quick plans, one by the prices that budgets turned out to have: the search need only
    # look for better ones.
    quick = (greedy_picks(merged, budgets, prices) for prices in (None, relaxed.prices))
    known = min((p for p in quick if p is not None), key=merged.loss_of, default=None)
    found, bound = program.search(relaxed, known, gap=gap, seconds=seconds)
    if found is not None and merged.fits(found, budgets):
        found = fill(merged, found, budgets)
        known = found if known is None else min(found, known, key=merged.loss_of)
    if known is None:
        raise ConfigError(_contradiction(merged, budgets))
    return _solution(merged, known, max(bound, relaxed.loss), relaxed.prices)


def front(
    problem: Problem | Merged,
    over: str,
    budgets: Mapping[str, float] | None = None,
    *,
    points: int = 24,
) -> list[Solution]:
    """Return plans that no other beats in both loss and the total `over`, cheapest first.

    One for each of `points` budgets, from the least that is possible to where more brings nothing.
    `budgets` on other totals hold throughout.
    """
    merged = problem if isinstance(problem, Merged) else merge(problem)
    others = {name: limit for name, limit in (budgets or {}).items() if name != over}
    best = solve(merged, others)
    least = _least_within(merged, over, others)
    # Losses fall fastest where little is spent, so budgets lie closer together there.
    limits = least + np.linspace(0, 1, points) ** 2 * max(0.0, best.totals[over] - least)
    found = [solve(merged, others | {over: float(limit)}) for limit in limits]
    return pareto([*found, best], over)


def pareto(solutions: Sequence[Solution], over: str) -> list[Solution]:
    """Return those that no other beats in both loss and the total `over`, cheapest first."""
    kept: list[Solution] = []
    for solution in sorted(solutions, key=lambda s: (s.totals[over], s.loss)):
        if not kept or solution.loss < kept[-1].loss - 1e-12 * abs(kept[-1].loss):
            kept.append(solution)
    return kept


@dataclass(frozen=True, kw_only=True)
class _Relaxed:
    """The best plan of fractions of choices: its loss, prices, and what each variable adds to it.

    gains: the least of loss and priced costs in each group; reduced: at the least so much does the
    loss rise when a variable is taken whole.
    """

    loss: float
    prices: dict[str, float]
    gains: Array
    reduced: Array


class _Program:
    """The mixed-integer program of a merged problem: one variable for each group and choice.

    Choices that cost no less than another of their group, and lose no less, are left out.
    """

    def __init__(self, merged: Merged, budgets: Mapping[str, float]) -> None:
        self.merged = merged
        self.names = list(budgets)
        self.group, self.choice = np.nonzero(_undominated(merged, self.names))
        self.loss = merged.loss[self.group, self.choice]
        costs = np.array([merged.costs[n][self.group, self.choice] for n in self.names])
        limits = [budgets[n] - merged.problem.fixed.get(n, 0.0) for n in self.names]
        # The solver's tolerances are absolute: scale costs and losses to about one.
        self.scale = np.maximum(np.abs(costs).mean(axis=1), 1e-300)
        self.costs, self.limits = costs / self.scale[:, None], np.array(limits) / self.scale
        count = len(self.group)
        self.one_each = sparse.csc_array(
            (np.ones(count), (self.group, np.arange(count))), shape=(len(merged.members), count)
        )

    def relax(self) -> _Relaxed | None:
        """Solve for fractions of choices; None if even they do not fit."""
        sizes = np.abs(self.loss[self.loss != 0])
        unit = float(np.median(sizes)) if len(sizes) else 1.0
        result = linprog(
            self.loss / unit,
            A_ub=self.costs,
            b_ub=self.limits + _EXACT * np.abs(self.limits),
            A_eq=self.one_each,
            b_eq=np.ones(self.one_each.shape[0]),
            bounds=(0, 1),
            method="highs",
        )
        if result.x is None:
            return None
        duals = np.maximum(0.0, -result.ineqlin.marginals) * unit
        # Whatever the duals, this is a bound, free of the solver's tolerances (Lagrange).
        priced = self.loss + duals @ self.costs
        gains = np.full(len(self.merged.members), np.inf)
        np.minimum.at(gains, self.group, priced)
        return _Relaxed(
            loss=float(gains.sum() - duals @ self.limits),
            prices={n: float(d / s) for n, d, s in zip(self.names, duals, self.scale, strict=True)},
            gains=gains,
            reduced=priced - gains[self.group],
        )

    def search(
        self, relaxed: _Relaxed, known: Picks | None, *, gap: float, seconds: float
    ) -> tuple[Picks | None, float]:
        """Return the best plan found, if any, and a bound on the loss of all plans.

        Variables that make any plan worse than the `known` one are left out first.
        """
        keep = np.ones(len(self.loss), bool)
        room = max(float(np.abs(self.loss).max()), 1e-300)
        if known is not None:
            best = self.merged.loss_of(known)
            room = max(best - relaxed.loss, 1e-12 * room)
            # It is what shares of the loss refer to; all that is searched for lies within `room`.
            gap = min(1.0, gap * abs(best) / room)
            keep = relaxed.reduced <= room * (1 + 1e-6)
            keep |= known[self.group] == self.choice
        # The objective is the loss above the relaxed plan's: gains are a constant for each group,
        # and a last variable, always 1, adds the rest of the constant.
        above = self.loss[keep] - relaxed.gains[self.group[keep]]
        objective = np.append(above, relaxed.gains.sum() - relaxed.loss) / room
        count = int(keep.sum())
        with silence():
            result = milp(
                objective,
                constraints=[
                    LinearConstraint(_widened(self.one_each[:, keep]), 1, 1),
                    LinearConstraint(_widened(self.costs[:, keep]), -np.inf, self.limits),
                ],
                integrality=np.ones(count + 1),
                bounds=Bounds(np.append(np.zeros(count), 1), 1),
                options={"mip_rel_gap": gap, "time_limit": seconds},
            )
        bound = -np.inf
        if result.mip_dual_bound is not None:
            bound = relaxed.loss + float(result.mip_dual_bound) * room
        if result.x is None:
            return None, bound
        picks = np.zeros(len(self.merged.members), np.int64)
        taken = np.nonzero(keep)[0][result.x[:-1] > 0.5]
        picks[self.group[taken]] = self.choice[taken]
        return picks, bound


def _widened(matrix: Any) -> Any:
    """Add a column of zeros."""
    return sparse.hstack([matrix, sparse.csc_array((matrix.shape[0], 1))], format="csc")


def greedy_picks(
    merged: Merged, budgets: Mapping[str, float], prices: Mapping[str, float] | None = None
) -> Picks | None:
    """Start from the cheapest choices, then take what saves most loss per cost, while it fits.

    Cost is the sum of the shares of all budgets, or what they come to by `prices`. Returns None
    where that start does not fit.
    """
    cost = _joint_cost(merged, budgets, prices)
    picks = np.argmin(np.where(merged.possible, cost, np.inf), axis=1)
    if not merged.fits(picks, budgets):
        return None
    limits = {n: b + _EXACT * abs(b) for n, b in budgets.items()}
    totals = merged.totals(picks)
    for group, choice in _steps_by_worth(merged.loss, cost, picks):
        change = {
            n: merged.costs[n][group, choice] - merged.costs[n][group, picks[group]] for n in limits
        }
        if all(totals[n] + change[n] <= limits[n] for n in limits):
            totals |= {n: totals[n] + change[n] for n in limits}
            picks[group] = choice
    return fill(merged, picks, budgets, prices)


def _steps_by_worth(loss: Array, cost: Array, picks: Picks) -> list[tuple[int, int]]:
    """Return the steps (group, choice) along each group's convex hull, the worthiest first.

    Worth is the loss saved per cost; along the hull of a group it only falls, so that the steps of
    a group come in their order.
    """
    steps = []
    for group, start in enumerate(picks):
        at = int(start)
        while True:
            saved, dearer = loss[group, at] - loss[group], cost[group] - cost[group, at]
            better = np.nonzero((saved > 0) & (dearer > 0))[0]
            if not len(better):
                break
            worth = saved[better] / dearer[better]
            at = int(better[np.argmax(worth)])
            steps.append((-float(worth.max()), group, at))
    return [(group, choice) for _, group, choice in sorted(steps)]


def fill(
    merged: Merged,
    picks: Picks,
    budgets: Mapping[str, float],
    prices: Mapping[str, float] | None = None,
) -> Picks:
    """Use up what budgets leave: change one group at a time, the most loss saved per cost first."""
    picks = picks.copy()
    cost, everyone = _joint_cost(merged, budgets, prices), np.arange(len(picks))
    while True:
        totals = merged.totals(picks)
        saved = merged.loss[everyone, picks][:, None] - merged.loss
        fitting = saved > 0
        for name, limit in budgets.items():
            change = merged.costs[name] - merged.costs[name][everyone, picks][:, None]
            fitting &= totals[name] + change <= limit + _EXACT * abs(limit)
        if not fitting.any():
            return picks
        dearer = np.maximum(cost - cost[everyone, picks][:, None], 1e-300)
        worth = np.where(fitting, saved / dearer, -np.inf)
        group, choice = np.unravel_index(np.argmax(worth), worth.shape)
        picks[group] = choice


def _joint_cost(
    merged: Merged, budgets: Mapping[str, float], prices: Mapping[str, float] | None = None
) -> Array:
    """Return one cost of every choice, [g, c]: the sum of its shares of all budgets, or priced."""
    fixed = merged.problem.fixed
    rooms = {n: max(limit - fixed.get(n, 0.0), 0.0) or 1.0 for n, limit in budgets.items()}
    shares = dict.fromkeys(budgets, 1.0)
    if prices is not None and (paid := sum(prices[n] * rooms[n] for n in budgets)) > 0:
        # What has no price is to be had for little, not for nothing, lest it run out.
        shares = {n: prices[n] * rooms[n] / paid + 1e-3 for n in budgets}
    parts = [merged.costs[n] * (shares[n] / rooms[n]) for n in budgets]
    return np.sum(parts, axis=0) if parts else np.zeros(merged.loss.shape)


def _undominated(merged: Merged, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which choices of a group, [g, c], are not beaten by another in loss and all costs."""
    measures = np.stack([merged.loss, *(merged.costs[name] for name in names)])  # [m, g, c]
    kept = merged.possible.copy()
    for a in range(merged.loss.shape[1]):
        for b in range(merged.loss.shape[1]):
            better = (measures[:, :, b] <= measures[:, :, a]).all(axis=0)
            strictly = (measures[:, :, b] < measures[:, :, a]).any(axis=0)
            kept[:, a] &= ~(better & (strictly | (b < a)) & merged.possible[:, b])
    return kept


def check_budgets(merged: Merged, budgets: Mapping[str, float]) -> None:
    """Refuse a budget that is unknown, or below the least that is possible."""
    for name, limit in budgets.items():
        if name not in merged.costs:
            raise ConfigError(suggest("budget", name, merged.costs))
        least = merged.least(name)
        if least > limit + _EXACT * abs(limit):
            raise ConfigError(
                f"a budget of {say(name, limit)} cannot be met: the least is {say(name, least)}"
            )


def _contradiction(merged: Merged, budgets: Mapping[str, float]) -> str:
    """Say that budgets cannot be met together, and the least of each while the others are."""
    parts = []
    for name in budgets:
        others = {n: b for n, b in budgets.items() if n != name}
        least = _least_within(merged, name, others)
        if np.isfinite(least):
            within = " and ".join(say(n, b) for n, b in others.items())
            parts.append(f"within {within} the least is {say(name, least)}")
    return f"the budgets cannot be met together: {'; '.join(parts) or 'no pair of them can be'}"


def _least_within(merged: Merged, name: str, budgets: Mapping[str, float]) -> float:
    """Return the least that a total can be while other budgets are met; infinite if none can."""
    if not budgets:
        return merged.least(name)
    cost = np.where(merged.possible, merged.costs[name], np.inf)
    try:
        found = solve(replace(merged, loss=cost), budgets)
    except ConfigError:
        return float("inf")
    return found.totals[name]


def _solution(merged: Merged, picks: Picks, bound: float, prices: dict[str, float]) -> Solution:
    loss = merged.loss_of(picks)
    return Solution(
        plan=merged.plan(picks),
        loss=loss,
        totals=merged.totals(picks),
        bound=min(bound, loss),
        prices=prices,
    )


_UNITS = {
    "bits_per_weight": (1.0, "{:.2f} bits per weight"),
    "bytes": (1e-6, "{:.2f} MB"),
    "decode_ms": (1.0, "{:.3f} ms a token"),
    "prefill_ms": (1.0, "{:.2f} ms a prompt"),
}


def say(name: str, value: float) -> str:
    """Write a total with its unit, rounded up, lest the figure itself cannot be met.

    >>> say("bits_per_weight", 4.1234), say("bytes", 81_234_567), say("watts", 3.0)
    ('4.13 bits per weight', '81.24 MB', '3 watts')
    """
    if name not in _UNITS:
        return f"{value:g} {name}"
    factor, form = _UNITS[name]
    digits = 10 ** int(form[form.index(".") + 1])
    return form.format(np.ceil(round(value * factor * digits, 6)) / digits)


def _either(names: Sequence[str]) -> str:
    """List a few names.

    >>> _either(["a", "b"])
    "'a' and 'b'"
    """
    quoted = [f"'{name}'" for name in names[:3]]
    if len(names) > 3:
        quoted.append(f"{len(names) - 3} more")
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
