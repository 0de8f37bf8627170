"""From facts and pins to a problem that an allocator can solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from passes.allocation import Array, Problem
from passes.fused_products import FusedProduct
from passes.rules import Operator
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Cost, Sensitivity
from qcompiler.core.formats import QuantScheme

FLOAT = "float"
FLOAT_BITS = 32.0  # as an artifact stores them


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may cost; at least one is given.

    `bits_per_weight` counts the weights that the allocator decides upon, and their scales and zero
    points; the others count all of the model: `bytes` of packed weights, milliseconds of one token
    (`decode_ms`) and of a prompt (`prefill_ms`).
    """

    bits_per_weight: float | None = None
    bytes: float | None = None
    decode_ms: float | None = None
    prefill_ms: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            known = ", ".join(field.name for field in fields(self))
            raise ConfigError(f"a budget is empty; give one or several of {known}")
        for name, limit in self.limits.items():
            if not 0 < limit < float("inf"):
                raise ConfigError(f"{name} = {limit:g} is no budget; it must be more than 0")

    @property
    def limits(self) -> dict[str, float]:
        """The budgets that are given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(limit) for name, limit in given.items() if limit is not None}


def pin_groups(
    pins: Mapping[str, str], groups: Sequence[FusedProduct], *, step: str
) -> tuple[dict[str, str], list[str]]:
    """Give the scheme of a pinned operator to those that become one product with it.

    Returns all pins, and sentences that say which were added.

    Raises:
        ConfigError: operators of one product are pinned to different schemes.
    """
    all_pins, added = dict(pins), []
    for group in groups:
        given = {name: pins[name] for name in group.operators if name in pins}
        if len(set(given.values())) > 1:
            said = ", ".join(f"'{name}' to {scheme}" for name, scheme in given.items())
            raise ConfigError(
                f"pass '{step}': pins contradict each other: {said}; these become one product, "
                "whose parts share a scheme"
            )
        for name in group.operators:
            if given and name not in given:
                first, scheme = next(iter(given.items()))
                all_pins[name] = scheme
                added.append(f"{name}: {scheme}, as {first} is pinned to")
    return all_pins, added


def pinned_loss(pins: Mapping[str, str], sensitivity: Sensitivity) -> float:
    """Return the predicted loss of pinned operators, as far as it was measured."""
    return sum(
        sensitivity.loss.get(name, {}).get(scheme, 0.0)
        for name, scheme in pins.items()
        if scheme != FLOAT
    )


def build_problem(
    free: Sequence[Operator],
    choices: Sequence[str],
    pins: Mapping[str, str],
    groups: Sequence[FusedProduct],
    *,
    weights: Mapping[str, int],
    sensitivity: Sensitivity,
    cost: Cost | None,
) -> Problem:
    """Return the problem of giving each free operator one of the choices.

    weights: how many numbers each operator's weight has. Totals that a fact says nothing of are
    left out.

    Raises:
        ConfigError: an operator has not been measured.
    """
    names = tuple(operator.name for operator in free)
    loss = np.array([[_loss(name, choice, sensitivity) for choice in choices] for name in names])
    loss = loss.reshape(len(names), len(choices))
    counted = sum(weights[name] for name in names)
    bits = bits_of(free, choices, weights)
    costs = {"bits_per_weight": bits / max(1, counted)}
    fixed: dict[str, float] = {}
    if cost is not None:
        for name, field, unit in (
            ("bytes", "bytes", 1.0),
            ("decode_ms", "decode_s", 1e3),
            ("prefill_ms", "prefill_s", 1e3),
        ):
            table = [[_cost(cost, n, choice, field) for choice in choices] for n in names]
            others = [_cost(cost, n, scheme, field) for n, scheme in pins.items()]
            rest = getattr(cost.rest, field)
            found = np.array(table, float).reshape(len(names), len(choices))
            if rest is None or np.isnan(found[np.isfinite(loss)]).any() or np.isnan(others).any():
                continue
            costs[name] = np.where(np.isfinite(loss), found, 0.0) * unit
            fixed[name] = (rest + sum(others)) * unit
    inside = [tuple(name for name in group.operators if name in names) for group in groups]
    return Problem(
        items=names,
        choices=tuple(choices),
        loss=loss,
        costs=costs,
        fixed=fixed,
        groups=tuple(group for group in inside if len(group) > 1),
    )


def bits_of(free: Sequence[Operator], choices: Sequence[str], weights: Mapping[str, int]) -> Array:
    """Return the bits of each operator's weight in each choice, scales included, [i, c]."""
    per_weight = [
        [
            FLOAT_BITS if c == FLOAT else QuantScheme.parse(c).weight.bits_per_weight(operator.k)
            for c in choices
        ]
        for operator in free
    ]
    counts = np.array([weights[operator.name] for operator in free], float)
    table = np.array(per_weight, float).reshape(len(free), len(choices))
    bits: Array = table * counts[:, None]
    return bits


def _loss(name: str, choice: str, sensitivity: Sensitivity) -> float:
    """Return the predicted loss of an operator in a choice; infinite where it cannot have it."""
    if choice == FLOAT:
        return 0.0
    if name not in sensitivity.loss:
        raise ConfigError(f"the sensitivity of '{name}' has not been measured; pin it to a scheme")
    return float(sensitivity.loss[name].get(choice, np.inf))


def _cost(cost: Cost, name: str, choice: str, field: str) -> float:
    """Return what an operator costs in a choice; not a number where that is not known."""
    found = cost.choices.get(name, {}).get(choice)
    figure = None if found is None else getattr(found, field)
    return float("nan") if figure is None else float(figure)
