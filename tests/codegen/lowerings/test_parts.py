"""Parts of values, values put together and indices give what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.tvm

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(-4, 6).reshape(2, 5)
ROWS = torch.tensor([1, 0, 1])
TABLE = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(1))

CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "slices": (lambda x: (x[..., 8:], x[..., :8], x[..., -3:], x[..., 2:-2], x[1:]), (X,)),
    "slices of an axis that varies": (lambda x: (x[:, :-1], x[:, -1:], x[:, 0:1], x[:, 1:]), (X,)),
    "strided slices": (lambda x: (x[:, :, 1::2], x[:, :, 2:13:5], x[:, ::3]), (X,)),
    "select": (lambda x: (x[:, 0] + x[:, -1], x[1], x[..., -2]), (X,)),
    "split": (lambda x: (*x.split([4, 12], -1), *x.split(5, -1)), (X,)),
    "chunk": (lambda x: (*x.chunk(3, -1), *x.chunk(2, 0)), (X,)),
    "concatenate": (
        lambda x: (torch.cat((-x[..., 8:], x[..., :8]), -1), torch.cat((x, x * 2, x[:, :1]), 1)),
        (X,),
    ),
    "concatenate two types": (lambda i: torch.cat((i, i * 0.5), 1), (IDS,)),
    "stack": (lambda x: (torch.stack((x, -x), -1), torch.stack((x, x + 1, x), 0)), (X,)),
    "index rows": (lambda x, r: (x[:, :, r], x[r], x[r, :, 2:]), (X, ROWS)),
    "index by two axes of numbers": (lambda x, r: x[r.reshape(3, 1).expand(3, 2)], (X, ROWS)),
    "index from the back": (lambda x, r: (x[..., -r], x[-r]), (X, ROWS)),
    "index by neighbours": (lambda x, r: x[:, :, r][r, :, r - 1], (X, ROWS)),
    "index two axes side by side": (lambda i, t, r: t[r, r] * i.sum(), (IDS, TABLE, ROWS)),
    "index two axes apart": (lambda i, t, r: t[r, :, r] * i.sum(), (IDS, TABLE, ROWS)),
    "index by a grid": (lambda i, t, r: t[r[:, None], r[None]] * i.sum(), (IDS, TABLE, ROWS)),
    "index by computed numbers": (lambda i, t: t[i], (IDS.abs(), TABLE)),
    "index by int32": (lambda x, r: x[:, :, r.to(torch.int32)], (X, ROWS)),
    "index one row": (lambda x, r: x[:1, :, 3:][r[1:2]] * 2, (X, ROWS)),
    "index_select": (lambda x, r: torch.index_select(x, 2, r), (X, ROWS)),
    "gather": (
        lambda x: torch.gather(x, 2, (x.abs() * 3).to(torch.int64)[..., :4]),
        (X.clamp(-4, 4),),
    ),
}


SHORTEST = {"slices of an axis that varies": 3, "strided slices": 4}
"""What torch asks of the axis that varies."""


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = CASES[name]
    agrees(function, *inputs, shortest=SHORTEST.get(name, 1))
