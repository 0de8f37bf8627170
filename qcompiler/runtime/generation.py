"""A text being generated: an iterator over its pieces that counts and times what it does."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Literal

import numpy as np

from qcompiler.runtime.sampling import Sampler
from qcompiler.runtime.session import Session
from qcompiler.runtime.text_stream import TextStream

FinishReason = Literal["stop", "length", "context"]


class Generation(Iterator[str]):
    """Pieces of text, each computed when it is asked for.

    finish_reason: None while the text goes on; then "stop" (an end token), "length" (as many tokens
    as were asked for) or "context" (the context is full). tokens: those generated, an end token
    left out. prefill_s, decode_s: seconds for the prompt, and for every later step; what the caller
    does between two pieces does not count. seed: gives the same text again.
    """

    def __init__(
        self,
        session: Session,
        prompt: list[int],
        sampler: Sampler,
        stream: TextStream,
        end_tokens: frozenset[int],
        max_tokens: int,
    ) -> None:
        self._session = session
        self._prompt = prompt
        self._sampler = sampler
        self._stream = stream
        self._end_tokens = end_tokens
        self._max_tokens = max_tokens
        self._pieces = self._run()
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.seed = sampler.seed

    def __next__(self) -> str:
        return next(self._pieces)

    def __repr__(self) -> str:
        return f"<Generation of {len(self.tokens)} tokens, {self.finish_reason or 'unfinished'}>"

    @property
    def prompt_tokens(self) -> int:
        return len(self._prompt)

    @property
    def explanation(self) -> str:
        """Why the text ended, in a sentence."""
        if self.finish_reason is None:
            return "the text is not finished"
        return {
            "stop": "the model ended its answer",
            "length": f"the limit of {self._max_tokens} tokens is reached",
            "context": f"the model's context of {self._session.length} tokens is full",
        }[self.finish_reason]

    def close(self) -> None:
        """Stop, and free the caches."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        start = time.perf_counter()
        logits = self._session.prefill(self._prompt)
        self.prefill_s = time.perf_counter() - start
        while self.finish_reason is None:
            start = time.perf_counter()
            piece = self._step(logits)
            self.decode_s += time.perf_counter() - start
            if piece:
                yield piece
            if self.finish_reason is None:
                start = time.perf_counter()
                logits = self._session.decode(self.tokens[-1])
                self.decode_s += time.perf_counter() - start

    def _step(self, logits: np.ndarray) -> str:
        """Pick a token, find out whether it is the last, and return the text that is new."""
        token = self._sampler.pick(logits)
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return self._stream.finish(cut=False)
        self.tokens.append(token)
        piece = self._stream.push(token)
        if len(self.tokens) == self._max_tokens:
            self.finish_reason = "length"
        elif not self._session.room:
            self.finish_reason = "context"
        else:
            return piece
        return piece + self._stream.finish(cut=True)
