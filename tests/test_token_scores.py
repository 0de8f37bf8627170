"""Scores of tokens against float64, whatever the shapes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from qcompiler import token_scores
from qcompiler.token_scores import TokenScores, score_tokens


@pytest.mark.parametrize(("tokens", "vocab"), [(1, 5), (17, 1000), (8, 49152), (3, 300_000)])
def test_scores_are_those_of_float64(tokens: int, vocab: int) -> None:
    rng = np.random.default_rng(tokens)
    p = rng.normal(size=(tokens, vocab)).astype(np.float32) * 4 + 50
    q = p + rng.normal(size=(tokens, vocab)).astype(np.float32) * 0.2 - 30
    wanted = rng.integers(0, vocab, tokens)
    found = score_tokens(p, wanted, q)
    log_p, log_q = (log_softmax(one.astype(np.float64), axis=-1) for one in (p, q))
    rows = np.arange(tokens)
    np.testing.assert_allclose(found.nll, -log_p[rows, wanted], rtol=1e-6)
    assert found.reference is not None
    np.testing.assert_allclose(found.reference.nll, -log_q[rows, wanted], rtol=1e-6)
    expected = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    np.testing.assert_allclose(found.reference.kl, expected, atol=2e-5)
    assert found.reference.agreed.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_logits_are_left_alone_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.normal(size=(33, 100)).astype(np.float32) for _ in "pq")
    wanted = rng.integers(0, 100, 33)
    kept = p.copy(), q.copy()
    whole = score_tokens(p, wanted, q)
    monkeypatch.setattr(token_scores, "CHUNK_BYTES", 1200)
    parts = score_tokens(p, wanted, q)
    np.testing.assert_array_equal(whole.nll, parts.nll)
    for name in ("nll", "kl", "agreed"):
        one, other = (getattr(scores.reference, name) for scores in (whole, parts))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(p, kept[0])
    np.testing.assert_array_equal(q, kept[1])


def test_parts_are_put_together_in_order() -> None:
    one = TokenScores(nll=np.array([1.0]))
    two = TokenScores(nll=np.array([2.0, 3.0]))
    joined = TokenScores.concatenate([one, two])
    assert joined.nll.tolist() == [1, 2, 3]
    assert joined.reference is None
    assert len(joined) == 3
