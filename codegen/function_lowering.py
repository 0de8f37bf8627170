"""Turn one FX graph into one relax function, node by node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from tvm import ir, relax, sym, tirx

from codegen.generic_schedule import KERNEL
from codegen.kernel_set import kernel_set
from codegen.weights import PackedWeights
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program
from qcompiler.core.target import Target

Size = Any  # an int or a TIR expression over symbolic sizes

DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


def dtype_of(node: fx.Node) -> str:
    """Return the element type of what a node gives.

    Raises:
        UnsupportedError: no kernel computes with that type.
    """
    found = node.meta["val"].dtype
    if found not in DTYPES:
        raise UnsupportedError(
            f"{target_name(node) if node.op == 'call_function' else 'input'} ({node.name}) is "
            f"{str(found).removeprefix('torch.')}, which no kernel computes with; convert the "
            "model and its inputs to float32, for instance with .float()"
        )
    return DTYPES[found]


@dataclass(frozen=True)
class Value:
    """A tensor: the relax variable that holds it, and the shape the graph sees it in.

    Views change only `shape`; the variable is reshaped when an operator needs it so.
    """

    var: relax.Var
    shape: tuple[Size, ...]

    @property
    def dtype(self) -> str:
        return str(self.var.ty.dtype)


class FunctionLowering:
    """The state of lowering one graph for one phase.

    `fixed` gives symbolic sizes a value for this phase (a decode step has one token); `functions`
    holds the kernels of the module by content, so that equal ones are compiled once.
    """

    def __init__(
        self,
        builder: relax.BlockBuilder,
        program: Program,
        target: Target,
        weights: PackedWeights,
        functions: dict[Hashable, ir.GlobalVar],
        lowerings: dict[Any, Callable[[FunctionLowering, fx.Node], Any]],
    ) -> None:
        self.builder = builder
        self.program = program
        self.target = target
        self.kernel_set = kernel_set(target)
        self.weights = weights
        self.values: dict[fx.Node, Any] = {}
        self.kernels: dict[str, tuple[str, str]] = {}
        self.served: dict[str, fx.Node] = {}
        """The operators that kernels are called for, by the variables of what the calls give."""
        self._node: fx.Node | None = None
        self._functions = functions
        self._lowerings = lowerings
        self._weight_vars: dict[int, relax.Var] = {}
        self._weights_var: relax.Var | None = None
        self._shaped: dict[tuple[relax.Var, str], relax.Var] = {}
        self._analyzer = sym.Analyzer()

    def lower(self, name: str, phase: Phase) -> None:
        """Emit the function `name` of the graph's inputs, a tuple of caches and one of weights."""
        sizes = _Sizes(self.fixed_sizes(phase))
        inputs: list[tuple[fx.Node, relax.TensorType, tuple[Size, ...]]] = []
        caches: list[tuple[fx.Node, relax.TensorType, tuple[Size, ...]]] = []
        for node in self.program.placeholders():
            val = node.meta["val"]
            shape = tuple(sizes.size(d) for d in val.shape)
            kind = relax.TensorType(shape, dtype_of(node))
            (caches if is_cache(str(node.target)) else inputs).append((node, kind, shape))
        arguments = []
        for node, kind, shape in inputs:
            var = relax.Var(str(node.target), kind)
            self.values[node] = Value(var, shape)
            if str(node.target) not in phase.dropped:
                arguments.append(var)
        cache_tuple = relax.Var("kv", relax.TupleType([kind for _, kind, _ in caches]))
        if caches:
            arguments.append(cache_tuple)
        self._weights_var = relax.Var("weights", relax.TupleType(self.weights.types()))
        arguments.append(self._weights_var)
        with self.builder.function(name, arguments):
            with self.builder.dataflow():
                for index, (node, _, shape) in enumerate(caches):
                    var = self.builder.emit(relax.TupleGetItem(cache_tuple, index))
                    self.values[node] = Value(var, shape)
                result = self._body()
                result = self.builder.emit_output(result)
            self.builder.emit_func_output(result)

    def fixed_sizes(self, phase: Phase) -> dict[str, int]:
        """Return the symbolic sizes, by the graph's names, that a phase gives a value."""
        shapes = {str(n.target): n.meta["val"].shape for n in self.program.placeholders()}
        return {str(shapes[name][dim]): size for name, dim, size in phase.fixed}

    def _body(self) -> relax.Expr:
        for node in self.program.graph.nodes:
            if node.op == "output":
                outputs = node.args[0]
                outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
                shaped = [self.shaped(self.argument(o)) for o in outputs]
                return shaped[0] if len(shaped) == 1 else relax.Tuple(shaped)
            if node.op == "call_function":
                self.values[node] = self._lower_node(node)
        raise AssertionError("a graph without output")

    def _lower_node(self, node: fx.Node) -> Any:
        lowering = self._lowerings.get(node.target)
        if lowering is None:
            raise UnsupportedError(
                f"operator {target_name(node)} ({node.name}) has no kernel; "
                "qcompiler.core.legal lists the operators that have one"
            )
        self._node = node
        result = lowering(self, node)
        _check_type(node, result)
        return result

    # -- what lowerings are written with ---------------------------------------------------------

    def argument(self, argument: Any) -> Any:
        """Return what an FX argument stands for: values, sizes and constants, nested as given."""
        if isinstance(argument, fx.Node):
            if argument.op == "get_attr":
                return self.raw_weight(str(argument.target))
            return self.values[argument]
        if isinstance(argument, tuple | list):
            return [self.argument(a) for a in argument]
        return argument

    def raw_weight(self, name: str) -> Value:
        """Return a weight that is stored as it is."""
        (index,) = self.weights.raw(name)
        var = self._weight(index)
        return Value(var, tuple(int(d) for d in var.ty.shape))

    def packed_weight(self, name: str) -> list[relax.Var]:
        """Return the arrays a matrix is packed into."""
        return [self._weight(index) for index in self.weights.packed(name)]

    def _weight(self, index: int) -> relax.Var:
        if index not in self._weight_vars:
            self._weight_vars[index] = self.builder.emit(
                relax.TupleGetItem(self._weights_var, index)
            )
        return self._weight_vars[index]

    def shaped(self, value: Value) -> relax.Var:
        """Return a variable that has the value's shape."""
        return self.reshaped(value, value.shape)

    def rows(self, value: Value) -> relax.Var:
        """Return a value as a matrix: all leading dimensions are rows."""
        return self.reshaped(value, (self.row_count(value), value.shape[-1]))

    def row_count(self, value: Value) -> Size:
        """Return the product of a value's leading dimensions."""
        return self.product(value.shape[:-1])

    def reshaped(self, value: Value, shape: Sequence[Size]) -> relax.Var:
        """Return a variable of the given shape with the value's numbers."""
        if self._same_shape(value.var.ty.shape, shape):
            return value.var
        key = (value.var, str(list(shape)))
        if key not in self._shaped:
            self._shaped[key] = self.builder.emit(relax.op.reshape(value.var, tuple(shape)))
        return self._shaped[key]

    def product(self, sizes: Sequence[Size]) -> Size:
        """Multiply sizes, simplified."""
        total: Size = 1
        for size in sizes:
            total = total * size
        return self.simplified(total)

    def simplified(self, size: Size) -> Size:
        """Simplify a size to an int where that is known."""
        if isinstance(size, int):
            return size
        size = self._analyzer.simplify(size)
        return int(size) if isinstance(size, tirx.IntImm) else size

    def quotient(self, size: Size, divisor: Size) -> Size:
        """Divide sizes, rounding down, simplified."""
        if isinstance(size, int) and isinstance(divisor, int):
            return size // divisor
        return self.simplified(tirx.floordiv(size, divisor))

    def equal(self, a: Size, b: Size) -> bool:
        """Tell whether two sizes are sure to be the same."""
        return bool(self._analyzer.can_prove_equal(a, b))

    def _same_shape(self, a: Sequence[Size], b: Sequence[Size]) -> bool:
        return len(a) == len(b) and all(self.equal(x, y) for x, y in zip(a, b, strict=True))

    def compute(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Value:
        """Emit a tensor expression over values (a topi function); it gets the generic schedule."""
        inputs = [self.shaped(a) if isinstance(a, Value) else a for a in arguments]
        return self.value(self.builder.emit_te(function, *inputs, **options))

    def kernel(
        self,
        key: Hashable,
        build: Callable[[], tirx.PrimFunc],
        name: str,
        inputs: Sequence[relax.Var],
        outputs: Sequence[tuple[Sequence[Size], str]],
    ) -> list[relax.Var]:
        """Emit a call of the kernel that `build` makes (once per `key`); return its outputs."""
        if key not in self._functions:
            function = build().with_attrs({KERNEL: name, "op_pattern": 8})
            function = function.without_attr("global_symbol")
            self._functions[key] = self.builder.add_func(function, name)
        types = [relax.TensorType(tuple(shape), dtype) for shape, dtype in outputs]
        call = relax.call_tir(
            self._functions[key], relax.Tuple(list(inputs)), types[0] if len(types) == 1 else types
        )
        assert self._node is not None
        result = self.builder.emit(call, name_hint=self._node.name)
        self.served[str(result.name)] = self._node
        if len(types) == 1:
            return [result]
        return [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]

    def value(self, var: relax.Var) -> Value:
        """Wrap a variable, its shape as it is."""
        return Value(var, tuple(self.simplified(d) for d in var.ty.shape))


def _check_type(node: fx.Node, result: Any) -> None:
    """See that a lowering gives what torch gives: nothing else would find out."""
    expected = node.meta.get("val")
    if not (isinstance(result, Value) and isinstance(expected, torch.Tensor)):
        return
    assert result.dtype == dtype_of(node), f"{node.name}: {result.dtype}, not {expected.dtype}"
    for ours, theirs in zip(result.shape, expected.shape, strict=True):
        same = not isinstance(theirs, int) or (isinstance(ours, int) and ours == theirs)
        assert same, f"{node.name}: {list(result.shape)}, not {list(expected.shape)}"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One way a graph is compiled: sizes fixed by input dimension, and inputs that become unused.

    `fixed` maps (input name, dimension) to a size.
    """

    fixed: tuple[tuple[str, int, int], ...] = ()
    dropped: frozenset[str] = frozenset()


def is_cache(name: str) -> bool:
    """Tell the inputs that are KV caches from the others."""
    return name.startswith(("k_cache_", "v_cache_"))


class _Sizes:
    """The TIR variables of a graph's symbolic sizes."""

    def __init__(self, fixed: dict[str, int]) -> None:
        self._sizes: dict[str, Size] = dict(fixed)

    def size(self, dim: int | torch.SymInt) -> Size:
        if isinstance(dim, int):
            return dim
        name = str(dim)
        if name not in self._sizes:
            self._sizes[name] = tirx.Var(name, "int64")
        return self._sizes[name]
