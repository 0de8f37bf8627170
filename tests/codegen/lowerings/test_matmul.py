"""Products of computed values give what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.tvm


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


X = random(2, 5, 16)
EXPERTS = random(4, 3, 16)

CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "stacks": (lambda x, y: x @ y, (X, random(2, 16, 3))),
    "a stack and a matrix": (lambda x, y: x @ y, (X, random(16, 3))),
    "a stack and a vector": (lambda x, y: x @ y, (X, random(16))),
    "a vector and a stack": (lambda x, y: y @ x.transpose(1, 2), (X, random(16))),
    "vectors": (lambda x, y: x[0, 0] @ y, (X, random(16))),
    "matrices": (lambda x, y: torch.mm(x[0], y), (X, random(16, 3))),
    "stacks that broadcast": (lambda x, y: x[:, None] @ y, (X, random(1, 3, 16, 4))),
    "over a size that varies": (lambda x: x.transpose(1, 2) @ x, (X,)),
    "attention spelt out": (
        lambda x: (x @ x.transpose(-1, -2) * 0.25).softmax(-1) @ x,
        (X,),
    ),
    "bmm": (lambda x, y: torch.bmm(x, y), (X, random(2, 16, 3))),
    "chosen matrices": (
        lambda x, w, places: torch.bmm(w[places], x[0, :1].expand(5, -1)[..., None]),
        (X, EXPERTS, torch.tensor([3, 0, 3, 1, 2])),
    ),
    "matrices chosen by what is computed": (
        lambda x, w: torch.bmm(w[x[0, :, :4].topk(1).indices.flatten()], x[0][..., None]),
        (X, EXPERTS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = CASES[name]
    agrees(function, *inputs)
