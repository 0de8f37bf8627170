"""Rotary embeddings are recognised in every spelling and layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]

HEADS, SIZE = 3, 8
X = torch.randn(2, 5, HEADS * SIZE)
FREQUENCIES = 10.0 ** -torch.arange(4.0)
SPREAD = {"aten.reshape.default"}


def angles(x: Tensor, f: Tensor) -> Tensor:
    """Angles of the tokens of x, [1, s, r/2]."""
    return torch.arange(x.shape[1]).float().reshape(1, -1, 1) * f


def halves(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), -1)


def chunks(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((b.neg(), a), -1)


def neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def split(x: Tensor) -> Tensor:
    return x.view(2, -1, HEADS, SIZE)


def heads_first(x: Tensor, f: Tensor, turn: Callable[[Tensor], Tensor] = halves) -> Tensor:
    h, angle = split(x).transpose(1, 2), angles(x, f)
    full = torch.cat((angle, angle), -1)
    cos, sin = full.cos().unsqueeze(1), full.sin().unsqueeze(1)
    return (h * cos + turn(h) * sin).transpose(1, 2)


def tokens_first(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f)
    full = torch.cat((angle, angle), -1).unsqueeze(2)
    return full.sin() * halves(h) + full.cos() * h


def scaled_and_shared(x: Tensor, f: Tensor) -> Tensor:
    # As transformers computes it: attention scaling, and tables without a head dimension.
    h, angle = split(x).transpose(1, 2), angles(x, f)
    full = torch.cat((angle, angle), dim=-1)
    cos, sin = (full.cos() * 1.5)[0], (full.sin() * 1.5)[0]
    return (h * cos + halves(h) * sin).transpose(1, 2)


def doubled_frequencies(x: Tensor, f: Tensor) -> Tensor:
    h = split(x)
    full = angles(x, torch.cat((f, f))).unsqueeze(2)
    return h * full.cos() + halves(h) * full.sin()


def pair_of_sums(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f).unsqueeze(2)
    cos, sin = angle.cos(), angle.sin()
    a, b = h.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


HALVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "heads first": heads_first,
    "chunks": lambda x, f: heads_first(x, f, chunks),
    "tokens first": tokens_first,
    "scaled": scaled_and_shared,
    "doubled frequencies": doubled_frequencies,
    "pair of sums": pair_of_sums,
}


@pytest.mark.parametrize("spelling", HALVES)
def test_halves(spelling: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(HALVES[spelling], X, f=FREQUENCIES)
    found = operators(program)
    assert found["rotary"] == 1
    assert {"aten.cat.default", "aten.permute.default", "aten.slice.Tensor"}.isdisjoint(found)
    (rotary,) = [n for n in program.graph.nodes if n.name.startswith("rotary")]
    assert [n.meta["val"].shape[-1] for n in rotary.args] == [8, 4, 4]
    assert "interleaved" not in rotary.kwargs


def stacked_table(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x).transpose(1, 2), angles(x, f)
    full = torch.stack((angle, angle), -1).flatten(-2).unsqueeze(1)
    return (h * full.cos() + neighbours(h) * full.sin()).transpose(1, 2)


def repeated_table(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f)
    full = angle.repeat_interleave(2, dim=-1).unsqueeze(2)
    return h * full.cos() + neighbours(h) * full.sin()


def pair_of_neighbours(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f).unsqueeze(2)
    cos, sin = angle.cos(), angle.sin()
    a, b = h[..., ::2], h[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


INTERLEAVED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stacked table": stacked_table,
    "repeated table": repeated_table,
    "pair of sums": pair_of_neighbours,
}


@pytest.mark.parametrize("spelling", INTERLEAVED)
def test_neighbours(spelling: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(INTERLEAVED[spelling], X, f=FREQUENCIES)
    found = operators(program)
    assert found["rotary"] == 1
    assert {"aten.cat.default", "aten.permute.default", "aten.slice.Tensor"}.isdisjoint(found)
    (rotary,) = [n for n in program.graph.nodes if n.name.startswith("rotary")]
    assert rotary.kwargs == {"interleaved": True}


def partial(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x).transpose(1, 2), angles(x, f[:2])
    full = torch.cat((angle, angle), -1).unsqueeze(1)
    turned, rest = h[..., :4], h[..., 4:]
    turned = turned * full.cos() + halves(turned) * full.sin()
    return torch.cat((turned, rest), -1).transpose(1, 2)


def partial_of_a_joint_product(x: Tensor, f: Tensor) -> Tensor:
    q, _ = x.view(2, -1, HEADS // 3, 24).transpose(1, 2).split((8, 16), -1)
    angle = angles(x, f[:2])
    full = torch.cat((angle, angle), -1).unsqueeze(1)
    turned, rest = q[..., :4], q[..., 4:]
    return torch.cat((turned * full.cos() + halves(turned) * full.sin(), rest), -1)


@pytest.mark.parametrize("function", [partial, partial_of_a_joint_product])
def test_a_part_of_each_head(
    function: Callable[..., Tensor], canonical: Canonical, operators: Operators
) -> None:
    program = canonical(function, X, f=FREQUENCIES)
    found = operators(program)
    assert found["rotary"] == 1
    assert "aten.cat.default" not in found
    (rotary,) = [n for n in program.graph.nodes if n.name.startswith("rotary")]
    assert [n.meta["val"].shape[-1] for n in rotary.args] == [8, 2, 2]


def test_queries_and_keys_share_their_angles(canonical: Canonical, operators: Operators) -> None:
    program = canonical(
        lambda x, y, f: heads_first(x, f) + heads_first(y, f), X, torch.randn_like(X), f=FREQUENCIES
    )
    found = operators(program)
    assert (found["rotary"], found["aten.cos.default"], found["aten.sin.default"]) == (2, 1, 1)


def unequal_halves(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f)
    full = torch.cat((angle, 2 * angle), -1).unsqueeze(2)
    return h * full.cos() + halves(h) * full.sin()


def turned_the_other_way(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f)
    full = torch.cat((angle, angle), -1).unsqueeze(2)
    a, b = h.chunk(2, -1)
    return h * full.cos() + torch.cat((b, -a), -1) * full.sin()


def another_straight_part(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f)
    full = torch.cat((angle, angle), -1).unsqueeze(2)
    return (h + 1) * full.cos() + halves(h) * full.sin()


def sums_of_the_wrong_sign(x: Tensor, f: Tensor) -> Tensor:
    h, angle = split(x), angles(x, f).unsqueeze(2)
    a, b = h.chunk(2, -1)
    return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()), -1)


@pytest.mark.parametrize(
    "function",
    [unequal_halves, turned_the_other_way, another_straight_part, sums_of_the_wrong_sign],
)
def test_what_only_looks_alike_stays(
    function: Callable[..., Tensor], canonical: Canonical, operators: Operators
) -> None:
    assert "rotary" not in operators(canonical(function, X, f=FREQUENCIES))
