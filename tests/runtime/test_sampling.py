"""How tokens are picked from logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runtime.sampling import Sampler, SamplingOptions, candidates


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    result: np.ndarray = powers / powers.sum()
    return result


def logits_of(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; give 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is hot"),
        ({"top_k": 0}, "top_k is 0; give a whole number from 1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0}, "top_p is 0; give a number above 0, and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give a number above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
        ({"seed": 1.0}, "seed is 1.0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(**options)
    assert message in str(caught.value)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    sampler = Sampler(SamplingOptions())
    assert sampler.pick(np.array([0, 3, 1, 3], np.float32)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        Sampler(SamplingOptions()).pick(np.array([0, bad, 1], np.float32))


def test_tokens_that_are_ruled_out_are_never_picked() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 9]] = 1
    sampler = Sampler(SamplingOptions(temperature=2, seed=0))
    assert {sampler.pick(logits) for _ in range(100)} == {7, 9}


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 60),
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 70),
    top_p=st.floats(0.01, 1),
)
def test_candidates_are_those_of_the_definition(
    seed: int, size: int, temperature: float, top_k: int | None, top_p: float
) -> None:
    logits = logits_of(size, seed)
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, probabilities = candidates(logits, options)
    order = np.argsort(-logits, kind="stable")[: top_k or size]
    ordered = softmax(logits[order].astype(np.float64) / temperature)
    count = int(np.searchsorted(np.cumsum(ordered), top_p * (1 - 1e-12))) + 1
    assert set(tokens) == set(order[:count])
    kept = dict(zip(order, ordered / ordered[:count].sum(), strict=True))
    np.testing.assert_allclose(probabilities, [kept[t] for t in tokens], rtol=1e-9)
    assert probabilities.sum() == pytest.approx(1)


def test_ties_at_top_k_are_all_kept() -> None:
    logits = np.array([1, 5, 1, 1], np.float32)
    tokens, _ = candidates(logits, SamplingOptions(temperature=1, top_k=2))
    assert set(tokens) == {0, 1, 2, 3}


def test_nucleus_of_a_whole_vocabulary() -> None:
    """The shortcut that sorts only likely tokens must not lose one of the nucleus."""
    logits = np.zeros(50_000, np.float32)
    logits[:10] = 3
    tokens, _ = candidates(logits, SamplingOptions(temperature=1, top_p=0.9))
    total = 10 * np.e**3 + 49_990
    assert len(tokens) == 10 + np.ceil(0.9 * total - 10 * np.e**3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 5, "top_p": 0.8, "temperature": 1.5},
    ],
)
def test_frequencies_follow_the_probabilities(options: dict[str, Any]) -> None:
    logits = logits_of(12, 3)
    chosen = SamplingOptions(**{"temperature": 1.0, "seed": 1} | options)
    tokens, probabilities = candidates(logits, chosen)
    sampler = Sampler(chosen)
    draws = 20_000
    counts = Counter(sampler.pick(logits) for _ in range(draws))
    assert set(counts) <= set(tokens)
    # Five standard deviations of a count, and a few for those that hardly ever occur.
    expected = probabilities * draws
    deviation = np.abs(np.array([counts[token] for token in tokens]) - expected)
    assert (deviation < 5 * np.sqrt(expected) + 3).all()


def test_repetition_penalty_moves_both_signs_down() -> None:
    logits = np.array([2.0, -2.0, 1.5, -2.5], np.float32)
    options = SamplingOptions(repetition_penalty=2.0)
    assert Sampler(options, seen=[0]).pick(logits) == 2
    # 1 is penalised from −2 to −4, which puts it behind 3.
    assert Sampler(options, seen=[0, 1, 2]).pick(np.array([-9, -2, -9, -2.5], np.float32)) == 3
    np.testing.assert_array_equal(logits, np.array([2.0, -2.0, 1.5, -2.5], np.float32))


def test_repetition_penalty_counts_what_was_picked() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=10.0))
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 2]


def test_equal_seeds_give_equal_tokens() -> None:
    logits = logits_of(1000, 5)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=3, seed=seed))
        return [sampler.pick(logits) for _ in range(20)]

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)
    assert draw(None) != draw(None)


def test_a_seed_that_was_not_given_can_be_read() -> None:
    logits = logits_of(1000, 5)
    first = Sampler(SamplingOptions(temperature=3))
    second = Sampler(SamplingOptions(temperature=3, seed=first.seed))
    assert [first.pick(logits) for _ in range(9)] == [second.pick(logits) for _ in range(9)]


def test_global_random_numbers_are_left_alone() -> None:
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    Sampler(SamplingOptions(temperature=1)).pick(logits_of(10, 1))
    assert np.random.rand() == expected
