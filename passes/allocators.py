"""Simple ways to allocate, to compare the optimal one with: uniform, greedy, in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from passes.allocation import (
    Array,
    Merged,
    Picks,
    Problem,
    Solution,
    check_budgets,
    greedy_picks,
    merge,
)
from qcompiler.core.errors import ConfigError


def uniform(problem: Problem, budgets: Mapping[str, float]) -> Solution:
    """Give every item the same choice, the one of least loss that fits; pinned items keep theirs.

    Raises:
        ConfigError: none fits.
    """
    merged = merge(problem)
    check_budgets(merged, budgets)
    fitting = [p for p in _uniform_picks(merged).values() if merged.fits(p, budgets)]
    if not fitting:
        raise ConfigError("no choice fits the budget when all have the same")
    return _solution(merged, min(fitting, key=merged.loss_of))


def uniform_plans(problem: Problem) -> dict[str, Solution]:
    """Return, for each choice that all items can have, the plan of it alone."""
    merged = merge(problem)
    return {name: _solution(merged, picks) for name, picks in _uniform_picks(merged).items()}


def greedy(problem: Problem, budgets: Mapping[str, float]) -> Solution:
    """Start from the cheapest choices and take what saves most loss per cost, while it fits.

    Raises:
        ConfigError: the cheapest do not fit.
    """
    merged = merge(problem)
    check_budgets(merged, budgets)
    picks = greedy_picks(merged, budgets)
    if picks is None:
        raise ConfigError("greedy allocation finds no plan within these budgets together")
    return _solution(merged, picks)


def closed_form(
    problem: Problem, budgets: Mapping[str, float], *, bits: Array, weights: Array
) -> Solution:
    """Allocate by reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3).

    Where the loss of l is s_l·σ_l²·2^(−2b), for each of its weights, the best real number of bits
    is b_l = b̄ + ½·log₂(s_l·σ_l² / geometric mean of s·σ²), weights counted. bits: [i, c], of each
    choice; weights: [i]. s_l·σ_l² is what the losses of all choices say in the geometric mean.
    Numbers of bits are rounded to the nearest choice, b̄ is lowered until the budgets are met, and
    what is left over goes to the items that were rounded down furthest.

    Raises:
        ConfigError: no b̄ meets the budgets.
    """
    merged = merge(problem)
    check_budgets(merged, budgets)
    counted = np.array([weights[list(part)].sum() for part in merged.members])
    wide = np.stack([(bits * weights[:, None])[list(p)].sum(axis=0) for p in merged.members])
    wide = wide / counted[:, None]
    importance = _importance(merged, wide, counted)
    offset = 0.5 * (importance - np.average(importance, weights=counted))
    low, high = float(wide.min() - offset.max()), float(wide.max() - offset.min())
    if (best := _nearest(merged, wide, low + offset, budgets)) is None:
        raise ConfigError("closed-form allocation finds no plan within these budgets together")
    for _ in range(60):
        middle = (low + high) / 2
        picks = _nearest(merged, wide, middle + offset, budgets)
        low, high = (low, middle) if picks is None else (middle, high)
        best = best if picks is None else picks
    return _solution(merged, _spend(merged, best, wide, low + offset, budgets))


def _importance(merged: Merged, bits: Array, weights: Array) -> Array:
    """Return log₂(s·σ²) of each group: the mean over choices of log₂(loss per weight) + 2·bits."""
    usable = merged.possible & (merged.loss > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        said = np.log2(merged.loss / weights[:, None]) + 2 * bits
    count = usable.sum(axis=1)
    total = np.where(usable, said, 0.0).sum(axis=1)
    known = count > 0
    fallback = float((total[known] / count[known]).min()) if known.any() else 0.0
    # A group that nothing can be said of, its losses being zero, is as unimportant as any.
    return np.where(known, total / np.maximum(count, 1), fallback)


def _nearest(
    merged: Merged, bits: Array, wanted: Array, budgets: Mapping[str, float]
) -> Picks | None:
    """Round each group's bits to the nearest choice; None if that is over a budget."""
    away = np.where(merged.possible, np.abs(bits - wanted[:, None]), np.inf)
    picks = np.argmin(away, axis=1)
    return picks if merged.fits(picks, budgets) else None


def _spend(
    merged: Merged, picks: Picks, bits: Array, wanted: Array, budgets: Mapping[str, float]
) -> Picks:
    """Raise those furthest below the bits they want to their next choice, while it fits."""
    picks = picks.copy()
    order = np.argsort(bits[np.arange(len(picks)), picks] - wanted, kind="stable")
    for group in order:
        have = bits[group, picks[group]]
        above = np.where(merged.possible[group] & (bits[group] > have), bits[group], np.inf)
        if not np.isfinite(above).any():
            continue
        tried = picks.copy()
        tried[group] = int(np.argmin(above))
        if merged.fits(tried, budgets):
            picks = tried
    return picks


def _uniform_picks(merged: Merged) -> dict[str, Picks]:
    """Return the plan of each choice that all groups which are free can have."""
    possible = merged.possible
    free = possible.sum(axis=1) > 1
    only = np.argmax(possible, axis=1)
    return {
        name: np.where(free, choice, only)
        for choice, name in enumerate(merged.problem.choices)
        if possible[free, choice].all()
    }


def _solution(merged: Merged, picks: Picks) -> Solution:
    """Return a plan of which it is not known how good it is."""
    return Solution(
        plan=merged.plan(picks),
        loss=merged.loss_of(picks),
        totals=merged.totals(picks),
        bound=-np.inf,
        prices={},
    )
