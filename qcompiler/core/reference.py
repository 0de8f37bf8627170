"""The one definition of quantised arithmetic; every pass, kernel and trainer is tested against it.

Shape letters: `t` tokens (any leading shape), `n` output features, `k` input features, `g` groups.
"""

from __future__ import annotations

import torch

from qcompiler.core.formats import TensorFormat
from qcompiler.core.qtensor import QuantizedTensor


def quantize_activation(
    x: torch.Tensor, form: TensorFormat, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise activations [..., k] float32 to codes [..., k] int8 and scales [..., g] float32.

    Symmetric. Per token or group the scale is max|x| / 127, found as they arrive, and 0 for a group
    of zeros. Per tensor it is given: `scale` [1] float32, positive and finite, comes back once for
    each token, and what it does not reach is clipped to ±127. Rounding is to nearest, ties to even.

    Raises:
        ValueError: `scale` is missing where the format is static, or given where it is not.
    """
    if form.is_static != (scale is not None):
        raise ValueError(f"a scale is {'needed' if form.is_static else 'of no use'} for {form}")
    x = x.to(torch.float32)
    top = float((1 << (form.bits - 1)) - 1)
    if scale is not None:
        # The reciprocal is multiplied, as the kernels do.
        codes = (x * (1.0 / scale)).round().clamp(-top, top).to(torch.int8)
        return codes, scale.expand(*x.shape[:-1], 1).contiguous()
    k = x.shape[-1]
    size = form.group_size(k)
    groups = form.groups(k)
    padded = torch.nn.functional.pad(x, (0, groups * size - k))
    padded = padded.reshape(*x.shape[:-1], groups, size)
    largest = padded.abs().amax(-1)
    # The reciprocal is taken once per group and multiplied, as the kernels do.
    inverse = torch.where(largest > 0, top / largest, torch.zeros_like(largest))
    codes = (padded * inverse.unsqueeze(-1)).round().clamp(-top, top).to(torch.int8)
    return codes.flatten(-2)[..., :k], largest / top


def quantized_matmul(
    codes: torch.Tensor, scales: torch.Tensor, weight: QuantizedTensor
) -> torch.Tensor:
    """Multiply int8 activations by a quantised weight: [..., k] × [n, k] → [..., n] float32.

    Exact integer products are summed per group, then one float multiply-add per group in order:
    y += (sum · activation_scale) · weight_scale. One activation scale per token may serve all
    groups.
    """
    lead, k = codes.shape[:-1], codes.shape[-1]
    size = weight.format.group_size(k)
    a = codes.reshape(-1, k)
    s = scales.reshape(a.shape[0], -1).to(torch.float32)
    per_token = s.shape[1] == 1
    out = torch.zeros(a.shape[0], weight.shape[0], dtype=torch.float32)
    for g, start in enumerate(range(0, k, size)):
        # Sums below 2**24 are exact in float32; longer groups take float64.
        span = min(size, k - start)
        wide = torch.float32 if span <= 512 else torch.float64
        w = weight.codes[:, start : start + span].to(wide)
        if weight.zero_point is not None:
            w = w - weight.zero_point[:, g : g + 1].to(wide)
        sums = (a[:, start : start + span].to(wide) @ w.T).to(torch.float32)
        scale = weight.scale[:, g].to(torch.float32)
        out += sums * scale if per_token else (sums * s[:, g : g + 1]) * scale
    if per_token:
        out *= s
    return out.reshape(*lead, weight.shape[0])


def sqnr(reference: torch.Tensor, actual: torch.Tensor) -> float:
    """Signal-to-quantisation-noise ratio in dB (infinite where nothing differs)."""
    reference, actual = reference.to(torch.float64), actual.to(torch.float64)
    noise = (reference - actual).pow(2).sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(reference.pow(2).sum() / noise))
