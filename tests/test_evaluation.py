"""Likelihood, divergence and agreement, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.core.errors import UsageError
from qcompiler.evaluation import evaluate, log_softmax


def table_model(seed: int, vocab: int = 7):
    """A model whose prediction depends on the last token alone."""
    table = np.random.default_rng(seed).normal(size=(vocab, vocab)).astype(np.float32)
    return lambda tokens: table[np.asarray(tokens)]


TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 7, 50)]


def test_uniform_model_has_perplexity_of_the_vocabulary() -> None:
    found = evaluate(lambda t: np.zeros((len(t), 7), np.float32), TOKENS, window=10)
    assert found.perplexity == pytest.approx(7)
    assert found.tokens == 45  # the first of each window of ten is not predicted
    assert found.kl is None


def test_nll_is_the_mean_of_what_each_token_costs() -> None:
    model = table_model(0)
    found = evaluate(model, TOKENS, window=50)
    log_p = log_softmax(model(TOKENS))
    expected = -np.mean([log_p[i, TOKENS[i + 1]] for i in range(49)])
    assert found.nll == pytest.approx(expected)


def test_a_model_does_not_differ_from_itself() -> None:
    found = evaluate(table_model(0), TOKENS, reference=table_model(0), window=16)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1
    assert found.nll_difference == 0


def test_divergence_is_from_the_reference_to_the_model() -> None:
    model, reference = table_model(0), table_model(1)
    found = evaluate(model, TOKENS, reference=reference, window=50)
    q = log_softmax(reference(TOKENS)[:-1])
    p = log_softmax(model(TOKENS)[:-1])
    assert found.kl == pytest.approx((np.exp(q) * (q - p)).sum(-1).mean(), rel=1e-5)
    assert found.nll_difference == pytest.approx(
        found.nll - evaluate(reference, TOKENS, window=50).nll, abs=1e-6
    )
    assert found.nll_difference_error is not None
    assert found.nll_difference_error > 0


def test_prefix_begins_every_window() -> None:
    seen: list[list[int]] = []

    def model(tokens: list[int]) -> np.ndarray:
        seen.append(tokens)
        return np.zeros((len(tokens), 7), np.float32)

    evaluate(model, TOKENS, prefix=[6], window=20)
    assert [s[0] for s in seen] == [6, 6, 6]


@pytest.mark.parametrize(
    ("tokens", "window", "message"),
    [([1], 8, "the text has 1 tokens"), (TOKENS, 1, "a window of 1 tokens predicts nothing")],
)
def test_nothing_to_score_is_said(tokens: list[int], window: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(table_model(0), tokens, window=window)
