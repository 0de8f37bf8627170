"""Products with stored weights as fusions see them, whether float or quantised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from passes.input_scales import scale_bits, scale_entry
from passes.rewrite import emit, is_weight, remove_unused
from qcompiler.core import ops, shapes
from qcompiler.core.program import LINEARS, Program, operator_name
from qcompiler.core.qtensor import QuantizedTensor


@dataclass(frozen=True, kw_only=True)
class Product:
    """A call of `linear`, `quantized_linear` or `quantized_matmul` taken apart.

    `inputs` are the activations: x, or codes and scales. `input_scale` is read where a
    `quantized_linear` has a static scale.
    """

    target: Callable[..., Any]
    inputs: tuple[fx.Node, ...]
    weight: fx.Node
    bias: fx.Node | None = None
    residual: fx.Node | None = None
    input_scale: fx.Node | None = None
    options: dict[str, Any]
    """Keyword arguments other than those of the epilogue: the scheme of a quantised product."""
    activation: str = "none"
    gated: bool = False

    @staticmethod
    def of(node: fx.Node) -> Product | None:
        """Take `node` apart, if it is a product with a stored weight."""
        if node.op != "call_function" or node.target not in LINEARS:
            return None
        count = 2 if node.target is ops.quantized_matmul else 1
        weight, bias, residual, scale, *_ = [*node.args[count:], None, None, None]
        if not is_weight(weight):
            return None
        options = dict(node.kwargs)
        # Each may be written as a keyword.
        bias = options.pop("bias", bias)
        residual = options.pop("residual", residual)
        scale = options.pop("input_scale", scale)
        return Product(
            target=node.target,
            inputs=node.args[:count],  # type: ignore[arg-type]
            weight=weight,
            bias=bias,  # type: ignore[arg-type]
            residual=residual,  # type: ignore[arg-type]
            input_scale=scale,  # type: ignore[arg-type]
            activation=str(options.pop("activation", "none")),
            gated=bool(options.pop("gated", False)),
            options=options,
        )

    @property
    def name(self) -> str:
        """The operator's name: that of its weight without ".weight"."""
        return operator_name(str(self.weight.target))

    @property
    def is_bare(self) -> bool:
        """Whether nothing is done to the product but adding a bias."""
        return self.residual is None and self.activation == "none" and not self.gated

    def scheme(self, program: Program) -> str:
        """Return what the product computes with, or is planned to."""
        planned = program.plan.get(self.name, "float")
        return str(self.options.get("scheme", planned))

    def static_scale(self, program: Program) -> torch.Tensor | None:
        """Return the scale [1] of x, where it is static and known already."""
        if self.input_scale is not None:
            return program.weights.tensor(str(self.input_scale.target))
        planned = program.plan.get(self.name)
        if self.target is not ops.linear or planned is None or not planned.is_static:
            return None
        entry = scale_entry(self.name)
        return program.weights.tensor(entry) if entry in program.weights else None

    def emit(self, before: fx.Node) -> fx.Node:
        """Add this product to the graph before a node."""
        arguments: list[Any] = [*self.inputs, self.weight, self.bias, self.residual]
        while arguments[-1] is None:
            arguments.pop()
        options = dict(self.options)
        if self.input_scale is not None:
            options["input_scale"] = self.input_scale
        if self.activation != "none":
            options["activation"] = self.activation
        if self.gated:
            options["gated"] = True
        return emit(before, self.target, *arguments, **options)


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of the weight and bias of a product."""

    product: Product
    start: int
    stop: int

    @staticmethod
    def all(product: Product) -> Rows:
        return Rows(product, 0, int(product.weight.meta["val"].shape[0]))

    def __len__(self) -> int:
        return self.stop - self.start


def obstacle(program: Program, products: Sequence[Product]) -> str | None:
    """Say what keeps products of the same activations from being one, or nothing."""
    schemes = sorted({product.scheme(program) for product in products})
    if len(schemes) > 1:
        return f"their schemes differ ({', '.join(schemes)})"
    scales = [product.static_scale(program) for product in products]
    if len({None if scale is None else scale_bits(scale) for scale in scales}) > 1:
        return "the static scales of what they read differ"
    if any(product.bias is not None and not is_weight(product.bias) for product in products):
        return "a bias is computed"
    if not all(product.is_bare for product in products):
        return "one has an epilogue of its own"
    return None


def stack(program: Program, parts: Sequence[Rows], name: str, before: fx.Node) -> Product:
    """Store the weights of `parts`, and their biases, one upon the other.

    Returns the first part's product with nodes, put before a node, that read the new weight
    `name`.weight and bias `name`.bias. A missing bias among others is one of zeros. The plan
    follows, and so does the static scale that the parts agree upon; the parts' own weights stay
    until `forget_unread` removes them.
    """
    first = parts[0].product
    weight, bias = f"{name}.weight", f"{name}.bias"
    program.weights.put(weight, _stack_weights(program, parts))
    biases = None
    if any(part.product.bias is not None for part in parts):
        biases = torch.cat([_bias(program, part) for part in parts])
        program.weights.put(bias, biases)
    if first.name in program.plan:
        program.plan[name] = program.plan[first.name]
    scale = first.static_scale(program)
    if scale is not None:
        program.weights.put(scale_entry(name), scale)

    def read(entry: str) -> fx.Node:
        return shapes.add_weight(program.graph, program.weights, entry)

    with program.graph.inserting_before(before):
        return replace(
            first,
            weight=read(weight),
            bias=None if biases is None else read(bias),
            input_scale=None if first.input_scale is None else read(scale_entry(name)),
        )


def forget_unread(program: Program, products: Sequence[Product]) -> None:
    """Remove unused nodes, and what only they read of `products` from the store and the plan.

    A weight that is still read, under any of its names, stays.
    """
    remove_unused(program.graph)
    read = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    entries = {program.weights.resolve(name) for name in read}
    nodes = [node for product in products for node in (product.weight, product.bias)]
    for name in dict.fromkeys(str(node.target) for node in nodes if is_weight(node)):
        if name not in read:
            program.plan.pop(operator_name(name), None)
            if scale_entry(operator_name(name)) not in read:
                program.weights.remove(scale_entry(operator_name(name)))
        if name in program.weights and program.weights.resolve(name) not in entries:
            program.weights.remove(name)


def common_parent(names: Sequence[str]) -> str:
    """Return the module that all operators belong to, with a final dot, or nothing.

    >>> common_parent(["layers.0.attn.q_proj", "layers.0.attn.k_proj"])
    'layers.0.attn.'
    """
    parents = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def unused_name(program: Program, name: str) -> str:
    """Return `name`, or `name` with a number if a weight or bias is already called so."""
    taken, number = name, 2
    while f"{taken}.weight" in program.weights or f"{taken}.bias" in program.weights:
        taken, number = f"{name}_{number}", number + 1
    return taken


def _stack_weights(program: Program, parts: Sequence[Rows]) -> torch.Tensor | QuantizedTensor:
    weights = [program.weights.get(str(part.product.weight.target)) for part in parts]
    quantized = [w for w in weights if isinstance(w, QuantizedTensor)]
    if not quantized:
        tensors = [w for w in weights if isinstance(w, torch.Tensor)]
        return torch.cat([w[p.start : p.stop] for w, p in zip(tensors, parts, strict=True)])
    return QuantizedTensor.concatenate(
        [
            QuantizedTensor(
                w.codes[p.start : p.stop],
                w.scale[p.start : p.stop],
                None if w.zero_point is None else w.zero_point[p.start : p.stop],
                w.format,
            )
            for w, p in zip(quantized, parts, strict=True)
        ]
    )


def _bias(program: Program, part: Rows) -> torch.Tensor:
    if part.product.bias is None:
        return torch.zeros(len(part))
    return program.weights.tensor(str(part.product.bias.target))[part.start : part.stop]
