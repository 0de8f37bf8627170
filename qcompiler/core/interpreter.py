"""Run a program in torch, at any stage: the meaning every compiled artifact is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.core.program import Program


class ProgramInterpreter(fx.Interpreter):
    """Interpret a program's graph, fetching weights from its store.

    With `keep_weights`, what was read stays in memory for the next call; without, one weight at a
    time is in memory.
    """

    def __init__(self, program: Program, *, keep_weights: bool = False) -> None:
        super().__init__(torch.nn.Module(), garbage_collect_values=True, graph=program.graph)
        self._weights = program.weights
        self._kept: dict[str, Any] | None = {} if keep_weights else None

    def fetch_attr(self, target: str) -> Any:
        if self._kept is None:
            return self._weights.get(target)
        if target not in self._kept:
            self._kept[target] = self._weights.get(target)
        return self._kept[target]


class TorchLanguageModel:
    """A causal LM program as a function from tokens to logits, with KV caches of its own."""

    def __init__(self, program: Program) -> None:
        self._interpreter = ProgramInterpreter(program, keep_weights=True)
        self._info = program.info

    def new_caches(self, context: int) -> list[torch.Tensor]:
        """Return empty caches for `context` tokens, in graph order."""
        return [cache for kv in self._info.kv for cache in kv.new(context)]

    def step(
        self, ids: torch.Tensor, position: int, rows: torch.Tensor, caches: list[torch.Tensor]
    ) -> torch.Tensor:
        """Feed ids [1, s] at `position`; return logits [r, vocab] of the wanted rows."""
        with torch.no_grad():
            out = self._interpreter.run(ids, torch.tensor([position]), rows, *caches)
        logits: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
        return logits[0]

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits after every one of `tokens`, [len(tokens), vocab] float32."""
        ids = torch.tensor([tokens])
        return self.step(ids, 0, torch.arange(len(tokens)), self.new_caches(len(tokens)))
