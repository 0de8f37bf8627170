"""Words to write kernels with, on top of TVM's IRBuilder.

A kernel is written as a Python function that runs once: statements go into the innermost open
block, and a Python loop unrolls what it contains. Loop variables and sizes are int64.

    with kernel("double") as built:
        rows = size("m")
        x = argument("x", (rows, 64), "float32")
        y = argument("y", (rows, 64), "float32")
        with parallel(rows) as row, serial(64 // 16) as j:
            store(y, load(x, row, j * 16, lanes=16) * splat(2.0, 16), row, j * 16)
    function = built.get()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script
from tvm.tirx import op

# TVM's classes carry no types, so an expression, a variable and a buffer are all one to mypy.
Expr = Any
Buffer = Any
Index = Any

# The CPU back end puts an allocation on the stack, where LLVM turns it into registers, only below
# this size; a larger one is taken from the thread's workspace.
STACK_BYTES = 1020


@contextmanager
def kernel(name: str = "kernel") -> Iterator[IRBuilder]:
    """Open a function; once the block has ended, `get()` on what it yields is the function.

    Its buffers must not overlap. The caller that puts it into a module gives the final name.
    """
    with IRBuilder() as built, script.prim_func(s_tir=True):
        script.func_name(name)
        script.func_attr({"tirx.noalias": True})
        yield built


def size(name: str) -> Expr:
    """Declare a size that is known only when the function runs, for the shapes of arguments."""
    return tirx.Var(name, "int64")


def argument(name: str, shape: Sequence[Expr], dtype: str) -> Buffer:
    """Add a buffer to the function's arguments; the last ones are its outputs."""
    return script.arg(name, script.buffer(tuple(_index(extent) for extent in shape), dtype))


def scratch(count: int | tuple[int, ...], dtype: str) -> Buffer:
    """Allocate a private buffer of `count` numbers, or a shape, for the rest of the block.

    Below 1 KB it lives on the stack, above in the thread's workspace.
    """
    shape = count if isinstance(count, tuple) else (count,)
    return script.alloc_buffer(shape, dtype, scope="global")


def parallel(extent: Expr) -> AbstractContextManager[Expr]:
    """Loop from 0 to `extent`; each thread takes an equal share, a contiguous run of iterations."""
    return script.parallel(_index(extent))


def serial(extent: Expr) -> AbstractContextManager[Expr]:
    """Loop from 0 to `extent`, in order."""
    return script.serial(_index(extent))


def when(
    condition: Expr, then: Callable[[], None], otherwise: Callable[[], None] | None = None
) -> None:
    """Emit `then` for the case that the condition holds, `otherwise` for the other case."""
    with script.If(condition):
        with script.Then():
            then()
        if otherwise is not None:
            with script.Else():
                otherwise()


def bind(value: Expr) -> Expr:
    """Compute a value here, once, and name it."""
    if isinstance(value, int):
        return value
    if lanes_of(value) == 1 or isinstance(value, TensorLoad):
        return script.bind(value)
    return settle(value)


def settle(value: Expr) -> Expr:
    """Compute a value here, once, name it, and let TVM forget how it was computed.

    TVM's simplifier copies a bound value to every place that names it, again and again, so that a
    chain of names grows exponentially. It knows nothing of what lies in a buffer; LLVM removes it.
    """
    lanes = lanes_of(value)
    place = scratch(lanes, dtype_of(value))
    store(place, value, 0)
    return script.bind(load(place, 0, lanes=lanes))


def load(buffer: Buffer, *index: Index, lanes: int = 1) -> Expr:
    """Read `lanes` consecutive numbers along the last dimension, the first one at `index`."""
    return tirx.BufferLoad(buffer, _place(index, lanes))


def load_half(buffer: Buffer, *index: Index, lanes: int = 1) -> Expr:
    """Read float16 numbers and widen them to float32."""
    return cast(load(buffer, *index, lanes=lanes), "float32")


def store(buffer: Buffer, value: Expr, *index: Index) -> None:
    """Write a vector along the last dimension (or one number), its first lane at `index`."""
    script.buffer_store(buffer, value, _place(index, lanes_of(value)))


def load_first(buffer: Buffer, *index: Index, count: int, lanes: int) -> Expr:
    """Read `count` ≤ `lanes` consecutive numbers into a vector whose other lanes are zero.

    Nothing beyond the `count` numbers is touched.
    """
    if count == lanes:
        return load(buffer, *index, lanes=lanes)
    dtype = dtype_of(buffer)
    part = scratch(lanes, dtype)
    store(part, splat(0, lanes, dtype), 0)
    *lead, start = index
    for lane in range(count):
        store(part, load(buffer, *lead, start + lane), lane)
    return bind(load(part, 0, lanes=lanes))


def store_first(buffer: Buffer, value: Expr, *index: Index, count: int) -> None:
    """Write the first `count` lanes of a vector."""
    lanes = lanes_of(value)
    if count == lanes:
        store(buffer, value, *index)
        return
    part = scratch(lanes, dtype_of(buffer))
    store(part, value, 0)
    *lead, start = index
    for lane in range(count):
        store(buffer, load(part, lane), *lead, start + lane)


def constant(value: float, dtype: str) -> Expr:
    """Return a number of the given type."""
    return tirx.const(value, dtype)


