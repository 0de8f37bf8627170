"""Rotary embedding of a fused query, key and value product, then causal attention with a cache."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen.kernels.attention import AttentionSpec, Cache, NewTokens, attend
from codegen.kernels.builder import Expr, argument, kernel, size
from codegen.kernels.rotary import RotarySpec, Row, copy_row, rotate_row, subtract_row
from codegen.kernels.row import Rows
from qcompiler.core.target import Target


@dataclass(frozen=True, kw_only=True)
class RopeAttentionSpec:
    """Attention whose queries and keys are first turned, in pairs of `rotated` features.

    Keys that are `centred` are stored less a mean.
    """

    attention: AttentionSpec
    rotated: int
    interleaved: bool = False
    centred: bool = False

    def __post_init__(self) -> None:
        _ = self.rotary

    @property
    def rotary(self) -> RotarySpec:
        """How a head is turned."""
        return RotarySpec(
            heads=self.attention.heads,
            head_size=self.attention.head_size,
            rotated=self.rotated,
            interleaved=self.interleaved,
        )


def rope_attention(spec: RopeAttentionSpec, target: Target, rows: Rows) -> PrimFunc:
    """qkv [1, s, (h + 2·hk)·d], cos, sin [1, s, r/2], both caches, position, ahead → [1, s, h·d].

    Between sin and the caches come the means of keys that are centred, [hk, d]. The caches
    [1, hk, c, d] change in place. One row is the schedule for a single new token, many for a
    prompt.
    """
    shape = spec.attention
    heads, shared, d = shape.heads, shape.kv_heads, shape.head_size
    with kernel("rope_attention") as built:
        s = 1 if rows == "one" else size("s")
        qkv = argument("qkv", (1, s, (heads + 2 * shared) * d), "float32")
        cos = argument("cos", (1, s, spec.rotated // 2), "float32")
        sin = argument("sin", (1, s, spec.rotated // 2), "float32")
        mean = argument("key_mean", (shared, d), "float32") if spec.centred else None
        cache = Cache.declare(shape)
        out = argument("out", (1, s, heads * d), "float32")

        def rotate(token: Expr, head: Expr, to: Row) -> None:
            angles = (Row(cos, (0, token, 0)), Row(sin, (0, token, 0)))
            rotate_row(Row(qkv, (0, token, head * d)), to, *angles, spec.rotary, target.lanes)

        def append(token: Expr, head: Expr, key: Row, value: Row) -> None:
            rotate(token, heads + head, key)
            if mean is not None:
                subtract_row(Row(mean, (head, 0)), key, d, target.lanes)
            v = Row(qkv, (0, token, (heads + shared + head) * d))
            copy_row(v, value, d, target.lanes)

        new = NewTokens(
            tokens=s,
            write_query=rotate,
            append=append,
            output=lambda token, head: Row(out, (0, token, head * d)),
        )
        attend(shape, target, rows, new, cache)
    return built.get()
