"""One sequence that a language model reads and continues, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.core.artifact import ModelFacts
from qcompiler.core.errors import UsageError
from qcompiler.runtime.executable import Executable
from qcompiler.runtime.kv_cache import KVCache
from qcompiler.runtime.step import Step
from qcompiler.runtime.tensors import aligned_zeros

CHUNK = 512
"""Tokens of a prompt that are read at once: enough to keep the matrix products busy, and few enough
that their activations stay small and Ctrl-C is heard soon."""


class Session:
    """A sequence and its caches. Its tokens are only ever added to, until `reset`."""

    def __init__(self, executable: Executable, facts: ModelFacts) -> None:
        self._executable = executable
        self._facts = facts
        self._device = executable.device
        self._cache = KVCache(facts.kv, facts.max_context, self._device)
        self.length = 0
        """Tokens read so far."""
        self._token = aligned_zeros((1, 1), np.int64)
        self._position = aligned_zeros((1,), np.int64)
        # A decoding step changes two numbers; their tensors are made once.
        self._token_tensor = self._device.upload(self._token)
        self._position_tensor = self._device.upload(self._position)
        self._logits = aligned_zeros((1, facts.vocab_size), np.float32)
        self._step = executable.step("decode", [self._token, self._position, self._logits])

    def __repr__(self) -> str:
        return f"<Session {self.length} of {self._facts.max_context} tokens>"

    @property
    def room(self) -> int:
        """Tokens that the context still has room for."""
        return self._facts.max_context - self.length

    @property
    def cache_bytes(self) -> int:
        """Memory that the caches take."""
        return self._cache.nbytes

    @property
    def step(self) -> Step | None:
        """The function that `decode` runs as a whole; None where it runs kernel by kernel."""
        return self._step

    def reset(self) -> None:
        """Forget all tokens; memory is kept for the next."""
        # What the caches still hold lies behind the position, where no kernel looks.
        self.length = 0

    def prefill(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read tokens and return the logits of what comes after the last, [vocab] float32.

        Raises UsageError for none, unknown ones, and more than the context has room for.
        """
        tokens = self._checked(ids)
        for start in range(0, tokens.size, CHUNK):
            chunk = tokens[start : start + CHUNK]
            logits = self._read(chunk, np.array([chunk.size - 1]))
        last: np.ndarray = logits[0]
        return last

    def decode(self, token: int) -> np.ndarray:
        """Read one token and return the logits of the next, [vocab] float32."""
        logits: np.ndarray = self._read(self._checked([token]), np.zeros(1, np.int64))[0]
        return logits

    def score(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read tokens and return the logits after each of them, [len(ids), vocab] float32."""
        tokens = self._checked(ids)
        logits = np.empty((tokens.size, self._facts.vocab_size), np.float32)
        for start in range(0, tokens.size, CHUNK):
            chunk = tokens[start : start + CHUNK]
            logits[start : start + chunk.size] = self._read(chunk, np.arange(chunk.size))
        return logits

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return tokens as an int64 array [t] that fits the vocabulary and the context."""
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
            raise UsageError("tokens must be a list of whole numbers that is not empty")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._facts.vocab_size:
            raise UsageError(
                f"token {low if low < 0 else high} is not in the vocabulary, "
                f"which has {self._facts.vocab_size} tokens"
            )
        if tokens.size > self.room:
            taken = f", {self.length} of which are taken" if self.length else ""
            raise UsageError(
                f"{tokens.size} more tokens do not fit: the context of {self._facts.name} holds "
                f"{self._facts.max_context} tokens{taken}"
            )
        return tokens.astype(np.int64, copy=False)

    def _read(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Run the model on tokens [t], writing its caches; return logits [rows, vocab]."""
        grown = self._cache.reserve(self.length + tokens.size, self.length)
        if grown and self._step is not None:
            self._step.use_caches(self._cache.arrays, self._cache.capacity)
        self._position[0] = self.length
        self._device.write(self._position_tensor, self._position)
        if tokens.size == 1:
            self._token[0, 0] = tokens[0]
            if self._step is not None:
                self._executable.run(self._step)
                self.length += 1
                return self._logits.copy()
            self._device.write(self._token_tensor, self._token)
            result = self._executable.call(
                "decode", self._token_tensor, self._position_tensor, self._cache.tensors
            )
        else:
            result = self._executable.call(
                "prefill",
                self._device.upload(tokens[np.newaxis]),
                self._position_tensor,
                self._device.upload(rows),
                self._cache.tensors,
            )
        # Only now: a call that fails or is interrupted leaves the sequence as it was.
        self.length += tokens.size
        logits: np.ndarray = self._device.download(result)[0]
        return logits
