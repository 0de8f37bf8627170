"""Transposition of a square of vectors in registers."""

from __future__ import annotations

from collections.abc import Sequence

from codegen.kernels.builder import Expr, bind, shuffle


def transpose(rows: Sequence[Expr]) -> list[Expr]:
    """Turn n vectors of n lanes, n a power of two, into those of the columns: n·log2(n) shuffles.

    At each step the two off-diagonal quarters of every square change places; the squares halve.
    """
    vectors = list(rows)
    n = len(vectors)
    step = n // 2
    while step:
        upper = [i if not i & step else n + i - step for i in range(n)]
        lower = [i + step if not i & step else n + i for i in range(n)]
        for i in range(n):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i], vectors[i + step] = (
                    bind(shuffle(a, b, upper)),
                    bind(shuffle(a, b, lower)),
                )
        step //= 2
    return vectors
