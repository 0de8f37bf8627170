"""Predict losses from squared gradients: the diagonal of the Fisher information.

A small change δ of a model's logits changes its predictions by KL ≈ ½·δᵀFδ, F = diag(p) − ppᵀ
being the Fisher information of the predictions p. For random signs ε, z = √p∘ε − p·(√p·ε) has
E[zzᵀ] = F, so that KL ≈ ½·E[(z·δ)²]; and where a weight W changes by ΔW, z·δ = ⟨G, ΔW⟩ with G the
gradient of z·logits (Martens, "New insights and perspectives on the natural gradient method",
arXiv 1412.1193, section 5). One backward pass gives G for every weight. Errors of rounding are
nearly independent of each other, which leaves the diagonal: KL ≈ ½·Σ E[G²]·ΔW², far less noisy than
⟨G, ΔW⟩² itself. The error Δx of quantised activations adds ½·Σ E[(Wᵀg)²]·Δx², where g is the
gradient at the product's output.

Of a model that is no language model, the loss is half the squared error of its outputs, over their
square: then z = ε / ‖y‖. No gradient tells of tokens that go to other experts than they did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from passes.activations import Activations, Values
from passes.finite_weights import FiniteWeights
from passes.quantizable import Quantizable
from passes.segments import Segment, segments
from passes.sensitivity.loss_units import loss_units
from passes.sensitivity.rounding_error import rounding_error
from passes.sensitivity.watched_run import Reading, watched_run
from qcompiler.core.errors import QCompilerError
from qcompiler.core.fake_quant import fake_quantize
from qcompiler.core.formats import PerTensor, TensorFormat
from qcompiler.core.groups import SMALLEST
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress


def fisher(
    program: Program,
    weights: Sequence[Quantizable],
    choices: tuple[str, ...],
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    seed: int = 0,
    budget: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Return the predicted rise of the loss by operator and scheme.

    It is nats per token of a language model, per sample of another. The blocks are run forward,
    then backward, one at a time. budget: bytes of activations kept in memory.

    Raises:
        QCompilerError: a weight or a gradient is not finite.
    """
    units = loss_units(program, samples)
    walk = _Walk(program, weights, choices, torch.Generator().manual_seed(seed))
    parts, count = walk.parts, len(samples)
    share = None if budget is None else budget // 2
    loss: dict[str, dict[str, float]] = {weight.operator: {} for weight in weights}
    # All samples before the first segment, then all before the second, and so on.
    with Activations(budget=share) as values, Activations(budget=share) as gradients:
        for sample in samples:
            values.append(parts[0].order.inputs(sample))
        for number, part in enumerate(parts[:-1]):
            plain = FiniteWeights(program)
            with torch.no_grad():
                for index in range(count):
                    values.append(part.run(values[number * count + index], plain))
            progress.advance(number + 1, 4 * len(parts))
        for number, part in reversed(list(enumerate(parts))):
            for index in range(count):
                place = number * count + index
                after = gradients[index] if part is not parts[-1] else None
                before = walk.backward(part, values[place], after)
                values[place] = {}
                if after is None:
                    gradients.append(before)
                else:
                    gradients[index] = before
            for operator, rises in walk.losses(units).items():
                for scheme, rise in rises.items():
                    loss[operator][scheme] = loss[operator].get(scheme, 0.0) + rise
            progress.advance(4 * len(parts) - 3 * number, 4 * len(parts))
    return loss


@dataclass
class _Sums:
    """Sums over samples for one weight: of G², [n, k], and of (Wᵀg)²·Δx² by activation format."""

    squares: torch.Tensor | None = None
    activations: dict[TensorFormat, float] = field(default_factory=lambda: defaultdict(float))


