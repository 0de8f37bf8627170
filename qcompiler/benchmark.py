"""How fast an artifact runs on this machine, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.benchmark_process import WRONG_USAGE
from qcompiler.core.artifact import Manifest, read_manifest
from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.kernel_table import FunctionTime, Limits, function_time


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The best of several repeats.

    time_to_first_token_s counts from the start of the process, with a short prompt.
    stream_bytes_per_s are the bytes of weights and caches read per second while decoding.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    time_to_first_token_s: float
    peak_memory_bytes: int
    weight_bytes: int
    stream_bytes_per_s: float
    threads: int
    limits: Limits | None
    """What this machine does at best; None where nothing is known of the kernels' costs."""
    functions: tuple[FunctionTime, ...]
    """Prefill and decode, kind by kind of operator; those whose kernels' costs are known."""


def bench(
    path: str | Path,
    *,
    prompt_tokens: int = 512,
    generate_tokens: int = 128,
    threads: int | None = None,
    repeats: int = 5,
) -> BenchResult:
    """Time prefill and decode of a compiled language model.

    Raises:
        UsageError: counts that cannot be measured, or an artifact that is no language model.
        ArtifactError: the artifact cannot be run.
    """
    manifest = read_manifest(Path(path))
    if manifest.kind != "causal-lm":
        raise UsageError(f"{path} is no language model; bench times prefill and decode")
    for name, count in (
        ("prompt", prompt_tokens),
        ("generated", generate_tokens),
        ("repeat", repeats),
    ):
        if count < 1:
            raise UsageError(f"{count} {name} tokens or runs measure nothing; use 1 or more")
    if prompt_tokens + generate_tokens > manifest.model.max_context:
        raise UsageError(
            f"{prompt_tokens} + {generate_tokens} tokens do not fit the context of "
            f"{manifest.model.max_context}; ask for fewer, or compile with a larger --context"
        )
    start = time.time()
    arguments = [path, prompt_tokens, generate_tokens, threads or 0, repeats, start]
    done = subprocess.run(
        [sys.executable, "-m", "qcompiler.benchmark_process", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        if done.returncode == WRONG_USAGE:
            raise UsageError(lines[-1])
        raise ArtifactError(f"{path} could not be timed: {lines[-1] if lines else 'no output'}")
    found = json.loads(done.stdout)
    weight_bytes = manifest.sizes["weight_bytes"]
    # On average a step reads the caches of the prompt and of half the generated tokens.
    step_bytes = _step_bytes(manifest, prompt_tokens + generate_tokens // 2)
    measured, times = found.pop("limits"), found.pop("functions")
    limits = None if measured is None else Limits(**measured)
    return BenchResult(
        **found,
        limits=limits,
        functions=() if limits is None else tuple(_compared(manifest, limits, **t) for t in times),
        weight_bytes=weight_bytes,
        stream_bytes_per_s=step_bytes * found["decode_tokens_per_s"],
    )


def _step_bytes(manifest: Manifest, context: int) -> float:
    """Return the bytes of weights and caches that a token reads."""
    costs = manifest.functions["decode"].costs
    if costs is not None:
        return costs.bytes(1, context)
    # An embedding that is no head too is counted, though but a row of it is read.
    cached = context * sum(cache.token_bytes for cache in manifest.model.kv)
    return manifest.sizes["weight_bytes"] + cached


def _compared(manifest: Manifest, limits: Limits, name: str, **times: Any) -> FunctionTime:
    """Hold a function's times against what its kernels take."""
    costs = manifest.functions[name].costs
    assert costs is not None, name
    return function_time(name, costs, limits, **times)
