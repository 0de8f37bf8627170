"""How well a model predicts texts, and how far it is from a reference.

Perplexity alone hides what users feel, so a comparison also gives the KL divergence from the
reference's predictions, how often both put the same token first, and whether the difference of
their likelihoods is more than chance would make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qcompiler.core.errors import UsageError
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.token_scores import Reference, TokenScores, score_tokens
from qcompiler.uncertainty import Estimate, estimate

Logits = Callable[[list[int]], np.ndarray]
"""Tokens to float32 logits [len(tokens), vocab], the model starting afresh each time."""

WINDOW = 512

Interval = tuple[float, float]
"""What holds the true figure in 95 of 100 cases; `qcompiler.uncertainty` says how it is found."""

Verdict = Literal["more than noise", "within noise"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside its reference on the same tokens, pair by pair; in nats per token.

    `nll_difference` is the mean rise of the negative log-likelihood over the reference's, a fall if
    it is negative. It is more than noise if its interval does not hold zero.
    """

    nll_difference: float
    nll_difference_error: float
    interval: Interval
    reference_nll: float
    reference_perplexity: float
    kl_interval: Interval
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over `tokens` predicted tokens, in nats.

    `nll_error` is the standard error of `nll`, over `blocks` windows or parts of them. `kl` is the
    divergence of the model's predictions from the reference's, `top1_agreement` the share of tokens
    that both put first; these and `comparison` are None without a reference. `texts` has the same
    for each text by its name, where several were given.
    """

    nll: float
    nll_error: float
    nll_interval: Interval
    perplexity: float
    perplexity_interval: Interval
    tokens: int
    blocks: int
    kl: float | None = None
    top1_agreement: float | None = None
    comparison: Comparison | None = None
    texts: dict[str, Evaluation] = field(default_factory=dict)


def evaluate(
    model: Logits,
    tokens: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    reference: Logits | None = None,
    prefix: Sequence[int] = (),
    window: int = WINDOW,
    progress: Progress = NO_PROGRESS,
) -> Evaluation:
    """Score the tokens of one text, or of several by name, in windows of `window` tokens.

    Each window is predicted from its own start, after `prefix`: tokens such as a begin-of-text
    token. The model and its reference read each window once.
    """
    (scores,) = _score([model], tokens, reference, prefix, window, progress)
    return _evaluation(scores)


def evaluate_beside(
    reference: Logits,
    models: Sequence[Logits],
    tokens: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    prefix: Sequence[int] = (),
    window: int = WINDOW,
    progress: Progress = NO_PROGRESS,
) -> list[Evaluation]:
    """Score a reference by itself, and models beside it, in one walk over the text.

    The evaluations are those of `evaluate`, the reference's first. Each window is read once by
    each, and no more than the logits of two models are in memory at once.
    """
    beside = _score(models, tokens, reference, prefix, window, progress)
    own = {
        name: [TokenScores(nll=w.reference.nll) for w in windows if w.reference is not None]
        for name, windows in beside[0].items()
    }
    return [_evaluation(scores) for scores in (own, *beside)]


Scores = dict[str, list[TokenScores]]
"""Of one model: the windows of each text by its name."""


def _score(
    models: Sequence[Logits],
    tokens: Sequence[int] | Mapping[str, Sequence[int]],
    reference: Logits | None,
    prefix: Sequence[int],
    window: int,
    progress: Progress,
) -> list[Scores]:
    """Have every model, and the reference, read each window once; return the scores of each."""
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing; use 2 or more")
    texts = tokens if isinstance(tokens, Mapping) else {"": tokens}
    windows = {name: _windows(name, ids, window) for name, ids in texts.items()}
    found: list[Scores] = [{name: [] for name in windows} for _ in models]
    total, done = sum(map(len, windows.values())) * len(models), 0
    for name, parts in windows.items():
        for part in parts:
            read = [*prefix, *part]
            expected = None if reference is None else reference(read)[:-1]
            for model, scores in zip(models, found, strict=True):
                one = score_tokens(model(read)[:-1], np.asarray(read[1:]), expected)
                scores[name].append(one)
                done += 1
                progress.advance(done, total)
    return found


def _evaluation(scores: Scores) -> Evaluation:
    each = {name: _summarise([found]) for name, found in scores.items()} if len(scores) > 1 else {}
    return _summarise(list(scores.values()), each)


def _windows(name: str, tokens: Sequence[int], window: int) -> list[Sequence[int]]:
    starts = [s for s in range(0, len(tokens), window) if len(tokens) - s >= 2]
    if not starts:
        raise UsageError(
            f"the text{f' {name}' if name else ''} has {len(tokens)} tokens; "
            "2 are the least that can be scored"
        )
    return [tokens[start : start + window] for start in starts]


def _summarise(
    texts: Sequence[Sequence[TokenScores]], each: dict[str, Evaluation] | None = None
) -> Evaluation:
    """Return the means over all tokens of the texts, each given as its windows."""
    nll = estimate([[window.nll for window in text] for text in texts])
    scores = TokenScores.concatenate([window for text in texts for window in text])
    low, high = nll.interval
    beside = scores.reference
    return Evaluation(
        nll=nll.mean,
        nll_error=nll.error,
        nll_interval=nll.interval,
        perplexity=_exp(nll.mean),
        perplexity_interval=(_exp(low), _exp(high)),
        tokens=len(scores),
        blocks=nll.blocks,
        kl=None if beside is None else float(beside.kl.mean()),
        top1_agreement=None if beside is None else float(beside.agreed.mean()),
        comparison=_compare(texts),
        texts=each or {},
    )


def _compare(texts: Sequence[Sequence[TokenScores]]) -> Comparison | None:
    if any(window.reference is None for text in texts for window in text):
        return None

    def over(values: Callable[[TokenScores, Reference], np.ndarray]) -> Estimate:
        return estimate(
            [[values(w, w.reference) for w in text if w.reference is not None] for text in texts]
        )

    rise = over(lambda model, reference: model.nll - reference.nll)
    reference_nll = over(lambda _, reference: reference.nll).mean
    low, high = rise.interval
    return Comparison(
        nll_difference=rise.mean,
        nll_difference_error=rise.error,
        interval=rise.interval,
        reference_nll=reference_nll,
        reference_perplexity=_exp(reference_nll),
        kl_interval=over(lambda _, reference: reference.kl).interval,
        verdict="more than noise" if low > 0 or high < 0 else "within noise",
    )


def _exp(nll: float) -> float:
    """Return a perplexity; one that no float can hold is infinite."""
    return math.exp(nll) if nll < 700 else math.inf
