"""Measure losses: quantise one operator at a time, and compare what the model then gives.

Exact but for the few samples it can afford, and costly: the work grows with the square of the
number of blocks. All variants of the model go through it together, block by block, so that one
block's weights are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from passes.activations import Activations, Values
from passes.finite_weights import FiniteWeights
from passes.quantizable import Quantizable
from passes.segments import Segment, Weights, segments
from passes.sensitivity.loss_units import loss_units
from passes.sensitivity.rounding_error import rounded, rounding_error
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class Variant:
    """A model in which some weights are quantised: those that read one value, or one alone.

    Products of one value are fused and then share a scheme, so they are measured together.
    `first` is the number of the first segment that reads any of them.
    """

    scheme: str
    weights: tuple[Quantizable, ...]
    first: int

    @property
    def schemes(self) -> dict[str, QuantScheme]:
        """The scheme of each product, by its name in the graph."""
        parsed = QuantScheme.parse(self.scheme)
        names = [weight_of(node) for weight in self.weights for node in weight.products]
        return {operator_name(name): parsed for name in names if name is not None}

    def quantized(self, program: Program) -> dict[str, torch.Tensor]:
        """Return what the codes of its weights stand for, by entry."""
        form = QuantScheme.parse(self.scheme).weight
        return {
            weight.entry: rounded(weight.entry, program.weights.tensor(weight.entry), form)
            for weight in self.weights
        }


def kl(
    program: Program,
    weights: Sequence[Quantizable],
    choices: tuple[str, ...],
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    budget: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Return the measured loss by operator and scheme.

    Of a language model it is the mean over tokens of the KL divergence from the float model's
    predictions, in nats; of another, half the squared error of the outputs over their square. What
    is measured of several operators together is divided by their squared errors of rounding.
    budget: bytes of activations kept in memory.

    Raises:
        QCompilerError: a weight, or what a variant gives, is not finite.
    """
    parts = segments(program)
    variants = _variants(parts, program, weights, choices)
    loss = [0.0] * len(variants)
    steps = sum(len(parts) - variant.first for variant in variants)
    done, count = 0, len(samples)
    share = None if budget is None else budget // 3
    plain = Activations(map(parts[0].order.inputs, samples), budget=share)
    # All samples of the first variant, then all of the second, and so on.
    with Activations(budget=share) as changed:
        for number, part in enumerate(parts):
            read = FiniteWeights(program)
            after = Activations(budget=share)
            for values in plain:
                after.append(_run(part, values, read))
            for place, variant in enumerate(variants):
                if variant.first > number:
                    break
                replaced = _replaced(program, part, variant, read)
                for index in range(count):
                    where = place * count + index
                    before = plain[index] if variant.first == number else changed[where]
                    values = _run(part, before, replaced, variant.schemes)
                    if part is parts[-1]:
                        loss[place] += _difference(program, after[index], values, variant)
                    elif variant.first == number:
                        changed.append(values)
                    else:
                        changed[where] = values
                done += 1
                progress.advance(done, steps)
            plain.close()
            plain = after
        plain.close()
    units = loss_units(program, samples)
    return _shared_out(program, weights, variants, [total / units for total in loss])


def _variants(
    parts: Sequence[Segment],
    program: Program,
    weights: Sequence[Quantizable],
    choices: tuple[str, ...],
) -> list[Variant]:
    """Return all variants, those first that begin first."""
    place = {node: number for number, part in enumerate(parts) for node in part.nodes}
    groups: dict[object, list[Quantizable]] = {}
    for weight in weights:
        alone = len(weight.nodes) > 1 or weight.tables
        groups.setdefault(weight.entry if alone else weight.products[0].args[0], []).append(weight)
    variants: list[Variant] = []
    for group in groups.values():
        first = min(place[node] for weight in group for node in weight.nodes)
        fitting = {text: tuple(w for w in group if text in w.schemes(choices)) for text in choices}
        variants += [Variant(text, found, first) for text, found in fitting.items() if found]
    return sorted(variants, key=lambda variant: variant.first)


def _replaced(program: Program, part: Segment, variant: Variant, read: Weights) -> Weights:
    """Return the weights of a segment as a variant has them."""
    entries = {weight.entry for weight in variant.weights}
    used = {
        program.weights.resolve(str(source.target))
        for node in part.nodes
        for source in node.all_input_nodes
        if source.op == "get_attr"
    }
    if entries.isdisjoint(used):
        return read
    changed = variant.quantized(program)

    def weights(name: str) -> torch.Tensor:
        entry = program.weights.resolve(name)
        return changed[entry] if entry in changed else read(entry)

    return weights


def _run(
    part: Segment,
    values: Values,
    weights: Weights,
    schemes: dict[str, QuantScheme] | None = None,
) -> Values:
    with torch.no_grad():
        return part.run(values, weights, schemes)


def _difference(program: Program, plain: Values, changed: Values, variant: Variant) -> float:
    """Return how far what a variant gives is from what the float model gives, for one sample."""
    total = 0.0
    for node in program.graph.output_node().all_input_nodes:
        y, z = plain[node.name], changed[node.name]
        if not (isinstance(y, torch.Tensor) and isinstance(z, torch.Tensor)):
            continue
        if program.info.kind == "causal-lm":
            log_p, log_q = y.log_softmax(-1), z.log_softmax(-1)
            rows = (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)
            total += float(rows.sum())
        elif y.is_floating_point():
            total += float((z - y).pow(2).sum() / (2 * y.pow(2).sum()))
    if not math.isfinite(total):
        names = ", ".join(f"'{weight.operator}'" for weight in variant.weights)
        raise QCompilerError(
            f"the model gives what is infinite or not a number when {names} becomes "
            f"{variant.scheme}, so the loss cannot be measured; leave that scheme out of the "
            "choices, or choose another metric"
        )
    return total


def _shared_out(
    program: Program,
    weights: Sequence[Quantizable],
    variants: Sequence[Variant],
    loss: Sequence[float],
) -> dict[str, dict[str, float]]:
    """Divide what was measured of operators together among them."""
    found: dict[str, dict[str, float]] = {weight.operator: {} for weight in weights}
    for variant, total in zip(variants, loss, strict=True):
        form = QuantScheme.parse(variant.scheme).weight
        errors = [1.0]
        if len(variant.weights) > 1:
            errors = [
                float(
                    rounding_error(w.entry, program.weights.tensor(w.entry), form).square_().sum()
                )
                for w in variant.weights
            ]
        for weight, error in zip(variant.weights, errors, strict=True):
            part = error / sum(errors) if sum(errors) else 1 / len(errors)
            found[weight.operator][variant.scheme] = total * part
    return found
