"""Measure what each operator costs in quality, in each scheme it may get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from passes.quantizable import quantizable
from passes.sensitivity.fisher import fisher
from passes.sensitivity.hessian import hessian
from passes.sensitivity.kl import kl
from passes.sensitivity.weight_variance import weight_variance
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Sensitivity
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

Metric = Literal["fisher", "kl", "hessian", "weight-variance"]

FLOAT = "float"

SAMPLES: dict[str, int] = {"fisher": 16, "kl": 2, "hessian": 16, "weight-variance": 16}
"""How many samples are enough for a metric."""


@dataclass(frozen=True, kw_only=True)
class MeasureSensitivity(Pass):
    """Predict how the loss rises when an operator, and no other, gets one of the `choices`.

    `metric` says how, from what is nearest the truth to what is cheapest:

    - "kl" measures it, one operator after the other, and takes long;
    - "fisher" estimates the same from squared gradients, after one backward pass;
    - "hessian" is the squared error of the operator's own output;
    - "weight-variance" is that in closed form, from the variance of the weight and the mean square
      of its inputs; with `samples = 0` from the weight alone.

    The choice "float" costs nothing. The first two metrics give nats per token of a language model,
    and half the relative squared error of another's outputs; the last two give figures to compare.
    All run block by block. `samples` is how many are run (as many as the metric needs, if left
    out), `tokens` how many of a language model's sample are; `seed` draws the probes of "fisher".
    """

    name: ClassVar[str] = "measure-sensitivity"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Sensitivity})
    keeps: ClassVar[frozenset[type[Any]] | None] = None
    saved: ClassVar[bool] = True

    metric: Metric = "fisher"
    choices: tuple[str, ...] = ("w4a8g64", "w4a8g32", "w8a8g32")
    samples: int | None = None
    tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigError("there are no choices; give at least one, such as 'w4a8g64'")
        for text in self._schemes:
            if QuantScheme.parse(text).is_static:
                raise ConfigError(
                    f"the choice {text} has activations of a static scale, which is found after "
                    "bits are chosen; leave out the 's' here, and plan it with 'set-bits'"
                )
        if self.samples is not None and self.samples < (self.metric != "weight-variance"):
            raise ConfigError(
                f"samples = {self.samples} measures nothing; use 1 or more"
                + (", or the metric 'weight-variance'" if self.samples == 0 else "")
            )
        if self.tokens < 2:
            raise ConfigError(f"tokens = {self.tokens} predicts nothing; use 2 or more")

    @property
    def _schemes(self) -> tuple[str, ...]:
        return tuple(text for text in self.choices if text != FLOAT)

    @property
    def calibrates(self) -> bool:
        return self.samples != 0

    def run(self, program: Program, context: PassContext) -> None:
        samples = self._samples(program, context)
        weights = list(quantizable(program).values())
        given: dict[str, Any] = {"budget": context.max_ram, "progress": context.progress}
        match self.metric:
            case "fisher":
                loss = fisher(program, weights, self._schemes, samples, seed=self.seed, **given)
            case "kl":
                loss = kl(program, weights, self._schemes, samples, **given)
            case "hessian":
                loss = hessian(program, weights, self._schemes, samples, **given)
            case "weight-variance":
                loss = weight_variance(program, weights, self._schemes, samples, **given)
        if FLOAT in self.choices:
            loss = {operator: {**of, FLOAT: 0.0} for operator, of in loss.items()}
        unit = "squared error of outputs"
        if self.metric in ("fisher", "kl"):
            is_model = program.info.kind == "causal-lm"
            unit = "nats per token" if is_model else "half the relative squared error"
        program.facts[Sensitivity] = Sensitivity(
            metric=self.metric, loss=loss, relative=unit != "nats per token"
        )
        context.record(self.name, "metric", self.metric)
        context.record(self.name, "unit", unit)
        context.record(self.name, "samples", len(samples))
        context.record(self.name, "loss", loss)

    def _samples(self, program: Program, context: PassContext) -> list[tuple[torch.Tensor, ...]]:
        if self.samples == 0:
            return []
        count = SAMPLES[self.metric] if self.samples is None else self.samples
        found = context.samples(self.name, count).samples
        if program.info.kind == "causal-lm":
            return [(ids[: self.tokens],) for (ids,) in found]
        return list(found)
