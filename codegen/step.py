"""One function for a whole step of a model, in place of one call for each kernel.

The function starts all threads once; each goes through the kernels in order, as `codegen.team`
made them. It takes an address table, so that nothing is checked or converted per tensor. In the
step's memory lie, one after the other: what barriers count with, results that all threads see, and
for each thread a region of its own results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import tvm
from tvm import ir, relax, tirx

from codegen.kernels.isa import cycle_counter
from codegen.team import NotForATeam, TeamKernel, team_kernel
from qcompiler.core.artifact import LINE_BYTES, StepFacts
from qcompiler.core.target import Target

POINTER = ir.PointerType(ir.PrimType("void"))


@dataclass(frozen=True)
class Step:
    """A step, and what its caller must know."""

    facts: StepFacts
    functions: dict[ir.GlobalVar, tirx.PrimFunc]
    """The step and its kernels. They join the module once all others have symbols: what
    has none can be called by pointer."""


class NotAStep(NotForATeam):
    """A function cannot be made a step; the message says why."""


def make_step(module: tvm.IRModule, name: str, target: Target) -> Step:
    """Make a step of the relax function `name`, whose kernels are scheduled.

    Raises:
        NotForATeam: it does something that is no call of a kernel, a size varies that is no
            cache's, or a kernel is nothing for a team.
    """
    trace = _Trace.of(module[name])
    kernels: dict[str, tuple[ir.GlobalVar, TeamKernel]] = {}
    for call in trace.calls:
        title = str(call.kernel.name_hint)
        if title not in kernels:
            kernels[title] = ir.GlobalVar(f"{title}_in_team"), team_kernel(module[call.kernel])
    clock = cycle_counter(target)
    stamps = 0 if clock is None else len(trace.calls) + 1
    plan = _Plan([kernels[str(c.kernel.name_hint)][1] for c in trace.calls], trace, stamps)
    symbol = f"{name}_step"
    functions = {var: kernel.function for var, kernel in kernels.values()}
    whole = _emit(trace, plan, kernels, clock)
    functions[ir.GlobalVar(symbol)] = whole.with_attr("global_symbol", symbol)
    facts = StepFacts(
        symbol=symbol,
        shared_bytes=plan.shared_bytes,
        thread_bytes=plan.thread_bytes,
        stamps=stamps,
    )
    return Step(facts, functions)


# -- what the function does ------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """A tensor that the caller gives: its place in the address table."""

    index: int


@dataclass(frozen=True)
class Result:
    """A tensor that a kernel makes: which kernel call, and which of its results."""

    call: int
    index: int


Place = Argument | Result


@dataclass(frozen=True)
class _Call:
    kernel: ir.GlobalVar
    inputs: tuple[Place, ...]
    numbers: tuple[Any, ...]
    types: tuple[relax.TensorType, ...]
    """Those of the inputs, then those of the results."""

    @property
    def results(self) -> tuple[relax.TensorType, ...]:
        return self.types[len(self.inputs) :]


@dataclass
class _Trace:
    """The kernels that a function calls, in order, and where tensors come from."""

    size: tirx.Var | None
    """The size that varies: the tokens that caches have room for."""
    first_output: int
    """Where outputs begin in the address table."""
    outputs: list[relax.Var]
    calls: list[_Call] = field(default_factory=list)
    made: list[Result] = field(default_factory=list)
    """Which results are the outputs, in their order."""

    @classmethod
    def of(cls, function: relax.Function) -> _Trace:
        *inputs, caches, weights = function.params
        places: dict[Any, Any] = {}
        body = function.body
        blocks, returned = body.blocks, body.body
        outputs = list(returned.fields) if isinstance(returned, relax.Tuple) else [returned]
        count = 1 + len(inputs) + len(outputs)
        for index, var in enumerate(inputs, start=1):
            places[var] = Argument(index)
        for group in (caches, weights):
            fields = len(group.ty.fields)
            places[group] = [Argument(count + i) for i in range(fields)]
            count += fields
        trace = cls(_only_size(function.params), 1 + len(inputs), outputs)
        for block in blocks:
            for binding in block.bindings:
                places[binding.var] = trace._value(binding.value, places)
        for output in outputs:
            place = places[output]
            if not isinstance(place, Result):
                raise NotAStep("an output is an input")
            trace.made.append(place)
        if len(set(trace.made)) != len(trace.made):
            raise NotAStep("two outputs are one tensor")
        return trace

    def _value(self, value: relax.Expr, places: dict[Any, Any]) -> Any:
        if isinstance(value, relax.Var):
            return places[value]
        if isinstance(value, relax.TupleGetItem):
            return places[value.tuple_value][int(value.index)]
        if isinstance(value, relax.Tuple):
            return [places[item] for item in value.fields]
        if isinstance(value, relax.Call) and isinstance(value.op, ir.Op):
            if value.op.name == "relax.reshape":
                return places[value.args[0]]
            if value.op.name == "relax.call_tir":
                return self._call(value, places)
            raise NotAStep(f"it calls {value.op.name}")
        raise NotAStep(f"it has a {type(value).__name__.lower()}")

    def _call(self, value: relax.Call, places: dict[Any, Any]) -> Any:
        kernel, arguments, *rest = value.args
        given = list(arguments.fields)
        if not all(isinstance(item, relax.Var) for item in given):
            raise NotAStep("a kernel takes a constant")
        numbers = tuple(rest[0].values) if rest else ()
        result = value.ty_args[0]
        single = not isinstance(result, relax.TupleType)
        types = (result,) if single else tuple(result.fields)
        index = len(self.calls)
        inputs = tuple(places[item] for item in given)
        if not all(isinstance(place, Argument | Result) for place in inputs):
            raise NotAStep("a kernel takes a tuple")
        self.calls.append(_Call(kernel, inputs, numbers, (*(item.ty for item in given), *types)))
        made = [Result(index, i) for i in range(len(types))]
        return made[0] if single else made


def _only_size(parameters: Sequence[relax.Var]) -> tirx.Var | None:
    found: dict[Any, None] = {}
    for parameter in parameters:
        fields = (
            parameter.ty.fields if isinstance(parameter.ty, relax.TupleType) else [parameter.ty]
        )
        for kind in fields:
            found |= {extent: None for extent in kind.shape if not isinstance(extent, tirx.IntImm)}
    if not all(isinstance(extent, tirx.Var) for extent in found) or len(found) > 1:
        raise NotAStep("several sizes vary")
    return next(iter(found), None)


# -- where results lie -----------------------------------------------------------------------------


class _Plan:
    """Places of results in the step's memory, used again once nobody reads what is there.

    Threads are at most one barrier apart. What one thread may still read, another must not
    overwrite: a place that all see is free only after a barrier that follows its last reader.
    What each thread has for itself begins with `stamps` numbers that are never given out.
    """

    def __init__(self, kernels: list[TeamKernel], trace: _Trace, stamps: int) -> None:
        self._kernels = kernels
        self.offsets: dict[Result, int] = {}
        self.scratch: dict[int, list[int]] = {}
        last: dict[Result, int] = {}
        for index, call in enumerate(trace.calls):
            for place in call.inputs:
                if isinstance(place, Result):
                    last[place] = index
        barriers = [0]
        for kernel in kernels:
            barriers.append(barriers[-1] + kernel.meets)
        shared, own = _Region(), _Region()
        own.take(8 * stamps, 0, len(kernels))
        for index, (call, kernel) in enumerate(zip(trace.calls, kernels, strict=True)):
            for number, kind in enumerate(call.results):
                place, size = Result(index, number), _bytes(kind)
                if place in trace.made:
                    continue
                end = last.get(place, index)
                if kernel.meets:
                    self.offsets[place] = shared.take(size, barriers[index], barriers[end])
                else:
                    self.offsets[place] = own.take(size, index, end)
            now = barriers[index]
            self.scratch[index] = [
                shared.take(s.bytes, now, now) if s.shared else own.take(s.bytes, index, index)
                for s in kernel.scratch
            ]
        self.shared_bytes, self.thread_bytes = shared.size, own.size

    def is_shared(self, place: Result) -> bool:
        """Tell whether all threads see a result."""
        return self._kernels[place.call].meets


class _Region:
    """Memory given out in pieces: from a time on, until another time is over."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[tuple[int, int, int]] = []  # offset, bytes, last time in use

    def take(self, size: int, begin: int, end: int) -> int:
        """Return the offset of a piece for the times from `begin` to `end`."""
        size = -(-size // LINE_BYTES) * LINE_BYTES
        fitting = [p for p in self._pieces if p[2] < begin and p[1] >= size]
        if fitting:
            piece = min(fitting, key=lambda p: (p[1], p[0]))
            self._pieces.remove(piece)
            self._pieces.append((piece[0], piece[1], end))
            return piece[0]
        offset = self.size
        self._pieces.append((offset, size, end))
        self.size += size
        return offset


def _bytes(kind: relax.TensorType) -> int:
    if not all(isinstance(extent, tirx.IntImm) for extent in kind.shape):
        raise NotAStep("the size of a result varies")
    count = prod(int(extent) for extent in kind.shape)
    return count * ir.PrimType(str(kind.dtype)).dtype.itemsize


# -- the function ----------------------------------------------------------------------------------


def _emit(
    trace: _Trace,
    plan: _Plan,
    kernels: dict[str, tuple[ir.GlobalVar, TeamKernel]],
    clock: tirx.Expr | None,
) -> tirx.PrimFunc:
    table = tirx.Var("table", POINTER)
    workers = tirx.Var("workers", "int64")
    task = tirx.Var("task", "int64")
    zero = tirx.const(0, "int64")
    addresses = tirx.decl_buffer((1 << 20,), "int64", name="addresses")
    memory = tirx.decl_buffer((1 << 40,), "uint8", name="memory")
    counters = tirx.decl_buffer((1 << 20,), "int64", name="counters")

    def given(index: int) -> tirx.Expr:
        address = tirx.BufferLoad(addresses, [tirx.const(index, "int64")])
        return tirx.op.reinterpret(POINTER, address)

    def at(offset: Any) -> tirx.Expr:
        return tirx.address_of(tirx.BufferLoad(memory, [zero + offset]))

    shared = (workers + 1) * LINE_BYTES
    own = shared + plan.shared_bytes + task * plan.thread_bytes

    def pointer(place: Place) -> tirx.Expr:
        if isinstance(place, Argument):
            return given(place.index)
        if place in trace.made:
            return given(trace.first_output + trace.made.index(place))
        return at((shared if plan.is_shared(place) else own) + plan.offsets[place])

    def stamp(place: int) -> list[tirx.Stmt]:
        """Note the time. Every thread does: a branch would double the code of the step."""
        if clock is None:
            return []
        shared_count, own_count = plan.shared_bytes // 8, plan.thread_bytes // 8
        first = (workers + 1) * (LINE_BYTES // 8) + shared_count + task * own_count
        return [tirx.BufferStore(counters, clock, [first + place])]

    statements = stamp(0)
    for index, call in enumerate(trace.calls):
        var, kernel = kernels[str(call.kernel.name_hint)]
        results = [Result(index, i) for i in range(len(call.results))]
        arguments = [pointer(place) for place in (*call.inputs, *results)]
        values = [_sized(size, kernel, call) for size in kernel.sizes]
        scratch = [
            at((shared if s.shared else own) + offset)
            for s, offset in zip(kernel.scratch, plan.scratch[index], strict=True)
        ]
        statements.append(
            tirx.Evaluate(
                ir.Call(
                    var,
                    [*arguments, *call.numbers, *values, task, workers, at(0), *scratch],
                    ret_ty="void",
                )
            )
        )
        statements += stamp(index + 1)
    index = tirx.Var("i", "int64")
    # TVM's barrier is told an address and a number, and counts in a cache line for each thread.
    prepare = [
        tirx.BufferStore(counters, tirx.BufferLoad(addresses, [zero]) + LINE_BYTES, [zero]),
        tirx.BufferStore(counters, workers, [tirx.const(1, "int64")]),
        tirx.For(
            index,
            zero,
            workers,
            tirx.ForKind.SERIAL,
            tirx.BufferStore(counters, zero, [(index + 1) * (LINE_BYTES // 8)]),
        ),
    ]
    run = tirx.For(task, zero, workers, tirx.ForKind.PARALLEL, _in_order(statements))
    body = tirx.SeqStmt(
        [
            tirx.DeclBuffer(addresses, data=table),
            tirx.DeclBuffer(memory, data=given(0)),
            tirx.DeclBuffer(counters, data=given(0)),
            *prepare,
            run,
        ]
    )
    sizes = [] if trace.size is None else [trace.size]
    return tirx.PrimFunc([table, *sizes, workers], body)


def _in_order(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _sized(size: tirx.Var, kernel: TeamKernel, call: _Call) -> Any:
    """Return what a kernel's size is in a call: that of the tensor given there."""
    for wanted, given in zip(kernel.shapes, call.types, strict=True):
        for extent, found in zip(wanted, given.shape, strict=True):
            if isinstance(extent, tirx.Var) and extent.same_as(size):
                return found
    raise AssertionError(f"nothing says what {size} is")