class _Walk:
    """The segments of a model, and the sums over samples of the one that is being gone through."""

    def __init__(
        self,
        program: Program,
        weights: Sequence[Quantizable],
        choices: tuple[str, ...],
        generator: torch.Generator,
    ) -> None:
        self.program, self.generator = program, generator
        self.parts = segments(program)
        self.measured = {weight.entry: weight for weight in weights}
        self.schemes = {weight.entry: weight.schemes(choices) for weight in weights}
        self._moving = _moving(program, self.measured)
        self._weights = FiniteWeights(program)
        self._sums: dict[str, _Sums] = defaultdict(_Sums)

    def backward(self, part: Segment, values: Values, after: Values | None) -> Values:
        """Take one sample into the sums of a segment.

        values: what is live before the segment. after: the gradients of what is live after it; None
        at the end of the model. Returns the gradients of what is live before it.
        """
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in values.items()
            if name in self._moving and isinstance(value, torch.Tensor)
        }
        with torch.enable_grad():
            env, readings = watched_run(part, {**values, **leaves}, self._weights)
        if after is None:
            after = self._probes(env)
        readings = [r for r in readings if self._entry(r) in self.measured]
        products = [r for r in readings if not r.is_table]
        wanted = [*leaves.values(), *(r.change for r in readings), *(r.x for r in products)]
        ends = [(_tensor(env, name), _tensor(after, name)) for name in after]
        ends = [(tensor, gradient) for tensor, gradient in ends if tensor.requires_grad]
        if not wanted or not ends:
            return {}
        found = torch.autograd.grad(
            [tensor for tensor, _ in ends],
            wanted,
            [gradient for _, gradient in ends],
            materialize_grads=True,
        )
        changes = found[len(leaves) : len(leaves) + len(readings)]
        with torch.no_grad():
            self._add_weight_gradients(readings, changes)
            for reading, gradient in zip(
                products, found[len(wanted) - len(products) :], strict=True
            ):
                self._add_activation_errors(reading, gradient)
        return dict(zip(leaves, found, strict=False))

    def losses(self, units: int) -> dict[str, dict[str, float]]:
        """Return what the sums predict, by operator and scheme, and forget them.

        units: tokens or samples that were summed.
        """
        loss: dict[str, dict[str, float]] = {}
        for entry, sums in self._sums.items():
            weight, operator = self._weights(entry), self.measured[entry].operator
            loss[operator] = {}
            for text, scheme in self.schemes[entry].items():
                rise = 0.0
                if sums.squares is not None:
                    error = rounding_error(entry, weight, scheme.weight)
                    rise += float(error.square_().mul_(sums.squares).sum(dtype=torch.float64))
                if scheme.activation is not None:
                    rise += sums.activations.get(scheme.activation, 0.0)
                if not math.isfinite(rise):
                    raise QCompilerError(
                        f"the gradient at '{operator}' is infinite or not a number on a "
                        "calibration sample, so it cannot be measured; look for damaged weights, "
                        "or choose another metric"
                    )
                loss[operator][text] = rise / (2 * units)
        self._sums.clear()
        self._weights = FiniteWeights(self.program)
        return loss

    def _entry(self, reading: Reading) -> str:
        return self.program.weights.resolve(reading.weight)

    def _add_weight_gradients(
        self, readings: Sequence[Reading], changes: Sequence[torch.Tensor]
    ) -> None:
        gradients: dict[str, torch.Tensor] = {}
        for reading, change in zip(readings, changes, strict=True):
            entry = self._entry(reading)
            flat = change.flatten(0, -2)
            if reading.is_table:
                gradient = torch.zeros(self.measured[entry].shape)
                gradient.index_add_(0, reading.x.flatten(), flat)
            else:
                gradient = flat.T @ reading.x.flatten(0, -2)
            gradients[entry] = gradients[entry] + gradient if entry in gradients else gradient
        for entry, gradient in gradients.items():
            sums = self._sums[entry]
            gradient.square_()
            sums.squares = gradient if sums.squares is None else sums.squares.add_(gradient)

    def _add_activation_errors(self, reading: Reading, gradient: torch.Tensor) -> None:
        entry = self._entry(reading)
        forms = {scheme.activation for scheme in self.schemes[entry].values()}
        for form in forms - {None}:
            assert form is not None
            error = fake_quantize(reading.x, _scale(reading.x, form), form=form) - reading.x
            self._sums[entry].activations[form] += float((gradient * error).square_().sum())

    def _probes(self, env: Values) -> Values:
        """Return random changes of what the model gives, z as at the top, by its name."""
        probes: Values = {}
        with torch.no_grad():
            for node in self.program.graph.output_node().all_input_nodes:
                y = env[node.name]
                if not (isinstance(y, torch.Tensor) and y.is_floating_point()):
                    continue
                if self.program.info.kind == "causal-lm":
                    probes[node.name] = probe(y, self.generator)
                else:
                    smallest = torch.finfo(y.dtype).tiny
                    probes[node.name] = _signs(y, self.generator) / y.norm().clamp(min=smallest)
        return probes


def probe(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random z like logits [..., v] whose mean of zzᵀ is the Fisher information, [v, v]."""
    p = logits.softmax(-1)
    z = _signs(logits, generator).mul_(p.sqrt())
    return z - p.mul_(z.sum(-1, keepdim=True))


def _signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _moving(program: Program, measured: Collection[str]) -> set[str]:
    """Return the names of the values that depend on a weight that is measured."""
    weights = {
        node
        for node in program.graph.nodes
        if node.op == "get_attr" and program.weights.resolve(str(node.target)) in measured
    }
    moving = set(weights)
    for node in program.graph.nodes:
        if node.op == "call_function" and not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    return {node.name for node in moving - weights}


def _tensor(values: Values, name: str) -> torch.Tensor:
    value = values[name]
    assert isinstance(value, torch.Tensor)
    return value


def _scale(x: torch.Tensor, form: TensorFormat) -> torch.Tensor | None:
    """Return the scale [1] of a static format that just reaches x, None for a dynamic one."""
    if not isinstance(form.granularity, PerTensor):
        return None
    return (x.abs().amax() / ((1 << (form.bits - 1)) - 1)).clamp(min=SMALLEST).reshape(1)
