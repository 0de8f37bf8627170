"""Divergences at temperatures, and how varied texts are."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from qcompiler.temperature import distinct, kl_at


def test_divergences_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.normal(0, 4, (37, 300)).astype(np.float32) for _ in range(2))
    temperatures = (0.2, 1.0, 1.7)
    for temperature, found in zip(temperatures, kl_at(temperatures, p, q), strict=True):
        ours, theirs = (torch.from_numpy(x).double() / temperature for x in (p, q))
        expected = torch.nn.functional.kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True
        )
        assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = np.random.default_rng(1).normal(0, 9, (20, 50)).astype(np.float32)
    assert kl_at([0.1, 1.0, 3.0], logits, logits) == [0.0, 0.0, 0.0]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 4))
def test_distinct_is_a_share(tokens: list[int], n: int) -> None:
    found = distinct(tokens, n)
    assert 0 < found <= 1
    # To write it twice brings nothing new but where the two meet.
    assert distinct(tokens + tokens, n) <= found or len(tokens) < 2 * n
