"""Fake quantisation: numbers that are rounded as they will be deployed, and pass gradients on.

The values are those of `QuantizedTensor.dequantize`, `reference.quantize_activation` and
`kv_rows`, bit for bit; gradients take rounding for the identity (the straight-through estimator,
arXiv 1308.3432) and scales learn as in LSQ (arXiv 1902.08153). Shape letters: `n` output features,
`k` input features, `g` groups of them, `t` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qcompiler.core import kv_rows
from qcompiler.core.formats import TensorFormat
from qcompiler.core.groups import LARGEST, full_scale, group_rows, to_float16
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import quantize_activation

CHUNK = 1 << 16
"""Entries worked on at a time: 256 KiB of float32, which stay in cache."""


def stored_scale(scale: torch.Tensor) -> torch.Tensor:
    """Return scales as they will be stored: rounded to float16, float32."""
    return to_float16(scale.clamp(-LARGEST, LARGEST)).to(torch.float32)


def quantize_weight(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    form: TensorFormat,
) -> QuantizedTensor:
    """Return the codes that a weight [n, k] has at scales [n, g] and zero points [n, g].

    A weight of integers is codes already, and keeps them.
    """
    with torch.no_grad():
        held = not weight.is_floating_point()
        stored = stored_scale(scale.detach())
        kind = torch.int8 if form.symmetric else torch.uint8
        codes = torch.empty(weight.shape, dtype=kind)
        for rows in parts_of(weight):
            if held:
                codes[rows] = weight[rows].to(kind)
                continue
            _, levels = _levels(weight[rows], stored[rows], _rows(zero_point, rows), form)
            if zero_point is not None:
                levels += zero_point[rows].to(torch.float32).unsqueeze(2)
            codes[rows] = levels.flatten(1)[:, : weight.shape[1]].to(kind)
        zero = None if zero_point is None else zero_point.to(torch.uint8)
        return QuantizedTensor(codes, stored.to(torch.float16), zero, form)


def fake_quantize_weight(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    form: TensorFormat,
) -> torch.Tensor:
    """Return what the codes of `quantize_weight` stand for, [n, k] float32.

    The weight's entries get the gradient of their values, none where they are clamped; scales that
    of the values they lie between: round(w/s) − w/s, and the last code where they are clamped. A
    weight of integers has codes that stay: its scales get the gradient of code · scale.
    """
    found: torch.Tensor = _RoundWeight.apply(weight, scale, zero_point, form)  # type: ignore[no-untyped-call]
    return found


def range_scale(
    weight: torch.Tensor, clip: torch.Tensor | None = None, *, form: TensorFormat
) -> torch.Tensor:
    """Return the scales [n, g] at which the codes just reach the entries of each group.

    With a clip [n, g], a share of that, which is learned (as OmniQuant's, arXiv 2308.13137). The
    entry of largest magnitude becomes the code of which there is no positive twin. The range itself
    has no gradient.
    """
    with torch.no_grad():
        groups = group_rows(weight.to(torch.float32), form)
        scale = full_scale(groups.amin(2), groups.amax(2), form)
    return scale if clip is None else scale * clip


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor | None = None, *, form: TensorFormat
) -> torch.Tensor:
    """Quantise activations [..., k] and dequantise them again.

    A static format has its `scale`, [1], which learns as a weight's does.
    """
    found: torch.Tensor = _RoundActivation.apply(x, scale, form)  # type: ignore[no-untyped-call]
    return found


def fake_store(x: torch.Tensor, kv: str) -> torch.Tensor:
    """Return keys or values [..., d] as they are read from a cache of the format `kv`."""
    found: torch.Tensor = _StoreRows.apply(x, kv)  # type: ignore[no-untyped-call]
    return found


def fake_query(q: torch.Tensor, kv: str) -> torch.Tensor:
    """Return queries [..., d] as they are multiplied with keys of the format `kv`."""
    found: torch.Tensor = _AskRows.apply(kv_rows.turned(q, kv), kv)  # type: ignore[no-untyped-call]
    return found


def parts_of(weight: torch.Tensor) -> Iterator[slice]:
    """Divide the rows of a weight into parts that stay in cache while they are worked on."""
    step = max(1, CHUNK // max(1, weight[0].numel())) if len(weight) else 1
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _rows(tensor: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if tensor is None else tensor[rows]


def _levels(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, form: TensorFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return entries in steps of their scale, and codes less zero points: [n, g, size] each."""
    steps = group_rows(weight.to(torch.float32), form) / scale.unsqueeze(2)
    first, last = form.code_range
    if zero is None:
        return steps, torch.round(steps).clamp_(first, last)
    wide = zero.to(torch.float32).unsqueeze(2)
    return steps, torch.round(steps).clamp_(first - wide, last - wide)


def _held_levels(
    codes: torch.Tensor, zero: torch.Tensor | None, form: TensorFormat
) -> torch.Tensor:
    levels = group_rows(codes.to(torch.float32), form)
    return levels if zero is None else levels - zero.to(torch.float32).unsqueeze(2)


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        form: TensorFormat,
    ) -> torch.Tensor:
        ctx.form = form
        ctx.save_for_backward(weight, scale, zero)
        stored = stored_scale(scale)
        value = torch.empty(weight.shape, dtype=torch.float32)
        for rows in parts_of(weight):
            part = weight[rows], stored[rows], _rows(zero, rows)
            held = not weight.is_floating_point()
            levels = _held_levels(part[0], part[2], form) if held else _levels(*part, form)[1]
            levels *= stored[rows].unsqueeze(2)
            value[rows] = levels.flatten(1)[:, : weight.shape[1]]
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        weight, scale, zero = ctx.saved_tensors
        form, (gradient,) = ctx.form, gradients
        stored = stored_scale(scale)
        to_scale = torch.empty_like(stored)
        to_weight = torch.empty_like(gradient) if ctx.needs_input_grad[0] else None
        for rows in parts_of(weight):
            slope = group_rows(gradient[rows], form)
            if not weight.is_floating_point():
                levels = _held_levels(weight[rows], _rows(zero, rows), form)
                to_scale[rows] = levels.mul_(slope).sum(2)
                continue
            steps, levels = _levels(weight[rows], stored[rows], _rows(zero, rows), form)
            # 1.0, or 0.0 where an entry is clamped. (A float times a bool takes far longer.)
            passed = torch.sub(steps, levels).abs_().le_(0.5)
            if to_weight is not None:
                to_weight[rows] = (slope * passed).flatten(1)[:, : weight.shape[1]]
            to_scale[rows] = levels.sub_(steps.mul_(passed)).mul_(slope).sum(2)
        return to_weight, to_scale if ctx.needs_input_grad[1] else None, None, None


