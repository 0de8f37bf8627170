"""How the next token is picked from its logits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qcompiler.core.errors import ArtifactError, UsageError


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and math.isfinite(value)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are picked; the defaults always take the likeliest.

    temperature: divides the logits, 0 takes the likeliest token. top_k: only the k likeliest are
    left. top_p: only the fewest likeliest that have this probability together are left (nucleus
    sampling, arXiv 1904.09751). repetition_penalty: above 1, tokens that occurred become less
    likely (CTRL, arXiv 1909.05858). seed: equal seeds give equal texts; None takes a new one.
    Raises UsageError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or self.temperature < 0:
            raise UsageError(f"temperature is {self.temperature}; give 0 or more")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise UsageError(f"top_k is {self.top_k}; give a whole number from 1")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; give a number above 0, and at most 1")
        if not _is_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}; give a number above 0, "
                "for instance 1.1"
            )
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise UsageError(f"seed is {self.seed}; give a whole number from 0")


class Sampler:
    """Picks tokens for one text, with random numbers of its own."""

    def __init__(self, options: SamplingOptions, seen: Iterable[int] = ()) -> None:
        """`seen` are the tokens of the prompt, which the repetition penalty counts as well."""
        self._options = options
        self._seen = set(seen)
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self._random = np.random.default_rng(self.seed)

    def pick(self, logits: np.ndarray) -> int:
        """Return a token for logits [vocab], which are left as they are."""
        options = self._options
        if options.repetition_penalty != 1 and self._seen:
            logits = logits.astype(np.float64)
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values, penalty = logits[seen], options.repetition_penalty
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise ArtifactError("the model's logits are not finite numbers; compile it again")
        token = best if options.temperature == 0 else self._draw(logits)
        self._seen.add(token)
        return token

    def _draw(self, logits: np.ndarray) -> int:
        """Return a random token, each as often as its probability says."""
        tokens, probabilities = candidates(logits, self._options)
        total = np.cumsum(probabilities)
        # The last sum is 1 but for rounding; a number beyond it must not fall off the end.
        place = np.searchsorted(total, self._random.random() * total[-1], side="right")
        return int(tokens[min(int(place), tokens.size - 1)])


def candidates(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that may be picked and their probabilities: logits [vocab] → two [m].

    Tokens that tie with the last of the `top_k` are all kept. The temperature must not be 0.
    """
    tokens = np.arange(logits.size)
    if options.top_k is not None and options.top_k < logits.size:
        limit = np.partition(logits, -options.top_k)[-options.top_k]
        tokens = np.flatnonzero(logits >= limit)
    chosen = logits[tokens].astype(np.float64)
    weights = np.exp((chosen - chosen.max()) / options.temperature)
    probabilities = weights / weights.sum()
    if options.top_p == 1:
        return tokens, probabilities
    # Tokens below this have less than 1 − top_p together, so none of them is in the nucleus:
    # sorting the few others takes a tenth of the time of sorting a whole vocabulary.
    likely = np.flatnonzero(probabilities >= (1 - options.top_p) / probabilities.size)
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    total = np.cumsum(probabilities[order])
    count = int(np.searchsorted(total, options.top_p * (1 - 1e-12))) + 1
    kept = order[:count]
    return tokens[kept], probabilities[kept] / probabilities[kept].sum()
