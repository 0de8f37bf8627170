"""Measure how long compiled functions take on this machine, and keep what was measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tvm

from codegen.weights import WeightArray
from qcompiler.core.artifact import ALIGNMENT
from qcompiler.core.cache import read_cached, write_cached
from qcompiler.core.target import Target

_ROUNDS = 6
_SECONDS = 0.25  # to go on measuring for, at the least
_MOST_SECONDS = 4.0  # … and at the most, while times still fall
_FALLEN = 0.99  # what they were, since as many rounds ago


def best_times(calls: Sequence[Callable[[], object]], prepare: Callable[[], object]) -> list[float]:
    """Return the least seconds of each call, in several rounds through all of them in order.

    Each call thus finds the caches as the others leave them, and what else runs on the machine
    counts only where it disturbs every round. `prepare` sets up the threads before each.
    """
    best, began = [float("inf")] * len(calls), time.perf_counter()
    history: list[float] = []
    while True:
        for place, call in enumerate(calls):
            prepare()
            before = time.perf_counter()
            call()
            # The first round brings the code in.
            if history:
                best[place] = min(best[place], time.perf_counter() - before)
        history.append(sum(best))
        if len(history) <= _ROUNDS + 1:
            continue
        passed = time.perf_counter() - began
        still_falling = history[-1] < _FALLEN * history[-1 - _ROUNDS]
        if passed > (_MOST_SECONDS if still_falling else _SECONDS):
            return best


def kept(kind: str, key: str, measure: Callable[[], list[float]]) -> list[float]:
    """Return what was measured before under `key`, or measure it and keep it.

    What was measured while the machine had other work is measured again once it has none.
    """
    name = f"{kind}/{key}.json"
    found = read_cached(name)
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged file is no record
        record = json.loads(found or b"null")
        if not record["busy"] or machine_is_busy():
            return [float(seconds) for seconds in record["seconds"]]
    busy = machine_is_busy()
    measured = measure()
    write_cached(name, json.dumps({"seconds": measured, "busy": busy}).encode())
    return measured


def machine_is_busy() -> bool:
    """Tell whether more threads than there are processors wanted to run of late, ours included."""
    return os.getloadavg()[0] > 1.75 * len(os.sched_getaffinity(0))


def stand_ins(
    entries: Sequence[WeightArray], seed: int = 0, codes: np.ndarray | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield an array in the place of each packed weight: small random numbers, any codes.

    codes: bytes to take codes from, `code_bytes` of them, where new ones are not wanted.
    """
    rng = np.random.default_rng(seed)
    begin = 0
    for entry in entries:
        if entry.dtype == "uint8" and codes is not None:
            size = math.prod(entry.shape)
            yield entry.name, codes[begin : begin + size].reshape(entry.shape)
            begin += _aligned(size)
        elif entry.dtype == "uint8":
            yield entry.name, rng.integers(0, 256, entry.shape, np.uint8)
        elif np.issubdtype(np.dtype(entry.dtype), np.floating):
            values = rng.random(entry.shape, np.float32)
            # Like weights: products of them neither vanish nor run over.
            values *= 2e-3 if entry.name.endswith("/scales") else 2e-2
            yield entry.name, values.astype(entry.dtype)
        else:
            yield entry.name, np.zeros(entry.shape, entry.dtype)


def code_bytes(entries: Sequence[WeightArray]) -> int:
    """Return how many bytes the codes of packed weights take, one after the other."""
    return sum(_aligned(math.prod(entry.shape)) for entry in entries if entry.dtype == "uint8")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def cache_key(target: Target, what: dict[str, object]) -> str:
    """Return a hash of what is timed and of all that the time depends on."""
    return hashlib.sha256(
        json.dumps(
            what
            | {"target": target.name, "tvm": dict(target.tvm), "compiler": tvm.__version__}
            | {
                "sources": _sources(),
                "machine": _processor(),
                "cpus": len(os.sched_getaffinity(0)),
            },
            sort_keys=True,
        ).encode()
    ).hexdigest()


def _sources() -> str:
    """Return a hash of this package: kernels that have changed are timed again."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """Return the model of this machine's processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
