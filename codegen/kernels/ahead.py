"""Asking for weights that are read next, while something computes for longer than it reads."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import Buffer, Expr, bind, constant, prefetch, serial, settle
from qcompiler.core.artifact import LINE_BYTES

_LINES_AT_ONCE = 4
"""Of the cache, asked for in a row: tokens take 1 to 5 % less than with a loop over single ones."""


@dataclass(frozen=True)
class Ahead:
    """A weight that is wanted next; `most`: as many of its bytes are asked for."""

    buffer: Buffer
    bytes: int
    most: int

    def share(self, task: Expr, tasks: int, turns: Expr) -> Share:
        """Divide it among tasks, and the part of `task` among its turns."""
        lines = self.bytes // (tasks * LINE_BYTES)
        wanted = min(self.bytes, self.most) // (tasks * LINE_BYTES)
        turns = tirx.Max(turns, constant(1, "int64")) * _LINES_AT_ONCE
        return Share(self.buffer, bind(task * lines), settle((wanted + turns - 1) // turns))


@dataclass(frozen=True)
class Share:
    """Lines of a weight from `first` on, so many times `_LINES_AT_ONCE` in `each` turn."""

    buffer: Buffer
    first: Expr
    each: Expr

    def ask(self, turn: Expr) -> None:
        """Ask for what has its turn."""
        begin = bind(self.first + turn * self.each * _LINES_AT_ONCE)
        with serial(self.each) as i:
            for line in range(_LINES_AT_ONCE):
                prefetch(self.buffer, (begin + i * _LINES_AT_ONCE + line) * LINE_BYTES)
