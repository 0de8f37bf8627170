"""Train what a fake-quantised program learns: rates, the best iterate, an early end.

The loop knows nothing of graphs: it is given a loss by sample, and the names that learn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from passes.fake_graph import FakeWeight, Rounded, overlaid, round_weights
from passes.segments import Weights
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import QCompilerError
from qcompiler.core.program import Program

Loss = Callable[[int, Rounded, Weights], torch.Tensor]
"""The loss of one sample for rounded weights, by node, and others, by name: one number."""

HELD_OUT = 16
"""One sample of so many is kept out of the training, to tell iterates apart by."""

MOST_HELD = 8
"""More samples than this are not kept out."""

DIVERGED = 2.0
"""Training ends when the loss on samples held out is so many times the first."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long is trained, and how fast.

    steps: of the optimiser, each on `batch` samples. Rates rise over the first share `warmup` of
    the steps and fall along a cosine to a tenth. `checks`: how often the loss on samples held out
    is looked at; training ends when it was no better than the best `patience` times in a row.
    """

    steps: int
    batch: int
    rate: float
    scale_rate: float
    warmup: float = 0.05
    weight_decay: float = 0.0
    checks: int = 8
    patience: int = 3
    seed: int = 0

    def factor(self, step: int) -> float:
        """Return the share of the rates that a step is taken with.

        >>> schedule = Schedule(steps=100, batch=1, rate=1.0, scale_rate=1.0, warmup=0.1)
        >>> [round(schedule.factor(step), 2) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
        """
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / rising
        share = (step - rising) / max(1, self.steps - rising)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))

    def checked(self, step: int) -> bool:
        """Whether the loss is looked at after so many steps."""
        every = max(1, self.steps // self.checks)
        return step % every == 0 or step == self.steps


class Learner:
    """The tensors that learn, by name in the weight store, and AdamW (arXiv 1711.05101) for them.

    Scales learn as factors of what they are at first: they differ by orders of magnitude.
    """

    def __init__(
        self, program: Program, names: Sequence[str], scales: frozenset[str], schedule: Schedule
    ) -> None:
        self._start = {name: program.weights.tensor(name) for name in names}
        self._scales = scales & set(names)
        self.parameters = {
            name: torch.nn.Parameter(
                torch.ones_like(value) if name in self._scales else value.clone()
            )
            for name, value in self._start.items()
        }
        others = [p for name, p in self.parameters.items() if name not in self._scales]
        groups: list[dict[str, Any]] = [
            {
                "params": [self.parameters[n] for n in names if n in self._scales],
                "weight_decay": 0.0,
            }
        ]
        self._rates = [schedule.scale_rate]
        if others:
            groups.append({"params": others, "weight_decay": schedule.weight_decay})
            self._rates.append(schedule.rate)
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.99))

    def values(self) -> dict[str, torch.Tensor]:
        """Return what the tensors are now, with a way back for gradients."""
        return {
            name: self._start[name] * parameter if name in self._scales else parameter
            for name, parameter in self.parameters.items()
        }

    def step(self, factor: float) -> None:
        """Take a step along the gradients, which are forgotten."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def copy(self) -> dict[str, torch.Tensor]:
        """Return a copy of what has been learned."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go back to what `copy` returned."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def write(self, program: Program) -> None:
        """Write what has been learned into the program's weights."""
        for name, value in self.values().items():
            program.weights.put(name, value.detach().clone())


@dataclass
class Course:
    """How far training has come; all that goes on after a stop beside what has been learned.

    `curve` has the mean loss of each step, `held` (step, loss on samples held out).
    """

    step: int = 0
    best_step: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    held: list[tuple[int, float]] = field(default_factory=list)
    ended: str = ""
    """Why training ended before its last step."""

    @property
    def best_loss(self) -> float:
        return min((loss for _, loss in self.held), default=math.inf)

    @property
    def first_loss(self) -> float:
        return self.held[0][1] if self.held else math.inf

    def offer(self, learner: Learner, loss: float) -> None:
        """Take note of a loss on samples held out; keep the tensors if there was none better."""
        if loss < self.best_loss or not self.best:
            self.best, self.best_step = learner.copy(), self.step
        self.held.append((self.step, loss))

    def verdict(self, patience: int) -> str:
        """Say why training should end, "" if it should not."""
        last = self.held[-1][1]
        if not math.isfinite(last) or last > DIVERGED * self.first_loss:
            return f"it diverged: the held-out loss went from {self.first_loss:.4g} to {last:.4g}"
        since = sum(step > self.best_step for step, _ in self.held)
        if since >= patience:
            return f"the held-out loss has not fallen since step {self.best_step}"
        return ""


class Pace:
    """How fast steps follow one another, from now on."""

    def __init__(self, calibration: Calibration, schedule: Schedule, *, first: int = 0) -> None:
        """Start the clock at the step `first`."""
        tokens = sum(sample[0].numel() for sample in calibration.samples)
        self._each = tokens / len(calibration) * schedule.batch
        self._first, self._begin = first, time.monotonic()

    def after(self, step: int) -> str:
        """Return the tokens of a second, when so many steps have been taken."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return f"{(step - self._first) * self._each / seconds:.0f} tokens/s"


def split_samples(samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Return samples to train on and to hold out (all for both, where there are too few)."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(MOST_HELD, samples // HELD_OUT)
    return order[count:], order[:count] or order


def train(
    program: Program,
    weights: list[FakeWeight],
    rest: Weights,
    learner: Learner,
    loss: Loss,
    samples: int,
    schedule: Schedule,
    *,
    what: str,
    course: Course | None = None,
    watch: Callable[[Course], None] = lambda course: None,
) -> Course:
    """Make the loss of samples small; leave the learner with the best iterate, or as it began.

    weights: those that are rounded anew whenever what they depend on has changed; rest: all others
    by name. course: where to go on from. `watch` is called after every step. Each sample is a batch
    of its own, whose gradients add up before a step.

    Raises:
        QCompilerError: the loss is not finite at the start; `what` names what is trained.
    """
    course = Course() if course is None else course
    taught, held = split_samples(samples, schedule.seed)
    order = _order(taught, schedule)
    learning = [w for w in weights if learner.parameters.keys() & _entries(program, w)]
    with torch.no_grad():
        fixed = round_weights([w for w in weights if w not in learning], rest)

    def check() -> None:
        with torch.no_grad():
            fetch = overlaid(learner.values(), rest, program.weights.resolve)
            rounded = fixed | round_weights(learning, fetch)
            losses = [float(loss(sample, rounded, fetch)) for sample in held]
        course.offer(learner, sum(losses) / len(losses))

    if not course.held:
        check()
    if not math.isfinite(course.first_loss):
        raise QCompilerError(
            f"{what} has no finite loss before it is trained; look for damaged weights"
        )
    while course.step < schedule.steps and not course.ended:
        begin = course.step * schedule.batch
        batch = order[begin : begin + schedule.batch]
        mean = _descend(program, learner, learning, fixed, rest, loss, batch)
        course.curve.append(mean)
        if not math.isfinite(mean):
            course.ended = f"it diverged: the loss of step {course.step + 1} is {mean}"
            break
        learner.step(schedule.factor(course.step))
        course.step += 1
        if schedule.checked(course.step):
            check()
            course.ended = course.verdict(schedule.patience)
        watch(course)
    learner.restore(course.best)
    return course


def _descend(
    program: Program,
    learner: Learner,
    learning: list[FakeWeight],
    fixed: Rounded,
    rest: Weights,
    loss: Loss,
    batch: Sequence[int],
) -> float:
    """Add up the gradients of a batch; return its mean loss."""
    total = 0.0
    with torch.enable_grad():
        values = learner.values()
        rounded = round_weights(learning, overlaid(values, rest, program.weights.resolve))
        # The graph of a sample ends at rounded weights: rounding is passed once, for all of them.
        unique = {id(weight): weight for weight in rounded.values()}
        leaves = {key: weight.detach().requires_grad_() for key, weight in unique.items()}
        direct = {name: value.detach().requires_grad_() for name, value in values.items()}
        met = {**fixed, **{name: leaves[id(weight)] for name, weight in rounded.items()}}
        fetch = overlaid(direct, rest, program.weights.resolve)
        for sample in batch:
            found = loss(sample, met, fetch) / len(batch)
            torch.autograd.backward(found)
            total += float(found.detach())
        ends = [(unique[key], leaf) for key, leaf in leaves.items()]
        ends += [(values[name], leaf) for name, leaf in direct.items()]
        for end, leaf in ends:
            if leaf.grad is not None:
                torch.autograd.backward(end, leaf.grad)
                leaf.grad = None
    return total


def _order(taught: Sequence[int], schedule: Schedule) -> list[int]:
    """Return the samples of all steps: each is seen once before any is seen again."""
    generator = torch.Generator().manual_seed(schedule.seed + 1)
    order: list[int] = []
    while len(order) < schedule.steps * schedule.batch:
        turn = torch.randperm(len(taught), generator=generator).tolist()
        order += [taught[i] for i in turn]
    return order


def _entries(program: Program, weight: FakeWeight) -> set[str]:
    return {program.weights.resolve(name) for name in weight.sources}
