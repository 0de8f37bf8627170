"""Instructions that TVM has no words for, as device functions in CUDA C and PTX.

Fragments are named as in NVIDIA's PTX ISA, section "Matrix multiply-accumulate operation using mma
instruction". Each `asm` statement is one instruction, so that the emulator of the tests can put a
C++ function in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script.ir_builder import tirx as script

from codegen.kernels.builder import Buffer, Expr, bind, lane, lanes_of, load
from codegen.kernels.cuda.threads import call, int32


def dot_bytes(signed: Expr, unsigned: Expr, total: Expr) -> Expr:
    """total + the products of four signed and four unsigned bytes, summed; int32 each."""
    return cuda_func_call(
        "qc_dot_bytes", signed, unsigned, total, source_code=_DOT_BYTES, return_type="int32"
    )


_DOT_BYTES = """
__forceinline__ __device__ int qc_dot_bytes(int a, int b, int c) {
  int d;
  asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
"""


def mma_bytes(sums: Buffer, place: int, a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """Add the product of tiles of bytes to four int32 of `sums` from `place` on.

    a: four registers of a 16 × 32 tile, signed; b: two of a 32 × 8 tile, unsigned.
    """
    at = [load(sums, place + i) for i in range(4)]
    pointer = tirx.address_of(at[0])
    script.evaluate(cuda_func_call("qc_mma_bytes", pointer, *a, *b, source_code=_MMA_BYTES))


_MMA_BYTES = """
__forceinline__ __device__ void qc_mma_bytes(int* d, int a0, int a1, int a2, int a3, int b0, int b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3]));
}
"""  # noqa: E501


def mma_halves(sums: Buffer, place: int, a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """Add the product of tiles of float16 to four float32 of `sums` from `place` on.

    a: four registers of a 16 × 16 tile, two numbers each; b: two of a 16 × 8 tile; as int32.
    """
    pointer = tirx.address_of(load(sums, place))
    script.evaluate(cuda_func_call("qc_mma_halves", pointer, *a, *b, source_code=_MMA_HALVES))


_MMA_HALVES = """
__forceinline__ __device__ void qc_mma_halves(float* d, int a0, int a1, int a2, int a3, int b0, int b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]));
}
"""  # noqa: E501


def half_to_float(bits: Expr) -> Expr:
    """Widen the float16 in the low half of an int32."""
    return cuda_func_call(
        "qc_half_to_float", bits, source_code=_HALF_TO_FLOAT, return_type="float32"
    )


_HALF_TO_FLOAT = """
__forceinline__ __device__ float qc_half_to_float(int bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
}
"""


def float_to_half(value: Expr) -> Expr:
    """Round to float16, to nearest, ties to even; its bits are the low half of an int32."""
    return cuda_func_call(
        "qc_float_to_half", value, source_code=_FLOAT_TO_HALF, return_type="int32"
    )


_FLOAT_TO_HALF = """
__forceinline__ __device__ int qc_float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
"""


def two_halves(low: Expr, high: Expr) -> Expr:
    """Round two numbers to float16 and put them side by side in an int32."""
    return cuda_func_call("qc_two_halves", low, high, source_code=_TWO_HALVES, return_type="int32")


_TWO_HALVES = """
__forceinline__ __device__ int qc_two_halves(float low, float high) {
  int both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
"""


def subtract_halves(a: Expr, b: Expr) -> Expr:
    """a − b for two float16 side by side."""
    return cuda_func_call("qc_subtract_halves", a, b, source_code=_SUBTRACT, return_type="int32")


_SUBTRACT = """
__forceinline__ __device__ int qc_subtract_halves(int a, int b) {
  int d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
"""


def pick_bytes(a: Expr, b: Expr, selector: int) -> Expr:
    """Put four of the eight bytes of two registers together: those of b are 4 to 7."""
    return bind(call("int32", "__byte_perm", a, b, int32(selector)))


def round_to_int(value: Expr) -> Expr:
    """Round to the nearest integer, ties to even; int32."""
    return call("int32", "__float2int_rn", value)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a · b + c, rounded once."""
    return call("float32", "__fmaf_rn", a, b, c)


def words(value: Expr) -> list[Expr]:
    """Return the numbers of a vector that has been loaded."""
    value = script.bind(value)  # not `bind`, which would put a vector into memory
    return [bind(lane(value, i)) for i in range(lanes_of(value))]
