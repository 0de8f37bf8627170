"""Measure what each operator costs in bytes and seconds, in each scheme it may get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import fx

from passes.fused_products import FusedProduct, fused_products
from passes.hollow import compiled_form
from passes.quantizable import Quantizable, quantizable
from passes.roofline import count_rows, product_seconds, rest_seconds
from qcompiler.core.errors import ConfigError, UnsupportedError
from qcompiler.core.facts import Cost, OperatorCost
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, operator_name, value
from qcompiler.core.stage import Stage
from qcompiler.core.support import check_supported, has_kernels, widened

FLOAT = "float"

AFTER_PROMPT = 64
"""Tokens after the prompt at which the time of one is said: half of what `bench` generates."""


_LEAST_REST = 0.02  # of what a model takes


@dataclass(frozen=True, kw_only=True)
class MeasureCost(Pass):
    """Find what each weight takes in each of the `choices`, and how long its products run.

    Bytes are those of the artifact: packed codes, scales and zero points. Seconds are of a language
    model's step of one token, some 64 after a prompt of `prompt_tokens`, and of the prompt itself.
    Products that fusing joins are timed as one, whose time they share by their outputs. `time`
    says where seconds come from:

    - "timer": the target's kernels are timed on this machine, once for each shape and scheme, and
      so is the model as a whole, with every operator in one choice, in turns for all choices. That
      says what products take together, and the kernels, how they share it. Times are kept in the
      user's cache.
    - "roofline": bytes and operations, over what a typical machine of the target does of either.
    - "auto": timed where this machine can run the target's code, else estimated.
    - "none": there are none.
    """

    name: ClassVar[str] = "measure-cost"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Cost})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    choices: tuple[str, ...] = ("w4a8g64", "w4a8g32", "w8a8g32")
    time: Literal["auto", "timer", "roofline", "none"] = "auto"
    prompt_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigError("there are no choices; give at least one, such as 'w4a8g64'")
        for text in self.choices:
            if text != FLOAT:
                QuantScheme.parse(text)
        if self.prompt_tokens < 2:
            raise ConfigError(f"prompt_tokens = {self.prompt_tokens} is no prompt; use 2 or more")

    def run(self, program: Program, context: PassContext) -> None:
        source = self._source(program, context)
        weights = quantizable(program)
        for text in self.choices:
            if text != FLOAT:
                check_supported(QuantScheme.parse(text), context.target, "measure-cost")
        fused = {name: group for group in fused_products(program) for name in group.operators}
        bench = _Bench(self, program, context, source, weights, fused)
        choices: dict[str, dict[str, OperatorCost]] = {}
        for done, weight in enumerate(weights.values(), start=1):
            texts = bench.choices(weight)
            choices[weight.operator] = {text: bench.cost(weight, text) for text in texts}
            context.progress.advance(done, len(weights) + 1)
        decode, prefill = None, None
        if source == "timer":
            decode, prefill = bench.measured_rest(choices)
        elif source:
            decode, prefill = bench.estimated_rest()
        size = bench.rest_bytes()
        rest = OperatorCost(bits=8.0 * size, bytes=size, decode_s=decode, prefill_s=prefill)
        program.facts[Cost] = Cost(
            choices=choices,
            weights={w.operator: w.shape[0] * w.shape[1] for w in weights.values()},
            rest=rest,
            prompt_tokens=self.prompt_tokens,
            source=source,
        )
        self._record(program.facts[Cost], context)

    def _source(self, program: Program, context: PassContext) -> str:
        """Say where seconds are to come from: "timer", "roofline" or "" for nowhere."""
        if self.time == "none":
            return ""
        if program.info.kind != "causal-lm":
            if self.time == "auto":
                context.note(self.name, "no times: these are of language models only")
                return ""
            raise UnsupportedError(
                f"{program.info.name} is no language model, of which alone times are measured; "
                "use time = 'none' and a budget of bytes or bits"
            )
        fits = context.kernel_timer is not None and context.model_timer is not None
        if self.time == "timer" and not fits:
            raise UnsupportedError(
                f"this machine cannot run code for {context.target.name}, so its kernels cannot be "
                "timed here; use time = 'roofline' for an estimate"
            )
        most = program.info.max_context
        if most is not None and self.prompt_tokens + 2 * AFTER_PROMPT > most:
            raise ConfigError(
                f"a prompt of {self.prompt_tokens} tokens and the answer to it do not fit the "
                f"context of {most}; set measure-cost.prompt_tokens to less"
            )
        return "timer" if fits and self.time != "roofline" else "roofline"

    def _record(self, cost: Cost, context: PassContext) -> None:
        methods = {"timer": "timed kernels", "roofline": "roofline", "": "bytes only"}
        context.record(self.name, "method", methods[cost.source])
        context.record(
            self.name,
            "bytes",
            {name: {s: c.bytes for s, c in by.items()} for name, by in cost.choices.items()},
        )
        if not cost.source:
            return
        record = context.record_seconds if cost.source == "timer" else context.record
        for key, field in (("decode", "decode_s"), ("prefill", "prefill_s")):
            figures = {
                name: {s: getattr(c, field) for s, c in by.items()}
                for name, by in cost.choices.items()
            }
            record(self.name, key, figures)
            record(self.name, f"rest_{key}", getattr(cost.rest, field))


class _Bench:
    """Costs of a program's weights, one at a time."""

    def __init__(
        self,
        step: MeasureCost,
        program: Program,
        context: PassContext,
        source: str,
        weights: Mapping[str, Quantizable],
        fused: Mapping[str, FusedProduct],
    ) -> None:
        self.step, self.program, self.context, self.source = step, program, context, source
        self.weights = {weight.operator: weight for weight in weights.values()}
        self.fused = fused
        self._streams: dict[str, int] = {}
        self._sizes: list[dict[Any, int]] = []
        if source:
            ids, _, rows, *_ = program.placeholders()
            symbols = [_symbol(node) for node in (ids, rows)]
            self._sizes = [dict(zip(symbols, (t, 1), strict=True)) for t in (1, step.prompt_tokens)]

    def choices(self, weight: Quantizable) -> list[str]:
        """Return the choices that a weight can have, and float."""
        fitting = weight.schemes(tuple(c for c in self.step.choices if c != FLOAT))
        return [*fitting, FLOAT]

    def cost(self, weight: Quantizable, choice: str) -> OperatorCost:
        """Return what a weight costs in one of the choices."""
        (n, k), (whole, gated) = weight.shape, self._whole(weight)
        size = self.context.packed_bytes(whole, k, self._kernel(choice), gated=gated)
        bits = 32.0 if choice == FLOAT else QuantScheme.parse(choice).weight.bits_per_weight(k)
        cost = OperatorCost(bits=bits * n * k, bytes=round(size * n / whole))
        # Float is a way out that is not among the choices unless it is asked for.
        if not self.source or choice not in self.step.choices:
            return cost
        decode, prefill = self.seconds(weight, choice)
        return replace(cost, decode_s=decode, prefill_s=prefill)

    def seconds(self, weight: Quantizable, choice: str) -> tuple[float, float]:
        """Return the seconds of a weight's products: of one token, and of a prompt."""
        (n, k), (whole, gated) = weight.shape, self._whole(weight)
        scheme = self._kernel(choice)
        decode, prefill = (
            sum(
                self._product_seconds(whole, k, scheme, count_rows(node, sizes), gated=gated)
                for node in weight.products
            )
            for sizes in self._sizes
        )
        return decode * n / whole, prefill * n / whole

    def _whole(self, weight: Quantizable) -> tuple[int, bool]:
        """Return the outputs of the product that a weight becomes part of, and if it is gated."""
        group = self.fused.get(weight.operator)
        if group is None:
            return weight.shape[0], False
        return sum(self.weights[name].shape[0] for name in group.operators), group.gated

    def _kernel(self, choice: str) -> QuantScheme | None:
        """Return the scheme whose kernel serves a choice: that of wider codes where need be."""
        if choice == FLOAT:
            return None
        scheme = QuantScheme.parse(choice)
        return scheme if has_kernels(scheme, self.context.target) else widened(scheme)

    def _product_seconds(
        self, n: int, k: int, scheme: QuantScheme | None, tokens: int, *, gated: bool
    ) -> float:
        if self.source == "roofline":
            size = self.context.packed_bytes(n, k, scheme, gated=gated)
            return product_seconds(
                (n, k), tokens, size, self.context.target, integers=scheme is not None
            )
        timer = self.context.kernel_timer
        assert timer is not None
        stream = self._stream_bytes(scheme)
        return timer.linear_seconds(n, k, scheme, tokens, gated=gated, stream_bytes=stream)

    def _stream_bytes(self, scheme: QuantScheme | None) -> int:
        """Return the bytes of all products' weights, if all had one scheme."""
        if str(scheme) not in self._streams:
            self._streams[str(scheme)] = sum(
                self.context.packed_bytes(*weight.shape, scheme)
                for weight in self.weights.values()
                if weight.products
            )
        return self._streams[str(scheme)]

    def rest_bytes(self) -> int:
        """Return the bytes of weights that are no operator's."""
        weights = self.program.weights
        read = {
            weights.resolve(str(node.target))
            for node in self.program.graph.nodes
            if node.op == "get_attr"
        }
        return sum(
            math.prod(weights.shape(name)) * weights.dtype(name).itemsize
            for name in read
            if operator_name(name) not in self.weights
        )

    def estimated_rest(self) -> tuple[float, float]:
        """Return the seconds that a token and a prompt take beyond products, by the roofline."""
        (one, whole), target, prompt = self._sizes, self.context.target, self.step.prompt_tokens
        return (
            rest_seconds(self.program, one, prompt + AFTER_PROMPT, target),
            rest_seconds(self.program, whole, prompt, target),
        )

    def measured_rest(self, costs: dict[str, dict[str, OperatorCost]]) -> tuple[float, float]:
        """Return the same as measured, and correct the seconds of `costs`.

        Models of one choice each are timed in turns. What the first takes beyond its products is
        the rest; the products of each choice are made to add up to what its model takes.
        """
        timer, target = self.context.model_timer, self.context.target
        assert timer is not None
        plans = [
            {name: c if c in self.choices(w) else FLOAT for name, w in self.weights.items()}
            for c in self.step.choices
        ]
        models = [
            compiled_form(
                self.program,
                {name: QuantScheme.parse(c) for name, c in plan.items() if c != FLOAT},
                target,
            )
            for plan in plans
        ]
        measured = np.array(timer.model_seconds(models, self.step.prompt_tokens))
        products = np.array(
            [
                np.sum([self.seconds(self.weights[name], c) for name, c in plan.items()], axis=0)
                for plan in plans
            ]
        )
        # Kernels run one by one take longer than in their places; there is always some rest.
        rest = np.maximum(measured[0] - products[0], _LEAST_REST * measured[0])
        factors = np.maximum(measured - rest, 0.0) / products
        for by in costs.values():
            for choice, (decode, prefill) in zip(self.step.choices, factors.tolist(), strict=True):
                if (cost := by.get(choice)) is not None and cost.decode_s is not None:
                    assert cost.prefill_s is not None
                    by[choice] = replace(
                        cost, decode_s=decode * cost.decode_s, prefill_s=prefill * cost.prefill_s
                    )
        return float(rest[0]), float(rest[1])


def _symbol(node: fx.Node) -> Any:
    """Return the symbol of an input's last size."""
    size: Any = value(node).shape[-1]
    return size.node.expr
