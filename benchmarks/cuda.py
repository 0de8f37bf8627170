"""Time a CUDA artifact on a GPU, with the small runtime only, beside the library's own kernels.

    python benchmarks/cuda.py ARTIFACT [--prompt 512] [--tokens 128] [--repeats 5] [--json]

The artifact may have been built elsewhere; neither the compiler nor TVM's is needed here. In the
same run: tokens a second of prompt and of generation; the bytes that a generated token reads,
against what a copy kernel reads and writes; the operations of a prompt's products, against cuBLAS
on bytes; and such products in bfloat16. The library's part needs a torch that sees the GPU, and is
left out without it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from qcompiler.core.artifact import FunctionCosts, Manifest
from qcompiler.core.errors import QCompilerError
from qcompiler.runtime import LanguageModel, load

COPIED_BYTES = 1 << 30
"""More than any cache holds."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What the artifact does."""

    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    read_bytes_per_s: float
    product_ops_per_s: float


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """What the library does with the same GPU."""

    gpu: str
    copy_bytes_per_s: float
    """Read and written."""
    int8_ops_per_s: float
    bfloat16_ops_per_s: float
    bfloat16_token_bytes_per_s: float
    """Weights that products of one row read."""


def main() -> int:
    """Time and print; 1 and a sentence where the artifact cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        model = load(given.artifact)
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not isinstance(model, LanguageModel) or not model.manifest.target.compute_capability:
        print(f"error: {given.artifact} is no language model for a GPU", file=sys.stderr)
        return 1
    ours = time_artifact(model, given.prompt, given.tokens, given.repeats)
    theirs = time_library(model.manifest, given.prompt)
    if given.json:
        print(json.dumps({"ours": asdict(ours), "theirs": asdict(theirs) if theirs else None}))
    else:
        print_results(ours, theirs)
    return 0


def time_artifact(model: LanguageModel, prompt: int, tokens: int, repeats: int) -> Ours:
    """Time a prompt and what follows it; the median of some repeats, after one that warms up."""
    ids = np.arange(prompt) % model.vocab_size
    read: list[float] = []
    wrote: list[float] = []
    for _ in range(repeats + 1):
        session = model.new_session()
        began = time.perf_counter()
        logits = session.prefill(ids)
        read.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(tokens):
            logits = session.decode(int(logits.argmax()))
        wrote.append(time.perf_counter() - began)
    prefill, decode = (median(times[1:]) for times in (read, wrote))
    costs = _costs(model.manifest)
    context = prompt + tokens // 2
    return Ours(
        prompt_tokens_per_s=prompt / prefill,
        generated_tokens_per_s=tokens / decode,
        read_bytes_per_s=costs["decode"].bytes(1, context) * tokens / decode,
        product_ops_per_s=_product_operations(costs["prefill"], prompt) / prefill,
    )


def _costs(manifest: Manifest) -> dict[str, FunctionCosts]:
    found = {name: function.costs for name, function in manifest.functions.items()}
    return {name: costs for name, costs in found.items() if costs is not None}


def _product_operations(costs: FunctionCosts, tokens: int) -> float:
    """Return the operations of a prompt's products; the head's are those of one token."""
    return sum(
        factor * tokens**i
        for call in costs.calls
        for factor, i, j in costs.kernels[call].operations
        if costs.kernels[call].kind.startswith("product") and not j
    )


# -- the library -----------------------------------------------------------------------------------


def time_library(manifest: Manifest, prompt: int) -> Theirs | None:
    """Time torch's products on the GPU, of the size that most of the model's work has."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    elements = max(math.prod(map(int, spec.shape)) for spec in manifest.weights)
    side = 1 << max(10, int(math.log2(math.sqrt(elements))))
    rows = max(32, prompt)
    device = torch.device("cuda")
    source = torch.empty(COPIED_BYTES // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a8 = torch.ones(rows, side, dtype=torch.int8, device=device)
    b8 = torch.ones(side, side, dtype=torch.int8, device=device).t()
    a16, b16 = (torch.ones(n, side, dtype=torch.bfloat16, device=device) for n in (rows, side))
    one = a16[:1]
    operations = 2 * rows * side * side

    def best(call: Callable[[], Any]) -> float:
        return _best(torch, call)

    return Theirs(
        gpu=torch.cuda.get_device_name(),
        copy_bytes_per_s=COPIED_BYTES / best(lambda: target.copy_(source)),
        int8_ops_per_s=operations / best(lambda: torch._int_mm(a8, b8)),
        bfloat16_ops_per_s=operations / best(lambda: a16 @ b16.t()),
        bfloat16_token_bytes_per_s=2 * side * side / best(lambda: one @ b16.t()),
    )


def _best(torch: Any, call: Callable[[], Any], seconds: float = 0.5) -> float:
    """Return the median seconds of the fastest quarter of calls, by the GPU's clock."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return median(sorted(times)[: max(1, len(times) // 4)])


def print_results(ours: Ours, theirs: Theirs | None) -> None:
    """Print what was measured, side by side."""
    print(f"prompt       {ours.prompt_tokens_per_s:12,.0f} tokens/s")
    print(f"generation   {ours.generated_tokens_per_s:12,.1f} tokens/s")
    print(f"bytes read   {ours.read_bytes_per_s / 1e9:12,.1f} GB/s in generation")
    print(f"products     {ours.product_ops_per_s / 1e12:12,.2f} TOP/s in the prompt")
    if theirs is None:
        print("torch sees no GPU here: no copy kernel, cuBLAS or bfloat16 to compare with")
        return
    print(f"on {theirs.gpu}, by torch:")
    print(f"copy         {theirs.copy_bytes_per_s / 1e9:12,.1f} GB/s read and written")
    print(f"int8         {theirs.int8_ops_per_s / 1e12:12,.2f} TOP/s, cuBLAS")
    print(f"bfloat16     {theirs.bfloat16_ops_per_s / 1e12:12,.2f} TOP/s, cuBLAS")
    print(f"one row      {theirs.bfloat16_token_bytes_per_s / 1e9:12,.1f} GB/s of bfloat16 weights")


if __name__ == "__main__":
    sys.exit(main())
