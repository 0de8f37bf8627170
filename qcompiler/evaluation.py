"""How well a model predicts a text, and how far it is from a reference.

Perplexity alone hides what users feel, so a comparison also gives the KL divergence from the
reference's predictions and how often both put the same token first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.core.errors import UsageError
from qcompiler.core.progress import NO_PROGRESS, Progress

Logits = Callable[[list[int]], np.ndarray]
"""Tokens to float32 logits [len(tokens), vocab], the model starting afresh each time."""

WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over `tokens` predicted tokens, in nats.

    `nll_error` is the standard error of `nll`. `kl` is the divergence of the model's predictions
    from the reference's, `top1_agreement` the share of tokens that both put first, `nll_difference`
    the mean rise over the reference with its standard error; all None without a reference.
    """

    nll: float
    nll_error: float
    perplexity: float
    tokens: int
    kl: float | None = None
    top1_agreement: float | None = None
    nll_difference: float | None = None
    nll_difference_error: float | None = None


def evaluate(
    model: Logits,
    tokens: Sequence[int],
    *,
    reference: Logits | None = None,
    prefix: Sequence[int] = (),
    window: int = WINDOW,
    progress: Progress = NO_PROGRESS,
) -> Evaluation:
    """Score `tokens` in windows of `window`, each predicted from its own start.

    `prefix` are tokens every window begins with, such as a begin-of-text token.
    """
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing; use 2 or more")
    starts = [s for s in range(0, len(tokens), window) if len(tokens) - s >= 2]
    if not starts:
        raise UsageError(f"the text has {len(tokens)} tokens; 2 are the least that can be scored")
    losses: list[np.ndarray] = []
    reference_losses: list[np.ndarray] = []
    divergence, agreed = 0.0, 0
    for done, start in enumerate(starts):
        part = [*prefix, *tokens[start : start + window]]
        scored = np.asarray(part[1:])
        log_p = log_softmax(model(part)[:-1])
        losses.append(-log_p[np.arange(len(scored)), scored])
        if reference is not None:
            log_q = log_softmax(reference(part)[:-1])
            reference_losses.append(-log_q[np.arange(len(scored)), scored])
            divergence += float((np.exp(log_q) * (log_q - log_p)).sum())
            agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        progress.advance(done + 1, len(starts))
    loss = np.concatenate(losses).astype(np.float64)
    count = len(loss)
    nll = float(loss.mean())
    if reference is None:
        return Evaluation(nll=nll, nll_error=_error(loss), perplexity=math.exp(nll), tokens=count)
    rise = loss - np.concatenate(reference_losses)
    return Evaluation(
        nll=nll,
        nll_error=_error(loss),
        perplexity=math.exp(nll),
        tokens=count,
        kl=divergence / count,
        top1_agreement=agreed / count,
        nll_difference=float(rise.mean()),
        nll_difference_error=_error(rise),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last dimension, without overflow.

    >>> log_softmax(np.array([[0.0, 0.0]])).round(4).tolist()
    [[-0.6931, -0.6931]]
    """
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _error(values: np.ndarray) -> float:
    """Return the standard error of a mean (zero for a single value)."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
