"""The operators a canonical or quantised graph is made of, beside a few dozen of aten's.

Each is a plain function on torch tensors: calling it gives its meaning, and calling it on fake
tensors gives its shape. Shape letters: `b` batch, `s` sequence, `h` heads, `d` head size, `c`
context, `n` output features, `k` input features, `g` groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional

from qcompiler.core import kv_rows, reference
from qcompiler.core.fake_quant import fake_quantize as fake_quantize
from qcompiler.core.fake_quant import fake_quantize_weight as fake_quantize_weight
from qcompiler.core.fake_quant import range_scale as range_scale
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.kv_format import pair
from qcompiler.core.qtensor import QuantizedTensor

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
}


def _finish(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    gated: bool,
) -> torch.Tensor:
    """Apply bias, then activation (gated: of the first half, times the second), then residual."""
    if bias is not None:
        y = y + bias
    if gated:
        gate, up = y.chunk(2, dim=-1)
        y = ACTIVATIONS[activation](gate) * up
    else:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else residual + y


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: str = "none",
    gated: bool = False,
) -> torch.Tensor:
    """Float product with its epilogue: x [..., k], weight [n, k] → [..., n] (n/2 when gated)."""
    return _finish(functional.linear(x, weight), bias, residual, activation, gated)


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    *,
    scheme: str,
    activation: str = "none",
    gated: bool = False,
) -> torch.Tensor:
    """Product of activations, quantised on the way in, and a quantised weight, as `linear`.

    input_scale: [1] float32, of activations whose scale is static.
    """
    form = QuantScheme.parse(scheme).activation
    if form is None:
        y = functional.linear(x, weight.dequantize())
    else:
        codes, scales = reference.quantize_activation(x, form, input_scale)
        y = reference.quantized_matmul(codes, scales, weight)
    return _finish(y, bias, residual, activation, gated)


def quantize(
    x: torch.Tensor, scale: torch.Tensor | None = None, *, form: TensorFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise activations: x [..., k] → codes [..., k] int8, scales [..., g] float32.

    scale: [1] float32, where the format is static.
    """
    return reference.quantize_activation(x, form, scale)


def quantized_matmul(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    scheme: str,
    activation: str = "none",
    gated: bool = False,
) -> torch.Tensor:
    """Product of activations that are quantised already; epilogue as `linear`."""
    y = reference.quantized_matmul(codes, scales, weight)
    return _finish(y, bias, residual, activation, gated)


def low_rank_update(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """weight + left · right: [n, k], [n, r] and [r, k], of which the latter two are learned (LoRA,
    arXiv 2106.09685).
    """
    return weight + left @ right


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of a float table: ids [...] int64, weight [n, k] → [..., k]."""
    return functional.embedding(ids, weight)


def quantized_embedding(ids: torch.Tensor, weight: QuantizedTensor, *, scheme: str) -> torch.Tensor:
    """Rows of a quantised table, as float32: ids [...] int64, weight [n, k] → [..., k]."""
    flat = ids.reshape(-1)
    zero = None if weight.zero_point is None else weight.zero_point[flat]
    rows = QuantizedTensor(weight.codes[flat], weight.scale[flat], zero, weight.format)
    return rows.dequantize().reshape(*ids.shape, weight.shape[1])


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, *, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · (weight + offset), over the last dimension."""
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * (weight + offset)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float
) -> torch.Tensor:
    """(x − mean) / sqrt(variance + eps) · weight + bias, over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    offset: float = 0.0,
    form: TensorFormat,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm`, then `quantize`, in one."""
    return quantize(rms_norm(x, weight, eps=eps, offset=offset), scale, form=form)


