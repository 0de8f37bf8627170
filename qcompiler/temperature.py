"""How a quantised model reacts to the temperature at which tokens are drawn.

A low temperature sharpens predictions, and with them what two models disagree on; a high one
flattens both, but lets unlikely tokens through, of which quantisation knows least. What is drawn
tells more: texts that repeat themselves, or that lose variety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEMPERATURES = (0.2, 0.5, 0.8, 1.0, 1.2, 1.5)

_ROWS = 16
"""Of logits at once: what is computed on the way stays in a cache."""


@dataclass(frozen=True, kw_only=True)
class AtTemperature:
    """A model at one temperature.

    `kl` is the mean divergence from the reference's predictions, in nats per token; None for the
    reference itself. `repeated` is the share of four tokens in a row that a text had before, and
    `distinct` that of pairs which are different from all others (distinct-2, arXiv 1510.03055);
    both are means over generated texts.
    """

    temperature: float
    kl: float | None
    repeated: float
    distinct: float


def kl_at(temperatures: Sequence[float], logits: np.ndarray, reference: np.ndarray) -> list[float]:
    """Return the mean KL divergence from the reference at each temperature, in nats.

    logits, reference: [t, vocab] float32, before any temperature.

    >>> p, q = (np.log(np.array([x], np.float32)) for x in ([0.5, 0.5], [0.8, 0.2]))
    >>> [round(x, 3) for x in kl_at([1.0, 0.5], p, q)]
    [0.193, 0.469]
    """
    totals = np.zeros(len(temperatures))
    for start in range(0, len(logits), _ROWS):
        p, q = logits[start : start + _ROWS], reference[start : start + _ROWS]
        for index, temperature in enumerate(temperatures):
            ours, theirs = _log_softmax(p / temperature), _log_softmax(q / temperature)
            apart = np.exp(theirs) * (theirs - ours)
            totals[index] += apart.sum(dtype=np.float64)
    return [float(total) / len(logits) for total in totals]


def distinct(tokens: Sequence[int], n: int) -> float:
    """Return the share of runs of n tokens that are different; 1 for a text without any.

    >>> distinct([1, 2, 1, 2, 1], 2)
    0.5
    """
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    result: np.ndarray = shifted
    return result
