"""The optimal allocation against brute force, its promises on random problems, and its errors."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.allocation import Problem, front, merge, solve
from passes.allocators import closed_form, greedy, uniform
from qcompiler.core.errors import ConfigError

BITS = np.array([2.25, 4.25, 8.25])
SEEDS = st.integers(0, 2**32 - 1)


def problem(
    seed: int, *, items: int = 5, choices: int = 3, groups: bool = True, pinned: bool = False
) -> Problem:
    """Return random items; some cannot have the first choice, two are to share theirs."""
    rng = np.random.default_rng(seed)
    bits = np.linspace(2.25, 8.5, choices)
    weights = rng.integers(1, 9, items) / 8
    loss = 10 ** rng.normal(0, 1, (items, 1)) * 4.0**-bits * np.exp(rng.normal(0, 0.5, choices))
    loss[rng.random(items) < 0.2, 0] = np.inf
    names = tuple(f"item{i}" for i in range(items))
    return Problem(
        items=names,
        choices=tuple(f"c{c}" for c in range(choices)),
        loss=loss,
        costs={
            "bits_per_weight": weights[:, None] * bits / weights.sum(),
            "decode_ms": rng.random((items, choices)) + bits / 8,
        },
        fixed={"decode_ms": 1.0},
        groups=((names[0], names[2]), (names[2], names[3])) if groups else (),
        pins={names[1]: "c2"} if pinned else {},
    )


def budgets_of(given_: Problem, seed: int, *names: str) -> dict[str, float]:
    """Return budgets between the least and the most that is possible, each by itself."""
    merged, rng = merge(given_), np.random.default_rng(seed + 1)
    most = merged.totals(np.argmin(merged.loss, axis=1))
    return {n: merged.least(n) + rng.random() * max(0.0, most[n] - merged.least(n)) for n in names}


def brute_force(given_: Problem, budgets: dict[str, float]) -> float:
    """Return the least loss of all plans that keep to groups, pins and budgets."""
    best, rows = np.inf, np.arange(len(given_.items))
    for plan in itertools.product(range(len(given_.choices)), repeat=len(given_.items)):
        chosen = {name: given_.choices[c] for name, c in zip(given_.items, plan, strict=True)}
        if any(chosen[name] != choice for name, choice in given_.pins.items()):
            continue
        if any(len({chosen[name] for name in group}) > 1 for group in given_.groups):
            continue
        totals = {
            n: c[rows, list(plan)].sum() + given_.fixed.get(n, 0) for n, c in given_.costs.items()
        }
        if all(totals[n] <= b * (1 + 1e-9) for n, b in budgets.items()):
            best = min(best, given_.loss[rows, list(plan)].sum())
    return best


@given(seed=SEEDS, pinned=st.booleans(), both=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_plan_is_better_than_the_one_found(seed: int, pinned: bool, both: bool) -> None:
    given_ = problem(seed, pinned=pinned)
    names = ("bits_per_weight", "decode_ms") if both else ("bits_per_weight",)
    budgets = budgets_of(given_, seed, *names)
    best = brute_force(given_, budgets)
    if not np.isfinite(best):
        with pytest.raises(ConfigError, match="cannot be met together"):
            solve(given_, budgets)
        return
    found = solve(given_, budgets)
    assert found.loss == pytest.approx(best, rel=2e-5)
    assert found.bound <= best * (1 + 1e-9)


@given(seed=SEEDS, items=st.integers(4, 60), both=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_plan_keeps_its_budgets_groups_and_pins(seed: int, items: int, both: bool) -> None:
    given_ = problem(seed, items=items, choices=4, pinned=True)
    names = ("bits_per_weight", "decode_ms") if both else ("decode_ms",)
    budgets = budgets_of(given_, seed, *names)
    try:
        found = solve(given_, budgets)
    except ConfigError:
        return
    for name, limit in budgets.items():
        assert found.totals[name] <= limit * (1 + 1e-9)
    assert found.plan["item1"] == "c2"
    assert found.plan["item0"] == found.plan["item2"] == found.plan["item3"]
    rows, columns = range(items), [given_.choices.index(c) for c in found.plan.values()]
    assert list(found.plan) == list(given_.items)
    assert given_.loss[rows, columns].sum() == pytest.approx(found.loss)
    assert 0 <= found.gap <= 1e-4


@given(seed=SEEDS, items=st.integers(4, 80))
@settings(max_examples=60, deadline=None)
def test_simple_allocators_are_never_better(seed: int, items: int) -> None:
    given_ = problem(seed, items=items, choices=4)
    budgets = budgets_of(given_, seed, "bits_per_weight")
    found = solve(given_, budgets)
    weights = given_.costs["bits_per_weight"][:, 0]
    bits = np.broadcast_to(np.linspace(2.25, 8.5, 4), (items, 4))
    for other in (
        lambda: uniform(given_, budgets),
        lambda: greedy(given_, budgets),
        lambda: closed_form(given_, budgets, bits=bits, weights=weights),
    ):
        try:
            theirs = other()
        except ConfigError:
            continue
        assert theirs.totals["bits_per_weight"] <= budgets["bits_per_weight"] * (1 + 1e-9)
        assert found.loss <= theirs.loss * (1 + 1e-5)


def test_closed_form_is_reverse_water_filling() -> None:
    # Of three items of one size, with losses 4^(2·i) · 4^-bits, the middle one gets the mean and
    # its neighbours two bits less and more.
    bits = np.arange(1.0, 9.0)
    loss = 4.0 ** np.array([[0.0], [2.0], [4.0]]) * 4.0**-bits
    given_ = Problem(
        items=("a", "b", "c"),
        choices=tuple(str(int(b)) for b in bits),
        loss=loss,
        costs={"bits_per_weight": np.broadcast_to(bits / 3, (3, 8))},
    )
    wide = np.broadcast_to(bits, (3, 8))
    found = closed_form(given_, {"bits_per_weight": 5.0}, bits=wide, weights=np.ones(3))
    assert found.plan == {"a": "3", "b": "5", "c": "7"}
    assert solve(given_, {"bits_per_weight": 5.0}).plan == found.plan


def test_prices_say_what_relief_brings() -> None:
    rng = np.random.default_rng(5)
    bits = np.array([2.0, 4.0, 8.0])
    loss = 10 ** rng.normal(0, 1, (400, 1)) * 4.0**-bits
    costs = np.broadcast_to(bits / 400, (400, 3))
    given_ = Problem(
        items=tuple(map(str, range(400))),
        choices=("2", "4", "8"),
        loss=loss,
        costs={"bits_per_weight": costs},
    )
    first, second = (solve(given_, {"bits_per_weight": b}) for b in (4.0, 4.1))
    fall = (first.loss - second.loss) / 0.1
    assert second.prices["bits_per_weight"] < fall < first.prices["bits_per_weight"]
    generous = solve(given_, {"bits_per_weight": 9.0})
    assert generous.prices["bits_per_weight"] == pytest.approx(0, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_front_goes_from_the_least_to_where_more_brings_nothing(seed: int) -> None:
    given_ = problem(seed, items=12, choices=4)
    points = front(given_, "bits_per_weight", points=8)
    sizes = [p.totals["bits_per_weight"] for p in points]
    losses = [p.loss for p in points]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(set(losses), reverse=True)
    assert sizes[0] == pytest.approx(merge(given_).least("bits_per_weight"))
    assert losses[-1] == solve(given_, {}).loss


def test_a_front_keeps_other_budgets() -> None:
    given_ = problem(3, items=20, choices=4)
    other = budgets_of(given_, 3, "decode_ms")
    points = front(given_, "bits_per_weight", other, points=6)
    assert all(p.totals["decode_ms"] <= other["decode_ms"] * (1 + 1e-9) for p in points)


def test_2000_operators_in_8_formats_take_less_than_10_seconds() -> None:
    rng = np.random.default_rng(0)
    bits = np.array([2.25, 3.25, 4.25, 4.5, 5.25, 6.25, 8.25, 8.5])
    weights = rng.choice([331776.0, 110592.0, 884736.0, 2359296.0], 2000)
    loss = 10 ** rng.normal(-4, 1, (2000, 1)) * 4.0**-bits * np.exp(rng.normal(0, 0.1, (2000, 8)))
    cost = weights[:, None] * bits
    given_ = Problem(
        items=tuple(map(str, range(2000))),
        choices=tuple(map(str, bits)),
        loss=loss,
        costs={
            "bits_per_weight": cost / weights.sum(),
            "decode_ms": cost * 1e-9 * np.exp(rng.normal(0, 0.1, (2000, 8))),
        },
    )
    start = time.process_time()
    found = solve(given_, {"bits_per_weight": 4.5, "decode_ms": 8.5})
    assert time.process_time() - start < 10
    assert found.gap < 1e-4


def test_an_impossible_budget_says_the_least_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"3\.00 bits per weight cannot be met: the least is 4\.2"
    ):
        solve(
            Problem(
                items=("a",),
                choices=("x", "y"),
                loss=np.array([[1.0, 0.5]]),
                costs={"bits_per_weight": np.array([[4.1934, 8.5]])},
            ),
            {"bits_per_weight": 3.0},
        )


def test_budgets_that_contradict_each_other_are_named_with_what_is_possible() -> None:
    given_ = Problem(
        items=("a",),
        choices=("small", "fast"),
        loss=np.array([[1.0, 1.0]]),
        costs={"bytes": np.array([[1e6, 4e6]]), "decode_ms": np.array([[4.0, 1.0]])},
    )
    with pytest.raises(ConfigError) as error:
        solve(given_, {"bytes": 2e6, "decode_ms": 2.0})
    assert "within 2.000 ms a token the least is 4.00 MB" in str(error.value)
    assert "within 2.00 MB the least is 4.000 ms a token" in str(error.value)


@pytest.mark.parametrize(
    ("groups", "pins", "message"),
    [
        ((("item0", "item1"),), {"item0": "c0", "item1": "c1"}, "'item0' to c0, 'item1' to c1"),
        ((), {"item7": "c0"}, "unknown operator 'item7'"),
        ((), {"item0": "c9"}, "unknown choice 'c9'"),
    ],
)
def test_contradictory_pins_are_refused(
    groups: tuple[tuple[str, ...], ...], pins: dict[str, str], message: str
) -> None:
    given_ = problem(1, items=4)
    with pytest.raises(ConfigError, match=message):
        merge(Problem(**{**vars(given_), "groups": groups, "pins": pins}))


def test_a_group_without_a_common_choice_is_refused() -> None:
    loss = np.array([[1.0, np.inf], [np.inf, 1.0]])
    given_ = Problem(
        items=("a", "b"), choices=("x", "y"), loss=loss, costs={}, groups=(("a", "b"),)
    )
    with pytest.raises(ConfigError, match="none of the choices is possible for 'a' and 'b'"):
        merge(given_)


def test_an_unknown_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown budget 'watts'"):
        solve(problem(1), {"watts": 3.0})
