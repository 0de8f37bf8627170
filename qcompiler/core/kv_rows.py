"""The one definition of how keys and values are stored in few bits, and read again.

Shape letters: `d` head size, `r` bytes of a row.
"""

from __future__ import annotations

import math

import torch

from qcompiler.core.formats import PerToken, TensorFormat
from qcompiler.core.kv_format import KvFormat
from qcompiler.core.reference import quantize_activation

QUERY = TensorFormat(bits=8, symmetric=True, granularity=PerToken())
"""What queries are quantised to where keys are multiplied as integers."""

_LARGEST = 65504.0  # of float16


def store_rows(x: torch.Tensor, form: KvFormat) -> torch.Tensor:
    """Quantise rows: x [..., d] → [..., r] uint8. Rounding is to nearest, ties to even."""
    d = x.shape[-1]
    groups = x.to(torch.float32).reshape(*x.shape[:-1], form.groups(d), form.group_size(d))
    if form.bits == 8:
        scale = _half(groups.abs().amax(-1) / 127.0)
        inverse = _inverse(scale)
        codes = (groups * inverse.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
        parts = [codes.flatten(-2).view(torch.uint8), _bytes(scale)]
        return torch.cat(parts, -1)
    least = _half(groups.amin(-1))
    wide = least.to(torch.float32)
    scale = _half((groups.amax(-1) - wide) / 15.0)
    shifted = (groups - wide.unsqueeze(-1)) * _inverse(scale).unsqueeze(-1)
    codes = shifted.round().clamp(0, 15).to(torch.uint8).flatten(-2)
    packed = codes[..., : d // 2] | codes[..., d // 2 :] << 4
    return torch.cat([packed, _bytes(scale), _bytes(least)], -1)


def read_rows(rows: torch.Tensor, form: KvFormat, d: int) -> torch.Tensor:
    """Read rows [..., r] uint8 as numbers [..., d] float32."""
    size, groups, end = form.group_size(d), form.groups(d), form.code_bytes(d)
    scale = _floats(rows[..., end : end + 2 * groups])
    codes = rows[..., :end]
    if form.bits == 8:
        wide = codes.contiguous().view(torch.int8).to(torch.float32)
        split = wide.reshape(*rows.shape[:-1], groups, size)
        return (split * scale.unsqueeze(-1)).flatten(-2)
    least = _floats(rows[..., end + 2 * groups :])
    wide = torch.cat([codes & 15, codes >> 4], -1).to(torch.float32)
    split = wide.reshape(*rows.shape[:-1], groups, size)
    return (split * scale.unsqueeze(-1) + least.unsqueeze(-1)).flatten(-2)


def rotate_heads(x: torch.Tensor) -> torch.Tensor:
    """Multiply rows [..., d] by an orthogonal Hadamard matrix, its own inverse.

    Where d is no power of two, blocks of the largest one that divides it are.
    """
    d = x.shape[-1]
    block = d & -d
    y, step = x.to(torch.float32), 1
    while step < block:
        pairs = y.reshape(*x.shape[:-1], d // (2 * step), 2, step)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack((a + b, a - b), -2).flatten(-3)
        step *= 2
    return y * (1.0 / math.sqrt(block))


def stored(x: torch.Tensor, kv: str) -> torch.Tensor:
    """Return rows x [..., d] as a cache of the format `kv` holds them; "" is as they are."""
    return store_rows(x, KvFormat.parse(kv)) if kv else x


def seen(rows: torch.Tensor, kv: str, d: int) -> torch.Tensor:
    """Return what attention reads in rows of a cache; the inverse of `stored`, but for rounding."""
    return read_rows(rows, KvFormat.parse(kv), d) if kv else rows


def turned(x: torch.Tensor, kv: str) -> torch.Tensor:
    """Return keys [..., d] as a cache of the format `kv` is given them."""
    return rotate_heads(x) if kv and KvFormat.parse(kv).rotated else x


def asked(q: torch.Tensor, kv: str) -> torch.Tensor:
    """Return queries [..., d] as they are multiplied with keys of the format `kv`."""
    return met(turned(q, kv), kv)


def met(q: torch.Tensor, kv: str) -> torch.Tensor:
    """Return queries [..., d], turned as keys are, in the numbers that keys of `kv` meet."""
    if not kv or not KvFormat.parse(kv).meets_codes:
        return q
    codes, scale = quantize_activation(q, QUERY)
    return (codes.to(torch.float32) * scale).to(q.dtype)


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-_LARGEST, _LARGEST).to(torch.float16)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    wide = scale.to(torch.float32)
    return torch.where(wide > 0, 1.0 / wide, torch.zeros_like(wide))


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def _floats(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(torch.float16).to(torch.float32)