class _RoundActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor | None, form: TensorFormat
    ) -> torch.Tensor:
        ctx.form = form
        ctx.save_for_backward(*(() if scale is None else (x, scale)))
        codes, scales = quantize_activation(x, form, scale)
        k = x.shape[-1]
        size, groups = form.group_size(k), form.groups(k)
        if groups * size == k:
            split = codes.to(torch.float32).reshape(*x.shape[:-1], groups, size)
            return (split * scales.unsqueeze(-1)).reshape(x.shape)
        return codes.to(torch.float32) * scales.repeat_interleave(size, -1)[..., :k]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        if not ctx.saved_tensors:
            return gradient, None, None
        x, scale = ctx.saved_tensors
        top = float((1 << (ctx.form.bits - 1)) - 1)
        steps = x / scale
        levels = steps.round().clamp(-top, top)
        passed = (steps - levels).abs().le(0.5).to(gradient.dtype)
        to_scale = ((levels - steps * passed) * gradient).sum().reshape(scale.shape)
        return gradient * passed, to_scale, None


class _StoreRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kv: str) -> torch.Tensor:
        return kv_rows.seen(kv_rows.stored(x, kv), kv, x.shape[-1]) if kv else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class _AskRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kv: str) -> torch.Tensor:
        return kv_rows.met(q, kv)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None
