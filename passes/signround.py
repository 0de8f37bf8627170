"""Learn how each entry of a weight is rounded, and how far each group's scale reaches.

AutoRound (arXiv 2309.05516): entry w of a group of scale s becomes the code round(w/s + v), with an
offset v ∈ [−½, ½] of its own, and s is multiplied by a factor of its group; both follow the sign of
the gradient of a loss, in steps that shrink to nothing, and gradients pass straight through what
rounds. Here the gradient of a whole batch meets the quantiser once, in closed form. Shape letters:
`n` rows (output features), `k` entries in a row, `g` groups of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from qcompiler.core.groups import LARGEST, group_rows, to_float16
from qcompiler.core.qtensor import QuantizedTensor

BlockLoss = Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]
"""The loss of one sample under weights by name: a tensor of one number that has a gradient."""

EDGE = 0.4
"""How far from its code, in steps, an entry counts as lying for which that is not the nearest."""

FACTORS = (0.5, 1.25)
"""How far a scale may be moved from where it starts."""

HELD_OUT = 16
"""One sample of so many is kept out of the training, to tell iterates apart by."""

MOMENTA = (0.9, 0.99)
"""How slowly Adam forgets slopes and their squares."""

TINY = 1e-30

CHUNK = 1 << 16
"""Entries worked on at a time: 256 KiB of float32."""

CHECKS = (0.5, 0.75, 0.9, 1.0)
"""After which shares of the training its iterate is compared with the best so far."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How offsets and factors are learned.

    Each iteration takes `batch` samples that it draws without repeating one until all have had
    their turn. The rates fall linearly to zero; at 1 / iterations, the default, an offset or factor
    can move by ½ in all.
    """

    iterations: int = 160
    batch: int = 1
    learning_rate: float | None = None
    scale_learning_rate: float | None = None
    seed: int = 0

    def rates(self, iteration: int) -> tuple[float, float]:
        """Return the steps of offsets and of factors in one iteration."""
        share = 1 - iteration / self.iterations
        first = 1 / self.iterations if self.learning_rate is None else self.learning_rate
        second = first if self.scale_learning_rate is None else self.scale_learning_rate
        return share * first, share * second


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Codes by name, and how the loss fell.

    `before` and `after` are means over the samples held out, at the start and at the best iterate,
    which came after `best` iterations; `curve` has the mean of each iteration's batch.
    """

    codes: dict[str, QuantizedTensor]
    before: float
    after: float
    best: int
    curve: tuple[float, ...]


def within_cells(weight: torch.Tensor, start: QuantizedTensor) -> torch.Tensor:
    """Return a weight [n, k] whose entries round to the codes they start from.

    An entry for which that is not the nearest counts as lying near the edge of its code's cell.
    """
    form, k = start.format, weight.shape[1]
    scale = start.scale.to(torch.float32).unsqueeze(2)
    levels = group_rows(start.codes.to(torch.float32), form)
    first, last = (torch.tensor(float(end)) for end in form.code_range)
    if start.zero_point is not None:
        zero = start.zero_point.to(torch.float32).unsqueeze(2)
        levels, first, last = levels - zero, first - zero, last - zero
    steps = group_rows(weight.to(torch.float32), form) / scale
    settled = torch.clamp(steps.round(), first, last) == levels
    near = levels + (steps - levels).clamp_(-EDGE, EDGE)
    return torch.where(settled, steps, near).mul_(scale).flatten(1)[:, :k].contiguous()