def splat(value: float, lanes: int, dtype: str = "float32") -> Expr:
    """Return a vector whose lanes are all one constant."""
    return broadcast(constant(value, dtype), lanes)


def broadcast(value: Expr, lanes: int) -> Expr:
    """Return a vector whose lanes are all one computed number."""
    return value if lanes == 1 else script.broadcast(value, lanes)


def cast(value: Expr, dtype: str) -> Expr:
    """Convert to another element type, lane by lane; float to integer rounds toward zero."""
    lanes = lanes_of(value)
    return value.astype(vector_type(dtype, lanes))


def reinterpret(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """Read the same bits as another vector type of the same width."""
    return op.reinterpret(vector_type(dtype, lanes), value)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a · b + c, rounded once."""
    return intrinsic(vector_type(dtype_of(a), lanes_of(a)), "llvm.fma", a, b, c)


def intrinsic(dtype: str, name: str, *values: Expr) -> Expr:
    """Call a pure LLVM intrinsic."""
    return op.call_llvm_pure_intrin(dtype, name, *values)


def call_impure(dtype: str, name: str, *values: Expr) -> Expr:
    """Call an LLVM intrinsic that may give something else each time."""
    return op.call_llvm_intrin(dtype, name, *values)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller one, lane by lane (b where a is not a number)."""
    return tirx.Select(a < b, a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger one, lane by lane (b where a is not a number)."""
    return tirx.Select(a > b, a, b)


def smaller(a: Expr, b: Expr | int) -> Expr:
    """The smaller one of two sizes."""
    return tirx.Min(a, _index(b))


def larger(a: Expr, b: Expr | int) -> Expr:
    """The larger one of two sizes."""
    return tirx.Max(a, _index(b))


def quotient(a: Expr, b: Expr | int) -> Expr:
    """The quotient of two sizes, rounded down."""
    return tirx.truncdiv(a, _index(b))


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    """a where the condition holds, else b; both are computed."""
    return tirx.Select(condition, a, b)


def consecutive(start: Expr, lanes: int) -> Expr:
    """Return the vector of start, start + 1, and so on."""
    return script.ramp(start, 1, lanes)


def shuffle(a: Expr, b: Expr, lanes: Sequence[int]) -> Expr:
    """Return the vector of the named lanes; those of b follow those of a."""
    return tirx.Shuffle([a, b], [tirx.IntImm("int32", i) for i in lanes])


def lane(value: Expr, index: int) -> Expr:
    """Return one number of a vector."""
    return tirx.Shuffle([value], [tirx.IntImm("int32", index)])


def low_bits(value: Expr, mask: int) -> Expr:
    """Bitwise and of every lane with a constant."""
    return op.bitwise_and(value, splat(mask, lanes_of(value), dtype_of(value)))


def flip_bits(value: Expr, mask: int) -> Expr:
    """Bitwise exclusive or of every lane with a constant."""
    return op.bitwise_xor(value, splat(mask, lanes_of(value), dtype_of(value)))


def shift_right(value: Expr, bits: int) -> Expr:
    """Shift every lane right; the sign is kept for signed types."""
    return op.shift_right(value, splat(bits, lanes_of(value), dtype_of(value)))


def shift_left(value: Expr, bits: int) -> Expr:
    """Shift every lane left."""
    return op.shift_left(value, splat(bits, lanes_of(value), dtype_of(value)))


def prefetch(buffer: Buffer, index: Expr) -> None:
    """Ask for a cache line to be read into the second-level cache, even one beyond the end."""
    for_reading, to_second_level, data = 0, 2, 1
    script.evaluate(
        op.call_llvm_intrin(
            "void",
            "llvm.prefetch",
            buffer.access_ptr("r", offset=index),
            *(constant(i, "int32") for i in (for_reading, to_second_level, data)),
        )
    )


class Registers:
    """A file of vector variables that LLVM keeps in registers as far as they go.

    Indices are Python integers.
    """

    def __init__(self, count: int, lanes: int, dtype: str = "float32") -> None:
        self._lanes = lanes
        self._per_part = max(1, STACK_BYTES // (lanes * 4))
        self._parts = [
            scratch(min(self._per_part, count - start) * lanes, dtype)
            for start in range(0, count, self._per_part)
        ]

    def __getitem__(self, index: int) -> Expr:
        part, place = divmod(index, self._per_part)
        return load(self._parts[part], place * self._lanes, lanes=self._lanes)

    def __setitem__(self, index: int, value: Expr) -> None:
        part, place = divmod(index, self._per_part)
        store(self._parts[part], value, place * self._lanes)


def vector_type(dtype: str, lanes: int) -> str:
    """Name a vector type.

    >>> vector_type("float32", 16), vector_type("int64", 1)
    ('float32x16', 'int64')
    """
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def dtype_of(value: Expr) -> str:
    """Element type of a buffer or an expression."""
    return str(value.ty.dtype).partition("x")[0]


def lanes_of(value: Expr) -> int:
    """Lanes of an expression; 1 for a number."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return int(lanes) if lanes else 1


def ceil_div(a: int, b: int) -> int:
    """Quotient rounded up, of Python integers."""
    return -(-a // b)


def _index(value: Expr) -> Expr:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _place(index: Sequence[Index], lanes: int) -> list[Expr]:
    *lead, start = (_index(i) for i in index)
    return [*lead, start if lanes == 1 else script.ramp(start, 1, lanes)]
