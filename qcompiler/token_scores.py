"""What each predicted token costs a model, and how far the prediction is from a reference's.

A few rows at a time, so that what is computed on the way stays in the processor's cache: several
times faster than whole arrays of logits, which are a hundred megabytes for a few hundred tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

CHUNK_BYTES = 1 << 20
"""Of each temporary array; there are two."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Figures of a reference on the same t tokens.

    `kl` is the divergence of the model's prediction from the reference's, `agreed` whether both put
    the same token first.
    """

    nll: np.ndarray
    kl: np.ndarray
    agreed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Negative log-likelihoods of t tokens in a row, in nats, beside a reference's or alone."""

    nll: np.ndarray
    reference: Reference | None = None

    def __len__(self) -> int:
        return len(self.nll)

    @staticmethod
    def concatenate(parts: Sequence[TokenScores]) -> TokenScores:
        """Put scores of consecutive tokens together: all with a reference, or none."""
        nll = np.concatenate([part.nll for part in parts])
        beside = [part.reference for part in parts if part.reference is not None]
        if not beside:
            return TokenScores(nll=nll)
        return TokenScores(
            nll=nll,
            reference=Reference(
                nll=np.concatenate([one.nll for one in beside]),
                kl=np.concatenate([one.kl for one in beside]),
                agreed=np.concatenate([one.agreed for one in beside]),
            ),
        )


def score_tokens(
    logits: np.ndarray, tokens: np.ndarray, reference: np.ndarray | None = None
) -> TokenScores:
    """Score what was predicted: logits, and those of a reference, [t, vocab] float32; tokens [t].

    >>> score_tokens(np.zeros((1, 4), np.float32), np.array([2])).nll.round(4).tolist()
    [1.3863]
    """
    count = len(tokens)
    rows = max(1, CHUNK_BYTES // (logits.shape[1] * 4))
    chunks = [slice(start, start + rows) for start in range(0, count, rows)]
    # Each row is computed by itself, so that the number of threads changes nothing.
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        score = partial(_score_chunk, logits, tokens, reference)
        return TokenScores.concatenate(list(pool.map(score, chunks)))


def _score_chunk(
    logits: np.ndarray, tokens: np.ndarray, reference: np.ndarray | None, rows: slice
) -> TokenScores:
    p, wanted = logits[rows], tokens[rows]
    index = np.arange(len(p))
    work = np.empty(p.shape, np.float32)
    model = _normaliser(p, work)
    nll = model.largest + model.log_weight - p[index, wanted]
    if reference is None:
        return TokenScores(nll=nll)
    q = reference[rows]
    other = _normaliser(q, work)
    # KL = Σ softmax(q) · (log softmax(q) − log softmax(p)). Logits may differ by a large constant,
    # which means nothing and would cost digits, so it is taken out first.
    apart = np.subtract(q, p)
    apart -= (other.largest - model.largest).astype(np.float32)[:, None]
    mean = np.einsum("tv,tv->t", work, apart) / np.exp(other.log_weight)
    return TokenScores(
        nll=nll,
        reference=Reference(
            nll=other.largest + other.log_weight - q[index, wanted],
            kl=mean - other.log_weight + model.log_weight,
            agreed=model.first == other.first,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Normaliser:
    """Of each row: the likeliest token, its logit, and log Σ exp(logit − that), in float64."""

    first: np.ndarray
    largest: np.ndarray
    log_weight: np.ndarray


def _normaliser(logits: np.ndarray, work: np.ndarray) -> _Normaliser:
    """Leave exp(logit − largest) in `work`."""
    first = logits.argmax(-1)
    largest = logits[np.arange(len(logits)), first]
    np.subtract(logits, largest[:, None], out=work)
    np.exp(work, out=work)
    return _Normaliser(
        first=first,
        largest=largest.astype(np.float64),
        log_weight=np.log(work.sum(-1).astype(np.float64)),
    )
