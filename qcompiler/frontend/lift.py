"""From what torch.export returns to the graph of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from qcompiler.core import ops
from qcompiler.core.errors import CaptureError
from qcompiler.frontend.export import functional
from qcompiler.frontend.kv_attention import KV_ATTENTION

aten = torch.ops.aten

CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
        torch._check,
        torch._C._set_grad_enabled,
    }
)
"""Nodes that compute nothing."""

SAME = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.detach_.default,
        aten.lift_fresh.default,
        aten.lift_fresh_copy.default,
    }
)
"""Operators whose result is their first argument."""

DROPOUTS = frozenset(
    {
        aten.alpha_dropout.default,
        aten.dropout.default,
        aten.feature_alpha_dropout.default,
        aten.feature_dropout.default,
    }
)
"""Operators that are the same where a model does not train: (input, probability, training)."""

CASTS = frozenset(
    {
        aten._to_copy.default,
        aten.to.device,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.other,
        aten.to.prim_Device,
        aten.type_as.default,
    }
)
"""Operators that change at most the element type, on a machine with one kind of memory."""

RESHAPES = frozenset({aten._unsafe_view.default, aten.view.default, aten.reshape.default})

PLACEMENT = frozenset({"device", "layout", "memory_format", "pin_memory"})
"""Keyword arguments that say where and how a tensor lies, which the compiler decides."""


@dataclass(kw_only=True)
class Lifted:
    """A graph whose weights are `get_attr` nodes.

    weights: the graph's name of every weight it reads → the names the module has for it, its own
    first; constants: tensors that are part of the code of the module rather than of its state.
    """

    graph: fx.Graph
    weights: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)


def lift(
    exported: ExportedProgram,
    *,
    rename: Callable[[str], str] = lambda name: name,
    inputs: list[str] | None = None,
    tied: Mapping[str, str] | None = None,
) -> Lifted:
    """Turn an exported program into a graph that names its weights.

    Checks, casts to the same type and other nodes that compute nothing are gone, the sub-graphs of
    `no_grad` and autocast regions are part of the graph, views are reshapes, and attention is the
    operator of `core.ops`. `rename` makes weight names of the module's, `inputs` names the graph's
    inputs, and `tied` gives the entry of every weight that is another one's second name.

    Raises:
        CaptureError: the model changes its own state or its inputs, or returns what is no tensor.
    """
    if any(_writes(node) for node in _all_nodes(exported.graph_module)):
        exported = functional(exported)
    return _Lifter(exported, rename, inputs, tied or {}).lift()


class _Lifter:
    def __init__(
        self,
        exported: ExportedProgram,
        rename: Callable[[str], str],
        inputs: list[str] | None,
        tied: Mapping[str, str],
    ) -> None:
        self.exported = exported
        self.rename = rename
        self.inputs = inputs
        self.tied = tied
        self.graph = fx.Graph()
        self.result = Lifted(graph=self.graph)
        self.weights: dict[str, fx.Node] = {}

    def lift(self) -> Lifted:
        signature = self.exported.graph_signature
        self._refuse_mutation()
        specs = {spec.arg.name: spec for spec in signature.input_specs if hasattr(spec.arg, "name")}
        env: dict[fx.Node, Any] = {}
        names = iter(self.inputs) if self.inputs is not None else None
        nodes = list(self.exported.graph.nodes)
        for node in nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                if not isinstance(node.meta.get("val"), torch.Tensor):
                    self._require_unused(node)
                    continue
                name = next(names) if names is not None else node.name
                new = self.graph.placeholder(name)
                new.meta["val"] = node.meta["val"]
                env[node] = new
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                env[node] = _Weight(str(spec.target), spec.kind, node.meta["val"])
            else:
                raise CaptureError(f"the model takes a {spec.kind.name.lower()}, not only tensors")
        results = self._copy(self.exported.graph_module, nodes, env)
        wanted = [
            value
            for spec, value in zip(signature.output_specs, results, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT and value is not None
        ]
        for value in wanted:
            if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
                raise CaptureError(f"the model returns {value}, which is not a tensor")
        self.graph.output(wanted[0] if len(wanted) == 1 else tuple(wanted))
        self._drop_unused()
        return self.result

    def _copy(
        self, owner: fx.GraphModule, nodes: list[fx.Node], env: dict[fx.Node, Any]
    ) -> list[Any]:
        """Copy nodes into the new graph; return what the copied graph returns."""
        for node in nodes:
            if node.op == "call_function":
                env[node] = self._call(owner, node, env)
            elif node.op == "get_attr":
                env[node] = getattr(owner, str(node.target))
            elif node.op == "output":
                return [self._value(a, env) for a in node.args[0]]  # type: ignore[union-attr]
        raise AssertionError("a graph without an output")

    def _call(self, owner: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        target: Any = node.target
        if target in CHECKS:
            return None
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._inline(node, env)
        if target is operator.getitem and not isinstance(env[node.args[0]], fx.Node):  # type: ignore[index]
            return env[node.args[0]][node.args[1]]  # type: ignore[index]
        if _writes(node):
            raise CaptureError(f"the model changes a tensor in place with {target} {_where(node)}")
        first = node.args[0] if node.args else None
        if target in DROPOUTS:
            if node.args[2]:
                raise CaptureError(
                    "the program was exported while it trained, so it drops values at random; "
                    "export it again after eval()"
                )
            return self._value(first, env)
        if target in SAME or (isinstance(first, fx.Node) and _keeps(node, first)):
            return self._value(first, env)
        args = self._value(node.args, env)
        kwargs = {k: self._value(v, env) for k, v in node.kwargs.items() if k not in PLACEMENT}
        val: Any = node.meta.get("val")
        if target is KV_ATTENTION:
            return self._attention(args, val)
        if target in CASTS:
            return self._emit(aten.to.dtype, (args[0], val.dtype), {}, node, val)
        if target in RESHAPES:
            target = aten.reshape.default
        return self._emit(target, args, kwargs, node, val)

    def _inline(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """Put the body of a `no_grad` or autocast region in its place."""
        name = str(node.target)
        if name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            raise CaptureError(
                f"the model uses {name}, which has no place in a graph {_where(node)}"
            )
        place = next(i for i, a in enumerate(node.args) if _is_body(a, env))
        body = env[node.args[place]]  # type: ignore[index]
        nodes = list(body.graph.nodes)
        inner: dict[fx.Node, Any] = {}
        given = node.args[place + 1 :]
        for argument, own in zip(given, [n for n in nodes if n.op == "placeholder"], strict=True):
            inner[own] = env[argument] if isinstance(argument, fx.Node) else argument
        return self._copy(body, nodes, inner)

    def _attention(self, args: Any, val: torch.Tensor) -> fx.Node:
        """Replace the mark export left by the operator, whose heads come after the tokens."""
        q, k, v, k_cache, v_cache, position, scale, window, softcap = args
        turned = []
        for part in (q, k, v):
            fake = part.meta["val"]
            turned.append(
                self._emit(aten.transpose.int, (part, 1, 2), {}, None, fake.transpose(1, 2))
            )
        kwargs = {"scale": scale, "window": window, "softcap": softcap}
        return self._emit(ops.attention, (*turned, k_cache, v_cache, position), kwargs, None, val)

    def _emit(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: fx.Node | None,
        val: Any,
    ) -> fx.Node:
        new = self.graph.call_function(target, args, kwargs)
        new.meta["val"] = val
        if source is not None and "stack_trace" in source.meta:
            new.meta["stack_trace"] = source.meta["stack_trace"]
        return new

    def _value(self, argument: Any, env: dict[fx.Node, Any]) -> Any:
        """Map an argument to the new graph; a weight is fetched where it is first used."""

        def one(node: fx.Node) -> Any:
            found = env[node]
            return self._fetch(found) if isinstance(found, _Weight) else found

        return fx.node.map_arg(argument, one)

    def _fetch(self, weight: _Weight) -> fx.Node:
        own = self.rename(weight.name)
        name = self.tied.get(own, own)
        if name not in self.weights:
            if weight.val.is_floating_point() and weight.val.dtype != torch.float32:
                raise CaptureError(
                    f"the model computes with '{name}' as {str(weight.val.dtype)[6:]}; make it "
                    "float32, with model.float(), before it is captured"
                )
            node = self.graph.get_attr(name)
            node.meta["val"] = weight.val
            self.weights[name] = node
            if weight.kind is InputKind.CONSTANT_TENSOR and not self._is_buffer(weight.name):
                self.result.constants[name] = self.exported.constants[weight.name]
            else:
                also = tuple(alias for alias, entry in self.tied.items() if entry == name)
                self.result.weights[name] = (name, *also)
        return self.weights[name]

    def _is_buffer(self, name: str) -> bool:
        return name in self.exported.graph_signature.buffers

    def _require_unused(self, node: fx.Node) -> None:
        if node.users:
            raise CaptureError(
                f"the model computes with its input '{node.name}', which is a number and not a "
                "tensor; make it a constant of the module, or a tensor"
            )

    def _refuse_mutation(self) -> None:
        for spec in self.exported.graph_signature.output_specs:
            if spec.kind is OutputKind.BUFFER_MUTATION:
                raise CaptureError(
                    f"the model changes its own state '{spec.target}' while it runs; "
                    "pass that state in and return it instead"
                )
            if spec.kind is OutputKind.USER_INPUT_MUTATION:
                raise CaptureError(
                    f"the model changes its input '{spec.target}'; let it work on a copy"
                )

    def _drop_unused(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users:
                self.graph.erase_node(node)
        kept = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        self.result.weights = {k: v for k, v in self.result.weights.items() if k in kept}
        self.result.constants = {k: v for k, v in self.result.constants.items() if k in kept}
        self.graph.lint()


@dataclass(frozen=True)
class _Weight:
    name: str
    kind: InputKind
    val: torch.Tensor


def _is_body(argument: Any, env: dict[fx.Node, Any]) -> bool:
    return isinstance(argument, fx.Node) and isinstance(env.get(argument), fx.GraphModule)


def _all_nodes(module: fx.GraphModule) -> list[fx.Node]:
    parts = [m for m in module.modules() if isinstance(m, fx.GraphModule)]
    return [node for part in parts for node in part.graph.nodes]


def _writes(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target in SAME:
        return False
    return bool(target._schema.is_mutable)


def _keeps(node: fx.Node, first: fx.Node) -> bool:
    """Say whether a cast, reshape, expansion or slice returns what it is given."""
    before, after = first.meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    if node.target in CASTS:
        return bool(before.dtype == after.dtype)
    if node.target in RESHAPES or node.target is aten.expand.default:
        return _same_shape(before, after)
    if node.target is aten.slice.Tensor:
        step = node.args[4] if len(node.args) > 4 else 1
        return bool(step == 1) and _same_shape(before, after)
    return False


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Compared as text, since comparing symbolic sizes would record a guard.
    return [str(n) for n in a.shape] == [str(n) for n in b.shape]


def _where(node: fx.Node) -> str:
    """Say which line of the model made a node, as "(file.py:12: y.add_(x))", as far as is known."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith('File "')]
    if not places:
        return ""
    place = lines[places[-1]].removeprefix('File "').replace('", line ', ":").split(",")[0]
    code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
    return f"({place}: {code})" if code else f"({place})"