class LearnedWeight:
    """A weight [n, k], the codes it starts from, and the offsets and factors that are learned.

    Where the code it starts from is not the nearest, as with GPTQ, an entry counts as lying near
    the edge of its code's cell, so that offsets of zero give the codes it starts from.
    """

    def __init__(self, weight: torch.Tensor, start: QuantizedTensor) -> None:
        self._form = start.format
        self._k = weight.shape[1]
        self._scale = start.scale.to(torch.float32).unsqueeze(2)
        self._zero = (
            None if start.zero_point is None else start.zero_point.to(torch.float32).unsqueeze(2)
        )
        self._entries = group_rows(within_cells(weight, start), self._form)
        self.offsets = torch.zeros_like(self._entries)
        # Of the scale; of an asymmetric format, of the lower and of the upper end of the range.
        ends = 1 if self._zero is None else 2
        self.factors = torch.ones(ends, *self._scale.shape)

    def _clamp(self, levels: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Keep codes less their zero points within the format, in place."""
        first, last = self._form.code_range
        return (
            levels.clamp_(first, last) if zero is None else levels.clamp_(first - zero, last - zero)
        )

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scales as they are stored, and the zero points, [n, g, 1] float32."""
        if self._zero is None:
            return _stored(self._scale * self.factors[0]), None
        low, high = self._range(self._zero)
        last = self._form.code_range[1]
        scale = _stored((high * self.factors[1] - low * self.factors[0]) / last)
        return scale, torch.round(-low * self.factors[0] / scale).clamp_(0, last)

    def _range(self, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of the first and the last code at the start."""
        last = self._form.code_range[1]
        return -zero * self._scale, (last - zero) * self._scale

    def _rounded(self, rows: slice, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Return the codes of some rows less their zero points, [rows, g, size] float32."""
        levels = torch.div(self._entries[rows], scale[rows]).add_(self.offsets[rows]).round_()
        return self._clamp(levels, None if zero is None else zero[rows])

    def _parts(self) -> list[slice]:
        """Divide the rows into parts that stay in cache while they are worked on."""
        n, row = len(self._entries), self._entries[0].numel()
        step = max(1, CHUNK // row)
        return [slice(start, start + step) for start in range(0, n, step)]

    def value(self) -> torch.Tensor:
        """Return what the codes now stand for, [n, k], without a gradient."""
        scale, zero = self._grid()
        value = torch.empty(len(self._entries), self._k)
        for rows in self._parts():
            levels = self._rounded(rows, scale, zero).mul_(scale[rows])
            value[rows] = levels.flatten(1)[:, : self._k]
        return value

    def step(self, gradient: torch.Tensor, rate: float, scale_rate: float) -> None:
        """Move against the gradient of the loss with respect to what `value` returns."""
        scale, zero = self._grid()
        to_scale = torch.empty_like(scale)
        to_zero = torch.zeros_like(scale)
        for rows in self._parts():
            slope, s = group_rows(gradient[rows], self._form), scale[rows]
            u = torch.div(self._entries[rows], s)
            free = torch.add(u, self.offsets[rows])
            levels = self._clamp(torch.round(free), None if zero is None else zero[rows])
            # 1.0, or 0.0 where an entry is clamped: there the value does not depend on it. (A
            # float times a bool would take many times as long.)
            passed = free.sub_(levels).abs_().le_(0.5).mul_(slope)
            to_scale[rows] = levels.mul_(slope).sum(2, keepdim=True)
            to_scale[rows] -= u.mul_(passed).sum(2, keepdim=True)
            if zero is not None:
                held = passed.sum(2, keepdim=True) - slope.sum(2, keepdim=True)
                to_zero[rows] = held * s
            step = passed.mul_(s.sign()).sign_()
            self.offsets[rows].sub_(step, alpha=rate).clamp_(-0.5, 0.5)
        if zero is None or self._zero is None:
            to_factors = (to_scale * self._scale).unsqueeze(0)
        else:
            to_factors = self._to_ends(to_scale, to_zero, scale, self._zero)
        self.factors.sub_(to_factors.sign_(), alpha=scale_rate).clamp_(*FACTORS)

    def _to_ends(
        self,
        to_scale: torch.Tensor,
        to_zero: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
    ) -> torch.Tensor:
        """Return the slopes of the lower and the upper factor, [2, n, g, 1].

        scale = (high·β − low·α) / last and zero = −low·α / scale.
        """
        low, high = self._range(zero)
        last = self._form.code_range[1]
        to_scale = to_scale + to_zero * low * self.factors[0] / scale.square()
        return torch.stack((to_scale * -low / last - to_zero * low / scale, to_scale * high / last))

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a copy of what has been learned."""
        return self.offsets.clone(), self.factors.clone()

    def restore(self, state: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        self.offsets, self.factors = state

    def freeze(self) -> QuantizedTensor:
        """Return the codes, with scales and zero points as they are stored."""
        scale, zero = self._grid()
        codes = self._rounded(slice(None), scale, zero)
        if zero is not None:
            codes += zero
        kind = torch.int8 if zero is None else torch.uint8
        return QuantizedTensor(
            codes.flatten(1)[:, : self._k].to(kind),
            scale.squeeze(2).to(torch.float16),
            None if zero is None else zero.squeeze(2).to(torch.uint8),
            self._form,
        )


class LearnedScales:
    """A weight whose codes stay as they are, and whose scales are learned, by Adam (1412.6980).

    The loss is smooth in the scales, which rounding only disturbs: from codes as good as GPTQ's
    this gains more than moving them.
    """

    def __init__(self, start: QuantizedTensor) -> None:
        self._start = start
        self._levels = group_rows(start.codes.to(torch.float32), start.format)
        if start.zero_point is not None:
            self._levels -= start.zero_point.to(torch.float32).unsqueeze(2)
        self._scale = start.scale.to(torch.float32).unsqueeze(2)
        self.factors = torch.ones_like(self._scale)
        self._mean = torch.zeros_like(self._scale)
        self._square = torch.zeros_like(self._scale)
        self._steps = 0

    def value(self) -> torch.Tensor:
        """Return what the codes now stand for, [n, k], without a gradient."""
        scaled = self._levels * _stored(self._scale * self.factors)
        return scaled.flatten(1)[:, : self._start.codes.shape[1]].contiguous()

    def step(self, gradient: torch.Tensor, rate: float, scale_rate: float) -> None:
        """Move against the gradient of the loss with respect to what `value` returns."""
        slope = group_rows(gradient, self._start.format).mul(self._levels).sum(2, keepdim=True)
        slope *= self._scale
        self._steps += 1
        self._mean.lerp_(slope, 1 - MOMENTA[0])
        self._square.lerp_(slope.square(), 1 - MOMENTA[1])
        mean = self._mean / (1 - MOMENTA[0] ** self._steps)
        square = self._square / (1 - MOMENTA[1] ** self._steps)
        # A group whose codes are all zero has no slope.
        move = mean / square.sqrt().clamp(min=TINY)
        self.factors.sub_(move, alpha=scale_rate).clamp_(*FACTORS)

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a copy of what has been learned."""
        return torch.empty(0), self.factors.clone()

    def restore(self, state: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        self.factors = state[1]

    def freeze(self) -> QuantizedTensor:
        """Return the codes, with scales as they are stored."""
        scale = _stored(self._scale * self.factors).squeeze(2).to(torch.float16)
        return replace(self._start, scale=scale)


def _stored(scale: torch.Tensor) -> torch.Tensor:
    return to_float16(scale.clamp(-LARGEST, LARGEST)).to(torch.float32)


def learn_rounding(
    weights: Mapping[str, LearnedWeight | LearnedScales],
    loss: BlockLoss,
    samples: int,
    training: Training,
    *,
    watch: Callable[[float], None] = lambda share: None,
) -> Learned:
    """Train weights together to make the loss of `samples` samples small; keep the best iterate.

    Iterates are compared, the start among them, by their loss on samples that are not trained on
    (on all, where there are too few). `watch` is told the share of the work that is done.
    """
    generator = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(samples, generator=generator).tolist()
    held = order[: samples // HELD_OUT] or order
    taught = order[samples // HELD_OUT :]
    best = _Best(weights, loss, held)
    best.offer(0)
    checks = {round(share * training.iterations) for share in CHECKS}
    queue: list[int] = []
    curve: list[float] = []
    for iteration in range(training.iterations):
        while len(queue) < training.batch:
            turn = torch.randperm(len(taught), generator=generator).tolist()
            queue += [taught[i] for i in turn]
        batch, queue = queue[: training.batch], queue[training.batch :]
        curve.append(_descend(weights, loss, batch, training.rates(iteration)))
        if iteration + 1 in checks:
            best.offer(iteration + 1)
        watch((iteration + 1) / training.iterations)
    best.restore()
    codes = {name: weight.freeze() for name, weight in weights.items()}
    return Learned(
        codes=codes,
        before=best.first,
        after=best.loss,
        best=best.iteration,
        curve=tuple(curve),
    )


def _descend(
    weights: Mapping[str, LearnedWeight | LearnedScales],
    loss: BlockLoss,
    batch: Sequence[int],
    rates: tuple[float, float],
) -> float:
    """Take one step; return the mean loss of the batch before it."""
    total = 0.0
    with torch.enable_grad():
        values = {name: weight.value().requires_grad_() for name, weight in weights.items()}
        for sample in batch:
            found = loss(sample, values)
            torch.autograd.backward(found)
            total += float(found.detach())
    for name, weight in weights.items():
        gradient = values[name].grad
        if gradient is not None:
            weight.step(gradient, *rates)
    return total / len(batch)


@dataclass
class _Best:
    """The iterate of the smallest loss on the samples held out."""

    weights: Mapping[str, LearnedWeight | LearnedScales]
    objective: BlockLoss
    samples: Sequence[int]
    loss: float = float("inf")
    first: float = float("inf")
    iteration: int = 0
    states: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def offer(self, iteration: int) -> None:
        with torch.no_grad():
            values = {name: weight.value() for name, weight in self.weights.items()}
            losses = [float(self.objective(sample, values)) for sample in self.samples]
        found = sum(losses) / len(losses)
        if iteration == 0:
            self.first = found
        if found < self.loss or not self.states:
            self.loss, self.iteration = found, iteration
            self.states = {name: weight.state() for name, weight in self.weights.items()}

    def restore(self) -> None:
        for name, weight in self.weights.items():
            weight.restore(self.states[name])
