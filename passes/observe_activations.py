"""Find the scales of activations that are to be known before the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from passes.activations import Activations
from passes.allocate_bits import AllocateBits
from passes.finite_weights import FiniteWeights
from passes.input_scales import scale_entry, static_products
from passes.observers import Observer, Seen, find_clip, scale_of
from passes.segments import Segment, segments
from passes.set_bits import SetBits
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ObserveActivations(Pass):
    """Give every product of a static scheme the scale of what it reads, as samples have it.

    The float model is run on calibration samples, block by block, the first `samples` of them (all,
    if left out). The `observer` says where sizes |x| are clipped, to the largest code:

    - "min-max": nowhere, at the largest there was;
    - "moving-average": at a moving average of each sample's largest, in which what was before
      counts `momentum`;
    - "percentile": at the size that `percentile` per cent of all numbers do not exceed;
    - "mse": where the squared error is least, the default: it loses least (docs/decisions/015);
    - "kl": where codes tell most of the distribution, as TensorRT's calibration has it.

    Products that read one value share its scale, as do all values that one weight is multiplied
    by. Scales are kept in the weight store as `<operator>.input_scale`.
    """

    name: ClassVar[str] = "observe-activations"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    observer: Observer = "mse"
    momentum: float = 0.9
    percentile: float = 99.99
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                f"momentum {self.momentum:g} is no share below 1; 0.9 is usual, and 0 takes the "
                "last sample alone"
            )
        if not 0 < self.percentile <= 100:
            raise ConfigError(
                f"percentile {self.percentile:g} is no share of numbers; use more than 0 and at "
                "most 100, such as 99.99"
            )
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples = {self.samples} shows nothing; use 1 or more")

    @property
    def calibrates(self) -> bool:
        return True

    def run(self, program: Program, context: PassContext) -> None:
        groups = _groups(static_products(program))
        if not groups:
            context.note(self.name, "no operator has a static scheme, so nothing was observed")
            return
        found: dict[str, dict[str, float]] = {}
        for group, seen in self._observe(program, groups, context):
            clip = find_clip(seen, self.observer, percentile=self.percentile)
            if not clip:
                names = ", ".join(group.operators)
                context.note(self.name, f"{names}: only zeros were seen, so the scale is 1")
            share = {"max": seen.largest, "clip": clip, "clipped": seen.clipped(clip)}
            for operator in group.operators:
                program.weights.put(scale_entry(operator), scale_of(clip))
                found[operator] = share
        context.record(self.name, "observer", self.observer)
        context.record(self.name, "scales", found)

    def _observe(
        self, program: Program, groups: list[_Group], context: PassContext
    ) -> Iterator[tuple[_Group, Seen]]:
        """Run the model; yield what was seen for each group once all its values have been."""
        samples = context.samples(self.name, self.samples).samples
        wanted = {value for group in groups for value in group.values}
        parts = segments(program)
        while not any(_value(node) in wanted for _, node in parts[-1].linears()):
            parts.pop()  # what comes after the last of them need not be run
        # What is live before and after a segment.
        budget = None if context.max_ram is None else context.max_ram // 2
        seen: dict[str, Seen] = {}
        with Activations(map(parts[0].order.inputs, samples), budget=budget) as live:
            for done, part in enumerate(parts, start=1):
                with torch.no_grad():
                    seen |= _advance(program, part, live, wanted, self.momentum)
                for group in [group for group in groups if group.values <= seen.keys()]:
                    groups.remove(group)
                    first, *others = [seen.pop(value) for value in sorted(group.values)]
                    for other in others:
                        first.merge(other)
                    yield group, first
                context.progress.advance(done, len(parts))


def check_observed(earlier: Sequence[Pass]) -> None:
    """Refuse steps that plan static scales which none after them finds.

    For `check_after` of a pass that quantises weights.

    Raises:
        ConfigError: naming the scheme, and what to put where.
    """
    open_: tuple[str, str] | None = None
    for step in earlier:
        if isinstance(step, ObserveActivations):
            open_ = None
        elif (scheme := _static_scheme(step)) is not None:
            open_ = step.name, scheme
    if open_ is not None:
        raise ConfigError(
            f"{open_[1]} has activations of a static scale, which nothing has found; put "
            f"'observe-activations' after '{open_[0]}'"
        )


def _static_scheme(step: Pass) -> str | None:
    """Return the first static scheme that a step may give a product."""
    schemes: list[str] = []
    if isinstance(step, SetBits):
        schemes = [rule.scheme for rule in step.rules if rule.kind != "embedding"]
    elif isinstance(step, AllocateBits):
        pins = [rule.scheme for rule in step.pins if rule.kind != "embedding"]
        schemes = [*step.choices, *pins]
    return next((s for s in schemes if s != "float" and QuantScheme.parse(s).is_static), None)


@dataclass(eq=False)
class _Group:
    """Operators that have one scale, and the values that they read."""

    operators: list[str] = field(default_factory=list)
    values: set[str] = field(default_factory=set)


def _groups(products: Sequence[tuple[str, fx.Node]]) -> list[_Group]:
    """Join products that read one value, and those of one weight."""
    groups: list[_Group] = []
    for operator, node in products:
        whole = _Group([operator], {_value(node)})
        for group in list(groups):
            if operator in group.operators or _value(node) in group.values:
                groups.remove(group)
                whole = _Group(
                    list(dict.fromkeys(group.operators + whole.operators)),
                    group.values | whole.values,
                )
        groups.append(whole)
    return groups


def _value(product: fx.Node) -> str:
    x = product.args[0]
    assert isinstance(x, fx.Node)
    return x.name


def _advance(
    program: Program, part: Segment, live: Activations, wanted: set[str], momentum: float
) -> dict[str, Seen]:
    """Run a segment on what is live, in place; return what was seen of the wanted values."""
    products = part.linears()
    seen: dict[str, Seen] = {}
    first: dict[int, str] = {}
    for place, (_, node) in enumerate(products):
        value = _value(node)
        if value in wanted and value not in seen:
            seen[value] = Seen(momentum)
            first[place] = value
    weights = FiniteWeights(program)
    for index, values in enumerate(live):
        places = iter(range(len(products)))

        def tap(operator: str, x: torch.Tensor, places: Iterator[int] = places) -> None:
            value = first.get(next(places))
            if value is None:
                return
            try:
                seen[value].add(x)
            except ValueError:
                raise QCompilerError(
                    f"what '{operator}' reads is infinite or not a number on a calibration sample, "
                    "so no scale can be found for it; look for damaged weights before it"
                ) from None

        live[index] = part.run(values, weights, tap=tap)
    return seen
