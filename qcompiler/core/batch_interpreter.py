"""Continue many texts at once in torch: weights are read once for all of them."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.core import ops
from qcompiler.core.interpreter import ProgramInterpreter
from qcompiler.core.program import Program

_STEP = 64
"""Attention looks at so many places more at once, and masks those that it may not see."""


class BatchedLanguageModel:
    """A causal LM program as a function from the next token of each text to its logits.

    The graph is written for one text. `torch.vmap` makes of it one for many, which are all equally
    long. Every text has caches for `context` tokens; weights stay in memory.
    """

    def __init__(self, program: Program, texts: int, context: int) -> None:
        self._interpreter = _Interpreter(program, keep_weights=True)
        shapes = [(texts, 1, kv.heads, context, kv.head_dim) for kv in program.info.kv]
        self._caches = [torch.zeros(shape) for shape in shapes for _ in "kv"]
        self._row = torch.tensor([0])
        self._step = torch.vmap(
            self._interpreter.run, in_dims=(0, None, None, *(0 for _ in self._caches))
        )
        self.length = 0
        """Tokens of each text so far."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each text, [b] int64; return the logits of the next, [b, vocab]."""
        position = torch.tensor([self.length])
        with torch.no_grad():
            out = self._step(tokens.reshape(-1, 1, 1), position, self._row, *self._caches)
        self.length += 1
        logits: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
        return logits.reshape(tokens.numel(), -1)

    @staticmethod
    def bytes_per_text(program: Program, context: int) -> int:
        """Return what the caches of one text take."""
        return sum(2 * 4 * kv.heads * kv.head_dim * context for kv in program.info.kv)


class _Interpreter(ProgramInterpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.sym_size.int:
            # Has no rule for many at once, though what it asks for is the same for all.
            return args[0].shape[args[1]]
        if target is ops.attention:
            return _attend(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """`ops.attention` of one token, which sees all that is there: nothing is copied."""
    place, (heads, d) = int(position), q.shape[2:]
    k_cache[:, :, place : place + 1] = k.transpose(1, 2)
    v_cache[:, :, place : place + 1] = v.transpose(1, 2)
    first = max(0, place + 1 - window) if window > 0 else 0
    # Sizes that are new at every step would cost memory: the allocator finds no use for old ones.
    begin, end = first // _STEP * _STEP, -(-(place + 1) // _STEP) * _STEP
    keys, values = k_cache[:, :, begin:end], v_cache[:, :, begin:end]
    places = torch.arange(begin, begin + keys.shape[2])
    groups = k.shape[2]
    query = q.reshape(1, groups, heads // groups, d)
    scores = (query @ keys.transpose(-1, -2)) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill((places < first) | (places > place), float("-inf"))
    return (scores.softmax(-1) @ values).reshape(1, 1, heads, v.shape[-1])
