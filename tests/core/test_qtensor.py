"""What codes stand for, entry by entry, and stacking."""

from __future__ import annotations

import torch

from qcompiler.core.formats import QuantScheme
from qcompiler.core.qtensor import QuantizedTensor


def random(n: int, k: int, scheme: str) -> QuantizedTensor:
    form = QuantScheme.parse(scheme).weight
    low, high = form.code_range
    codes = torch.randint(low, high + 1, (n, k)).to(torch.int8 if form.symmetric else torch.uint8)
    scale = torch.rand(n, form.groups(k)).to(torch.float16)
    zero = None
    if not form.symmetric:
        zero = torch.randint(0, high + 1, (n, form.groups(k))).to(torch.uint8)
    return QuantizedTensor(codes, scale, zero, form)


def by_hand(q: QuantizedTensor) -> torch.Tensor:
    """The definition, one entry at a time: scale · (code − zero point)."""
    n, k = q.shape
    size = q.format.group_size(k)
    out = torch.empty(n, k)
    for i in range(n):
        for j in range(k):
            zero = 0 if q.zero_point is None else int(q.zero_point[i, j // size])
            out[i, j] = float(q.scale[i, j // size]) * (int(q.codes[i, j]) - zero)
    return out


def test_codes_stand_for_scale_times_distance_from_zero() -> None:
    torch.manual_seed(0)
    for scheme in ("w8", "w4g8", "w4g32", "w8z", "w4g16z", "w3g64z"):
        for k in (40, 64):  # 40 leaves a short last group
            q = random(5, k, scheme)
            assert q.dequantize().dtype == torch.float32
            assert torch.equal(q.dequantize(), by_hand(q)), (scheme, k)


def test_stacking_keeps_every_row() -> None:
    for scheme in ("w4g32", "w4g32z"):
        parts = [random(n, 72, scheme) for n in (3, 1, 4)]
        whole = QuantizedTensor.concatenate(parts)
        assert whole.shape == (8, 72)
        assert whole.format == parts[0].format
        assert torch.equal(whole.dequantize(), torch.cat([p.dequantize() for p in parts]))