def layer_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
    form: TensorFormat,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_norm`, then `quantize`, in one."""
    return quantize(layer_norm(x, weight, bias, eps=eps), scale, form=form)


def rotary(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Rotate the first r ≤ d features of each head by its token's angles (RoFormer, arXiv
    2104.09864).

    x: [b, s, h, d]; cos, sin: [b, s, r/2]. Feature i pairs with i + r/2, or with its neighbour when
    interleaved.
    """
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    head, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = head[..., :half], head[..., half:]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((turned, rest), -1)


def attention(
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
    kv: str = "",
) -> torch.Tensor:
    """Append k and v to the cache at `position`, then attend causally over what the cache holds.
    q: [b, s, h, d]; k, v: [b, s, hk, d], h a multiple of hk; caches [b, hk, c, d], which change;
    position: [1] int64, the place of the first new token. A token sees itself and what came before,
    at most `window` tokens when that is positive; scores pass softcap · tanh(score / softcap) when
    that is positive. `kv` is the format that keys and values have in the caches (see `KvFormat`),
    which then are [b, hk, c, r] uint8. Returns [b, s, h, d].
    """
    if isinstance(position, torch._subclasses.fake_tensor.FakeTensor):
        return q.new_empty((*q.shape[:-1], v.shape[-1]))
    start, s, d = int(position), q.shape[1], k.shape[3]
    k_form, v_form = pair(kv)
    q, k = kv_rows.asked(q, k_form), kv_rows.turned(k, k_form)
    k_cache[:, :, start : start + s] = kv_rows.stored(k.transpose(1, 2), k_form)
    v_cache[:, :, start : start + s] = kv_rows.stored(v.transpose(1, 2), v_form)
    place = torch.arange(start + s)
    query = torch.arange(start, start + s).unsqueeze(1)
    hidden = place > query
    if window > 0:
        hidden |= place <= query - window
    repeat = q.shape[2] // k.shape[2]
    keys = kv_rows.seen(k_cache[:, :, : start + s], k_form, d).to(q.dtype)
    values = kv_rows.seen(v_cache[:, :, : start + s], v_form, d).to(q.dtype)
    keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
    scores = (q.transpose(1, 2) @ keys.transpose(-1, -2)) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values).transpose(1, 2)


def rope_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    key_mean: torch.Tensor | None = None,
    *,
    heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    interleaved: bool = False,
    kv: str = "",
) -> torch.Tensor:
    """`rotary` of queries and keys, then `attention`, from one fused product.

    qkv: [b, s, (h + 2·hk)·d], queries first, then keys, then values; key_mean [hk, d] is subtracted
    from keys when they have been turned. Returns [b, s, h·d].
    """
    kv_heads = k_cache.shape[1]
    d = qkv.shape[-1] // (heads + 2 * kv_heads)
    each = qkv.reshape(*qkv.shape[:2], heads + 2 * kv_heads, d)
    q, k, v = torch.split(each, [heads, kv_heads, kv_heads], 2)
    q = rotary(q, cos, sin, interleaved=interleaved)
    k = rotary(k, cos, sin, interleaved=interleaved)
    k = k if key_mean is None else k - key_mean
    options = {"scale": scale, "window": window, "softcap": softcap}
    y = attention(q, k, v, k_cache, v_cache, position, **options, kv=kv)  # type: ignore[arg-type]
    return y.flatten(-2)


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *, scale: float
) -> torch.Tensor:
    """Attention without a cache, as encoders use it.

    q, k, v: [b, s, h, d]; mask: added to the scores or, if boolean, true where a key is seen;
    broadcast to [b, h, s, s]. Returns [b, s, h, d].
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2)


TRAINED_AWAY = frozenset({fake_quantize, fake_quantize_weight, range_scale, low_rank_update})
"""Operators that a program has while it is trained, and no more when it is quantised."""

OPS: tuple[Callable[..., object], ...] = (
    linear,
    quantized_linear,
    quantize,
    quantized_matmul,
    fake_quantize,
    fake_quantize_weight,
    range_scale,
    low_rank_update,
    embedding,
    quantized_embedding,
    rms_norm,
    layer_norm,
    rms_norm_quantize,
    layer_norm_quantize,
    rotary,
    attention,
    rope_attention,
    dense_attention,
)
