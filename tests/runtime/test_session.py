"""Reading and continuing one sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.core.errors import UsageError
from qcompiler.runtime import LanguageModel, kv_cache, load, session

pytestmark = pytest.mark.tvm
Expected = Callable[[list[int]], np.ndarray]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and caches so small that a short sequence needs several."""
    monkeypatch.setattr(session, "CHUNK", 16)
    monkeypatch.setattr(kv_cache, "SMALLEST", 8)


def ids_of(lm: LanguageModel, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng().integers(0, lm.vocab_size, count)]


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 100, 150])
def test_prefill_in_chunks(lm: LanguageModel, expected: Expected, count: int) -> None:
    ids = ids_of(lm, count)
    one = lm.new_session()
    logits = one.prefill(ids)
    assert (logits.shape, logits.dtype) == ((lm.vocab_size,), np.float32)
    close(logits, expected(ids)[-1])
    assert (one.length, one.room) == (count, lm.max_context - count)


@pytest.mark.parametrize("count", [1, 2, 17, 150])
def test_logits_of_every_token(lm: LanguageModel, expected: Expected, count: int) -> None:
    ids = ids_of(lm, count)
    close(lm.logits(ids), expected(ids))
    close(lm.logits(np.array(ids)), expected(ids))


def test_decoding_token_by_token(lm: LanguageModel, expected: Expected) -> None:
    ids = ids_of(lm, 60)
    one = lm.new_session()
    close(one.prefill(ids[:5]), expected(ids[:5])[-1])
    for end in range(6, 61):
        close(one.decode(ids[end - 1]), expected(ids[:end])[-1])


def test_prefill_continues(lm: LanguageModel, expected: Expected) -> None:
    ids = ids_of(lm, 70)
    one = lm.new_session()
    for start, end in [(0, 3), (3, 4), (4, 40), (40, 70)]:
        close(one.prefill(ids[start:end]), expected(ids[:end])[-1])


def test_sequences_do_not_see_one_another(lm: LanguageModel, expected: Expected) -> None:
    first, second = ids_of(lm, 30), ids_of(lm, 30)
    one, two = lm.new_session(), lm.new_session()
    one.prefill(first[:10])
    two.prefill(second[:20])
    for i in range(10):
        close(one.decode(first[10 + i]), expected(first[: 11 + i])[-1])
        close(two.decode(second[20 + i]), expected(second[: 21 + i])[-1])
    close(lm.logits(first), expected(first))


def test_reset_forgets(lm: LanguageModel, expected: Expected) -> None:
    one = lm.new_session()
    one.prefill(ids_of(lm, 90))
    size = one.cache_bytes
    one.reset()
    assert (one.length, one.cache_bytes) == (0, size)
    ids = ids_of(lm, 20)
    close(one.prefill(ids), expected(ids)[-1])


def test_results_are_not_overwritten_by_later_steps(lm: LanguageModel) -> None:
    one = lm.new_session()
    first = one.prefill(ids_of(lm, 20))
    copy = first.copy()
    for token in ids_of(lm, 20):
        one.decode(token)
    np.testing.assert_array_equal(first, copy)


def test_memory_follows_the_tokens(lm: LanguageModel) -> None:
    one = lm.new_session()
    assert one.cache_bytes == 0
    one.prefill(ids_of(lm, 5))
    per_token = one.cache_bytes // 8
    one.prefill(ids_of(lm, 20))
    assert one.cache_bytes == 32 * per_token
    one.prefill(ids_of(lm, 120))
    assert one.cache_bytes == lm.max_context * per_token


@pytest.mark.parametrize("ids", [[], [[1, 2]], [1.0], ["a"], [True, False], np.zeros((0,), int)])
def test_what_are_no_tokens(lm: LanguageModel, ids: Any) -> None:
    with pytest.raises(
        UsageError, match="tokens must be a list of whole numbers that is not empty"
    ):
        lm.logits(ids)


@pytest.mark.parametrize("token", [-1, 100_000])
def test_token_outside_the_vocabulary(lm: LanguageModel, token: int) -> None:
    one = lm.new_session()
    with pytest.raises(UsageError, match=f"token {token} is not in the vocabulary, which has"):
        one.prefill([1, token])
    with pytest.raises(UsageError, match=f"token {token} is not"):
        one.decode(token)
    assert one.length == 0


def test_full_context(lm: LanguageModel) -> None:
    one = lm.new_session()
    with pytest.raises(UsageError, match=r"151 more tokens do not fit: .* holds 150 tokens$"):
        one.prefill(ids_of(lm, 151))
    one.prefill(ids_of(lm, 150))
    with pytest.raises(UsageError, match=r"1 more tokens do not fit: .*, 150 of which are taken"):
        one.decode(1)
    assert one.room == 0


def test_failed_call_leaves_the_sequence_as_it_was(
    lm: LanguageModel, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(lm, 12)
    one = lm.new_session()
    one.prefill(ids[:10])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one._executable, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.decode(ids[0])
    monkeypatch.undo()
    assert one.length == 10
    close(one.prefill(ids[10:]), expected(ids)[-1])


def test_closed_model(lm_folder: Path) -> None:
    with load(lm_folder) as model:
        assert isinstance(model, LanguageModel)
        one = model.new_session()
    with pytest.raises(UsageError, match="the model has been closed; load it again"):
        one.prefill([1, 2])


def test_repr(lm: LanguageModel) -> None:
    one = lm.new_session()
    one.prefill([1, 2, 3])
    assert repr(one) == "<Session 3 of 150 tokens>"
