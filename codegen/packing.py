"""How the bytes of a weight lie in memory for the matrix-product kernels.

A *tile* is the outputs one iteration of a kernel's parallel loop computes: `vectors` vectors of
`lanes` outputs. Within a tile the weights of consecutive inputs follow each other, so that a kernel
reads one linear stream, and one packing serves the kernels for one row and for many:

    4-bit codes    [tile][k / 8][vector][lane][4 bytes], inputs k..k+3 in the low halves of the
                   bytes, k+4..k+7 in the high halves
    8-bit codes    [tile][k / 4][vector][lane][4 bytes]
    float32        [tile][k][vector][lane]
    scales (float16), zero points (uint8)    [tile][group][vector][lane]

4-bit codes are stored from 0 to 15, symmetric ones 8 larger than they are. 8-bit codes are stored
from 0 to 255, symmetric ones 128 larger than they are; or, where a machine multiplies signed bytes,
from -128 to 127, asymmetric ones 128 smaller than they are.
Outputs are padded to whole tiles with rows of zeros, inputs to a multiple of 8 with codes whose
activations the kernels' callers keep at zero, and each array to a multiple of 64 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.target import Target

ALIGNMENT = 64  # bytes

_INPUTS_PER_STEP = 8
_MOST_VECTORS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The layout of one weight of `n` outputs and `k` inputs.

    bits: storage of one number: 4 or 8 for codes, 32 for float weights. group: inputs that share a
    scale (k when there is one scale per output). gated: the rows are n/2 of a gate and then n/2 of
    what it scales; a tile holds matching rows of both, its even vectors the gate's. signed: 8-bit
    codes are stored as signed bytes.
    """

    n: int
    k: int
    bits: int
    group: int
    symmetric: bool = True
    gated: bool = False
    signed: bool = False
    lanes: int
    vectors: int

    def __post_init__(self) -> None:
        assert self.bits in (4, 8, 32), self.bits
        assert self.vectors in (1, 2, 4), self.vectors
        assert not self.gated or (self.n % 2 == 0 and self.vectors > 1), self

    @property
    def outputs(self) -> int:
        """Numbers that the product yields per row: n, or n/2 when gated."""
        return self.n // 2 if self.gated else self.n

    @property
    def outputs_per_tile(self) -> int:
        width = self.lanes * self.vectors
        return width // 2 if self.gated else width

    @property
    def rows_per_tile(self) -> int:
        """Weight rows in a tile, padding included."""
        return self.lanes * self.vectors

    @property
    def tiles(self) -> int:
        return -(-self.outputs // self.outputs_per_tile)

    @property
    def padded_k(self) -> int:
        """Inputs a kernel reads: for codes, rounded up to a multiple of 8."""
        step = _INPUTS_PER_STEP if self.bits <= 8 else 1
        return -(-self.k // step) * step

    @property
    def groups(self) -> int:
        """Scales per output."""
        return -(-self.k // self.group)

    @property
    def offset(self) -> int:
        """What was added to codes to store them."""
        if self.bits == 8 and self.signed:
            return 0 if self.symmetric else -128
        return 1 << (self.bits - 1) if self.symmetric and self.bits <= 8 else 0

    @property
    def largest_code(self) -> int:
        """The largest size that a code can have."""
        return 1 << (self.bits - 1) if self.symmetric else (1 << self.bits) - 1

    @property
    def code_bytes(self) -> int:
        """Length of the array of codes (or float weights), in bytes, padding included."""
        return _aligned(self.tiles * self.rows_per_tile * self.padded_k * self.bits // 8)

    @property
    def scale_count(self) -> int:
        """Length of the array of scales, padding included."""
        return _aligned(self.tiles * self.rows_per_tile * self.groups * 2) // 2

    @property
    def zero_point_count(self) -> int:
        """Length of the array of zero points, padding included."""
        return _aligned(self.tiles * self.rows_per_tile * self.groups)


def packing_for(
    target: Target,
    n: int,
    k: int,
    form: TensorFormat | None,
    *,
    gated: bool = False,
    widen: bool = False,
) -> Packing:
    """Choose the layout of a weight on a target; without a format it is a float one."""
    lanes, most = target.lanes, target.tile_vectors
    if form is None:
        return float_packing(n, k, lanes=lanes, gated=gated, most_vectors=most)
    return code_packing(
        n,
        k,
        form,
        lanes=lanes,
        gated=gated,
        signed=target.signed_bytes,
        widen=widen,
        most_vectors=most,
    )


def float_packing(
    n: int,
    k: int,
    *,
    lanes: int,
    threads: int = 2,
    gated: bool = False,
    most_vectors: int = _MOST_VECTORS,
) -> Packing:
    """Choose the layout of a float weight."""
    vectors = choose_vectors(
        n // 2 if gated else n, lanes=lanes, threads=threads, gated=gated, most=most_vectors
    )
    return Packing(n=n, k=k, bits=32, group=k, gated=gated, lanes=lanes, vectors=vectors)


def code_packing(
    n: int,
    k: int,
    form: TensorFormat,
    *,
    lanes: int,
    threads: int = 2,
    gated: bool = False,
    signed: bool = False,
    widen: bool = False,
    most_vectors: int = _MOST_VECTORS,
) -> Packing:
    """Choose the layout of a quantised weight.

    Codes of 2 and 3 bits are stored in 4. Those of 5 to 7 bits are stored in 8 if `widen` allows
    it; otherwise they are an UnsupportedError, because nothing would be gained by them.
    """
    if 4 < form.bits < 8 and not widen:
        raise UnsupportedError(
            f"weights of {form.bits} bits have no packing of their own and would take 8 bits each; "
            "use 4 or 8 bits, or allow widening"
        )
    outputs = n // 2 if gated else n
    return Packing(
        n=n,
        k=k,
        bits=4 if form.bits <= 4 else 8,
        group=form.group_size(k),
        symmetric=form.symmetric,
        gated=gated,
        signed=signed,
        lanes=lanes,
        vectors=choose_vectors(
            outputs, lanes=lanes, threads=threads, gated=gated, most=most_vectors
        ),
    )


def choose_vectors(
    outputs: int, *, lanes: int, threads: int, gated: bool = False, most: int = _MOST_VECTORS
) -> int:
    """Choose a tile's width: the widest whose tiles keep all threads equally busy.

    Wide tiles make long runs of memory and reuse each activation more often. A gated tile has at
    least two vectors, whatever `most` says.

    >>> [choose_vectors(n, lanes=16, threads=2) for n in (576, 960, 3072, 49152)]
    [2, 2, 4, 4]
    """

    def work(vectors: int) -> int:
        """Outputs the busiest thread computes."""
        width = vectors * lanes // (2 if gated else 1)
        return -(-outputs // (width * threads)) * width

    most = max(most, 2) if gated else most
    choices = [v for v in (4, 2, 1) if v <= most and (v > 1 or not gated)]
    least = min(work(v) for v in choices)
    return next(v for v in choices if work(v) <= 1.02 * least)


def pack(
    packing: Packing,
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Lay out a quantised weight as flat arrays, in the order kernels take them.

    codes: [n, k] int8 (symmetric) or uint8; scale: [n, g] float16; zero_point: [n, g] uint8, only
    when asymmetric. Returns codes (uint8), scales (float16) and, when asymmetric, zero_points
    (uint8).
    """
    assert codes.shape == (packing.n, packing.k), (codes.shape, packing)
    assert (zero_point is None) == packing.symmetric, packing
    # Bytes wrap around, which is what adding an offset to signed codes needs.
    tiled = _tile_rows(
        packing, codes.view(np.uint8) + np.uint8(packing.offset % 256), packing.padded_k
    )
    if packing.bits == 4:
        halves = tiled.reshape(*tiled.shape[:3], packing.padded_k // 8, 2, 4)
        halves = halves.transpose(0, 3, 1, 2, 4, 5)
        packed = halves[..., 0, :] | (halves[..., 1, :] << 4)
    else:
        packed = tiled.reshape(*tiled.shape[:3], packing.padded_k // 4, 4).transpose(0, 3, 1, 2, 4)
    arrays = {
        "codes": _flat(packed, packing.code_bytes),
        "scales": _flat(_by_group(packing, scale.astype(np.float16)), packing.scale_count),
    }
    if zero_point is not None:
        zeros = _by_group(packing, zero_point.astype(np.uint8))
        arrays["zero_points"] = _flat(zeros, packing.zero_point_count)
    return arrays


def unpack(
    packing: Packing, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Take back what `pack` was given: codes, scale and zero point."""
    tiles, k = packing.tiles, packing.padded_k
    packed = arrays["codes"][: tiles * packing.rows_per_tile * k * packing.bits // 8]
    shape = (packing.vectors, packing.lanes, 4)
    if packing.bits == 4:
        steps = packed.reshape(tiles, k // 8, *shape)
        halves = np.stack((steps & 15, steps >> 4), axis=4)
        stored = _untile_rows(packing, halves.transpose(0, 2, 3, 1, 4, 5))
    else:
        stored = _untile_rows(
            packing, packed.reshape(tiles, k // 4, *shape).transpose(0, 2, 3, 1, 4)
        )
    codes = stored[:, : packing.k] - np.uint8(packing.offset % 256)
    scale = _by_row(packing, arrays["scales"])
    zeros = None if packing.symmetric else _by_row(packing, arrays["zero_points"])
    return codes.view(np.int8) if packing.symmetric else codes, scale, zeros


def pack_float(packing: Packing, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Lay out a float weight [n, k] as one flat float32 array, weights."""
    assert weight.shape == (packing.n, packing.k), (weight.shape, packing)
    tiled = _tile_rows(packing, weight.astype(np.float32, copy=False), packing.padded_k)
    return {"weights": _flat(tiled.transpose(0, 3, 1, 2), packing.code_bytes // 4)}


def unpack_float(packing: Packing, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Take back what `pack_float` was given."""
    shape = (packing.tiles, packing.padded_k, packing.vectors, packing.lanes)
    packed = arrays["weights"][: np.prod(shape)].reshape(shape)
    return _untile_rows(packing, packed.transpose(0, 2, 3, 1))[:, : packing.k]


def _tile_rows(packing: Packing, rows: np.ndarray, columns: int) -> np.ndarray:
    """Cut [n, c] into [tile, vector, lane, columns], padded with zeros."""
    parts = 2 if packing.gated else 1
    split = rows.reshape(parts, packing.outputs, -1)
    missing = packing.tiles * packing.outputs_per_tile - packing.outputs
    split = np.pad(split, ((0, 0), (0, missing), (0, columns - rows.shape[1])))
    # A gated tile takes its vectors in turn from the two halves.
    split = split.reshape(parts, packing.tiles, packing.vectors // parts, packing.lanes, columns)
    return split.transpose(1, 2, 0, 3, 4).reshape(
        packing.tiles, packing.vectors, packing.lanes, columns
    )


def _untile_rows(packing: Packing, tiled: np.ndarray) -> np.ndarray:
    """Undo `_tile_rows` but for the columns' padding: [tile, vector, lane, ...] → [n, columns]."""
    parts = 2 if packing.gated else 1
    split = tiled.reshape(packing.tiles, packing.vectors // parts, parts, packing.lanes, -1)
    rows = split.transpose(2, 0, 1, 3, 4).reshape(parts, -1, split.shape[-1])
    return rows[:, : packing.outputs].reshape(packing.n, -1)


def _by_group(packing: Packing, values: np.ndarray) -> np.ndarray:
    """Lay out one number per output and group: [n, g] → [tile, group, vector, lane]."""
    assert values.shape == (packing.n, packing.groups), (values.shape, packing)
    return _tile_rows(packing, values, packing.groups).transpose(0, 3, 1, 2)


def _by_row(packing: Packing, flat: np.ndarray) -> np.ndarray:
    """Undo `_by_group`."""
    shape = (packing.tiles, packing.groups, packing.vectors, packing.lanes)
    return _untile_rows(packing, flat[: np.prod(shape)].reshape(shape).transpose(0, 2, 3, 1))


def _flat(values: np.ndarray, length: int) -> np.ndarray:
    """Flatten, padded with zeros to `length` numbers."""
    out = np.zeros(length, values.dtype)
    out[: values.size] = values.reshape(-1)
    return out


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
