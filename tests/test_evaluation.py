"""Likelihood, divergence and agreement, against their definitions; what is noise and what not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from qcompiler.core.errors import UsageError
from qcompiler.evaluation import Logits, evaluate, evaluate_beside

VOCAB = 7


def table_model(seed: int) -> Logits:
    """A model whose prediction depends on the last token alone."""
    table = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    return lambda tokens: table[np.asarray(tokens)]


def blurred(model: Logits, amount: float, seed: int = 0) -> Logits:
    """The model with noise on its logits, other noise in each window."""
    rng = np.random.default_rng(seed)
    return lambda tokens: model(tokens) + rng.normal(size=(len(tokens), VOCAB)) * amount


def written_by(model: Logits, count: int) -> list[int]:
    """A text that the model predicts as well as it can be predicted."""
    rng, tokens = np.random.default_rng(2), [0]
    while len(tokens) < count:
        tokens.append(int(rng.choice(VOCAB, p=softmax(model(tokens[-1:])[0].astype(np.float64)))))
    return tokens


TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, VOCAB, 50)]
LONG = written_by(table_model(0), 4000)


def test_uniform_model_has_perplexity_of_the_vocabulary() -> None:
    found = evaluate(lambda t: np.zeros((len(t), 7), np.float32), TOKENS, window=10)
    assert found.perplexity == pytest.approx(7)
    assert found.perplexity_interval == pytest.approx((7, 7))
    assert found.tokens == 45  # the first of each window of ten is not predicted
    assert found.kl is None
    assert found.comparison is None


def test_nll_is_the_mean_of_what_each_token_costs() -> None:
    model = table_model(0)
    found = evaluate(model, TOKENS, window=50)
    log_p = log_softmax(model(TOKENS), axis=-1)
    expected = -np.mean([log_p[i, TOKENS[i + 1]] for i in range(49)])
    assert found.nll == pytest.approx(expected)


def test_a_model_does_not_differ_from_itself() -> None:
    found = evaluate(table_model(0), TOKENS, reference=table_model(0), window=16)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1
    assert found.comparison is not None
    assert found.comparison.nll_difference == 0
    assert found.comparison.interval == (0, 0)
    assert found.comparison.verdict == "within noise"


def test_divergence_is_from_the_reference_to_the_model() -> None:
    model, reference = table_model(0), table_model(1)
    found = evaluate(model, TOKENS, reference=reference, window=50)
    q = log_softmax(reference(TOKENS)[:-1], axis=-1)
    p = log_softmax(model(TOKENS)[:-1], axis=-1)
    assert found.kl == pytest.approx((np.exp(q) * (q - p)).sum(-1).mean(), rel=1e-5)
    assert found.comparison is not None
    other = evaluate(reference, TOKENS, window=50)
    assert found.comparison.nll_difference == pytest.approx(found.nll - other.nll, abs=1e-6)
    assert found.comparison.reference_perplexity == pytest.approx(other.perplexity)
    assert found.comparison.nll_difference_error > 0


def test_a_worse_model_is_more_than_noise_and_an_equal_one_is_not() -> None:
    """Pairing tells models apart whose own intervals overlap."""
    model = table_model(0)
    worse = evaluate(table_model(1), LONG, reference=model, window=64)
    assert worse.comparison is not None
    assert worse.comparison.verdict == "more than noise"
    slightly = evaluate(blurred(model, 0.3), LONG, reference=model, window=64)
    own = evaluate(model, LONG, window=64)
    assert slightly.comparison is not None
    assert slightly.nll_interval[0] < own.nll_interval[1]
    assert slightly.comparison.verdict == "more than noise"
    # Noise of equal size on both: neither is better.
    pair = evaluate(blurred(model, 0.3, 1), LONG, reference=blurred(model, 0.3, 2), window=64)
    assert pair.comparison is not None
    assert pair.comparison.verdict == "within noise"


def test_several_texts_are_scored_each_and_together() -> None:
    model, reference = table_model(0), table_model(1)
    texts = {"one": LONG[:1000], "two": LONG[1000:1300]}
    found = evaluate(model, texts, reference=reference, window=50)
    assert list(found.texts) == ["one", "two"]
    for name, tokens in texts.items():
        alone = evaluate(model, tokens, reference=reference, window=50)
        assert found.texts[name] == alone
    assert found.tokens == sum(each.tokens for each in found.texts.values())
    pooled = sum(each.nll * each.tokens for each in found.texts.values()) / found.tokens
    assert found.nll == pytest.approx(pooled)
    assert found.blocks == 26


def test_each_model_reads_each_window_once() -> None:
    seen: list[tuple[str, int]] = []

    def reader(name: str) -> Logits:
        def model(tokens: list[int]) -> np.ndarray:
            seen.append((name, tokens[0]))
            return np.zeros((len(tokens), 7), np.float32)

        return model

    evaluate(reader("model"), {"a": [0] * 4, "b": [1] * 8}, reference=reader("float"), window=4)
    assert sorted(seen) == [
        *[("float", 0), ("float", 1), ("float", 1)],
        *[("model", 0), ("model", 1), ("model", 1)],
    ]


def test_several_models_beside_a_reference_are_as_if_each_were_alone() -> None:
    reference, *models = (table_model(seed) for seed in range(3))
    texts = {"one": LONG[:1000], "two": LONG[1000:1300]}
    for tokens in (texts, LONG[:500]):
        found = evaluate_beside(reference, models, tokens, window=50, prefix=[1])
        assert found == [
            evaluate(reference, tokens, window=50, prefix=[1]),
            *(evaluate(m, tokens, reference=reference, window=50, prefix=[1]) for m in models),
        ]


def test_a_reference_reads_each_window_once_for_all() -> None:
    seen: list[tuple[str, int]] = []

    def reader(name: str) -> Logits:
        def model(tokens: list[int]) -> np.ndarray:
            seen.append((name, tokens[0]))
            return np.zeros((len(tokens), 7), np.float32)

        return model

    evaluate_beside(reader("float"), [reader("a"), reader("b")], [0] * 4 + [1] * 4, window=4)
    assert seen == [(name, window) for window in (0, 1) for name in ("float", "a", "b")]


def test_prefix_begins_every_window() -> None:
    seen: list[list[int]] = []

    def model(tokens: list[int]) -> np.ndarray:
        seen.append(tokens)
        return np.zeros((len(tokens), 7), np.float32)

    evaluate(model, TOKENS, prefix=[6], window=20)
    assert [s[0] for s in seen] == [6, 6, 6]


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    def model(tokens: list[int]) -> np.ndarray:
        return np.tile(np.float32([1e4, 0, 0, 0, 0, 0, 0]), (len(tokens), 1))

    found = evaluate(model, [1] * 40, window=10)
    assert found.nll == pytest.approx(1e4)
    assert found.perplexity == float("inf")


@pytest.mark.parametrize(
    ("tokens", "window", "message"),
    [
        ([1], 8, "the text has 1 tokens"),
        ({"a.txt": TOKENS, "b.txt": [1]}, 8, "the text b.txt has 1 tokens"),
        (TOKENS, 1, "a window of 1 tokens predicts nothing"),
    ],
)
def test_nothing_to_score_is_said(tokens: list[int], window: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(table_model(0), tokens, window=window)
